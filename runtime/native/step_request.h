// What BeginForward and the commit of a token tree ask for, checked before anything changes.
#pragma once
#include <vector>

#include "cache_config.h"
#include "sequence_table.h"
#include "step_plan.h"

namespace entropy_mlc {

// Without a tree every earlier tree must be committed. With one, node j of a sequence must follow node j - 1, where j
// goes on from the nodes that are still uncommitted (a tree may come in several steps).
inline void CheckTree(const std::vector<BatchEntry>& batch, const ffi::Shape& ids, int64_t tokens,
                      const ffi::Optional<ffi::Shape>& tree) {
  if (!tree.has_value()) {
    for (size_t i = 0; i < batch.size(); ++i) {
      if (batch[i].sequence->uncommitted > 0) {
        TVM_FFI_THROW(RuntimeError) << "The token tree of sequence " << ids[i] << " is not committed; call "
                                    << "CommitAcceptedTokenTreeNodes first.";
      }
    }
    return;
  }
  const ffi::Shape& parents = tree.value();
  if (static_cast<int64_t>(parents.size()) != tokens) {
    TVM_FFI_THROW(ValueError) << "The token tree has " << parents.size() << " nodes for a step of " << tokens
                              << " tokens.";
  }
  size_t node = 0;
  for (const BatchEntry& entry : batch) {
    for (int64_t j = 0; j < entry.new_tokens; ++j, ++node) {
      if (parents[node] != entry.sequence->uncommitted + j - 1) Unsupported("token trees that are not chains");
    }
  }
}

// The batch of a step. Its sequences are unchanged and the caller has still to find their pages.
inline std::vector<BatchEntry> CheckStep(const ffi::Shape& ids, const ffi::Shape& append_lengths,
                                         const ffi::Optional<ffi::Shape>& tree, const CacheConfig& config,
                                         SequenceTable* sequences) {
  if (ids.empty() || ids.size() != append_lengths.size()) {
    TVM_FFI_THROW(ValueError) << "BeginForward got " << ids.size() << " sequences and " << append_lengths.size()
                              << " append lengths.";
  }
  SequenceTable::RequireDistinct(ids);
  std::vector<BatchEntry> batch;
  int64_t tokens = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    Sequence& sequence = sequences->Find(ids[i]);
    if (append_lengths[i] < 1) {
      TVM_FFI_THROW(ValueError) << "BeginForward got " << append_lengths[i] << " tokens for sequence " << ids[i]
                                << "; at least 1 is needed.";
    }
    if (append_lengths[i] > config.max_step_tokens() - tokens) {
      TVM_FFI_THROW(ValueError) << "BeginForward got " << append_lengths[i] << " tokens for sequence " << ids[i]
                                << " after " << tokens << " others; a step takes at most the prefill chunk of "
                                << config.max_step_tokens() << " that this KV cache was created with.";
    }
    batch.push_back({&sequence, append_lengths[i]});
    tokens += append_lengths[i];
  }
  CheckTree(batch, ids, tokens, tree);
  return batch;
}

inline void CheckCommit(const ffi::Shape& ids, const ffi::Shape& leaf_indices, const SequenceTable& sequences) {
  if (ids.size() != leaf_indices.size()) {
    TVM_FFI_THROW(ValueError) << "Cannot commit " << leaf_indices.size() << " leaves to " << ids.size()
                              << " sequences.";
  }
  SequenceTable::RequireDistinct(ids);
  for (size_t i = 0; i < ids.size(); ++i) {
    const Sequence& sequence = sequences.Find(ids[i]);
    if (leaf_indices[i] < -1 || leaf_indices[i] >= sequence.uncommitted) {
      TVM_FFI_THROW(ValueError) << "Cannot commit leaf " << leaf_indices[i] << " of sequence " << ids[i]
                                << ": its token tree has " << sequence.uncommitted << " uncommitted nodes.";
    }
  }
}

}  // namespace entropy_mlc
