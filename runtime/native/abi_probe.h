// Finds the vtable layout of AttentionKVCacheObj in the running TVM runtime: calls its KV cache builtins on an object
// whose every virtual method notes its own place in the vtable.
#pragma once
#include <string>
#include <vector>

#include "ffi.h"

namespace entropy_mlc {

struct KVAbi {
  bool checkpoint;  // GetCheckpointMetadata .. GetSequenceLength stand before EnableSlidingWindowForSeq
  bool shared_kv;   // AttentionWithSharedKV stands before AppendMLAKV
};

inline thread_local int probed_slot = -1;

class ProbeStateObj : public ffi::Object {
 public:
  TVM_FFI_DECLARE_OBJECT_INFO("relax.vm.KVState", ProbeStateObj, ffi::Object);
};

// 48 virtual methods, more than any known layout has. Only builtins that return nothing or an integer are called.
class ProbeObj : public ProbeStateObj {
 public:
#define KV_SLOT(n) \
  virtual int64_t Slot##n() { return probed_slot = n, 0; }
#define KV_SLOTS(t) \
  KV_SLOT(t##0) KV_SLOT(t##1) KV_SLOT(t##2) KV_SLOT(t##3) KV_SLOT(t##4) KV_SLOT(t##5) KV_SLOT(t##6) KV_SLOT(t##7)
  // The digits are octal (a leading 0 makes them so), hence eight to a row.
  KV_SLOTS(00) KV_SLOTS(01) KV_SLOTS(02) KV_SLOTS(03) KV_SLOTS(04) KV_SLOTS(05)
#undef KV_SLOTS
#undef KV_SLOT
  TVM_FFI_DECLARE_OBJECT_INFO("relax.vm.AttentionKVCache", ProbeObj, ProbeStateObj);
};

// The slot that builtin `name` calls, or -1 if the runtime has no such builtin. `arguments`: i int, f float, s shape,
// t tensor, after the cache itself.
inline int SlotOf(const char* name, const std::string& arguments) {
  ffi::Optional<ffi::Function> builtin = ffi::Function::GetGlobal(name);
  if (!builtin.has_value()) return -1;
  struct Alloc {
    void AllocData(DLTensor* tensor) { tensor->data = nullptr; }
    void FreeData(DLTensor*) {}
  };
  ffi::ObjectRef probe(ffi::ObjectPtr<ffi::Object>(ffi::make_object<ProbeObj>()));
  Tensor tensor = Tensor::FromNDAlloc(Alloc(), {0}, DLDataType{kDLFloat, 32, 1}, DLDevice{kDLCPU, 0});
  ffi::Shape shape({0});
  std::vector<ffi::AnyView> packed{probe};
  for (char kind : arguments) {
    if (kind == 'i') packed.emplace_back(int64_t{0});
    if (kind == 'f') packed.emplace_back(0.0);
    if (kind == 's') packed.emplace_back(shape);
    if (kind == 't') packed.emplace_back(tensor);
  }
  ffi::Any result;
  probed_slot = -1;
  builtin.value().CallPacked(packed.data(), static_cast<int32_t>(packed.size()), &result);
  return probed_slot;
}

// Throws when the runtime has no KV cache builtins, or when one of them calls a slot that fits no known layout.
inline KVAbi ProbeKVAbi() {
  int window = SlotOf("vm.builtin.attention_kv_cache_enable_sliding_window_for_seq", "iii");
  int append_mla = SlotOf("vm.builtin.attention_kv_cache_append_mla_kv", "it");
  if (window == -1 || append_mla == -1) {
    TVM_FFI_THROW(RuntimeError) << "This process has no vm.builtin.attention_kv_cache_* functions; load TVM's "
                                << "runtime library before a KV cache is made.";
  }
  KVAbi abi{window == 17, append_mla - window == 8};
  int common = abi.checkpoint ? 17 : 10, late = common + 7 + abi.shared_kv;
  struct Expected {
    const char* name;
    const char* arguments;
    int slot;
  };
  const Expected expected[] = {
      {"kv_state_clear", "", 0},
      {"kv_state_add_sequence", "i", 1},
      {"kv_state_remove_sequence", "i", 2},
      {"kv_state_fork_sequence", "iii", 3},
      {"kv_state_popn", "ii", 4},
      {"kv_state_begin_forward", "ss", 5},
      {"kv_state_end_forward", "", 6},
      {"attention_kv_cache_empty", "", 7},
      {"attention_kv_cache_get_num_available_pages", "", 8},
      {"attention_kv_cache_get_total_sequence_length", "", 9},
      {"attention_kv_cache_enable_sliding_window_for_seq", "iii", common},
      {"attention_kv_cache_commit_accepted_token_tree_nodes", "ss", common + 1},
      {"attention_kv_cache_attention_with_fused_qkv", "iftt", common + 4},
      {"attention_kv_cache_append_mla_kv", "it", late},
      {"attention_kv_cache_debug_get_kv", "iiitt", late + 4},
      {"attention_kv_cache_debug_get_kv_mla", "iiit", late + 5},
  };
  for (const Expected& e : expected) {
    std::string name = std::string("vm.builtin.") + e.name;
    int slot = SlotOf(name.c_str(), e.arguments);
    if (slot != -1 && slot != e.slot) {
      TVM_FFI_THROW(RuntimeError) << "This TVM runtime lays out its KV cache interface in an unknown way (" << name
                                  << " calls slot " << slot << ", not " << e.slot << "); recompile the model with a "
                                  << "version of this project that knows it, or use TVM 0.26 or 0.27.";
    }
  }
  return abi;
}

}  // namespace entropy_mlc
