// The cache as the object that TVM's builtins call, for one vtable layout, and the list of this library's caches.
#pragma once
#include <mutex>
#include <unordered_map>

#include "kv_abi.h"
#include "kv_cache.h"

namespace entropy_mlc {

// Caches that this library made and that are alive. The kv_cache_* functions get any object of the type
// relax.vm.AttentionKVCache, which may be TVM's own cache or another library's.
class LiveCaches {
 public:
  // Never destroyed: a cache may outlive the static destructors.
  static LiveCaches& Get() {
    static LiveCaches* caches = new LiveCaches();
    return *caches;
  }
  void Add(const ffi::Object* object, KVCache* cache) {
    std::lock_guard<std::mutex> lock(mutex_);
    caches_[object] = cache;
  }
  void Remove(const ffi::Object* object) {
    std::lock_guard<std::mutex> lock(mutex_);
    caches_.erase(object);
  }
  KVCache& Find(const ffi::ObjectRef& object) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = caches_.find(object.get());
    if (it == caches_.end()) {
      TVM_FFI_THROW(TypeError) << "This " << (object.defined() ? object.GetTypeKey() : "None")
                               << " is not a KV cache of this model library; make one with its "
                               << "create_tir_paged_kv_cache.";
    }
    return *it->second;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<const ffi::Object*, KVCache*> caches_;
};

// Has no type key of its own, so nothing is registered and no two libraries collide.
template <typename Base>
class KVCacheObj final : public Base {
 public:
  KVCacheObj(const CacheConfig& config, const Policy& policy, DLDevice device) : cache_(config, policy, device) {
    LiveCaches::Get().Add(this, &cache_);
  }
  ~KVCacheObj() { LiveCaches::Get().Remove(this); }

  void Clear() final { cache_.Clear(); }
  void AddSequence(int64_t id) final { cache_.AddSequence(id); }
  void RemoveSequence(int64_t id) final { cache_.RemoveSequence(id); }
  void ForkSequence(int64_t parent_id, int64_t child_id, int64_t position) final {
    cache_.ForkSequence(parent_id, child_id, position);
  }
  void PopN(int64_t id, int32_t n) final { cache_.PopN(id, n); }
  void BeginForward(const ffi::Shape& ids, const ffi::Shape& append_lengths,
                    const ffi::Optional<ffi::Shape>& token_tree_parent_ptr) final {
    cache_.BeginForward(ids, append_lengths, token_tree_parent_ptr);
  }
  void EndForward() final { cache_.EndForward(); }
  bool Empty() const final { return cache_.Empty(); }
  int32_t GetNumAvailablePages() const final { return cache_.GetNumAvailablePages(); }
  int32_t GetTotalSequenceLength() const final { return cache_.GetTotalSequenceLength(); }
  // Virtual in the layouts that have it.
  int32_t GetSequenceLength(int64_t id) const { return cache_.GetSequenceLength(id); }
  void EnableSlidingWindowForSeq(int64_t id, int32_t, int32_t) final { cache_.EnableSlidingWindowForSeq(id); }
  void CommitAcceptedTokenTreeNodes(const ffi::Shape& ids, const ffi::Shape& leaf_indices) final {
    cache_.CommitAcceptedTokenTreeNodes(ids, leaf_indices);
  }
  Tensor GetQueryPositions() final { return cache_.GetQueryPositions(); }
  void DebugGetKV(int64_t id, int64_t begin, int64_t end, Tensor k, Tensor v) final {
    cache_.DebugGetKV(id, begin, end, k, v);
  }

 private:
  KVCache cache_;
};

template <typename Base>
ffi::ObjectRef MakeKVCache(const CacheConfig& config, const Policy& policy, DLDevice device) {
  return ffi::ObjectRef(ffi::ObjectPtr<ffi::Object>(ffi::make_object<KVCacheObj<Base>>(config, policy, device)));
}

}  // namespace entropy_mlc
