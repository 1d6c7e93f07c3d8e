// What every other header of the KV cache needs from tvm-ffi, and nothing of TVM itself: TVM's runtime headers are not
// part of its ABI, and the wheel's own copy of kv_state.h does not compile.
//
// The cache is one translation unit (kv_cache.cc includes the headers): one object file to link into a model library,
// hidden symbols, no registration, so that any number of model libraries live in one process.
#pragma once
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/memory.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <cstdint>

namespace entropy_mlc {

namespace ffi = tvm::ffi;
using ffi::Tensor;

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

[[noreturn]] inline void Unsupported(const char* what) {
  TVM_FFI_THROW(RuntimeError) << "The KV cache of this model library does not support " << what << ".";
}

}  // namespace entropy_mlc
