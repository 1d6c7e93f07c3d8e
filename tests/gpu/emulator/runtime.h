// What the files of the emulator's runtime know of each other.
#pragma once
#include <string>

#include "emulator.h"

namespace emulator {

constexpr int kPoison = 0xFF;  // a NaN in every float format
enum Order { kForward = 0, kBackward = 1 };  // greater: the seed of a shuffle

struct Thread {
  Index index;
  int linear;  // in the block, x fastest
  // How often this thread has passed a barrier of its block, one that orders global memory too, and one of its warp:
  // accesses in equal epochs are unordered.
  uint32_t block_epoch, global_epoch, warp_epoch;
};

extern Thread* thread;  // the running one; null outside of kernels

// Runs a kernel on every block; false after an error.
bool launch(const Kernel& kernel, Index grid, Index block, void** arguments, int order);

// Whether an address is a local variable of the running thread.
bool on_stack(const void* address);

// Keeps the first error of a launch, with the kernel, block and thread.
void set_error(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* last_error();

// Memory of the device, poisoned; and the error codes of CUDA's functions with the text that explains the last one.
enum Code { kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInvalidImage = 200, kNotFound = 500, kLaunchFailed = 719, kNotSupported = 801 };
constexpr size_t kTotalMemory = size_t(8) << 30;
Code allocate(void** pointer, size_t num_bytes);
Code release(void* pointer);
size_t num_allocated();
size_t bytes_from(const void* pointer);  // to the end of its buffer; 0 outside of all
Code failed(Code code, std::string why);
const char* error_text();

// The checker's view of memory.
void add_memory(void* begin, size_t num_bytes);
void remove_memory(void* begin);
void begin_launch(const Kernel& kernel);
void begin_block();

}  // namespace emulator
