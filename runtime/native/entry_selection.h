// What a compression keeps of a sequence: of every KV head the entries that the newest queries look at most, or the
// latest ones.
#pragma once
#include <algorithm>
#include <vector>

#include "compression_kernels.h"
#include "page_store.h"
#include "query_window.h"
#include "table_block.h"

namespace entropy_mlc {

class EntrySelection {
 public:
  EntrySelection(const CacheConfig& config, const PageStore* store, const QueryWindow* window, const Device* device)
      : num_layers_(config.num_layers),
        heads_(config.num_key_value_heads),
        page_(config.page),
        store_(store),
        window_(window),
        kept_block_(device),
        source_block_(device),
        scores_(device) {}

  // Chooses for every layer and head.
  void Select(const Policy& policy, const Sequence& sequence) {
    // Rows of a multiple of 64 bytes.
    max_kept_ = TableBlock::Room(
        std::min(sequence.max_entries(), policy.capacity * (policy.decode == "adakv" ? heads_ : 1)));
    kept_block_.Begin(num_layers_ * (TableBlock::Room(heads_ * max_kept_) + TableBlock::Room(heads_)));
    kept_.clear();
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      kept_.push_back({kept_block_.Add<int32_t>({heads_, max_kept_}), kept_block_.Add<int32_t>({heads_})});
    }
    if (policy.decode == "streaming") {
      SelectLatest(policy, sequence);
    } else {
      SelectByScore(policy, sequence);
    }
  }

  // Of a layer: kept int32 [G, max_kept], ascending, and kept_lengths int32 [G], as the kernels take them.
  const Tensor& entries(int64_t layer) const { return kept_[layer].entries.tensor; }
  const Tensor& lengths(int64_t layer) const { return kept_[layer].lengths.tensor; }

  // The same on the host: how many entries a head keeps, and the i-th of them.
  int64_t length(int64_t layer, int64_t head) const { return kept_[layer].lengths.numbers[head]; }
  int32_t entry(int64_t layer, int64_t head, int64_t i) const {
    return kept_[layer].entries.numbers[head * max_kept_ + i];
  }

 private:
  struct KeptEntries {
    Table<int32_t> entries;  // [G, max_kept_]
    Table<int32_t> lengths;  // [G]
  };

  // StreamingLLM: the first entries, and the latest.
  void SelectLatest(const Policy& policy, const Sequence& sequence) {
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      for (int64_t head = 0; head < heads_; ++head) {
        int64_t entries = sequence.entries(layer, head), count = std::min(entries, policy.capacity);
        int32_t* kept = kept_[layer].entries.numbers + head * max_kept_;
        for (int64_t i = 0; i < count; ++i) {
          kept[i] = static_cast<int32_t>(i < policy.sinks ? i : entries - count + i);
        }
        kept_[layer].lengths.numbers[head] = static_cast<int32_t>(count);
      }
    }
    kept_block_.Upload();
  }

  void SelectByScore(const Policy& policy, const Sequence& sequence) {
    struct Source {
      Tensor pages, lengths;  // [G, max_pages], [G]
    };
    int64_t max_len = sequence.max_entries(), max_pages = CeilDiv(max_len, page_);
    source_block_.Begin(num_layers_ * (TableBlock::Room(heads_ * max_pages) + TableBlock::Room(heads_)));
    std::vector<Source> sources;
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      Table<int32_t> pages = source_block_.Add<int32_t>({heads_, max_pages});
      Table<int32_t> lengths = source_block_.Add<int32_t>({heads_});
      for (int64_t head = 0; head < heads_; ++head) {
        int64_t entries = sequence.entries(layer, head);
        lengths.numbers[head] = static_cast<int32_t>(entries);
        for (int64_t i = 0; i < CeilDiv(entries, page_); ++i) {
          pages.numbers[head * max_pages + i] = sequence.head_page(layer, head, i, heads_);
        }
      }
      sources.push_back({pages.tensor, lengths.tensor});
    }
    source_block_.Upload();
    Tensor scores = scores_.Get({heads_, max_len}, DLDataType{kDLFloat, 32, 1});
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      const Source& source = sources[layer];
      WindowScores(window_->observed(layer), window_->first_row(sequence), window_->newest(sequence), store_->k(layer),
                   source.pages, source.lengths, scores);
      SelectEntries(scores, source.lengths, kept_[layer].entries.tensor, kept_[layer].lengths.tensor, policy);
    }
    kept_block_.Download();
  }

  int64_t num_layers_, heads_, page_;
  const PageStore* store_;
  const QueryWindow* window_;
  TableBlock kept_block_, source_block_;
  Workspace scores_;
  std::vector<KeptEntries> kept_;  // by layer
  int64_t max_kept_ = 0;
};

}  // namespace entropy_mlc
