// The tables of one step: planned once in BeginForward, read by the kernels of every layer.
#pragma once
#include <vector>

#include "cache_config.h"
#include "query_tiles.h"
#include "sequence.h"
#include "step_table.h"

namespace entropy_mlc {

// A sequence of the batch; its pages and length already cover the new tokens when the plan is filled.
struct BatchEntry {
  Sequence* sequence;
  int64_t new_tokens;
};

// The tables that depend on how much each KV head of a layer keeps. Rows are per head, and the kernels fetch them per
// layer, so that lengths can become ragged over heads and layers (issue 2); so far all layers share one LayerTables.
struct LayerTables {
  StepTable append_slots;  // [G, n]    head page * page + offset of the new token's entry
  StepTable page_indptr;   // [G, B+1]  into page_indices
  StepTable page_indices;  // [T]       head page ids
  StepTable kv_lengths;    // [G, B]    entries, the new ones included

  void Reserve(int64_t heads, int64_t tokens, int64_t batch, int64_t pages) {
    append_slots.Reserve(heads * tokens);
    page_indptr.Reserve(heads * (batch + 1));
    page_indices.Reserve(heads * pages);
    kv_lengths.Reserve(heads * batch);
  }

  void Fill(const std::vector<BatchEntry>& batch, const CacheConfig& config) {
    int64_t heads = config.num_key_value_heads, page = config.page;
    int32_t* slot = append_slots.data();
    int32_t* indptr = page_indptr.data();
    int32_t* index = page_indices.data();
    int32_t* kv_length = kv_lengths.data();
    int32_t* first_index = index;
    int64_t tokens = 0;
    for (int64_t head = 0; head < heads; ++head) {
      tokens = 0;
      *indptr++ = static_cast<int32_t>(index - first_index);
      for (const BatchEntry& entry : batch) {
        const Sequence& sequence = *entry.sequence;
        auto head_page = [&](int64_t i) { return static_cast<int32_t>(sequence.pages[i] * heads + head); };
        for (size_t i = 0; i < sequence.pages.size(); ++i) *index++ = head_page(i);
        for (int64_t t = sequence.length - entry.new_tokens; t < sequence.length; ++t) {
          *slot++ = static_cast<int32_t>(head_page(t / page) * page + t % page);
        }
        *indptr++ = static_cast<int32_t>(index - first_index);
        *kv_length++ = static_cast<int32_t>(sequence.length);
        tokens += entry.new_tokens;
      }
    }
    int64_t num_sequences = static_cast<int64_t>(batch.size());
    append_slots.Publish({heads, tokens});
    page_indptr.Publish({heads, num_sequences + 1});
    page_indices.Publish({index - first_index});
    kv_lengths.Publish({heads, num_sequences});
  }
};

class StepPlan {
 public:
  // Makes room for a step, before any state changes; `pages` is the number of pages of all its sequences.
  void Reserve(int64_t heads, int64_t tokens, int64_t batch, int64_t pages) {
    positions_.Reserve(tokens);
    query_indptr_.Reserve(batch + 1);
    tiles_.Reserve(2 * (tokens / kQueryTile + batch));
    layer_tables_.Reserve(heads, tokens, batch, pages);
  }

  void Fill(const std::vector<BatchEntry>& batch, const CacheConfig& config) {
    std::vector<QueryTile> tiles;
    int32_t* position = positions_.data();
    int32_t* indptr = query_indptr_.data();
    int64_t tokens = 0;
    *indptr++ = 0;
    for (size_t b = 0; b < batch.size(); ++b) {
      int64_t length = batch[b].sequence->length, new_tokens = batch[b].new_tokens;
      for (int64_t t = length - new_tokens; t < length; ++t) *position++ = static_cast<int32_t>(t);
      tokens += new_tokens;
      *indptr++ = static_cast<int32_t>(tokens);
      AppendTiles(static_cast<int32_t>(b), new_tokens, length, &tiles);
    }
    BalanceTiles(&tiles);
    int32_t* tile = tiles_.data();
    for (const QueryTile& t : tiles) {
      *tile++ = t.sequence;
      *tile++ = t.first_row;
    }
    layer_tables_.Fill(batch, config);
    step_ = {positions_.Publish({tokens}), query_indptr_.Publish({static_cast<int64_t>(batch.size()) + 1}),
             tiles_.Publish({static_cast<int64_t>(tiles.size()), 2})};
  }

  // positions int32 [n], query_indptr int32 [B+1], tiles int32 [num_tiles, 2]
  const ffi::Array<Tensor>& step() const { return step_; }
  const Tensor& positions() const { return positions_.tensor(); }
  const LayerTables& layer(int64_t) const { return layer_tables_; }

 private:
  StepTable positions_, query_indptr_, tiles_;
  LayerTables layer_tables_;
  ffi::Array<Tensor> step_;
};

}  // namespace entropy_mlc
