// Host memory of the cache: reserved at once, paid for when touched.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <memory>

#include "ffi.h"

namespace entropy_mlc {

// Zeroed address space, aligned to a memory page (so at least to the 64 bytes that kernels want). Physical memory is
// taken at first touch, so a pool may be sized for the longest context.
class ReservedMemory {
 public:
  explicit ReservedMemory(size_t bytes) : bytes_(std::max<size_t>(bytes, 1)) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (data_ == MAP_FAILED) {
      TVM_FFI_THROW(RuntimeError) << "Cannot reserve " << (bytes_ >> 20) << " MiB of address space for the KV cache; "
                                  << "lower max_total_seq_length or raise the limit (ulimit -v).";
    }
#ifdef MADV_HUGEPAGE
    // The first 2 MiB keep small pages, so that a short context costs what it uses and not one huge page a pool.
    constexpr size_t kHuge = size_t{2} << 20;
    if (bytes_ > kHuge) madvise(static_cast<char*>(data_) + kHuge, bytes_ - kHuge, MADV_HUGEPAGE);
#endif
  }
  ~ReservedMemory() { munmap(data_, bytes_); }
  ReservedMemory(const ReservedMemory&) = delete;
  ReservedMemory& operator=(const ReservedMemory&) = delete;

  void* data() const { return data_; }

 private:
  size_t bytes_;
  void* data_;
};

// A compact CPU tensor of zeros. It owns its memory: a tensor may outlive the cache it came from.
inline Tensor HostTensor(ffi::ShapeView shape, DLDataType dtype) {
  struct Alloc {
    void AllocData(DLTensor* tensor) {
      memory = std::make_shared<ReservedMemory>(ffi::GetDataSize(*tensor));
      tensor->data = memory->data();
    }
    void FreeData(DLTensor*) {}
    std::shared_ptr<ReservedMemory> memory;  // tvm-ffi copies an allocator
  };
  return Tensor::FromNDAlloc(Alloc(), shape, dtype, DLDevice{kDLCPU, 0});
}

// A compact tensor over the memory of `whole` from `offset` bytes on, which it keeps alive. The offset is 0 unless the
// data of `whole` is an address.
inline Tensor View(const Tensor& whole, size_t offset, ffi::ShapeView shape, DLDataType dtype) {
  struct Alloc {
    void AllocData(DLTensor* tensor, size_t offset) { tensor->data = static_cast<char*>(whole.data_ptr()) + offset; }
    void FreeData(DLTensor*) {}
    Tensor whole;
  };
  return Tensor::FromNDAlloc(Alloc{whole}, shape, dtype, whole.device(), offset);
}

}  // namespace entropy_mlc
