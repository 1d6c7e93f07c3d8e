// What the gate of a sparse prefill remembers of a sequence between steps.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "ffi.h"

namespace entropy_mlc {

// What observing a segment gave: [layers from layer_skip on, G, 4], the four numbers of a row of the gates table.
struct GateRecord {
  int64_t segment;
  std::shared_ptr<const std::vector<float>> values;  // shared by the forks of a sequence
};

struct GateHistory {
  // Observed segments, ascending. The last one is the state that the next observation goes on from.
  std::vector<GateRecord> records;
  // Entries that the block representatives of every layer account for. They lag behind the sequence's length until the
  // next step that needs them, so that decode steps do not pay for them.
  int64_t represented = 0;

  // The history of the first `length` tokens alone: a segment that is not whole any more was not observed.
  void Truncate(int64_t length, int64_t segment_size) {
    represented = std::min(represented, length);
    while (!records.empty() && (records.back().segment + 1) * segment_size > length) records.pop_back();
  }
};

}  // namespace entropy_mlc
