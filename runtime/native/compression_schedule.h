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

  // Before a step is planned: compresses its sequences that are due, and if pages are short still, any sequence.
  void BeforeStep(const Policy& policy, const std::vector<BatchEntry>& batch, bool is_tree, SequenceTable* sequences) {
    if (policy.decode == "full") return;
    for (const BatchEntry& entry : batch) {
      if (!is_tree && entry.new_tokens == 1 && Due(policy, *entry.sequence)) {
        // One page beside what the step takes: the token after a compression may need one that it had before.
        compressor_->Compress(policy, NewPages(batch) + 1, entry.sequence);
      }
    }
    auto enough = [&] { return NewPages(batch) <= pool_->num_free(); };
    std::vector<Sequence*> candidates;
    for (const BatchEntry& entry : batch) candidates.push_back(entry.sequence);
    MakeRoom(policy, candidates, enough);
    MakeRoom(policy, All(sequences), enough);
  }

  // After a step: compresses until `enough()`, so that an engine that asks for free pages first gets some.
  template <typename Enough>
  void AfterStep(const Policy& policy, SequenceTable* sequences, Enough enough) {
    if (policy.decode != "full") MakeRoom(policy, All(sequences), enough);
  }

 private:
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

  // Compresses the largest of the candidates first, each only if that frees a page.
  template <typename Enough>
  void MakeRoom(const Policy& policy, std::vector<Sequence*> candidates, Enough enough) {
    if (enough()) return;
    candidates.erase(std::remove_if(candidates.begin(), candidates.end(),
                                    [&](Sequence* s) { return !compressor_->Applies(policy, *s); }),
                     candidates.end());
    std::sort(candidates.begin(), candidates.end(), [&](Sequence* a, Sequence* b) {
      return compressor_->LargestLayer(*a) > compressor_->LargestLayer(*b);
    });
    for (Sequence* sequence : candidates) {
      if (enough()) return;
      compressor_->Compress(policy, std::numeric_limits<int64_t>::max(), sequence);
    }
  }

  PagePool* pool_;
  EntryLayout* layout_;
  Compressor* compressor_;
};

}  // namespace entropy_mlc
