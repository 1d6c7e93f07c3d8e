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
// layer, since lengths are ragged over heads and layers once a sequence of the batch was compressed.
struct LayerTables {
  StepTable append_slots;  // [G, n]    head page * page + offset of the new token's entry
  StepTable page_indptr;   // [G, B+1]  into page_indices
  StepTable page_indices;  // [T]       head page ids
  StepTable kv_lengths;    // [G, B]    entries, the new ones included

  // Makes room for a step that is not yet appended.
  void Reserve(const std::vector<BatchEntry>& batch, int64_t layer, const CacheConfig& config) {
    int64_t heads = config.num_key_value_heads, tokens = 0, head_pages = 0;
    for (const BatchEntry& entry : batch) {
      tokens += entry.new_tokens;
      for (int64_t head = 0; head < heads; ++head) {
        head_pages += CeilDiv(entry.sequence->entries(layer, head) + entry.new_tokens, config.page);
      }
    }
    append_slots.Reserve(heads * tokens);
    page_indptr.Reserve(heads * (static_cast<int64_t>(batch.size()) + 1));
    page_indices.Reserve(head_pages);
    kv_lengths.Reserve(heads * static_cast<int64_t>(batch.size()));
  }

  void Fill(const std::vector<BatchEntry>& batch, int64_t layer, const CacheConfig& config) {
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
        int64_t entries = sequence.entries(layer, head), num_pages = CeilDiv(entries, page);
        for (int64_t i = 0; i < num_pages; ++i) *index++ = sequence.head_page(layer, head, i, heads);
        for (int64_t t = entries - entry.new_tokens; t < entries; ++t) {
          *slot++ = static_cast<int32_t>(sequence.head_page(layer, head, t / page, heads) * page + t % page);
        }
        *indptr++ = static_cast<int32_t>(index - first_index);
        *kv_length++ = static_cast<int32_t>(entries);
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
  // Makes room for a step, before any state changes.
  void Reserve(const std::vector<BatchEntry>& batch, const CacheConfig& config) {
    int64_t tokens = 0, num_sequences = static_cast<int64_t>(batch.size());
    layers_differ_ = false;
    for (const BatchEntry& entry : batch) {
      tokens += entry.new_tokens;
      layers_differ_ |= entry.sequence->compressed();
    }
    positions_.Reserve(tokens);
    query_indptr_.Reserve(num_sequences + 1);
    tiles_.Reserve(2 * (tokens / kQueryTile + num_sequences));
    layer_tables_.resize(std::max<size_t>(layer_tables_.size(), layers_differ_ ? config.num_layers : 1));
    for (int64_t layer = 0; layer < num_tables(config); ++layer) layer_tables_[layer].Reserve(batch, layer, config);
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
      AppendTiles(static_cast<int32_t>(b), new_tokens, batch[b].sequence->max_entries(), &tiles);
    }
    BalanceTiles(&tiles);
    int32_t* tile = tiles_.data();
    for (const QueryTile& t : tiles) {
      *tile++ = t.sequence;
      *tile++ = t.first_row;
    }
    for (int64_t layer = 0; layer < num_tables(config); ++layer) layer_tables_[layer].Fill(batch, layer, config);
    step_ = {positions_.Publish({tokens}), query_indptr_.Publish({static_cast<int64_t>(batch.size()) + 1}),
             tiles_.Publish({static_cast<int64_t>(tiles.size()), 2})};
  }

  // positions int32 [n], query_indptr int32 [B+1], tiles int32 [num_tiles, 2]
  const ffi::Array<Tensor>& step() const { return step_; }
  const Tensor& positions() const { return positions_.tensor(); }
  const LayerTables& layer(int64_t layer) const { return layer_tables_[layers_differ_ ? layer : 0]; }

 private:
  int64_t num_tables(const CacheConfig& config) const { return layers_differ_ ? config.num_layers : 1; }

  StepTable positions_, query_indptr_, tiles_;
  std::vector<LayerTables> layer_tables_;
  bool layers_differ_ = false;  // a sequence of the step is compressed; otherwise all layers share the first tables
  ffi::Array<Tensor> step_;
};

}  // namespace entropy_mlc
