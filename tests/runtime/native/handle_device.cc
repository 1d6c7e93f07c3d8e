// A device whose tensors have handles for data, not addresses, as Metal, Vulkan and WebGPU do: what the KV cache needs of
// TVM's runtime for it. A handle that is taken for an address, or an access past the end, shows.
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/function.h>
#include <tvm/ffi/optional.h>
#include <tvm/ffi/string.h>

#include <cstring>
#include <vector>

namespace {

namespace ffi = tvm::ffi;
using Memory = std::vector<char>;

ffi::Tensor Allocate(ffi::Shape shape, DLDataType dtype, DLDevice device, ffi::Optional<ffi::String>) {
  struct Alloc {
    void AllocData(DLTensor* tensor) { tensor->data = new Memory(ffi::GetDataSize(*tensor), '\xFF'); }
    void FreeData(DLTensor* tensor) { delete static_cast<Memory*>(tensor->data); }
  };
  return ffi::Tensor::FromNDAlloc(Alloc(), shape, dtype, device);
}

char* Bytes(DLTensor* tensor) {
  if (tensor->device.device_type == kDLCPU) return static_cast<char*>(tensor->data) + tensor->byte_offset;
  Memory& memory = *static_cast<Memory*>(tensor->data);
  if (tensor->byte_offset + ffi::GetDataSize(*tensor) > memory.size()) {
    TVM_FFI_THROW(RuntimeError) << "A copy goes past the end of a tensor's memory.";
  }
  return memory.data() + tensor->byte_offset;
}

void Copy(DLTensor* from, DLTensor* to) {
  if (ffi::GetDataSize(*from) != ffi::GetDataSize(*to)) TVM_FFI_THROW(RuntimeError) << "The sizes of a copy differ.";
  std::memcpy(Bytes(to), Bytes(from), ffi::GetDataSize(*to));
}

void Wait(DLDevice, int64_t) {}

}  // namespace

#pragma GCC diagnostic ignored "-Wunused-parameter"  // `self` in the macro
TVM_FFI_DLL_EXPORT_TYPED_FUNC(allocate, Allocate);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(copy, Copy);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(wait, Wait);
