// libcuda.so.1 with this CPU as its device: the "cubin" of a module is a shared object with translated kernels.
#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace {

constexpr int kMachineCuda = 190;
int thread_order = emulator::kForward;
// Runs a launch in the place of the emulator; 0 is success.
using LaunchHook = int (*)(const char* kernel, const unsigned* grid, const unsigned* block, void** arguments);
LaunchHook launch_hook = nullptr;

// The head of CUlaunchConfig.
struct LaunchConfig {
  unsigned grid[3], block[3], dynamic_shared_bytes;
};

// The section headers come last in what the linker writes.
size_t image_bytes(const Elf64_Ehdr& header) { return header.e_shoff + size_t(header.e_shentsize) * header.e_shnum; }

emulator::Index index(const unsigned* xyz) { return {xyz[0], xyz[1], xyz[2]}; }

}  // namespace

extern "C" {

using namespace emulator;

void emulator_set_thread_order(int order) { thread_order = order; }
void emulator_set_launch_hook(LaunchHook hook) { launch_hook = hook; }
size_t emulator_bytes_from(void* pointer) { return bytes_from(pointer); }

int cuModuleLoadData(void** module, const void* image) {
  const auto& header = *static_cast<const Elf64_Ehdr*>(image);
  if (memcmp(image, ELFMAG, SELFMAG) != 0 || header.e_machine == kMachineCuda) {
    return failed(kInvalidImage, "the module holds code for a GPU; the emulator runs what emulated_cuda compiled");
  }
  int file = memfd_create("emulated_module", 0);
  auto num_bytes = static_cast<ssize_t>(image_bytes(header));
  if (write(file, image, num_bytes) != num_bytes) return failed(kInvalidImage, "the module cannot be written to memory");
  *module = dlopen(("/proc/self/fd/" + std::to_string(file)).c_str(), RTLD_NOW | RTLD_LOCAL);
  return *module ? kSuccess : failed(kInvalidImage, dlerror());
}
int cuModuleUnload(void*) { return kSuccess; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = dlsym(module, ("emulated_" + std::string(name)).c_str());
  return *function ? kSuccess : failed(kNotFound, "the module has no kernel " + std::string(name));
}
int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** arguments, void**) {
  const auto& kernel = *static_cast<const Kernel*>(function);
  if (launch_hook) {
    return launch_hook(kernel.name, config->grid, config->block, arguments) ? failed(kLaunchFailed, "the launch failed elsewhere") : kSuccess;
  }
  bool done = launch(kernel, index(config->grid), index(config->block), arguments, thread_order);
  return done ? kSuccess : failed(kLaunchFailed, last_error());
}
int cuFuncSetAttribute(void*, int, int) { return kSuccess; }
int cuGetErrorName(int, const char** text) {
  *text = error_text();
  return kSuccess;
}
int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }
int cuDeviceGetName(char* name, int size, int) {
  snprintf(name, size, "CUDA emulated on the CPU");
  return kSuccess;
}
int cuTensorMapEncodeTiled() { return failed(kNotSupported, "the emulator has no tensor maps"); }
}
