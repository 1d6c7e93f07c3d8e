// The head pages of compressed sequences. A page of the pool gives G cells (head pages) in every layer, and within a
// layer any cell may serve any head, so heads and layers of unequal length share pages without waste.
#pragma once
#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "page_pool.h"
#include "page_store.h"
#include "sequence.h"

namespace entropy_mlc {

class RaggedCells {
 public:
  RaggedCells(const CacheConfig& config, PageStore* store, PagePool* pool)
      : heads_(config.num_key_value_heads), page_(config.page), store_(store), pool_(pool) {}

  // Cells of a page that another sequence reads too are written by neither.
  bool Shared(int32_t cell) const { return pool_->shared(static_cast<int32_t>(cell / heads_)); }

  bool LastCellNeedsCopy(const Sequence& sequence, int64_t layer, int64_t head) const {
    return sequence.entries(layer, head) % page_ != 0 && Shared(sequence.layers[layer].heads[head].pages.back());
  }

  // Pages that give `cells` more cells in a layer, beside the free ones of the sequence.
  int64_t PagesFor(const LayerEntries& layer, int64_t cells) const {
    for (int32_t cell : layer.free_cells) cells -= !Shared(cell);
    return CeilDiv(std::max<int64_t>(cells, 0), heads_);
  }

  // Most pages over the layers for `tokens` more entries of every head.
  int64_t PagesToAppend(const Sequence& sequence, int64_t tokens) const {
    int64_t most = 0;
    for (size_t layer = 0; layer < sequence.layers.size(); ++layer) {
      const LayerEntries& entries = sequence.layers[layer];
      int64_t cells = 0;
      for (int64_t head = 0; head < heads_; ++head) {
        cells += CeilDiv(sequence.entries(layer, head) + tokens, page_) -
                 static_cast<int64_t>(entries.heads[head].pages.size()) + LastCellNeedsCopy(sequence, layer, head);
      }
      most = std::max(most, PagesFor(entries, cells));
    }
    return most;
  }

  // The caller has checked the pool.
  void AddPages(int64_t count, Sequence* sequence) {
    for (int64_t i = 0; i < count; ++i) {
      int32_t page = pool_->Acquire();
      sequence->pages.push_back(page);
      for (LayerEntries& layer : sequence->layers) {
        for (int64_t k = heads_ - 1; k >= 0; --k) layer.free_cells.push_back(static_cast<int32_t>(page * heads_ + k));
      }
    }
  }

  // Takes a free cell that may be written; there is one.
  int32_t Take(LayerEntries* layer) const {
    std::vector<int32_t>& cells = layer->free_cells;
    size_t i = cells.size() - 1;
    while (Shared(cells[i])) --i;
    std::swap(cells[i], cells.back());
    int32_t cell = cells.back();
    cells.pop_back();
    return cell;
  }

  // Makes room for `tokens` more entries of every head; AddPages has given PagesToAppend pages.
  void Grow(int64_t tokens, Sequence* sequence) {
    bool copied = false;
    for (size_t l = 0; l < sequence->layers.size(); ++l) {
      LayerEntries& layer = sequence->layers[l];
      for (int64_t head = 0; head < heads_; ++head) {
        std::vector<int32_t>& pages = layer.heads[head].pages;
        if (LastCellNeedsCopy(*sequence, l, head)) {
          int32_t copy = Take(&layer);
          store_->CopyHeadPage(l, pages.back(), copy);
          layer.free_cells.push_back(pages.back());
          pages.back() = copy;
          copied = true;
        }
        int64_t needed = CeilDiv(sequence->entries(l, head) + tokens, page_);
        while (static_cast<int64_t>(pages.size()) < needed) pages.push_back(Take(&layer));
      }
    }
    if (copied) ReleaseUnused(sequence);
  }

  // Pages for all entries of a sequence, and their division among heads without cells; AddPages has given the pages.
  int64_t PagesToHold(const Sequence& sequence) const {
    int64_t most = 0;
    for (size_t layer = 0; layer < sequence.layers.size(); ++layer) {
      int64_t cells = 0;
      for (int64_t head = 0; head < heads_; ++head) cells += CeilDiv(sequence.entries(layer, head), page_);
      most = std::max(most, CeilDiv(cells, heads_));
    }
    return most;
  }
  void Fill(Sequence* sequence) const {
    for (size_t l = 0; l < sequence->layers.size(); ++l) {
      LayerEntries& layer = sequence->layers[l];
      for (int64_t head = 0; head < heads_; ++head) {
        int64_t cells = CeilDiv(sequence->entries(l, head), page_);
        for (int64_t i = 0; i < cells; ++i) layer.heads[head].pages.push_back(Take(&layer));
      }
    }
  }

