// Which segments a step observes and gates, and its query tiles, cut so that a tile is dense or of one gated segment.
#pragma once
#include <algorithm>
#include <vector>

#include "policy.h"
#include "query_tiles.h"
#include "step_plan.h"

namespace entropy_mlc {

// A segment that a step holds all tokens of.
struct GateSegment {
  int32_t sequence;      // index in the batch
  int32_t first_row;     // relative to the sequence's new tokens
  int32_t index;         // of the segment in its sequence: positions index * segment_size and on
  int32_t previous_row;  // of the gates table: the state before this segment
  int32_t gated;         // 1: attends to chosen blocks and itself; 0: to everything before
};

struct GatedTile {
  int32_t sequence, first_row, num_rows;
  int32_t segment;  // index in the list of segments, -1 for dense attention
  int64_t cost;     // query rows times entries they read, up to a constant
};

// The segments that the step observes, by sequence, then by position. Segment 0 has nothing before it, a token tree may
// be taken back, and a compressed sequence's entries are no longer at the places that blocks are counted by.
inline std::vector<GateSegment> PlanSegments(const std::vector<BatchEntry>& batch, const Policy& policy, bool is_tree) {
  std::vector<GateSegment> segments;
  if (is_tree) return segments;
  int64_t size = policy.segment_size;
  for (size_t b = 0; b < batch.size(); ++b) {
    const Sequence& sequence = *batch[b].sequence;
    if (sequence.compressed()) continue;
    int64_t begin = sequence.length - batch[b].new_tokens;
    int32_t previous_row = static_cast<int32_t>(b);
    for (int64_t s = std::max<int64_t>(CeilDiv(begin, size), 1); (s + 1) * size <= sequence.length; ++s) {
      int32_t row = static_cast<int32_t>(batch.size() + segments.size());
      segments.push_back({static_cast<int32_t>(b), static_cast<int32_t>(s * size - begin), static_cast<int32_t>(s),
                          previous_row, s * size >= policy.threshold_len});
      previous_row = row;
    }
  }
  return segments;
}

// Tiles over every new row of the step, balanced as the dense ones of query_tiles.h.
inline std::vector<GatedTile> PlanGatedTiles(const std::vector<BatchEntry>& batch, const Policy& policy,
                                             const std::vector<GateSegment>& segments) {
  std::vector<GatedTile> tiles;
  // Rows [first, end) of sequence b; the first of them sees `before` entries beside those of the rows themselves.
  auto append = [&](int32_t b, int64_t first, int64_t end, int32_t segment, int64_t before) {
    for (int64_t row = first; row < end; row += kQueryTile) {
      int64_t rows = std::min(kQueryTile, end - row);
      int64_t entries = before + row - first + (rows + 1) / 2;
      tiles.push_back({b, static_cast<int32_t>(row), static_cast<int32_t>(rows), segment, rows * entries});
    }
  };
  size_t next = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    int32_t b = static_cast<int32_t>(i);
    int64_t begin = batch[i].sequence->length - batch[i].new_tokens, done = 0;
    for (; next < segments.size() && segments[next].sequence == b; ++next) {
      const GateSegment& s = segments[next];
      if (!s.gated) continue;
      append(b, done, s.first_row, -1, begin + done);
      done = s.first_row + policy.segment_size;
      append(b, s.first_row, done, static_cast<int32_t>(next), std::min(policy.base_budget, begin + s.first_row));
    }
    append(b, done, batch[i].new_tokens, -1, begin + done);
  }
  BalanceTiles(&tiles);
  return tiles;
}

}  // namespace entropy_mlc
