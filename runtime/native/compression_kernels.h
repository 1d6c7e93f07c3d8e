// The compiled kernels that compress a layer of a sequence. They are linked into the same library, if it was compiled
// to compress; a library without them has null pointers here.
#pragma once
#include "ffi.h"
#include "policy.h"

extern "C" {
#define KV_KERNEL(name) \
  __attribute__((weak, visibility("hidden"))) int32_t name(void*, const TVMFFIAny* args, int32_t num_args, TVMFFIAny*)
KV_KERNEL(__tvm_ffi_kv_window_scores);
KV_KERNEL(__tvm_ffi_kv_select_entries);
KV_KERNEL(__tvm_ffi_kv_compact);
#undef KV_KERNEL
}

namespace entropy_mlc {

inline void RequireCompressionKernels() {
  if (!__tvm_ffi_kv_window_scores || !__tvm_ffi_kv_select_entries || !__tvm_ffi_kv_compact) {
    TVM_FFI_THROW(RuntimeError) << "This model library has no kernels that compress its KV cache; compile it with a "
                                << "decode policy other than full.";
  }
}

template <typename Kernel, typename... Args>
void CallKernel(Kernel* kernel, const Args&... args) {
  ffi::AnyView packed[] = {ffi::AnyView(args)...};
  ffi::Any result;
  TVM_FFI_CHECK_SAFE_CALL(kernel(nullptr, reinterpret_cast<const TVMFFIAny*>(packed), sizeof...(args),
                                 reinterpret_cast<TVMFFIAny*>(&result)));
}

// scores float32 [G, max_len]: how much the window's queries look at each entry.
inline void WindowScores(const Tensor& observed, int64_t first_row, int64_t newest, const Tensor& k_pages,
                         const Tensor& page_indices, const Tensor& kv_lengths, const Tensor& scores) {
  CallKernel(__tvm_ffi_kv_window_scores, observed, first_row, newest, k_pages, page_indices, kv_lengths, scores);
}

// kept int32 [G, max_kept], kept_lengths int32 [G]: the entries to keep, ascending; the policy.tail() newest are there.
inline void SelectEntries(const Tensor& scores, const Tensor& kv_lengths, const Tensor& kept,
                          const Tensor& kept_lengths, const Policy& policy) {
  CallKernel(__tvm_ffi_kv_select_entries, scores, kv_lengths, kept, kept_lengths, policy.capacity, policy.tail(),
             policy.pooling_kernel, int64_t{policy.pooling == "max"}, int64_t{policy.decode == "adakv"},
             policy.adaptive_alpha);
}

// Moves entry kept[h, i] of source_pages [G, ns] to entry i of target_pages [G, nt], for i < kept_lengths[h].
inline void Compact(const Tensor& k_pages, const Tensor& v_pages, const Tensor& source_pages,
                    const Tensor& target_pages, const Tensor& kept, const Tensor& kept_lengths) {
  CallKernel(__tvm_ffi_kv_compact, k_pages, v_pages, source_pages, target_pages, kept, kept_lengths);
}

}  // namespace entropy_mlc
