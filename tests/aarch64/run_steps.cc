// Runs a compiled model library step by step, without Python: for CPUs that this machine can only emulate.
//
// usage: run_steps LIBRARY PARAMS STEPS LOGITS
// PARAMS: per parameter int32 (type code, bits, dimensions), int64 of each dimension, and the data. STEPS: int32 pairs
// (0 prefill or 1 decode, number of tokens), each followed by the token ids. LOGITS: float32 of every step, written.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <vector>

namespace ffi = tvm::ffi;
using ffi::Tensor;

struct AlignedMemory {
  void AllocData(DLTensor* tensor) { tensor->data = std::aligned_alloc(64, (ffi::GetDataSize(*tensor) + 63) / 64 * 64); }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

Tensor NewTensor(std::vector<int64_t> shape, DLDataType dtype) {
  return Tensor::FromNDAlloc(AlignedMemory(), ffi::Shape(shape), dtype, DLDevice{kDLCPU, 0});
}

template <typename T>
bool Read(std::ifstream& file, T* values, size_t count = 1) {
  return static_cast<bool>(file.read(reinterpret_cast<char*>(values), count * sizeof(T)));
}

ffi::Array<Tensor> ReadParams(const char* path) {
  ffi::Array<Tensor> params;
  std::ifstream file(path, std::ios::binary);
  for (int32_t kind[3]; Read(file, kind, 3);) {
    std::vector<int64_t> shape(kind[2]);
    Read(file, shape.data(), shape.size());
    Tensor param = NewTensor(shape, {static_cast<uint8_t>(kind[0]), static_cast<uint8_t>(kind[1]), 1});
    Read(file, static_cast<char*>(param.data_ptr()), ffi::GetDataSize(param));
    params.push_back(param);
  }
  return params;
}

int main(int, char** argv) try {
  ffi::Module library = ffi::Module::LoadFromFile(argv[1]);
  ffi::Module vm = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  auto function = [&](const char* name) { return vm->GetFunction(name).value(); };
  auto builtin = [](const char* name) { return ffi::Function::GetGlobalRequired(std::string("vm.builtin.") + name); };
  function("vm_initialization")(1, 0, 2, 1, 0, 2);
  ffi::Array<Tensor> params = ReadParams(argv[2]);
  ffi::ObjectRef kv = function("create_tir_paged_kv_cache")(ffi::Shape({1}), ffi::Shape({1024}), ffi::Shape({512}),
                                                            ffi::Shape({16}), ffi::Shape({0})).cast<ffi::ObjectRef>();
  builtin("kv_state_add_sequence")(kv, 0);
  builtin("attention_kv_cache_enable_sliding_window_for_seq")(kv, 0, 1024, 0);
  std::ifstream steps(argv[3], std::ios::binary);
  std::ofstream out(argv[4], std::ios::binary);
  for (int32_t step[2]; Read(steps, step, 2);) {
    Tensor ids = NewTensor({step[1]}, {kDLInt, 32, 1});
    Read(steps, static_cast<int32_t*>(ids.data_ptr()), step[1]);
    builtin("kv_state_begin_forward")(kv, ffi::Shape({0}), ffi::Shape({step[1]}));
    Tensor hidden = function("embed")(ids, params).cast<Tensor>();
    ffi::Shape shape({1, step[1], hidden.shape()[1]});
    hidden = builtin("reshape")(hidden, shape).cast<Tensor>();
    auto result = function(step[0] ? "decode" : "prefill")(hidden, kv, params).cast<ffi::Array<ffi::ObjectRef>>();
    builtin("kv_state_end_forward")(kv);
    Tensor logits = result[0].as<Tensor>().value();
    out.write(static_cast<const char*>(logits.data_ptr()), ffi::GetDataSize(logits));
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
