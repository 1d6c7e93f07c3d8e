// Device memory: host memory that is poisoned when it is allocated and when it is freed.
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "runtime.h"

namespace emulator {
namespace {

std::unordered_map<void*, size_t> allocations;
size_t allocated = 0;
std::string text;

}  // namespace

Code failed(Code code, std::string why) {
  text = std::move(why);
  return code;
}

const char* error_text() { return text.c_str(); }

size_t num_allocated() { return allocated; }

size_t bytes_from(const void* pointer) {
  for (const auto& [begin, num_bytes] : allocations) {
    auto offset = static_cast<size_t>(static_cast<const char*>(pointer) - static_cast<const char*>(begin));
    if (offset < num_bytes) return num_bytes - offset;
  }
  return 0;
}

Code allocate(void** pointer, size_t num_bytes) {
  if (allocated + num_bytes > kTotalMemory) return failed(kOutOfMemory, "out of memory");
  // At least a page lies between two buffers, so that an overflow is not a write to the next one.
  *pointer = aligned_alloc(256, (num_bytes + 4096 + 255) / 256 * 256);
  memset(*pointer, kPoison, num_bytes);
  add_memory(*pointer, num_bytes);
  allocations[*pointer] = num_bytes;
  allocated += num_bytes;
  return kSuccess;
}

Code release(void* pointer) {
  if (!pointer) return kSuccess;
  auto found = allocations.find(pointer);
  if (found == allocations.end()) return failed(kInvalidValue, "memory is freed that was not allocated");
  memset(pointer, kPoison, found->second);
  remove_memory(pointer);
  allocated -= found->second;
  allocations.erase(found);
  free(pointer);
  return kSuccess;
}

}  // namespace emulator
