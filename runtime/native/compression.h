// Compresses one sequence: every KV head keeps the entries that the newest queries look at most, or the latest ones,
// and the rest of its memory goes back to the pool.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "compression_kernels.h"
#include "entry_layout.h"
#include "query_window.h"

namespace entropy_mlc {

class Compressor {
 public:
  Compressor(const CacheConfig& config, PageStore* store, PagePool* pool, EntryLayout* layout, QueryWindow* window)
      : num_layers_(config.num_layers),
        heads_(config.num_key_value_heads),
        page_(config.page),
        store_(store),
        pool_(pool),
        cells_(&layout->cells()),
        window_(window) {}

  // Whether the policy can shorten this sequence at all.
  bool Applies(const Policy& policy, const Sequence& sequence) const {
    return policy.decode != "full" && sequence.may_shrink && sequence.uncommitted == 0 &&
           LargestLayer(sequence) > policy.capacity * heads_ &&
           (policy.decode == "streaming" || window_->full(sequence));
  }

  int64_t num_heads() const { return heads_; }
  int64_t page() const { return page_; }

  // Pages that no other sequence reads.
  int64_t OwnPages(const Sequence& sequence) const {
    return std::count_if(sequence.pages.begin(), sequence.pages.end(),
                         [&](int32_t page) { return !pool_->shared(page); });
  }

  // Entries of all heads of the layer that holds most.
  int64_t LargestLayer(const Sequence& sequence) const {
    if (!sequence.compressed()) return sequence.length * heads_;
    int64_t most = 0;
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      int64_t entries = 0;
      for (int64_t head = 0; head < heads_; ++head) entries += sequence.entries(layer, head);
      most = std::max(most, entries);
    }
    return most;
  }

