// The newest queries of every sequence, which say what it will look at: rope_append stores them, compression scores
// entries with them.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "cache_config.h"
#include "memory.h"
#include "policy.h"
#include "step_plan.h"

namespace entropy_mlc {

// Per layer `observed` [num_slots * window, num_attention_heads, head_dim]: a sequence has a slot of `window` rows, and
// the query of position p is in row slot * window + p % window. Only touched slots cost memory.
class QueryWindow {
 public:
  QueryWindow(const CacheConfig& config, const Policy& policy)
      : window_(policy.window), num_slots_(policy.can_compress ? std::max<int64_t>(1024, 4 * config.max_batch) : 0) {
    slot_bytes_ = window_ * config.num_attention_heads * config.head_dim * config.bytes_per_element();
    for (int64_t layer = 0; num_slots_ > 0 && layer < config.num_layers; ++layer) {
      auto memory = std::make_shared<ReservedMemory>(num_slots_ * slot_bytes_);
      ffi::Shape shape{num_slots_ * window_, config.num_attention_heads, config.head_dim};
      observed_.push_back(TensorOver(memory, shape, config.dtype));
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
      char* rows = static_cast<char*>(layer.data_ptr());
      std::memcpy(rows + child->window_slot * slot_bytes_, rows + parent.window_slot * slot_bytes_, slot_bytes_);
    }
  }

  // Calls visit(memory, bytes) for the rows of a sequence that has a slot, layer by layer.
  template <typename Visit>
  void ForEachLayer(const Sequence& sequence, Visit visit) const {
    for (const Tensor& layer : observed_) {
      visit(static_cast<char*>(layer.data_ptr()) + sequence.window_slot * slot_bytes_, slot_bytes_);
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

  bool full(const Sequence& sequence) const { return sequence.window_slot >= 0 && sequence.observed == window_; }
  const Tensor& observed(int64_t layer) const { return observed_[layer]; }
  int64_t first_row(const Sequence& sequence) const { return sequence.window_slot * window_; }
  // The row of the newest token, counted from first_row.
  int64_t newest(const Sequence& sequence) const { return (sequence.length - 1) % window_; }

  // Forgets the tables of the last step.
  void Begin() { tables_.clear(); }

  // (query_slots int32 [n], observed) of a layer in a step whose tokens are appended. query_slots: the row of each new
  // token that is among the last `window` of its sequence, else -1, so that no row is written twice.
  const ffi::Array<Tensor>& Tables(int64_t layer, const std::vector<BatchEntry>& batch) {
    if (tables_.empty()) {
      const Tensor& slots = FillQuerySlots(batch);
      for (const Tensor& observed : observed_) tables_.push_back({slots, observed});
    }
    return tables_[layer];
  }

 private:
  const Tensor& FillQuerySlots(const std::vector<BatchEntry>& batch) {
    int64_t tokens = 0;
    for (const BatchEntry& entry : batch) tokens += entry.new_tokens;
    query_slots_.Reserve(tokens);
    int32_t* slot = query_slots_.data();
    for (const BatchEntry& entry : batch) {
      const Sequence& sequence = *entry.sequence;
      for (int64_t t = sequence.length - entry.new_tokens; t < sequence.length; ++t) {
        bool written = sequence.window_slot >= 0 && t >= sequence.length - window_;
        *slot++ = written ? static_cast<int32_t>(first_row(sequence) + t % window_) : -1;
      }
    }
    return query_slots_.Publish({tokens});
  }

  int64_t window_, num_slots_;
  size_t slot_bytes_;
  std::vector<Tensor> observed_;
  std::vector<int32_t> free_;
  StepTable query_slots_;
  std::vector<ffi::Array<Tensor>> tables_;  // by layer, of the step that asked
};

}  // namespace entropy_mlc