  // Gives up the cells past the entries that sequence->length leaves, and the pages without any other cell in use.
  void Shrink(Sequence* sequence) {
    bool freed = false;
    for (size_t l = 0; l < sequence->layers.size(); ++l) {
      for (int64_t head = 0; head < heads_; ++head) {
        std::vector<int32_t>& pages = sequence->layers[l].heads[head].pages;
        int64_t needed = CeilDiv(sequence->entries(l, head), page_);
        for (; static_cast<int64_t>(pages.size()) > needed; pages.pop_back()) {
          sequence->layers[l].free_cells.push_back(pages.back());
          freed = true;
        }
      }
    }
    if (freed) ReleaseUnused(sequence);
  }

  // Moves head pages until the sequence has no more pages than its fullest layer needs. No used cell is shared.
  void Pack(Sequence* sequence) {
    std::unordered_map<int32_t, int64_t> used = UsedCells(*sequence);
    std::vector<std::pair<int64_t, int32_t>> fullest;
    for (const auto& item : used) fullest.emplace_back(-item.second, item.first);
    std::sort(fullest.begin(), fullest.end());
    std::unordered_set<int32_t> keep;
    for (int64_t i = 0; i < PagesInUse(*sequence); ++i) keep.insert(fullest[i].second);
    for (size_t l = 0; l < sequence->layers.size(); ++l) {
      LayerEntries& layer = sequence->layers[l];
      std::vector<int32_t> targets = FreeCells(layer, std::vector<int32_t>(keep.begin(), keep.end()));
      for (HeadEntries& head : layer.heads) {
        for (int32_t& cell : head.pages) {
          if (keep.count(static_cast<int32_t>(cell / heads_))) continue;
          store_->CopyHeadPage(l, cell, targets.back());
          cell = targets.back();
          targets.pop_back();
        }
      }
    }
    ReleaseUnused(sequence);
  }

  // Pages that the fullest layer needs.
  int64_t PagesInUse(const Sequence& sequence) const {
    size_t most = 0;
    for (const LayerEntries& layer : sequence.layers) {
      size_t cells = 0;
      for (const HeadEntries& head : layer.heads) cells += head.pages.size();
      most = std::max(most, cells);
    }
    return CeilDiv(static_cast<int64_t>(most), heads_);
  }

 private:
  std::unordered_map<int32_t, int64_t> UsedCells(const Sequence& sequence) const {
    std::unordered_map<int32_t, int64_t> used;
    for (const LayerEntries& layer : sequence.layers) {
      for (const HeadEntries& head : layer.heads) {
        for (int32_t cell : head.pages) ++used[static_cast<int32_t>(cell / heads_)];
      }
    }
    return used;
  }

  // The cells of `pages` that no head of the layer uses.
  std::vector<int32_t> FreeCells(const LayerEntries& layer, const std::vector<int32_t>& pages) const {
    std::unordered_set<int32_t> used;
    for (const HeadEntries& head : layer.heads) used.insert(head.pages.begin(), head.pages.end());
    std::vector<int32_t> cells;
    for (int32_t page : pages) {
      for (int64_t k = 0; k < heads_; ++k) {
        int32_t cell = static_cast<int32_t>(page * heads_ + k);
        if (!used.count(cell)) cells.push_back(cell);
      }
    }
    return cells;
  }

  // Releases pages without a used cell and lists the free cells of the others.
  void ReleaseUnused(Sequence* sequence) {
    std::unordered_map<int32_t, int64_t> used = UsedCells(*sequence);
    std::vector<int32_t> kept;
    for (int32_t page : sequence->pages) {
      if (used.count(page)) {
        kept.push_back(page);
      } else {
        pool_->Release(page);
      }
    }
    sequence->pages = std::move(kept);
    for (LayerEntries& layer : sequence->layers) layer.free_cells = FreeCells(layer, sequence->pages);
  }

  int64_t heads_, page_;
  PageStore* store_;
  PagePool* pool_;
};

}  // namespace entropy_mlc