  // Compresses a sequence to which the policy applies, if that frees a page or leaves `min_free` free ones: pages that
  // forks share stay as they are, and what this sequence keeps of them takes new ones. Whether it did.
  bool Compress(const Policy& policy, int64_t min_free, Sequence* sequence) {
    int64_t own = OwnPages(*sequence);
    auto worthwhile = [&](int64_t pages_after) {
      return pages_after < own || pool_->num_free() + own - pages_after >= min_free;
    };
    if (!worthwhile(CeilDiv(policy.capacity, page_))) return false;  // before the scores, which cost time
    RequireCompressionKernels();
    Select(policy, *sequence);
    std::vector<LayerEntries> layers = sequence->compressed() ? sequence->layers : Divide(*sequence);
    int64_t copies = 0, pages_after = 0;
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      int64_t shared = 0, cells = 0;
      for (int64_t head = 0; head < heads_; ++head) {
        int64_t needed = CeilDiv(KeptLength(layer, head), page_);
        const std::vector<int32_t>& pages = layers[layer].heads[head].pages;
        shared += std::count_if(pages.begin(), pages.begin() + needed, [&](int32_t c) { return cells_->Shared(c); });
        cells += needed;
      }
      copies = std::max(copies, cells_->PagesFor(layers[layer], shared));
      pages_after = std::max(pages_after, CeilDiv(cells, heads_));
    }
    if (copies > pool_->num_free() || !worthwhile(pages_after)) return false;
    sequence->layers = std::move(layers);
    cells_->AddPages(copies, sequence);
    Move(policy, sequence);
    cells_->Pack(sequence);
    return true;
  }

 private:
  static constexpr int64_t kAlign = 16;  // numbers: kernels want tensors aligned to 64 bytes
  static int64_t Aligned(int64_t n) { return CeilDiv(n, kAlign) * kAlign; }

  int32_t* Kept(int64_t layer) { return kept_.data() + layer * heads_ * max_kept_; }
  int32_t* KeptLengths(int64_t layer) { return kept_lengths_.data() + layer * Aligned(heads_); }
  int64_t KeptLength(int64_t layer, int64_t head) { return KeptLengths(layer)[head]; }

  // What every layer and head keeps. All of it before anything moves, so that an error leaves the sequence whole.
  void Select(const Policy& policy, const Sequence& sequence) {
    int64_t max_len = sequence.max_entries();
    max_kept_ = Aligned(std::min(max_len, policy.capacity * (policy.decode == "adakv" ? heads_ : 1)));
    kept_.Reserve(num_layers_ * heads_ * max_kept_);
    kept_lengths_.Reserve(num_layers_ * Aligned(heads_));
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      if (policy.decode == "streaming") {
        SelectLatest(policy, sequence, layer);
      } else {
        SelectByScore(policy, sequence, layer, max_len);
      }
    }
  }

  // StreamingLLM: the first entries, and the latest.
  void SelectLatest(const Policy& policy, const Sequence& sequence, int64_t layer) {
    for (int64_t head = 0; head < heads_; ++head) {
      int64_t entries = sequence.entries(layer, head), count = std::min(entries, policy.capacity);
      int32_t* kept = Kept(layer) + head * max_kept_;
      for (int64_t i = 0; i < count; ++i) {
        kept[i] = static_cast<int32_t>(i < policy.sinks ? i : entries - count + i);
      }
      KeptLengths(layer)[head] = static_cast<int32_t>(count);
    }
  }

  void SelectByScore(const Policy& policy, const Sequence& sequence, int64_t layer, int64_t max_len) {
    scores_.Reserve(heads_ * max_len);
    lengths_.Reserve(heads_);
    int64_t max_pages = CeilDiv(max_len, page_);
    source_.Reserve(heads_ * max_pages);
    for (int64_t head = 0; head < heads_; ++head) {
      int64_t entries = sequence.entries(layer, head);
      lengths_.data()[head] = static_cast<int32_t>(entries);
      for (int64_t i = 0; i < CeilDiv(entries, page_); ++i) {
        source_.data()[head * max_pages + i] = sequence.head_page(layer, head, i, heads_);
      }
    }
    Int32Argument pages(source_.data(), {heads_, max_pages}), lengths(lengths_.data(), {heads_});
    Int32Argument kept(Kept(layer), {heads_, max_kept_}), kept_lengths(KeptLengths(layer), {heads_});
    Float32Argument scores(scores_.data(), {heads_, max_len});
    WindowScores(window_->observed(layer), window_->first_row(sequence), window_->newest(sequence), store_->k(layer),
                 pages.get(), lengths.get(), scores.get());
    SelectEntries(scores.get(), lengths.get(), kept.get(), kept_lengths.get(), policy);
  }

  // The entry lists that a plain sequence would have.
  std::vector<LayerEntries> Divide(const Sequence& sequence) const {
    std::vector<LayerEntries> layers(num_layers_);
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      layers[layer].heads.resize(heads_);
      for (int64_t head = 0; head < heads_; ++head) {
        for (size_t i = 0; i < sequence.pages.size(); ++i) {
          layers[layer].heads[head].pages.push_back(sequence.head_page(layer, head, i, heads_));
        }
      }
    }
    return layers;
  }

  // Compacts every layer, in place where the pages are the sequence's own, and records what the heads hold now.
  void Move(const Policy& policy, Sequence* sequence) {
    int64_t exact_from = std::max(sequence->exact_from, sequence->length - policy.tail());
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      LayerEntries& entries = sequence->layers[layer];
      std::vector<std::vector<int32_t>> targets(heads_);
      int64_t num_source = 1, num_target = 1;
      for (int64_t head = 0; head < heads_; ++head) {
        const std::vector<int32_t>& pages = entries.heads[head].pages;
        targets[head].assign(pages.begin(), pages.begin() + CeilDiv(KeptLength(layer, head), page_));
        for (int32_t& cell : targets[head]) cell = cells_->Shared(cell) ? cells_->Take(&entries) : cell;
        num_source = std::max<int64_t>(num_source, pages.size());
        num_target = std::max<int64_t>(num_target, targets[head].size());
      }
      source_.Reserve(heads_ * num_source);
      target_.Reserve(heads_ * num_target);
      for (int64_t head = 0; head < heads_; ++head) {
        const std::vector<int32_t>& pages = entries.heads[head].pages;
        std::copy(pages.begin(), pages.end(), source_.data() + head * num_source);
        std::copy(targets[head].begin(), targets[head].end(), target_.data() + head * num_target);
      }
      Int32Argument source(source_.data(), {heads_, num_source}), target(target_.data(), {heads_, num_target});
      Int32Argument kept(Kept(layer), {heads_, max_kept_}), kept_lengths(KeptLengths(layer), {heads_});
      Compact(store_->k(layer), store_->v(layer), source.get(), target.get(), kept.get(), kept_lengths.get());
      for (int64_t head = 0; head < heads_; ++head) entries.heads[head].pages = std::move(targets[head]);
    }
    RecordPositions(exact_from, sequence);
  }

  void RecordPositions(int64_t exact_from, Sequence* sequence) {
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      for (int64_t head = 0; head < heads_; ++head) {
        std::vector<int32_t> positions;
        for (int64_t i = 0; i < KeptLength(layer, head); ++i) {
          int32_t position = sequence->position(layer, head, Kept(layer)[head * max_kept_ + i]);
          if (position < exact_from) positions.push_back(position);
        }
        sequence->layers[layer].heads[head].kept = std::move(positions);
      }
    }
    sequence->exact_from = exact_from;
  }

  int64_t num_layers_, heads_, page_;
  PageStore* store_;
  PagePool* pool_;
  RaggedCells* cells_;
  QueryWindow* window_;
  StepTable kept_, kept_lengths_, lengths_, source_, target_;  // aligned workspaces
  FloatTable scores_;
  int64_t max_kept_ = 0;
};

}  // namespace entropy_mlc
