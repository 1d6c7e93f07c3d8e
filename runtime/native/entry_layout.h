// Where the entries of a sequence lie, plain or compressed: growing, cutting and sharing them.
#pragma once
#include <vector>

#include "ragged_cells.h"

namespace entropy_mlc {

// Below exact_from a compressed sequence has lost entries, so it cannot become its own beginning again.
inline void RequireExact(const Sequence& sequence, int64_t id, int64_t position) {
  if (position < sequence.exact_from) {
    TVM_FFI_THROW(ValueError) << "Sequence " << id << " was compressed and is whole only from position "
                              << sequence.exact_from << " on; it cannot be cut or read at " << position << ".";
  }
}

class EntryLayout {
 public:
  EntryLayout(const CacheConfig& config, PageStore* store, PagePool* pool)
      : page_(config.page), store_(store), pool_(pool), cells_(config, store, pool) {}

  RaggedCells& cells() { return cells_; }

  // Whether the next token goes into a page that another sequence reads too. The copies take one page at most.
  bool NeedsCopy(const Sequence& sequence) const {
    if (!sequence.compressed()) return sequence.length % page_ != 0 && pool_->shared(sequence.pages.back());
    for (size_t layer = 0; layer < sequence.layers.size(); ++layer) {
      for (size_t head = 0; head < sequence.layers[layer].heads.size(); ++head) {
        if (cells_.LastCellNeedsCopy(sequence, layer, head)) return true;
      }
    }
    return false;
  }

  // Pages that `tokens` more tokens take: at most CeilDiv(tokens, page), and one if NeedsCopy.
  int64_t NewPages(const Sequence& sequence, int64_t tokens) const {
    if (sequence.compressed()) return cells_.PagesToAppend(sequence, tokens);
    int64_t needed = CeilDiv(sequence.length + tokens, page_);
    return needed - static_cast<int64_t>(sequence.pages.size()) + NeedsCopy(sequence);
  }

  // The caller has checked that there are pages enough.
  void Append(int64_t tokens, Sequence* sequence) {
    if (sequence->compressed()) {
      cells_.AddPages(cells_.PagesToAppend(*sequence, tokens), sequence);
      cells_.Grow(tokens, sequence);
      sequence->length += tokens;
      return;
    }
    if (NeedsCopy(*sequence)) {
      int32_t copy = pool_->Acquire();
      store_->CopyPage(sequence->pages.back(), copy);
      pool_->Release(sequence->pages.back());
      sequence->pages.back() = copy;
    }
    sequence->length += tokens;
    while (static_cast<int64_t>(sequence->pages.size()) < CeilDiv(sequence->length, page_)) {
      sequence->pages.push_back(pool_->Acquire());
    }
  }

  // Cuts a sequence to its first `length` tokens, at or above exact_from.
  void Truncate(int64_t length, Sequence* sequence) {
    sequence->length = length;
    if (sequence->compressed()) {
      cells_.Shrink(sequence);
      return;
    }
    while (static_cast<int64_t>(sequence->pages.size()) > CeilDiv(length, page_)) {
      pool_->Release(sequence->pages.back());
      sequence->pages.pop_back();
    }
  }

  // Gives the empty sequence `child` the first `length` tokens of the parent, by sharing pages.
  void Share(const Sequence& parent, int64_t length, Sequence* child) {
    child->pages = parent.pages;
    child->layers = parent.layers;
    child->length = parent.length;
    child->exact_from = parent.exact_from;
    for (int32_t page : child->pages) pool_->Retain(page);
    Truncate(length, child);
  }

  // Pages for the entries of a sequence that knows what it holds and has no pages yet.
  int64_t PagesToHold(const Sequence& sequence) const {
    return sequence.compressed() ? cells_.PagesToHold(sequence) : CeilDiv(sequence.length, page_);
  }

  // Gives them; the caller has checked that there are enough.
  void Allocate(Sequence* sequence) {
    int64_t count = PagesToHold(*sequence);
    if (sequence->compressed()) {
      cells_.AddPages(count, sequence);
      cells_.Fill(sequence);
      return;
    }
    for (int64_t i = 0; i < count; ++i) sequence->pages.push_back(pool_->Acquire());
  }

  // Returns all pages of a sequence that is over.
  void Release(Sequence* sequence) {
    for (auto page = sequence->pages.rbegin(); page != sequence->pages.rend(); ++page) pool_->Release(*page);
    sequence->pages.clear();
    sequence->layers.clear();
  }

 private:
  int64_t page_;
  PageStore* store_;
  PagePool* pool_;
  RaggedCells cells_;
};

}  // namespace entropy_mlc
