// What the cache knows about one sequence.
#pragma once
#include <algorithm>
#include <vector>

#include "gate_history.h"

namespace entropy_mlc {

// What one KV head of one layer of a compressed sequence holds.
struct HeadEntries {
  // Head page ids: entry i lies in pages[i / page] at offset i % page.
  std::vector<int32_t> pages;
  // Positions of the first entries, ascending, all below Sequence::exact_from. Every token from there on follows.
  std::vector<int32_t> kept;
};

struct LayerEntries {
  std::vector<HeadEntries> heads;
  std::vector<int32_t> free_cells;  // head pages of Sequence::pages that no head of this layer uses
};

struct Sequence {
  // Not compressed: entry t of every layer and head lies in pages[t / page] at offset t % page, and pages.size() ==
  // CeilDiv(length, page). Compressed: the pages that `layers` divides among the heads, in no order.
  std::vector<int32_t> pages;
  // Empty until the first compression.
  std::vector<LayerEntries> layers;
  // Tokens of the sequence: the RoPE position of the next one.
  int64_t length = 0;
  // The first position from which on every head of every layer still has every entry.
  int64_t exact_from = 0;
  // Newest tokens that came as a token tree (a chain) and wait for CommitAcceptedTokenTreeNodes.
  int64_t uncommitted = 0;
  // Steps of one token since the last longer one.
  int64_t generated = 0;
  // Where the newest queries are (query_window.h): a slot, or -1, and how many of the newest positions it holds.
  int32_t window_slot = -1;
  int64_t observed = 0;
  // What a sparse prefill observed; entries count as places, so `represented` means nothing once compressed.
  GateHistory gate;
  // Set by EnableSlidingWindowForSeq: nobody will fork this sequence inside its past, so it may be compressed.
  bool may_shrink = false;

  bool compressed() const { return !layers.empty(); }

  int64_t entries(int64_t layer, int64_t head) const {
    if (!compressed()) return length;
    return static_cast<int64_t>(layers[layer].heads[head].kept.size()) + length - exact_from;
  }
  int32_t head_page(int64_t layer, int64_t head, int64_t i, int64_t num_heads) const {
    return compressed() ? layers[layer].heads[head].pages[i] : static_cast<int32_t>(pages[i] * num_heads + head);
  }
  // The token that entry i of a head came from.
  int32_t position(int64_t layer, int64_t head, int64_t i) const {
    if (!compressed()) return static_cast<int32_t>(i);
    const std::vector<int32_t>& kept = layers[layer].heads[head].kept;
    int64_t n = static_cast<int64_t>(kept.size());
    return i < n ? kept[i] : static_cast<int32_t>(exact_from + i - n);
  }
  // Entries of the head that holds most.
  int64_t max_entries() const {
    int64_t most = compressed() ? 0 : length;
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      for (size_t head = 0; head < layers[layer].heads.size(); ++head) most = std::max(most, entries(layer, head));
    }
    return most;
  }
};

// A sequence in the batch of a step, and how many tokens the step appends to it.
struct BatchEntry {
  Sequence* sequence;
  int64_t new_tokens;
};

}  // namespace entropy_mlc
