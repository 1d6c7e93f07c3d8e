// Judges every memory access of kernels that were compiled with checks: out of bounds, or a race.
//
// Such kernels are compiled with -fsanitize=thread and call the functions at the end before each access. Two accesses of
// one byte race if different threads of a launch make them, one writes, and no barrier lies between; threads of different
// blocks have none. The order in which the threads happened to run does not matter.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>

#include "runtime.h"

namespace emulator {
namespace {

// Who accessed a byte. Readers that nothing orders are kept as one: all of a warp, of a block, or of the grid.
enum class Who : uint16_t { kThread, kWarp, kBlock, kGrid };
struct Access {
  uint32_t launch, block, block_epoch, warp_epoch;
  uint16_t linear;
  Who who;
};
struct Shadow {
  Access write, read;
};

struct Range {
  const char* begin;
  size_t num_bytes;
  Shadow* shadow;

  bool holds(const char* address) const { return address >= begin && address < begin + num_bytes; }
};

std::map<const char*, Range> memory, shared_of_kernels;
Range shared{}, last_found{};
uint32_t launch_number, block_number;
void* site;  // the code that makes the access

Range reserve(const char* begin, size_t num_bytes) {
  // Zero pages that cost nothing until they are touched.
  void* pages = mmap(nullptr, num_bytes * sizeof(Shadow), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return {begin, num_bytes, static_cast<Shadow*>(pages)};
}

const Range* find(const char* address) {
  if (shared.holds(address)) return &shared;
  if (last_found.holds(address)) return &last_found;
  auto next = memory.upper_bound(address);
  if (next == memory.begin() || !std::prev(next)->second.holds(address)) return nullptr;
  last_found = std::prev(next)->second;
  return &last_found;
}

// " at FILE:LINE" of `site`.
std::string source_line() {
  Dl_info module;
  if (!dladdr(site, &module)) return "";
  auto offset = static_cast<char*>(site) - static_cast<char*>(module.dli_fbase) - 1;
  std::string file = module.dli_fname;
  if (file.rfind("/proc/self/", 0) == 0) file = "/proc/" + std::to_string(getpid()) + file.substr(strlen("/proc/self"));
  char command[512], line[512] = "";
  snprintf(command, sizeof command, "addr2line -e %s 0x%tx", file.c_str(), offset);
  if (FILE* output = popen(command, "r")) {
    if (fgets(line, sizeof line, output)) line[strcspn(line, "\n")] = 0;
    pclose(output);
  }
  return std::string(" at ") + line;
}

bool ordered(const Access& before, const Access& now) {
  if (before.launch != now.launch) return true;
  if (before.block != now.block || before.who == Who::kGrid) return false;
  if (before.block_epoch != now.block_epoch) return true;
  if (before.linear / kWarp != now.linear / kWarp || before.who == Who::kBlock) return false;
  return before.warp_epoch != now.warp_epoch || (before.linear == now.linear && before.who == Who::kThread);
}

void add_reader(Access& readers, const Access& now) {
  if (ordered(readers, now)) {
    readers = now;
  } else if (readers.block != now.block) {
    readers.who = Who::kGrid;
  } else if (readers.who < Who::kBlock) {
    readers.who = readers.linear / kWarp == now.linear / kWarp ? Who::kWarp : Who::kBlock;
  }
}

[[noreturn]] void fail_race(const Access& other, bool other_writes, bool writes, const char* where) {
  static const char* const kWho[] = {"thread %u of block %u", "threads of its warp (%u) in block %u", "threads of its block (%u, %u)",
                                     "threads of other blocks (%u, %u)"};
  char who[64];
  snprintf(who, sizeof who, kWho[int(other.who)], other.linear, other.block - 1);
  fail("race in %s memory: %s what %s %s, with no barrier between%s", where, writes ? "writes" : "reads", who, other_writes ? "wrote" : "read",
       source_line().c_str());
}

}  // namespace

void add_memory(void* begin, size_t num_bytes) {
  const char* first = static_cast<char*>(begin);
  memory[first] = reserve(first, num_bytes);
}

void remove_memory(void* begin) {
  auto found = memory.find(static_cast<char*>(begin));
  munmap(found->second.shadow, found->second.num_bytes * sizeof(Shadow));
  memory.erase(found);
  last_found = {};
}

void begin_launch(const Kernel& kernel) {
  ++launch_number;
  block_number = 0;
  shared = {};
  if (!kernel.num_shared()) return;
  Range& range = shared_of_kernels[kernel.shared_begin];
  if (!range.shadow) range = reserve(kernel.shared_begin, kernel.num_shared());
  shared = range;
}

void begin_block() {
  ++block_number;
  // On a GPU the next block has shared memory of its own.
  if (shared.shadow) madvise(shared.shadow, shared.num_bytes * sizeof(Shadow), MADV_DONTNEED);
}

void check_access(const void* address, size_t num_bytes, bool writes) {
  const char* first = static_cast<const char*>(address);
  const Range* range = find(first);
  if (!range) {
    Dl_info constant;
    if (on_stack(address) || dladdr(address, &constant)) return;
    fail("%zu bytes are %s outside of all memory of the device%s", num_bytes, writes ? "written" : "read", source_line().c_str());
  }
  if (first + num_bytes > range->begin + range->num_bytes) {
    fail("%zu bytes are %s across the end of a buffer%s", num_bytes, writes ? "written" : "read", source_line().c_str());
  }
  const char* where = range == &shared ? "shared" : "global";
  uint32_t block_epoch = range == &shared ? thread->block_epoch : thread->global_epoch;
  Access now{launch_number, block_number, block_epoch, thread->warp_epoch, uint16_t(thread->linear), Who::kThread};
  for (size_t i = 0; i < num_bytes; ++i) {
    Shadow& shadow = range->shadow[first - range->begin + i];
    if (!ordered(shadow.write, now)) fail_race(shadow.write, true, writes, where);
    if (!writes) {
      add_reader(shadow.read, now);
    } else {
      if (!ordered(shadow.read, now)) fail_race(shadow.read, false, true, where);
      shadow.write = now;
    }
  }
}

}  // namespace emulator

#define CHECK(name, size, writes) \
  void __tsan_##name(void* address) { \
    emulator::site = __builtin_return_address(0); \
    emulator::check_access(address, size, writes); \
  }
#define ACCESS(size) \
  CHECK(read##size, size, false) \
  CHECK(write##size, size, true) \
  CHECK(unaligned_read##size, size, false) \
  CHECK(unaligned_write##size, size, true)

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* address, size_t num_bytes) {
  emulator::site = __builtin_return_address(0);
  emulator::check_access(address, num_bytes, false);
}
void __tsan_write_range(void* address, size_t num_bytes) {
  emulator::site = __builtin_return_address(0);
  emulator::check_access(address, num_bytes, true);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
