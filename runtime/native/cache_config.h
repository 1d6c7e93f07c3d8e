// The sizes a cache is made with, checked once.
#pragma once
#include <algorithm>

#include "ffi.h"

namespace entropy_mlc {

struct CacheConfig {
  // The engine's side: what it asked for, in its own page size.
  int64_t max_batch, max_total_seq_len, prefill_chunk, engine_page;
  // The model's side, and the page (entries of one KV head) that the kernels were compiled for.
  int64_t num_layers, num_attention_heads, num_key_value_heads, head_dim, page;
  DLDataType dtype;

  // Elements of the model's dtype in a 32-bit word.
  int64_t pair() const { return 32 / dtype.bits; }
  int64_t bytes_per_element() const { return dtype.bits / 8; }
  // Most tokens of one step: temporary memory of the compiled functions is bounded by it.
  int64_t max_step_tokens() const { return std::max(prefill_chunk, max_batch); }

  // engine = [max_batch, max_total_seq_len, prefill_chunk, page_size, support_sliding_window];
  // model = [num_layers, num_attention_heads, num_key_value_heads, head_dim, physical_page]; dtype bfloat16, float16 or
  // float32.
  static CacheConfig Parse(const ffi::Shape& engine, const ffi::Shape& model, const ffi::String& dtype) {
    if (engine.size() != 5 || model.size() != 5) {
      TVM_FFI_THROW(ValueError) << "kv_cache_create expects an engine configuration and a model configuration of 5 "
                                << "numbers each, got " << engine.size() << " and " << model.size() << ".";
    }
    CacheConfig c{engine[0], engine[1], engine[2], engine[3], model[0], model[1], model[2], model[3], model[4], {}};
    CheckSize("max_batch", c.max_batch);
    CheckSize("max_total_seq_len", c.max_total_seq_len);
    CheckSize("prefill_chunk", c.prefill_chunk);
    CheckSize("page_size", c.engine_page);
    CheckSize("num_layers", c.num_layers);
    CheckSize("num_attention_heads", c.num_attention_heads);
    CheckSize("num_key_value_heads", c.num_key_value_heads);
    CheckSize("head_dim", c.head_dim);
    CheckSize("physical_page", c.page);
    if (dtype == "bfloat16") {
      c.dtype = DLDataType{kDLBfloat, 16, 1};
    } else if (dtype == "float16") {
      c.dtype = DLDataType{kDLFloat, 16, 1};
    } else if (dtype == "float32") {
      c.dtype = DLDataType{kDLFloat, 32, 1};
    } else {
      TVM_FFI_THROW(ValueError) << "The KV cache stores bfloat16, float16 or float32, not " << dtype << ".";
    }
    if (c.num_attention_heads % c.num_key_value_heads || c.head_dim % c.pair() || c.page % c.pair()) {
      TVM_FFI_THROW(ValueError) << "Unsupported KV cache: " << c.num_attention_heads << " attention heads, "
                                << c.num_key_value_heads << " KV heads, head_dim " << c.head_dim << ", page "
                                << c.page << ", " << dtype << ".";
    }
    return c;
  }

 private:
  static void CheckSize(const char* name, int64_t value) {
    if (value < 1 || value > INT32_MAX) {
      TVM_FFI_THROW(ValueError) << "KV cache: " << name << " must be positive and fit 32 bits, got " << value << ".";
    }
  }
};

}  // namespace entropy_mlc
