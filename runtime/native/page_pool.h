// Which pages are in use, and by how many sequences.
#pragma once
#include <algorithm>
#include <vector>

#include "ffi.h"

namespace entropy_mlc {

// Page ids 0 .. num_pages-1 with reference counts. A page covers `page` entries of every layer and KV head.
class PagePool {
 public:
  explicit PagePool(int32_t num_pages) : references_(num_pages) { Clear(); }

  int32_t num_pages() const { return static_cast<int32_t>(references_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_used() const { return num_pages() - num_free(); }
  bool shared(int32_t page) const { return references_[page] > 1; }

  // The caller has checked num_free(). Freed pages come back first: their memory is warm and already paid for.
  int32_t Acquire() {
    int32_t page = free_.back();
    free_.pop_back();
    references_[page] = 1;
    return page;
  }
  void Retain(int32_t page) { ++references_[page]; }
  void Release(int32_t page) {
    if (--references_[page] == 0) free_.push_back(page);
  }
  void Clear() {
    std::fill(references_.begin(), references_.end(), 0);
    free_.clear();
    free_.reserve(references_.size());
    for (int32_t page = num_pages() - 1; page >= 0; --page) free_.push_back(page);
  }

 private:
  std::vector<int32_t> references_;
  std::vector<int32_t> free_;
};

}  // namespace entropy_mlc
