// Where a cache is: in host memory, or on a device that TVM's runtime drives. Kernels' memory is allocated and copied
// here and nowhere else.
#pragma once
#include <tvm/ffi/extra/c_env_api.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "memory.h"

namespace entropy_mlc {

class Device {
 public:
  explicit Device(DLDevice device) : device_(device) {
    if (is_host()) return;
    // By name: TVM's runtime is not linked to, and its headers are not part of its ABI.
    allocate_ = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
    copy_ = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromTo");
    wait_ = ffi::Function::GetGlobalRequired("runtime.Device_StreamSync");
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  bool is_host() const { return device_.device_type == kDLCPU; }
  // Whether the data of a tensor is an address, to which an offset may be added. Elsewhere (Metal, Vulkan, WebGPU,
  // OpenCL) it is a handle, and the compiled kernels want a tensor to begin where its memory begins.
  bool has_addresses() const {
    return is_host() || device_.device_type == kDLCUDA || device_.device_type == kDLROCM;
  }

  // A compact tensor. On the host it is zero and takes memory when it is touched; elsewhere its contents are undefined
  // and all of its memory is taken at once.
  Tensor Empty(ffi::ShapeView shape, DLDataType dtype) const {
    if (is_host()) return HostTensor(shape, dtype);
    try {
      return allocate_(ffi::Shape(shape), dtype, device_, ffi::Optional<ffi::String>()).cast<Tensor>();
    } catch (const ffi::Error& error) {
      TVM_FFI_THROW(RuntimeError) << "Cannot allocate " << (ffi::GetDataSize(shape.Product(), dtype) >> 20)
                                  << " MiB more for the KV cache on the device; lower max_total_seq_length ("
                                  << error.message() << ").";
    }
  }

  // A compact tensor of zeros.
  Tensor Zeros(ffi::ShapeView shape, DLDataType dtype) const {
    Tensor tensor = Empty(shape, dtype);
    if (is_host()) return tensor;
    size_t bytes = ffi::GetDataSize(tensor), done = std::min(bytes, size_t{1} << 20);
    Write(std::vector<char>(done).data(), tensor, 0, done);
    for (size_t more; done < bytes; done += more) {
      more = std::min(done, bytes - done);
      Copy(tensor, 0, tensor, done, more);
    }
    return tensor;
  }

  // Copies `bytes` bytes between a place in a tensor of this device and host memory, or between two tensors. What the
  // host reads is there when the call returns, and memory it has written from may change.
  void Read(const Tensor& from, size_t offset, void* to, size_t bytes) const {
    if (is_host()) {
      std::memcpy(to, static_cast<const char*>(from.data_ptr()) + offset, bytes);
      return;
    }
    CopyOnDevice({from.data_ptr(), device_, offset}, {to, kHost, 0}, bytes);
  }
  void Write(const void* from, const Tensor& to, size_t offset, size_t bytes) const {
    if (is_host()) {
      std::memcpy(static_cast<char*>(to.data_ptr()) + offset, from, bytes);
      return;
    }
    CopyOnDevice({const_cast<void*>(from), kHost, 0}, {to.data_ptr(), device_, offset}, bytes);
  }
  void Copy(const Tensor& from, size_t from_offset, const Tensor& to, size_t to_offset, size_t bytes) const {
    if (is_host()) {
      const char* source = static_cast<const char*>(from.data_ptr()) + from_offset;
      std::memcpy(static_cast<char*>(to.data_ptr()) + to_offset, source, bytes);
      return;
    }
    CopyOnDevice({from.data_ptr(), device_, from_offset}, {to.data_ptr(), device_, to_offset}, bytes);
  }

 private:
  static constexpr DLDevice kHost{kDLCPU, 0};

  struct Place {
    void* data;
    DLDevice device;
    size_t offset;
  };

  // TVM copies on the default stream of a device. Kernels run there too, one after the other with the copies, unless
  // the program that runs the model has set another stream.
  void CopyOnDevice(const Place& from, const Place& to, size_t bytes) const {
    if (bytes == 0) return;
    int64_t size = static_cast<int64_t>(bytes);
    auto tensor = [&](const Place& place) {
      return DLTensor{place.data, place.device, 1, DLDataType{kDLUInt, 8, 1}, &size, nullptr, place.offset};
    };
    DLTensor source = tensor(from), target = tensor(to);
    TVMFFIStreamHandle stream = TVMFFIEnvGetStream(device_.device_type, device_.device_id);
    if (stream) wait_(device_, reinterpret_cast<int64_t>(stream));
    copy_(&source, &target);
    if (stream || to.device.device_type == kDLCPU) wait_(device_, int64_t{0});
  }

  DLDevice device_;
  ffi::Function allocate_, copy_, wait_;
};

}  // namespace entropy_mlc
