// The functions that a model library exports for its KV cache. The VM finds them among the library's imports.
#include "abi_probe.h"
#include "kv_cache_object.h"

namespace entropy_mlc {
namespace {

// The cache is on the device of `place`, a tensor of any kind that the virtual machine has allocated: it knows its
// device when the library is loaded, and the library does not.
ffi::ObjectRef Create(ffi::Shape engine, ffi::Shape model, ffi::String dtype, ffi::String policy_text, Tensor place) {
  static const KVAbi abi = ProbeKVAbi();
  CacheConfig config = CacheConfig::Parse(engine, model, dtype);
  Policy policy = Policy::Parse(policy_text);
  if (abi.checkpoint && abi.shared_kv) {
    return MakeKVCache<abi_checkpoint_shared_kv::AttentionKVCacheObj>(config, policy, place.device());
  }
  if (abi.checkpoint) return MakeKVCache<abi_checkpoint::AttentionKVCacheObj>(config, policy, place.device());
  if (abi.shared_kv) return MakeKVCache<abi_shared_kv::AttentionKVCacheObj>(config, policy, place.device());
  return MakeKVCache<abi_base::AttentionKVCacheObj>(config, policy, place.device());
}

void Configure(ffi::ObjectRef cache, ffi::String text) { LiveCaches::Get().Find(cache).Configure(text); }

ffi::Array<Tensor> Step(ffi::ObjectRef cache) { return LiveCaches::Get().Find(cache).Step(); }

ffi::Array<Tensor> Layer(ffi::ObjectRef cache, int64_t layer) { return LiveCaches::Get().Find(cache).Layer(layer); }

ffi::Array<Tensor> Gate(ffi::ObjectRef cache) { return LiveCaches::Get().Find(cache).Gate(); }

ffi::Array<Tensor> LayerGate(ffi::ObjectRef cache, int64_t layer) {
  return LiveCaches::Get().Find(cache).LayerGate(layer);
}

Tensor Gates(ffi::ObjectRef cache, int64_t sequence) { return LiveCaches::Get().Find(cache).Gates(sequence); }

ffi::Array<Tensor> Window(ffi::ObjectRef cache, int64_t layer) { return LiveCaches::Get().Find(cache).Window(layer); }

Tensor Positions(ffi::ObjectRef cache, int64_t id, int64_t layer, int64_t head) {
  return LiveCaches::Get().Find(cache).Positions(id, layer, head);
}

int64_t ExactFrom(ffi::ObjectRef cache, int64_t id) { return LiveCaches::Get().Find(cache).ExactFrom(id); }

ffi::Bytes SaveSequence(ffi::ObjectRef cache, int64_t id) { return LiveCaches::Get().Find(cache).Transfer().Save(id); }

void RestoreSequence(ffi::ObjectRef cache, int64_t id, ffi::Bytes state) {
  LiveCaches::Get().Find(cache).Transfer().Restore(id, state);
}

ffi::Shape HeadPages(ffi::ObjectRef cache, int64_t id) { return LiveCaches::Get().Find(cache).Transfer().Extent(id); }

void ReadPages(ffi::ObjectRef cache, int64_t id, int64_t first, Tensor buffer) {
  LiveCaches::Get().Find(cache).Transfer().ReadPages(id, first, buffer);
}

void WritePages(ffi::ObjectRef cache, int64_t id, int64_t first, Tensor buffer) {
  LiveCaches::Get().Find(cache).Transfer().WritePages(id, first, buffer);
}

}  // namespace
}  // namespace entropy_mlc

#pragma GCC diagnostic ignored "-Wunused-parameter"  // `self` in the macro
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_create, entropy_mlc::Create);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_configure, entropy_mlc::Configure);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_step, entropy_mlc::Step);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_layer, entropy_mlc::Layer);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_gate, entropy_mlc::Gate);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_layer_gate, entropy_mlc::LayerGate);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_gates, entropy_mlc::Gates);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_window, entropy_mlc::Window);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_positions, entropy_mlc::Positions);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_exact_from, entropy_mlc::ExactFrom);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_save_sequence, entropy_mlc::SaveSequence);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_restore_sequence, entropy_mlc::RestoreSequence);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_head_pages, entropy_mlc::HeadPages);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_read_pages, entropy_mlc::ReadPages);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(kv_cache_write_pages, entropy_mlc::WritePages);
