// The tables of one step: planned once in BeginForward, read by the kernels of every layer.
#pragma once
#include <vector>

#include "cache_config.h"
#include "query_tiles.h"
#include "query_window.h"
#include "sequence.h"
#include "table_block.h"

namespace entropy_mlc {

// The tables that depend on how much each KV head of a layer keeps. Rows are per head, and the kernels fetch them per
// layer, since lengths are ragged over heads and layers once a sequence of the batch was compressed.
struct LayerTables {
  Tensor append_slots;  // [G, n]    head page * page + offset of the new token's entry
  Tensor page_indptr;   // [G, B+1]  into page_indices
  Tensor page_indices;  // [T]       head page ids
  Tensor kv_lengths;    // [G, B]    entries, the new ones included
};

class StepPlan {
 public:
  StepPlan(const CacheConfig& config, const Device* device) : config_(config), block_(device) {}

  // Makes room for a step, before any state changes.
  void Reserve(const std::vector<BatchEntry>& batch) {
    auto room = TableBlock::Room;
    int64_t heads = config_.num_key_value_heads, sequences = static_cast<int64_t>(batch.size());
    num_tokens_ = 0;
    layers_differ_ = false;
    for (const BatchEntry& entry : batch) {
      num_tokens_ += entry.new_tokens;
      layers_differ_ |= entry.sequence->compressed();
    }
    int64_t total = 2 * room(num_tokens_) + room(sequences + 1) + room(2 * (num_tokens_ / kQueryTile + sequences));
    for (int64_t layer = 0; layer < num_tables(); ++layer) {
      int64_t head_pages = 0;
      for (const BatchEntry& entry : batch) {
        for (int64_t head = 0; head < heads; ++head) head_pages += HeadPages(entry, layer, head, entry.new_tokens);
      }
      total += room(heads * num_tokens_) + room(heads * (sequences + 1)) + room(head_pages) + room(heads * sequences);
    }
    block_.Begin(total);
  }

  // The pages and lengths of the sequences already cover the new tokens.
  void Fill(const std::vector<BatchEntry>& batch, const QueryWindow& window) {
    int64_t sequences = static_cast<int64_t>(batch.size()), tokens = 0;
    Table<int32_t> positions = block_.Add<int32_t>({num_tokens_}), indptr = block_.Add<int32_t>({sequences + 1});
    std::vector<QueryTile> tiles;
    indptr.numbers[0] = 0;
    for (int64_t b = 0; b < sequences; ++b) {
      int64_t length = batch[b].sequence->length, new_tokens = batch[b].new_tokens;
      for (int64_t t = length - new_tokens; t < length; ++t) positions.numbers[tokens++] = static_cast<int32_t>(t);
      indptr.numbers[b + 1] = static_cast<int32_t>(tokens);
      AppendTiles(static_cast<int32_t>(b), new_tokens, batch[b].sequence->max_entries(), &tiles);
    }
    step_ = {positions.tensor, indptr.tensor, FillTiles(&tiles)};
    layer_tables_.clear();
    for (int64_t layer = 0; layer < num_tables(); ++layer) layer_tables_.push_back(FillLayer(batch, layer));
    if (window.in_use()) {
      Table<int32_t> slots = block_.Add<int32_t>({num_tokens_});
      int32_t* next = slots.numbers;
      for (const BatchEntry& entry : batch) next = window.FillRows(*entry.sequence, entry.new_tokens, next);
      query_slots_ = slots.tensor;
    }
    block_.Upload();
  }

  // positions int32 [n], query_indptr int32 [B+1], tiles int32 [num_tiles, 2]
  const ffi::Array<Tensor>& step() const { return step_; }
  Tensor positions() const { return step_[0]; }
  const LayerTables& layer(int64_t layer) const { return layer_tables_[layers_differ_ ? layer : 0]; }
  // int32 [n]: the row of the query window for each new token, or -1; if the window is in use.
  const Tensor& query_slots() const { return query_slots_; }

 private:
  int64_t num_tables() const { return layers_differ_ ? config_.num_layers : 1; }

  // Head pages of a sequence that grows by `more` tokens.
  int64_t HeadPages(const BatchEntry& entry, int64_t layer, int64_t head, int64_t more) const {
    return CeilDiv(entry.sequence->entries(layer, head) + more, config_.page);
  }

  Tensor FillTiles(std::vector<QueryTile>* tiles) {
    BalanceTiles(tiles);
    Table<int32_t> table = block_.Add<int32_t>({static_cast<int64_t>(tiles->size()), 2});
    int32_t* tile = table.numbers;
    for (const QueryTile& t : *tiles) {
      *tile++ = t.sequence;
      *tile++ = t.first_row;
    }
    return table.tensor;
  }

  LayerTables FillLayer(const std::vector<BatchEntry>& batch, int64_t layer) {
    int64_t heads = config_.num_key_value_heads, page = config_.page, num_indices = 0;
    int64_t sequences = static_cast<int64_t>(batch.size());
    for (const BatchEntry& entry : batch) {
      for (int64_t head = 0; head < heads; ++head) num_indices += HeadPages(entry, layer, head, 0);
    }
    Table<int32_t> slots = block_.Add<int32_t>({heads, num_tokens_});
    Table<int32_t> indptr = block_.Add<int32_t>({heads, sequences + 1});
    Table<int32_t> indices = block_.Add<int32_t>({num_indices});
    Table<int32_t> lengths = block_.Add<int32_t>({heads, sequences});
    int32_t *slot = slots.numbers, *pointer = indptr.numbers, *index = indices.numbers, *length = lengths.numbers;
    for (int64_t head = 0; head < heads; ++head) {
      *pointer++ = static_cast<int32_t>(index - indices.numbers);
      for (const BatchEntry& entry : batch) {
        const Sequence& sequence = *entry.sequence;
        int64_t entries = sequence.entries(layer, head), num_pages = CeilDiv(entries, page);
        for (int64_t i = 0; i < num_pages; ++i) *index++ = sequence.head_page(layer, head, i, heads);
        for (int64_t t = entries - entry.new_tokens; t < entries; ++t) {
          *slot++ = static_cast<int32_t>(sequence.head_page(layer, head, t / page, heads) * page + t % page);
        }
        *pointer++ = static_cast<int32_t>(index - indices.numbers);
        *length++ = static_cast<int32_t>(entries);
      }
    }
    return {slots.tensor, indptr.tensor, indices.tensor, lengths.tensor};
  }

  CacheConfig config_;
  TableBlock block_;
  int64_t num_tokens_ = 0;      // new ones of the step
  bool layers_differ_ = false;  // a sequence of the step is compressed; otherwise all layers share the first tables
  ffi::Array<Tensor> step_;
  std::vector<LayerTables> layer_tables_;
  Tensor query_slots_;
};

}  // namespace entropy_mlc
