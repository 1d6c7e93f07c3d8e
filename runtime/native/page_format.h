// What a page of one KV head is made of, as the kernels have it (tir_kernels/kv_pages.py).
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "cache_config.h"
#include "policy.h"

namespace entropy_mlc {

// A page holds `page` entries. With P elements in a 32-bit word, bfloat16, float16 and float32 as in the model:
//   k_pages [num_head_pages, head_dim / P, page, P]   element (entry t, dim c) at [hp, c / P, t, c % P]
//   v_pages [num_head_pages, page / P, head_dim, P]   element (entry t, dim c) at [hp, t / P, c, t % P]
// 8-bit entries (P = 4) have a float32 scale each, in the words of more rows: of key t in word t of row head_dim / 4,
// of value t in word t from row page / 4 on. k_pages are uint8, 128 + q, of a key that a Hadamard matrix has rotated,
// and from which rope_append may have taken the same vector as from every key of its head: it is read back without it.
class PageFormat {
 public:
  PageFormat(const CacheConfig& config, const Policy& policy)
      : dtype_(config.dtype), d_(config.head_dim), page_(config.page), is_int8_(policy.kv_dtype == "int8") {
    P_ = is_int8_ ? 4 : config.pair();
    if (d_ % P_ || page_ % P_) {
      TVM_FFI_THROW(ValueError) << "Unsupported KV cache: " << P_ << " entries or dimensions share a word, and "
                                << "head_dim " << d_ << " or page " << page_ << " is no multiple of that.";
    }
    if (is_int8_ && dtype_.code == kDLFloat && dtype_.bits == 16) {
      TVM_FFI_THROW(ValueError) << "The KV cache of a float16 model has no 8-bit entries; compile it without "
                                << "kv_dtype=int8.";
    }
  }

  DLDataType key_dtype() const { return is_int8_ ? DLDataType{kDLUInt, 8, 1} : dtype_; }
  DLDataType value_dtype() const { return is_int8_ ? DLDataType{kDLInt, 8, 1} : dtype_; }
  ffi::Shape key_shape(int64_t head_pages) const { return {head_pages, key_rows(), page_, P_}; }
  ffi::Shape value_shape(int64_t head_pages) const { return {head_pages, value_rows(), d_, P_}; }
  size_t key_bytes() const { return key_rows() * page_ * kWord; }
  size_t value_bytes() const { return value_rows() * d_ * kWord; }

  // Copy entry t of a page, in host memory, to head_dim elements of the model's dtype.
  void ReadKey(const char* page, int64_t t, char* out) const {
    if (!is_int8_) {
      int64_t bytes = kWord / P_;
      for (int64_t c = 0; c < d_; ++c) std::memcpy(out + c * bytes, page + KeyElement(t, c) * bytes, bytes);
      return;
    }
    float scale = Scale(page, d_ / P_ * page_ + t);
    std::vector<float> key(d_);
    for (int64_t c = 0; c < d_; ++c) key[c] = scale * (static_cast<uint8_t>(page[KeyElement(t, c)]) - 128);
    Rotate(&key);
    for (int64_t c = 0; c < d_; ++c) Write(key[c], c, out);
  }

  void ReadValue(const char* page, int64_t t, char* out) const {
    int64_t bytes = kWord / P_;
    float scale = is_int8_ ? Scale(page, page_ / P_ * d_ + t) : 0;
    for (int64_t c = 0; c < d_; ++c) {
      int64_t at = (t / P_) * d_ * P_ + c * P_ + t % P_;
      if (is_int8_) {
        Write(scale * static_cast<int8_t>(page[at]), c, out);
      } else {
        std::memcpy(out + c * bytes, page + at * bytes, bytes);
      }
    }
  }

 private:
  static constexpr int64_t kWord = 4;  // bytes

  int64_t key_rows() const { return d_ / P_ + is_int8_; }
  int64_t value_rows() const { return page_ / P_ + (is_int8_ ? CeilDiv(page_, d_) : 0); }
  int64_t KeyElement(int64_t t, int64_t c) const { return (c / P_) * page_ * P_ + t * P_ + c % P_; }

  static float Scale(const char* page, int64_t word) {
    float scale;
    std::memcpy(&scale, page + word * kWord, kWord);
    return scale;
  }

  // Undoes the rotation: the orthonormal Hadamard matrix of each block is its own inverse.
  void Rotate(std::vector<float>* x) const {
    int64_t block = d_ & -d_;
    for (int64_t distance = 1; distance < block; distance *= 2) {
      for (int64_t c = 0; c < d_; ++c) {
        if (c & distance) continue;
        float a = (*x)[c], b = (*x)[c + distance];
        (*x)[c] = a + b;
        (*x)[c + distance] = a - b;
      }
    }
    for (float& value : *x) value /= std::sqrt(static_cast<float>(block));
  }

  // bfloat16 is rounded to nearest even.
  void Write(float value, int64_t c, char* out) const {
    uint32_t bits;
    std::memcpy(&bits, &value, kWord);
    if (dtype_.bits == 16) {
      uint16_t half = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
      std::memcpy(out + 2 * c, &half, 2);
    } else {
      std::memcpy(out + 4 * c, &bits, kWord);
    }
  }

  DLDataType dtype_;
  int64_t d_, page_, P_;
  bool is_int8_;
};

}  // namespace entropy_mlc
