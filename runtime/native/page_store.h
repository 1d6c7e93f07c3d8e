// The pools of every layer, K, V and block representatives, and where an element lies in them.
#pragma once
#include <vector>

#include "cache_config.h"
#include "device.h"
#include "page_format.h"
#include "policy.h"
#include "sequence.h"

namespace entropy_mlc {

// Head page id = page id * num_key_value_heads + head; what a page of K and of V is made of is page_format.h's matter.
// Layers that a sparse prefill chooses blocks in (block_size b) have a third pool, of the page's blocks of b keys, with
// P = pair() elements of the model's dtype in a 32-bit word:
//   representatives [num_head_pages, head_dim / P, 2 * page / b, P]   column i: maximum of block i over its keys,
//                                                                     column page / b + i: minimum
// Entries past a sequence's length hold what was there before, or zeros: kernels mask by length, and may multiply what
// they have masked.
class PageStore {
 public:
  PageStore(const CacheConfig& config, const Policy& policy, int64_t num_pages, const Device* device)
      : config_(config), format_(config, policy), layer_skip_(policy.layer_skip), device_(device) {
    int64_t head_pages = num_pages * config.num_key_value_heads;
    if (head_pages * config.page > INT32_MAX) {
      TVM_FFI_THROW(ValueError) << "A KV cache of " << num_pages * config.page << " entries for each of "
                                << config.num_key_value_heads << " KV heads is too large for 32 bit slots; lower "
                                << "max_total_seq_length.";
    }
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      k_.push_back(device->Zeros(format_.key_shape(head_pages), format_.key_dtype()));
      v_.push_back(device->Zeros(format_.value_shape(head_pages), format_.value_dtype()));
    }
    if (!policy.gates()) return;
    int64_t P = config.pair(), d = config.head_dim, page = config.page;
    if (page % policy.block_size) {
      TVM_FFI_THROW(ValueError) << "The block_size " << policy.block_size << " of the KV cache policy does not divide "
                                << "its page of " << page << " entries.";
    }
    int64_t columns = 2 * page / policy.block_size;
    for (int64_t layer = layer_skip_; layer < config.num_layers; ++layer) {
      representatives_.push_back(device->Zeros({head_pages, d / P, columns, P}, config.dtype));
    }
  }

  const Tensor& k(int64_t layer) const { return k_[layer]; }
  const Tensor& v(int64_t layer) const { return v_[layer]; }
  // Of a layer from layer_skip on, if the prefill policy is sparse.
  const Tensor& representatives(int64_t layer) const { return representatives_[layer - layer_skip_]; }

  // All heads of a page lie next to each other, so a page is one copy a pool.
  void CopyPage(int32_t source, int32_t destination) {
    for (const std::vector<Tensor>* pools : {&k_, &v_, &representatives_}) {
      for (const Tensor& pool : *pools) Copy(pool, source, destination, config_.num_key_value_heads);
    }
  }

  // One head page of a compressed sequence, whose representatives nobody reads.
  void CopyHeadPage(int64_t layer, int32_t source, int32_t destination) {
    Copy(k_[layer], source, destination, 1);
    Copy(v_[layer], source, destination, 1);
  }

  // Bytes of the entries of a head page.
  size_t head_page_bytes() const { return format_.key_bytes() + format_.value_bytes(); }

  // Copies the entries of a head page, first K then V, to host memory or from there.
  void ReadHeadPage(int64_t layer, int32_t head_page, char* out) const {
    size_t k = format_.key_bytes(), v = format_.value_bytes();
    device_->Read(k_[layer], head_page * k, out, k);
    device_->Read(v_[layer], head_page * v, out + k, v);
  }
  void WriteHeadPage(int64_t layer, int32_t head_page, const char* entries) {
    size_t k = format_.key_bytes(), v = format_.value_bytes();
    device_->Write(entries, k_[layer], head_page * k, k);
    device_->Write(entries + k, v_[layer], head_page * v, v);
  }

  // Copies the entries of tokens [begin, end), which every head of the sequence has, to compact host tensors
  // k, v [num_layers, end - begin, num_key_value_heads, head_dim].
  void ReadEntries(const Sequence& sequence, int64_t begin, int64_t end, void* k, void* v) const {
    int64_t page = config_.page, heads = config_.num_key_value_heads;
    int64_t entry_bytes = config_.head_dim * config_.bytes_per_element();
    std::vector<char> head_page(head_page_bytes());
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      for (int64_t head = 0; head < heads; ++head) {
        int64_t behind = sequence.length - sequence.entries(layer, head);  // tokens that this head has lost
        for (int64_t token = begin; token < end; ++token) {
          int64_t entry = token - behind;
          if (token == begin || entry % page == 0) {
            ReadHeadPage(layer, sequence.head_page(layer, head, entry / page, heads), head_page.data());
          }
          int64_t out = ((layer * (end - begin) + token - begin) * heads + head) * entry_bytes;
          format_.ReadKey(head_page.data(), entry % page, static_cast<char*>(k) + out);
          format_.ReadValue(head_page.data() + format_.key_bytes(), entry % page, static_cast<char*>(v) + out);
        }
      }
    }
  }

 private:
  // `count` head pages from source * count on, to destination * count on.
  void Copy(const Tensor& pool, int64_t source, int64_t destination, int64_t count) {
    size_t bytes = ffi::GetDataSize(pool) / pool.shape()[0] * count;
    device_->Copy(pool, source * bytes, pool, destination * bytes, bytes);
  }

  CacheConfig config_;
  PageFormat format_;
  int64_t layer_skip_;
  const Device* device_;
  std::vector<Tensor> k_, v_, representatives_;
};

}  // namespace entropy_mlc
