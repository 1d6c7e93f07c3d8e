/*!
 * \file cuda_module.cc
 * \brief Puts compiled kernels in the place of CUDA source text in a module that a library is exported from.
 *
 * TVM compiles CUDA source only where a driver is loaded. Where none is, its code generator returns a module that is
 * written into the library as source text, which no program without Python can run. That module also knows the
 * arguments of every kernel; here its record is kept, and the text replaced by a fatbin.
 */
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

namespace entropy_mlc {

using tvm::ffi::Bytes;
using tvm::ffi::Function;
using tvm::ffi::Module;
using tvm::ffi::ModuleObj;
using tvm::ffi::Optional;
using tvm::ffi::String;

/*! \brief A module that exists to be written into a library: the library's runtime loads it as its own kind "cuda". */
class CompiledCudaModule : public ModuleObj {
 public:
  explicit CompiledCudaModule(std::string record) : record_(std::move(record)) {}

  const char* kind() const final { return "cuda"; }
  int GetPropertyMask() const final { return Module::kBinarySerializable; }
  Optional<Function> GetFunction(const String&) final { return std::nullopt; }
  Bytes SaveToBytes() const final { return Bytes(record_.data(), record_.size()); }

 private:
  std::string record_;
};

/*! \brief A string as TVM's stream writes it: its length in 8 bytes, then the bytes. */
std::string Field(const char* data, uint64_t size) {
  std::string field(reinterpret_cast<const char*>(&size), sizeof(size));
  return field.append(data, size);
}

/*!
 * \brief The record of \p source_module with its source text replaced by \p code.
 *
 * A CUDA module's record is [format][arguments of the kernels][code] (TVM: src/backend/cuda/runtime/cuda_module.cc).
 */
Module WithDeviceCode(const Module& source_module, const String& format, const Bytes& code) {
  Bytes saved = source_module->SaveToBytes();
  std::string record(saved.data(), saved.size());
  String text = source_module->InspectSource("cuda");
  std::string head = Field("cuda", 4), tail = Field(text.data(), text.size());
  bool as_expected = record.size() >= head.size() + tail.size() && record.compare(0, head.size(), head) == 0 &&
                     record.compare(record.size() - tail.size(), tail.size(), tail) == 0;
  if (!as_expected) {
    TVM_FFI_THROW(RuntimeError) << "this version of TVM writes CUDA modules in another form than 0.27";
  }
  std::string arguments = record.substr(head.size(), record.size() - head.size() - tail.size());
  return Module(tvm::ffi::make_object<CompiledCudaModule>(Field(format.data(), format.size()) + arguments +
                                                          Field(code.data(), code.size())));
}

TVM_FFI_DLL_EXPORT_TYPED_FUNC(with_device_code, WithDeviceCode);

}  // namespace entropy_mlc
