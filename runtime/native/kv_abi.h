// The vtable layouts of TVM's AttentionKVCacheObj that this library can fill.
#pragma once
#include "ffi.h"

namespace entropy_mlc {

#define KV_ABI abi_base  // TVM 0.22 to 0.26
#define KV_ABI_CHECKPOINT 0
#define KV_ABI_SHARED_KV 0
#include "kv_abi.inc"

#define KV_ABI abi_checkpoint  // between 0.26 and 0.27
#define KV_ABI_CHECKPOINT 1
#define KV_ABI_SHARED_KV 0
#include "kv_abi.inc"

#define KV_ABI abi_shared_kv  // TVM main, August 2026
#define KV_ABI_CHECKPOINT 0
#define KV_ABI_SHARED_KV 1
#include "kv_abi.inc"

#define KV_ABI abi_checkpoint_shared_kv  // TVM 0.27.0.post1
#define KV_ABI_CHECKPOINT 1
#define KV_ABI_SHARED_KV 1
#include "kv_abi.inc"

}  // namespace entropy_mlc
