// libcudart.so.13 for the same device. Everything runs at once and in order, so there is nothing to wait for.
#include <cstring>
#include <unordered_map>

#include "runtime.h"

using namespace emulator;

namespace {
int stream_or_event;
}

extern "C" {

const char* cudaGetErrorName(int) { return error_text(); }
const char* cudaGetErrorString(int) { return error_text(); }
int cudaGetDeviceCount(int* count) {
  *count = 1;
  return kSuccess;
}
int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}
int cudaSetDevice(int) { return kSuccess; }
int cudaDeviceGetAttribute(int* value, int attribute, int) {
  // The numbers of cudaDeviceAttr, and an sm_80.
  static const std::unordered_map<int, int> attributes = {
      {1, 1024},       // threads a block
      {2, 1024},       // x of a block
      {3, 1024},       // y of a block
      {4, 64},         // z of a block
      {8, 49152},      // shared memory a block
      {10, 32},        // warp
      {12, 65536},     // registers a block
      {13, 1000000},   // clock, kHz
      {16, 108},       // multiprocessors
      {38, 40 << 20},  // second-level cache
      {75, 8},         // compute capability, major
      {76, 0},         // minor
  };
  auto found = attributes.find(attribute);
  if (found == attributes.end()) return failed(kNotSupported, "the emulator knows no device attribute " + std::to_string(attribute));
  *value = found->second;
  return kSuccess;
}
int cudaGetDeviceProperties(char* properties, int) {
  // name[256], uuid[16], luid[8], luidDeviceNodeMask, then totalGlobalMem.
  memcpy(properties + 288, &kTotalMemory, sizeof kTotalMemory);
  return kSuccess;
}

int cudaMalloc(void** pointer, size_t num_bytes) { return allocate(pointer, num_bytes); }
int cudaFree(void* pointer) { return release(pointer); }
int cudaMallocHost(void** pointer, size_t num_bytes) { return allocate(pointer, num_bytes); }
int cudaFreeHost(void* pointer) { return release(pointer); }
int cudaMemGetInfo(size_t* free, size_t* total) {
  *total = kTotalMemory;
  *free = kTotalMemory - num_allocated();
  return kSuccess;
}
int cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, int, void*) {
  memmove(to, from, num_bytes);
  return kSuccess;
}
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t num_bytes, void*) {
  memmove(to, from, num_bytes);
  return kSuccess;
}
int cudaEventElapsedTime(float* milliseconds, void*, void*) {
  *milliseconds = 1;
  return kSuccess;
}

#define SUCCEED(name) \
  int name() { return kSuccess; }
SUCCEED(cudaGetLastError)
SUCCEED(cudaPeekAtLastError)
SUCCEED(cudaStreamSynchronize)
SUCCEED(cudaStreamWaitEvent)
SUCCEED(cudaStreamDestroy)
SUCCEED(cudaEventRecord)
SUCCEED(cudaEventSynchronize)
SUCCEED(cudaEventDestroy)

#define CREATE(name) \
  int name(void** handle) { \
    *handle = &stream_or_event; \
    return kSuccess; \
  }
CREATE(cudaStreamCreate)
CREATE(cudaStreamCreateWithFlags)
CREATE(cudaEventCreate)

#define REFUSE(name) \
  int name() { return failed(kNotSupported, "the emulator has no CUDA graphs"); }
REFUSE(cudaStreamBeginCapture)
REFUSE(cudaStreamEndCapture)
REFUSE(cudaGraphInstantiate)
REFUSE(cudaGraphLaunch)
REFUSE(cudaGraphExecDestroy)
REFUSE(cudaGraphDestroy)
}
