// What a translated kernel and the emulator's runtime know of each other.
//
// A CUDA block runs on one CPU thread; its CUDA threads are fibers that give way to each other at barriers and at warp
// operations only. Blocks run one after another.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

constexpr int kWarp = 32;

struct Index {
  unsigned x, y, z;
};

// One kernel of a translated module; the module exports it as `emulated_<name>`.
struct Kernel {
  const char* name;
  void (*body)(void** arguments);
  char *shared_begin, *shared_end;  // its __shared__ variables

  size_t num_shared() const { return shared_end - shared_begin; }
};

// Of the running thread.
Index thread_index();
Index block_index();
Index block_dim();
Index grid_dim();
unsigned lane();
char* shared_memory();  // the kernel's

// __syncthreads() of source line `line`: all threads of the block must come to the same one. Metal's barrier orders
// accesses of shared memory only, unless it is told otherwise.
void block_barrier(int line, bool orders_global = true);

// All threads of `mask` (a bit a lane) meet; the last to come runs combine(slots, mask), slots[lane] being what each
// brought. No thread goes on before. With `orders_memory`, accesses before and after are ordered, as by __syncwarp.
using Combine = void (*)(void* const* slots, unsigned mask);
void meet_warp(unsigned mask, void* slot, Combine combine, bool orders_memory = false);

// Ends the launch with an error; does not return. The message reaches the caller of the TVM function.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// What the running thread reads or writes other than by plain C++; ends the launch if that is a race or out of bounds.
void check_access(const void* address, size_t num_bytes, bool writes);

// cp.async: bytes land at `to` when the group that they belong to is waited for, no earlier.
void copy_later(void* to, const void* from, size_t num_bytes, size_t num_zeros);
void commit_copies();
void wait_for_copies(size_t groups_still_open);

}  // namespace emulator
