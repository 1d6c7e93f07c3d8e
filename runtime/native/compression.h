// Compresses one sequence: every KV head keeps the entries that the newest queries look at most, or the latest ones,
// and the rest of its memory goes back to the pool.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "compression_kernels.h"
#include "entry_layout.h"
#include "entry_selection.h"
#include "query_window.h"
#include "table_block.h"

namespace entropy_mlc {

class Compressor {
 public:
  Compressor(const CacheConfig& config, PageStore* store, PagePool* pool, EntryLayout* layout, QueryWindow* window,
             const Device* device)
      : num_layers_(config.num_layers),
        heads_(config.num_key_value_heads),
        page_(config.page),
        store_(store),
        pool_(pool),
        cells_(&layout->cells()),
        window_(window),
        selection_(config, store, window, device),
        move_block_(device) {}

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
    // All of it before anything moves, so that an error leaves the sequence whole.
    selection_.Select(policy, *sequence);
    std::vector<LayerEntries> layers = sequence->compressed() ? sequence->layers : Divide(*sequence);
    int64_t copies = 0, pages_after = 0;
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      int64_t shared = 0, cells = 0;
      for (int64_t head = 0; head < heads_; ++head) {
        int64_t needed = CeilDiv(selection_.length(layer, head), page_);
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
    struct Pages {
      std::vector<std::vector<int32_t>> targets;  // by head
      int64_t num_source = 1, num_target = 1;
      Tensor source, target;  // [G, num_source], [G, num_target]
    };
    std::vector<Pages> moves(num_layers_);
    int64_t room = 0;
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      LayerEntries& entries = sequence->layers[layer];
      Pages& move = moves[layer];
      for (int64_t head = 0; head < heads_; ++head) {
        const std::vector<int32_t>& pages = entries.heads[head].pages;
        std::vector<int32_t> target(pages.begin(), pages.begin() + CeilDiv(selection_.length(layer, head), page_));
        for (int32_t& cell : target) cell = cells_->Shared(cell) ? cells_->Take(&entries) : cell;
        move.num_source = std::max<int64_t>(move.num_source, pages.size());
        move.num_target = std::max<int64_t>(move.num_target, target.size());
        move.targets.push_back(std::move(target));
      }
      room += TableBlock::Room(heads_ * move.num_source) + TableBlock::Room(heads_ * move.num_target);
    }
    move_block_.Begin(room);
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      Pages& move = moves[layer];
      Table<int32_t> source = move_block_.Add<int32_t>({heads_, move.num_source});
      Table<int32_t> target = move_block_.Add<int32_t>({heads_, move.num_target});
      for (int64_t head = 0; head < heads_; ++head) {
        const std::vector<int32_t>& pages = sequence->layers[layer].heads[head].pages;
        std::copy(pages.begin(), pages.end(), source.numbers + head * move.num_source);
        std::copy(move.targets[head].begin(), move.targets[head].end(), target.numbers + head * move.num_target);
      }
      move.source = source.tensor;
      move.target = target.tensor;
    }
    move_block_.Upload();
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      Pages& move = moves[layer];
      Compact(store_->k(layer), store_->v(layer), move.source, move.target, selection_.entries(layer),
              selection_.lengths(layer));
      for (int64_t head = 0; head < heads_; ++head) {
        sequence->layers[layer].heads[head].pages = std::move(move.targets[head]);
      }
    }
    RecordPositions(std::max(sequence->exact_from, sequence->length - policy.tail()), sequence);
  }

  void RecordPositions(int64_t exact_from, Sequence* sequence) {
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      for (int64_t head = 0; head < heads_; ++head) {
        std::vector<int32_t> positions;
        for (int64_t i = 0; i < selection_.length(layer, head); ++i) {
          int32_t position = sequence->position(layer, head, selection_.entry(layer, head, i));
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
  EntrySelection selection_;
  TableBlock move_block_;
};

}  // namespace entropy_mlc
