// The newest queries of every sequence, which say what it will look at: rope_append stores them, compression scores
// entries with them.
#pragma once
#include <algorithm>
#include <vector>

#include "cache_config.h"
#include "device.h"
#include "policy.h"
#include "sequence.h"

namespace entropy_mlc {

// Per layer `observed` [num_slots * window, num_attention_heads, head_dim]: a sequence has a slot of `window` rows, and
// the query of position p is in row slot * window + p % window.
class QueryWindow {
 public:
  QueryWindow(const CacheConfig& config, const Policy& policy, const Device* device)
      : window_(policy.window), num_slots_(policy.can_compress ? NumSlots(config, device) : 0), device_(device) {
    slot_bytes_ = window_ * config.num_attention_heads * config.head_dim * config.bytes_per_element();
    for (int64_t layer = 0; num_slots_ > 0 && layer < config.num_layers; ++layer) {
      ffi::Shape shape{num_slots_ * window_, config.num_attention_heads, config.head_dim};
      observed_.push_back(device->Empty(shape, config.dtype));
    }
    Clear();
  }

  void Clear() {
    free_.clear();
    for (int64_t slot = num_slots_ - 1; slot >= 0; --slot) free_.push_back(static_cast<int32_t>(slot));
  }

  // A sequence that finds no free slot is never compressed by its queries.
  void Open(Sequence* sequence) {
    if (free_.empty()) return;
    sequence->window_slot = free_.back();
    free_.pop_back();
  }
  void Close(const Sequence& sequence) {
    if (sequence.window_slot >= 0) free_.push_back(sequence.window_slot);
  }

  // `child` has the first child->length tokens of the parent, and a slot if there was one.
  void Fork(const Sequence& parent, Sequence* child) const {
    child->generated = parent.generated;
    child->observed = parent.observed;
    Truncate(parent.length - child->length, child);
    if (parent.window_slot < 0 || child->window_slot < 0) child->observed = 0;
    if (child->observed == 0) return;
    for (const Tensor& layer : observed_) {
      device_->Copy(layer, parent.window_slot * slot_bytes_, layer, child->window_slot * slot_bytes_, slot_bytes_);
    }
  }

  // Copies the rows of a sequence that has a slot to `bytes()` of host memory, layer by layer, or from there.
  size_t bytes() const { return observed_.size() * slot_bytes_; }
  void Read(const Sequence& sequence, char* rows) const {
    for (size_t layer = 0; layer < observed_.size(); ++layer) {
      device_->Read(observed_[layer], sequence.window_slot * slot_bytes_, rows + layer * slot_bytes_, slot_bytes_);
    }
  }
  void Write(const char* rows, const Sequence& sequence) {
    for (size_t layer = 0; layer < observed_.size(); ++layer) {
      device_->Write(rows + layer * slot_bytes_, observed_[layer], sequence.window_slot * slot_bytes_, slot_bytes_);
    }
  }

  void Append(int64_t tokens, Sequence* sequence) const {
    sequence->generated = tokens == 1 ? sequence->generated + 1 : 0;
    if (sequence->window_slot >= 0) sequence->observed = std::min(window_, sequence->observed + tokens);
  }

  // The rows of the `tokens` newest positions held what older positions had; nothing brings those back.
  void Truncate(int64_t tokens, Sequence* sequence) const {
    sequence->generated = std::max<int64_t>(0, sequence->generated - tokens);
    sequence->observed = std::max<int64_t>(0, sequence->observed - tokens);
  }

  // Whether the cache keeps queries at all.
  bool in_use() const { return num_slots_ > 0; }
  bool full(const Sequence& sequence) const { return sequence.window_slot >= 0 && sequence.observed == window_; }
  const Tensor& observed(int64_t layer) const { return observed_[layer]; }
  int64_t first_row(const Sequence& sequence) const { return sequence.window_slot * window_; }
  // The row of the newest token, counted from first_row.
  int64_t newest(const Sequence& sequence) const { return (sequence.length - 1) % window_; }

  // The rows of the `tokens` newest tokens of a sequence: -1 for one that is not among its last `window`, so that no
  // row is written twice. Returns the end of `rows`.
  int32_t* FillRows(const Sequence& sequence, int64_t tokens, int32_t* rows) const {
    for (int64_t t = sequence.length - tokens; t < sequence.length; ++t) {
      bool written = sequence.window_slot >= 0 && t >= sequence.length - window_;
      *rows++ = written ? static_cast<int32_t>(first_row(sequence) + t % window_) : -1;
    }
    return rows;
  }

 private:
  // An engine has a batch of sequences alive, and about as many that are over but kept for their beginnings. On the
  // host only touched slots cost memory.
  static int64_t NumSlots(const CacheConfig& config, const Device* device) {
    return device->is_host() ? std::max<int64_t>(1024, 4 * config.max_batch) : 2 * config.max_batch;
  }

  int64_t window_, num_slots_;
  const Device* device_;
  size_t slot_bytes_;
  std::vector<Tensor> observed_;
  std::vector<int32_t> free_;
};

}  // namespace entropy_mlc
