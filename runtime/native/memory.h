// Host memory of the cache: reserved at once, paid for when touched.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <memory>

#include "ffi.h"

namespace entropy_mlc {

// Zeroed address space, aligned to a memory page (so at least to the 64 bytes that kernels want). Physical memory is
// taken at first touch, so a pool may be sized for the longest context. Issue 4 adds device memory beside this class.
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
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

// A compact CPU tensor over `memory`, which it keeps alive: a tensor may outlive the cache it came from.
inline Tensor TensorOver(std::shared_ptr<ReservedMemory> memory, ffi::ShapeView shape, DLDataType dtype) {
  struct Alloc {
    std::shared_ptr<ReservedMemory> memory;
    void AllocData(DLTensor* tensor) { tensor->data = memory->data(); }
    void FreeData(DLTensor*) {}
  };
  return Tensor::FromNDAlloc(Alloc{std::move(memory)}, shape, dtype, DLDevice{kDLCPU, 0});
}

}  // namespace entropy_mlc
