// When sequences are compressed: as the policy says after a number of generated tokens, and when pages run short.
#pragma once
#include <algorithm>
#include <limits>
#include <vector>

#include "compression.h"
#include "sequence_table.h"

namespace entropy_mlc {

class CompressionSchedule {
 public:
  CompressionSchedule(PagePool* pool, EntryLayout* layout, Compressor* compressor)
      : pool_(pool), layout_(layout), compressor_(compressor) {}

  // Pages that a step takes.
  int64_t NewPages(const std::vector<BatchEntry>& batch) const {
    int64_t pages = 0;
    for (const BatchEntry& entry : batch) pages += layout_->NewPages(*entry.sequence, entry.new_tokens);
    return pages;
  }

  // Before a step is planned: compresses its sequences that are due, and if pages are short still, any sequence, under
  // "always" those of the step first.
  void BeforeStep(const Policy& policy, const std::vector<BatchEntry>& batch, bool is_tree, SequenceTable* sequences) {
    if (policy.decode == "full") return;
    for (const BatchEntry& entry : batch) {
      if (!is_tree && entry.new_tokens == 1 && Due(policy, *entry.sequence)) {
        // One page beside what the step takes: the token after a compression may need one that it had before.
        compressor_->Compress(policy, NewPages(batch) + 1, entry.sequence);
      }
    }
    auto missing = [&] { return NewPages(batch) - pool_->num_free(); };
    if (!Gently(policy)) {
      std::vector<Sequence*> candidates;
      for (const BatchEntry& entry : batch) candidates.push_back(entry.sequence);
      MakeRoom(policy, candidates, missing);
    }
    MakeRoom(policy, All(sequences), missing);
  }

  // After a step: compresses until no pages are `missing()`; an engine that asks for free pages first gets some then.
  template <typename Missing>
  void AfterStep(const Policy& policy, SequenceTable* sequences, Missing missing) {
    if (policy.decode != "full") MakeRoom(policy, All(sequences), missing);
  }

 private:
  static bool Gently(const Policy& policy) { return policy.compress_when == "pressure"; }

  bool Due(const Policy& policy, const Sequence& sequence) const {
    if (policy.compress_when != "always" || sequence.generated < policy.decode_gap) return false;
    int64_t limit = policy.capacity + (sequence.compressed() ? policy.slack : 0);
    return sequence.length > limit && compressor_->LargestLayer(sequence) > limit * compressor_->num_heads() &&
           compressor_->Applies(policy, sequence);
  }

  static std::vector<Sequence*> All(SequenceTable* sequences) {
    std::vector<Sequence*> all;
    for (auto& item : *sequences) all.push_back(&item.second);
    return all;
  }

  // Compresses the largest of the candidates first, each only if that frees a page. Under "pressure" a sequence loses
  // no more than is missing and `slack`, unless even all of them together have not enough to lose that way.
  template <typename Missing>
  void MakeRoom(const Policy& policy, std::vector<Sequence*> candidates, Missing missing) {
    if (missing() <= 0) return;
    std::sort(candidates.begin(), candidates.end(), [&](Sequence* a, Sequence* b) {
      return compressor_->LargestLayer(*a) > compressor_->LargestLayer(*b);
    });
    for (int round = Gently(policy) ? 0 : 1; round < 2; ++round) {
      for (Sequence* sequence : candidates) {
        if (missing() <= 0) return;
        Policy target = policy;
        if (round == 0) {
          int64_t pages = compressor_->OwnPages(*sequence) - missing() - CeilDiv(policy.slack, compressor_->page());
          target.capacity = std::max(policy.capacity, pages * compressor_->page());
        }
        if (!compressor_->Applies(target, *sequence)) continue;
        compressor_->Compress(target, std::numeric_limits<int64_t>::max(), sequence);
      }
    }
  }

  PagePool* pool_;
  EntryLayout* layout_;
  Compressor* compressor_;
};

}  // namespace entropy_mlc
