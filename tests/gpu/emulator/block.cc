// Runs the blocks of a launch: one fiber a CUDA thread.
#include <csetjmp>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "runtime.h"

namespace emulator {

Thread* thread;

namespace {

constexpr size_t kStack = 256 << 10;
enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct PendingCopy {
  void* to;
  const void* from;
  size_t num_bytes, num_zeros;
};

struct Fiber : Thread {
  State state;
  int line;  // of the barrier that it waits at
  unsigned mask;
  void* slot;
  Combine combine;
  bool orders_memory;
  std::vector<std::vector<PendingCopy>> copies;  // groups, the last one still open
  bool started = false;
  char* stack = nullptr;
  jmp_buf context;
};

std::vector<Fiber> fibers;
size_t num_threads, num_at_barrier;
const Kernel* kernel;
Index grid, block, block_at;
void** arguments;
jmp_buf scheduler;
std::string error;

Fiber& self() { return *static_cast<Fiber*>(thread); }

void to_scheduler() {
  // The mask of signals need not be kept, which is what makes swapcontext slow.
  if (_setjmp(self().context) == 0) _longjmp(scheduler, 1);
}

// A fiber lives on from block to block; a context is made once.
void fiber_main() {
  for (;;) {
    kernel->body(arguments);
    self().state = State::kDone;
    to_scheduler();
  }
}

void start(Fiber& fiber) {
  static ucontext_t context;
  if (!fiber.stack) {
    void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    fiber.stack = static_cast<char*>(memory);
    mprotect(fiber.stack, 4096, PROT_NONE);  // an overflow faults and does not reach another thread's variables
  }
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack;
  context.uc_stack.ss_size = kStack;
  makecontext(&context, fiber_main, 0);
  fiber.started = true;
  setcontext(&context);
}

void resume(Fiber& fiber) {
  thread = &fiber;
  if (_setjmp(scheduler) == 0) {
    if (!fiber.started) start(fiber);
    _longjmp(fiber.context, 1);
  }
}

// Lets the warp's threads go on if everyone that the calling thread waits for has come.
void release_warp(Fiber& last) {
  size_t first = last.linear / kWarp * kWarp;
  void* slots[kWarp] = {};
  unsigned present = 0;
  for (size_t i = first; i < std::min(first + kWarp, num_threads); ++i) {
    Fiber& fiber = fibers[i];
    unsigned bit = 1u << (i - first);
    if (!(last.mask & bit) || fiber.state == State::kDone) continue;
    if (fiber.state != State::kInWarp) return;
    if (fiber.combine != last.combine || fiber.mask != last.mask) {
      fail("threads of one warp meet in different operations (or with different masks): lanes %u and %zu", lane(), i - first);
    }
    slots[i - first] = fiber.slot;
    present |= bit;
  }
  if (last.combine) last.combine(slots, present);
  for (size_t i = first; i < std::min(first + kWarp, num_threads); ++i) {
    if (!(present >> (i - first) & 1)) continue;
    fibers[i].state = State::kReady;
    fibers[i].warp_epoch += last.orders_memory;
  }
}

// Lets all threads go on if all have come.
void release_block(Fiber& last, bool orders_global) {
  if (++num_at_barrier < num_threads) return;
  num_at_barrier = 0;
  for (size_t i = 0; i < num_threads; ++i) {
    if (fibers[i].line != last.line) fail("threads of one block wait at different barriers: lines %d and %d", fibers[i].line, last.line);
    fibers[i].state = State::kReady;
    ++fibers[i].block_epoch;
    fibers[i].global_epoch += orders_global;
  }
}

void describe_deadlock() {
  size_t at_barrier = 0, in_warp = 0, done = 0;
  for (size_t i = 0; i < num_threads; ++i) {
    at_barrier += fibers[i].state == State::kAtBarrier;
    in_warp += fibers[i].state == State::kInWarp;
    done += fibers[i].state == State::kDone;
  }
  set_error("divergent barrier: of %zu threads %zu wait at a barrier of the block, %zu for their warp, %zu are done", num_threads,
            at_barrier, in_warp, done);
}

bool run_block(std::vector<int>& order, std::mt19937* shuffle) {
  for (size_t i = 0; i < num_threads; ++i) {
    Fiber& fiber = fibers[i];
    unsigned t = static_cast<unsigned>(i);
    fiber.index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
    fiber.linear = static_cast<int>(i);
    fiber.state = State::kReady;
    fiber.copies.assign(1, {});
    fiber.block_epoch = fiber.global_epoch = fiber.warp_epoch = 0;
  }
  num_at_barrier = 0;
  memset(kernel->shared_begin, kPoison, kernel->num_shared());
  begin_block();
  for (;;) {
    if (shuffle) std::shuffle(order.begin(), order.end(), *shuffle);
    bool progress = false;
    for (int i : order) {
      if (fibers[i].state != State::kReady) continue;
      progress = true;
      resume(fibers[i]);
      if (!error.empty()) return false;
    }
    if (progress) continue;
    if (std::all_of(fibers.begin(), fibers.begin() + num_threads, [](const Fiber& f) { return f.state == State::kDone; })) return true;
    describe_deadlock();
    return false;
  }
}

}  // namespace

Index thread_index() { return thread->index; }
Index block_index() { return block_at; }
Index block_dim() { return block; }
Index grid_dim() { return grid; }
unsigned lane() { return thread->linear % kWarp; }
char* shared_memory() { return kernel->shared_begin; }

bool on_stack(const void* address) {
  const char* stack = self().stack;
  return address >= stack && address < stack + kStack;
}

void set_error(const char* format, ...) {
  if (!error.empty()) return;
  char text[512];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  char where[160] = "";
  if (kernel && thread) {
    snprintf(where, sizeof where, "%s, block (%u, %u, %u), thread (%u, %u, %u): ", kernel->name, block_at.x, block_at.y, block_at.z,
             thread->index.x, thread->index.y, thread->index.z);
  }
  error = where + std::string(text);
}

const char* last_error() { return error.c_str(); }

void fail(const char* format, ...) {
  char text[512];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  set_error("%s", text);
  _longjmp(scheduler, 1);
}

void block_barrier(int line, bool orders_global) {
  self().state = State::kAtBarrier;
  self().line = line;
  release_block(self(), orders_global);
  to_scheduler();
}

void meet_warp(unsigned mask, void* slot, Combine combine, bool orders_memory) {
  Fiber& fiber = self();
  if (!(mask >> lane() & 1)) fail("a thread calls a warp operation whose mask %08x leaves it out (lane %u)", mask, lane());
  fiber.mask = mask;
  fiber.slot = slot;
  fiber.combine = combine;
  fiber.orders_memory = orders_memory;
  fiber.state = State::kInWarp;
  release_warp(fiber);
  if (fiber.state != State::kReady) to_scheduler();
}

void copy_later(void* to, const void* from, size_t num_bytes, size_t num_zeros) {
  size_t size = num_bytes + num_zeros;
  if (reinterpret_cast<size_t>(from) % size || reinterpret_cast<size_t>(to) % size) {
    fail("cp.async needs addresses that are multiples of its size");
  }
  // From now on it may land at any time: who still reads there races, and who reads there before its wait finds nothing.
  check_access(to, size, true);
  memset(to, 0xFF, size);
  self().copies.back().push_back({to, from, num_bytes, num_zeros});
}

void commit_copies() { self().copies.emplace_back(); }

void wait_for_copies(size_t groups_still_open) {
  auto& groups = self().copies;
  size_t finished = groups.size() - 1 > groups_still_open ? groups.size() - 1 - groups_still_open : 0;
  for (size_t i = 0; i < finished; ++i) {
    for (const PendingCopy& copy : groups[i]) {
      check_access(copy.from, copy.num_bytes, false);
      check_access(copy.to, copy.num_bytes + copy.num_zeros, true);
      memcpy(copy.to, copy.from, copy.num_bytes);
      memset(static_cast<char*>(copy.to) + copy.num_bytes, 0, copy.num_zeros);
    }
  }
  groups.erase(groups.begin(), groups.begin() + finished);
}

bool launch(const Kernel& which, Index grid_shape, Index block_shape, void** with, int order) {
  kernel = &which;
  arguments = with;
  grid = grid_shape;
  block = block_shape;
  error.clear();
  num_threads = size_t(block.x) * block.y * block.z;
  if (fibers.size() < num_threads) fibers.resize(num_threads);
  begin_launch(which);

  std::vector<int> threads(num_threads);
  std::iota(threads.begin(), threads.end(), 0);
  std::vector<size_t> blocks(size_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::mt19937 shuffle(order);
  if (order == kBackward) {
    std::reverse(threads.begin(), threads.end());
    std::reverse(blocks.begin(), blocks.end());
  } else if (order != kForward) {
    std::shuffle(blocks.begin(), blocks.end(), shuffle);
  }
  for (size_t i : blocks) {
    block_at = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
    if (!run_block(threads, order > kBackward ? &shuffle : nullptr)) {
      for (Fiber& fiber : fibers) fiber.started = false;  // they stand in the middle of the kernel
      break;
    }
  }
  thread = nullptr;
  kernel = nullptr;
  return error.empty();
}

}  // namespace emulator
