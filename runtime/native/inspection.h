// Reading a cache from outside: what the heads of a sequence hold.
#pragma once
#include <algorithm>

#include "entry_layout.h"

namespace entropy_mlc {

// The tokens whose entries a KV head of a layer holds, int32 [entries]; the layer is one of the cache.
inline Tensor ReadPositions(const Sequence& sequence, int64_t layer, int64_t head, const CacheConfig& config) {
  if (head < 0 || head >= config.num_key_value_heads) {
    TVM_FFI_THROW(ValueError) << "The KV cache has " << config.num_key_value_heads << " KV heads and no head " << head
                              << ".";
  }
  int64_t entries = sequence.entries(layer, head);
  Tensor positions = HostTensor({entries}, DLDataType{kDLInt, 32, 1});
  int32_t* out = static_cast<int32_t*>(positions.data_ptr());
  for (int64_t i = 0; i < entries; ++i) out[i] = sequence.position(layer, head, i);
  return positions;
}

// The memory of a K or V tensor for `length` entries, once its form is checked.
inline void* EntryData(const Tensor& tensor, int64_t length, const CacheConfig& config) {
  const int64_t expected[4] = {config.num_layers, length, config.num_key_value_heads, config.head_dim};
  bool fits = tensor.ndim() == 4 && std::equal(expected, expected + 4, tensor.shape().begin()) &&
              tensor.IsContiguous() && tensor.device().device_type == kDLCPU && tensor.dtype() == config.dtype;
  if (!fits) {
    TVM_FFI_THROW(ValueError) << "K and V must be compact CPU tensors of shape [" << expected[0] << ", " << expected[1]
                              << ", " << expected[2] << ", " << expected[3] << "] and of the cache's dtype "
                              << ffi::DLDataTypeToString(config.dtype) << ".";
  }
  return static_cast<char*>(tensor.data_ptr()) + tensor.byte_offset();
}

// Copies the entries of tokens [begin, end) of a sequence to compact tensors [num_layers, end - begin, G, head_dim] of
// the cache's dtype.
inline void ReadTokens(const Sequence& sequence, int64_t id, int64_t begin, int64_t end, const PageStore& store,
                       const CacheConfig& config, const Tensor& k, const Tensor& v) {
  if (begin < 0 || begin >= end || end > sequence.length) {
    TVM_FFI_THROW(ValueError) << "Entries " << begin << " to " << end << " are not in sequence " << id << ", which has "
                              << sequence.length << ".";
  }
  RequireExact(sequence, id, begin);
  store.ReadEntries(sequence, begin, end, EntryData(k, end - begin, config), EntryData(v, end - begin, config));
}

}  // namespace entropy_mlc
