// Query tiles of a step, in an order that a static partition over threads divides evenly.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "ffi.h"

namespace entropy_mlc {

constexpr int64_t kQueryTile = 64;

struct QueryTile {
  int32_t sequence;   // index in the batch
  int32_t first_row;  // relative to the sequence's new tokens
  int64_t cost;       // query rows times entries they see, up to a constant
};

// Appends the tiles of a sequence with `new_tokens` rows that ends at `length` entries.
inline void AppendTiles(int32_t sequence, int64_t new_tokens, int64_t length, std::vector<QueryTile>* tiles) {
  for (int64_t row = 0; row < new_tokens; row += kQueryTile) {
    int64_t rows = std::min(kQueryTile, new_tokens - row);
    int64_t entries = length - new_tokens + row + (rows + 1) / 2;
    tiles->push_back({sequence, static_cast<int32_t>(row), rows * entries});
  }
}

// Orders tiles[begin, end), heaviest first on entry, so that its first and second half cost about the same, and so
// do their halves: deals heavy, light, light, heavy to the two halves. `scratch` is as large as `tiles`.
template <typename Tile>
void BalanceHalves(std::vector<Tile>& tiles, std::vector<Tile>& scratch, size_t begin, size_t end) {
  if (end - begin <= 2) return;
  size_t first = begin, second = begin + (end - begin + 1) / 2;
  size_t middle = second;
  for (size_t i = begin; i < end; ++i) {
    bool to_first = (i - begin) % 4 == 0 || (i - begin) % 4 == 3 || second == end;
    scratch[to_first ? first++ : second++] = tiles[i];
  }
  std::copy(scratch.begin() + begin, scratch.begin() + end, tiles.begin() + begin);
  BalanceHalves(tiles, scratch, begin, middle);
  BalanceHalves(tiles, scratch, middle, end);
}

// A Tile has a cost.
template <typename Tile>
void BalanceTiles(std::vector<Tile>* tiles) {
  std::stable_sort(tiles->begin(), tiles->end(), [](const Tile& a, const Tile& b) { return a.cost > b.cost; });
  std::vector<Tile> scratch(tiles->size());
  BalanceHalves(*tiles, scratch, 0, tiles->size());
}

}  // namespace entropy_mlc
