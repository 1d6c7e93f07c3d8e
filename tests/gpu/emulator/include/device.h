// Included before TVM's CUDA source: what CUDA C++ has and C++ has not.
#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../emulator.h"

using std::max;
using std::min;

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __maxnreg__(n)

#define VECTOR(T, name, num_bytes) \
  struct alignas(2 * num_bytes) name##2 { \
    T x, y; \
  }; \
  struct name##3 { \
    T x, y, z; \
  }; \
  struct alignas(4 * num_bytes < 16 ? 4 * num_bytes : 16) name##4 { \
    T x, y, z, w; \
  }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR(signed char, char, 1)
VECTOR(unsigned char, uchar, 1)
VECTOR(short, short, 2)
VECTOR(unsigned short, ushort, 2)
VECTOR(int, int, 4)
VECTOR(unsigned, uint, 4)
VECTOR(float, float, 4)
VECTOR(long long, longlong, 8)
VECTOR(unsigned long long, ulonglong, 8)
VECTOR(double, double, 8)
#undef VECTOR
struct int1 {
  int x;
};
struct uint1 {
  unsigned x;
};
using uchar = unsigned char;
using uint = unsigned;

// What follows is the emulator's own and not to be checked.
#define UNCHECKED __attribute__((no_sanitize("thread")))

#define __syncthreads() emulator::block_barrier(__LINE__)
inline void __syncwarp(unsigned mask = ~0u) { emulator::meet_warp(mask, nullptr, nullptr, true); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emulator {

template <class... Parameters, size_t... I>
UNCHECKED void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<Parameters>*>(arguments[I])...);
}
template <class... Parameters>
void call(void (*kernel)(Parameters...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

// A lane takes the value of lane `source`, or keeps its own where `source` lies outside of its group.
template <class T>
struct Shuffle {
  T value, result;
  unsigned source;

  UNCHECKED static void combine(void* const* slots, unsigned) {
    for (int i = 0; i < kWarp; ++i) {
      auto* mine = static_cast<Shuffle*>(slots[i]);
      if (!mine) continue;
      // A lane that is not there has no defined value.
      auto* other = static_cast<Shuffle*>(slots[mine->source]);
      if (other) mine->result = other->value;
      else memset(&mine->result, 0xFF, sizeof(T));
    }
  }
};
template <class T>
T shuffle(unsigned mask, T value, unsigned source, bool in_group = true) {
  Shuffle<T> slot{value, value, in_group ? source : lane()};
  meet_warp(mask, &slot, Shuffle<T>::combine);
  return slot.result;
}

struct Vote {
  bool value;
  unsigned result;

  UNCHECKED static void combine(void* const* slots, unsigned mask) {
    unsigned votes = 0;
    for (int i = 0; i < kWarp; ++i) {
      if (slots[i] && static_cast<Vote*>(slots[i])->value) votes |= 1u << i;
    }
    for (int i = 0; i < kWarp; ++i) {
      if (mask >> i & 1) static_cast<Vote*>(slots[i])->result = votes;
    }
  }
};

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulator::shuffle(mask, value, emulator::lane() / width * width + unsigned(source) % width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle(mask, value, emulator::lane() - delta, emulator::lane() % width >= delta);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle(mask, value, emulator::lane() + delta, emulator::lane() % width + delta < unsigned(width));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  unsigned source = emulator::lane() ^ lane_mask;
  return emulator::shuffle(mask, value, source % 32, source / width <= emulator::lane() / width);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  emulator::Vote slot{predicate != 0, 0};
  emulator::meet_warp(mask, &slot, emulator::Vote::combine);
  return slot.result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
// Which lanes run together is up to the hardware; TVM asks only where all do.
inline unsigned __activemask() { return ~0u; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline float __int_as_float(int x) { return reinterpret_cast<float&>(x); }
inline int __float_as_int(float x) { return reinterpret_cast<int&>(x); }
inline float __uint_as_float(unsigned x) { return reinterpret_cast<float&>(x); }
inline unsigned __float_as_uint(float x) { return reinterpret_cast<unsigned&>(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

template <class T, class U>
UNCHECKED T atomicAdd(T* address, U value) {
  T before = *address;
  *address = before + value;
  return before;
}
template <class T, class U>
UNCHECKED T atomicMax(T* address, U value) {
  T before = *address;
  *address = max(before, T(value));
  return before;
}
template <class T, class U>
UNCHECKED T atomicMin(T* address, U value) {
  T before = *address;
  *address = min(before, T(value));
  return before;
}

#include "ptx.h"
