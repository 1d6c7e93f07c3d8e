// The pools of every layer, K, V and block representatives, and where an element lies in them.
#pragma once
#include <cstring>
#include <vector>

#include "cache_config.h"
#include "memory.h"
#include "page_format.h"
#include "policy.h"
#include "sequence.h"

namespace entropy_mlc {

// Head page id = page id * num_key_value_heads + head; what a page of K and of V is made of is page_format.h's matter.
// Layers that a sparse prefill chooses blocks in (block_size b) have a third pool, of the page's blocks of b keys, with
// P = pair() elements of the model's dtype in a 32-bit word:
//   representatives [num_head_pages, head_dim / P, 2 * page / b, P]   column i: maximum of block i over its keys,
//                                                                     column page / b + i: minimum
// Entries past a sequence's length hold what was there before: kernels mask by length.
class PageStore {
 public:
  PageStore(const CacheConfig& config, const Policy& policy, int64_t num_pages)
      : config_(config), format_(config, policy), layer_skip_(policy.layer_skip) {
    int64_t head_pages = num_pages * config.num_key_value_heads;
    if (head_pages * config.page > INT32_MAX) {
      TVM_FFI_THROW(ValueError) << "A KV cache of " << num_pages * config.page << " entries for each of "
                                << config.num_key_value_heads << " KV heads is too large for 32 bit slots; lower "
                                << "max_total_seq_length.";
    }
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      auto k = std::make_shared<ReservedMemory>(head_pages * format_.key_bytes());
      auto v = std::make_shared<ReservedMemory>(head_pages * format_.value_bytes());
      k_.push_back(TensorOver(std::move(k), format_.key_shape(head_pages), format_.key_dtype()));
      v_.push_back(TensorOver(std::move(v), format_.value_shape(head_pages), format_.value_dtype()));
    }
    if (!policy.gates()) return;
    int64_t P = config.pair(), d = config.head_dim, page = config.page;
    if (page % policy.block_size) {
      TVM_FFI_THROW(ValueError) << "The block_size " << policy.block_size << " of the KV cache policy does not divide "
                                << "its page of " << page << " entries.";
    }
    columns_ = 2 * page / policy.block_size;
    size_t bytes = head_pages * columns_ * d * config.bytes_per_element();
    for (int64_t layer = layer_skip_; layer < config.num_layers; ++layer) {
      auto memory = std::make_shared<ReservedMemory>(bytes);
      representatives_.push_back(TensorOver(memory, {head_pages, d / P, columns_, P}, config.dtype));
    }
  }

  const Tensor& k(int64_t layer) const { return k_[layer]; }
  const Tensor& v(int64_t layer) const { return v_[layer]; }
  // Of a layer from layer_skip on, if the prefill policy is sparse.
  const Tensor& representatives(int64_t layer) const { return representatives_[layer - layer_skip_]; }

  // All heads of a page lie next to each other, so a page is one copy a pool.
  void CopyPage(int32_t source, int32_t destination) {
    auto copy = [&](const std::vector<Tensor>& pools, size_t head_page_bytes) {
      size_t bytes = config_.num_key_value_heads * head_page_bytes;
      for (const Tensor& pool : pools) {
        char* data = static_cast<char*>(pool.data_ptr());
        std::memcpy(data + destination * bytes, data + source * bytes, bytes);
      }
    };
    copy(k_, format_.key_bytes());
    copy(v_, format_.value_bytes());
    copy(representatives_, columns_ * config_.head_dim * config_.bytes_per_element());
  }

  // One head page of a compressed sequence, whose representatives nobody reads.
  void CopyHeadPage(int64_t layer, int32_t source, int32_t destination) {
    ForEachPart(layer, 0, [&](char* pool, size_t size) {
      std::memcpy(pool + destination * size, pool + source * size, size);
    });
  }

  // Bytes of the entries of a head page, the same in every layer.
  size_t head_page_bytes() const {
    size_t bytes = 0;
    ForEachPart(0, 0, [&](char*, size_t size) { bytes += size; });
    return bytes;
  }

  // Calls visit(memory, bytes) for each pool's part of the entries of a head page.
  template <typename Visit>
  void ForEachPart(int64_t layer, int32_t head_page, Visit visit) const {
    for (const Tensor* pool : {&k_[layer], &v_[layer]}) {
      size_t size = ffi::GetDataSize(*pool) / pool->shape()[0];
      visit(static_cast<char*>(pool->data_ptr()) + head_page * size, size);
    }
  }

  // Copies the entries of tokens [begin, end), which every head of the sequence has, to compact host tensors
  // k, v [num_layers, end - begin, num_key_value_heads, head_dim].
  void ReadEntries(const Sequence& sequence, int64_t begin, int64_t end, void* k, void* v) const {
    char *k_out = static_cast<char*>(k), *v_out = static_cast<char*>(v);
    int64_t page = config_.page, heads = config_.num_key_value_heads;
    int64_t entry_bytes = config_.head_dim * config_.bytes_per_element();
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      const char* k_pool = static_cast<const char*>(k_[layer].data_ptr());
      const char* v_pool = static_cast<const char*>(v_[layer].data_ptr());
      for (int64_t token = begin; token < end; ++token) {
        for (int64_t head = 0; head < heads; ++head, k_out += entry_bytes, v_out += entry_bytes) {
          int64_t entry = sequence.entries(layer, head) - (sequence.length - token);
          int64_t head_page = sequence.head_page(layer, head, entry / page, heads);
          format_.ReadKey(k_pool + head_page * format_.key_bytes(), entry % page, k_out);
          format_.ReadValue(v_pool + head_page * format_.value_bytes(), entry % page, v_out);
        }
      }
    }
  }

 private:
  CacheConfig config_;
  PageFormat format_;
  int64_t layer_skip_;
  int64_t columns_ = 0;  // of a head page of representatives
  std::vector<Tensor> k_, v_, representatives_;
};

}  // namespace entropy_mlc
