// PTX instructions. cuda_to_cpp.py turns `mma.sync.aligned.m16n8k16... {%0, ...}` of an inline assembly into a call of the
// function of that name with `_` for `.` and `:`, operands in the order in which they are written. A name that is missing
// here is an error of the C++ compiler.
#pragma once
#include "cuda_bf16.h"
#include "cuda_fp16.h"

// An address in shared memory has 32 bits: the offset in the kernel's.
UNCHECKED inline size_t __cvta_generic_to_shared(const void* pointer) {
  return static_cast<const char*>(pointer) - emulator::shared_memory();
}

namespace emulator::ptx {

inline char* shared(unsigned address) { return shared_memory() + address; }

// Fragments as in the PTX manual, "Matrix Fragments for mma.m16n8k16 with .f16 and .bf16": with group = lane / 4 and
// pair = lane % 4 * 2, register 0 of A holds row `group`, columns `pair` and `pair + 1`; registers 1, 2, 3 are 8 rows, 8
// columns, both further. Register 0 of B holds rows `pair`, `pair + 1` of column `group`, register 1 is 8 rows further.
// C holds row `group`, columns `pair`, `pair + 1`, then the same 8 rows further.
template <class Bits>
struct MmaM16N8K16 {
  unsigned a[4], b[2];
  float c[4], d[4];

  UNCHECKED static float half_of(unsigned word, int i) { return Bits::widen(static_cast<unsigned short>(word >> 16 * i)); }

  UNCHECKED static void combine(void* const* slots, unsigned mask) {
    if (mask != ~0u) fail("mma.sync needs all 32 lanes of the warp");
    float a[16][16], b[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const auto& mine = *static_cast<MmaM16N8K16*>(slots[lane]);
      int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 2; ++i) {
        for (int r = 0; r < 4; ++r) a[group + r % 2 * 8][pair + r / 2 * 8 + i] = half_of(mine.a[r], i);
        for (int r = 0; r < 2; ++r) b[pair + r * 8 + i][group] = half_of(mine.b[r], i);
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      auto& mine = *static_cast<MmaM16N8K16*>(slots[lane]);
      for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = mine.c[i];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        mine.d[i] = sum;
      }
    }
  }
};

#define MMA(name, Bits) \
  UNCHECKED inline void name(float& d0, float& d1, float& d2, float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, \
                             unsigned b0, unsigned b1, float c0, float c1, float c2, float c3) { \
    MmaM16N8K16<Bits> slot{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}, {}}; \
    meet_warp(~0u, &slot, MmaM16N8K16<Bits>::combine); \
    d0 = slot.d[0], d1 = slot.d[1], d2 = slot.d[2], d3 = slot.d[3]; \
  }
MMA(mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32, Float16Bits)
MMA(mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32, BFloat16Bits)
#undef MMA

// ldmatrix: lane 8 i + r brings the address of row r of the 8 x 8 matrix i; a lane gets of each matrix the elements 2 (lane % 4)
// and the next one of row lane / 4, or with .trans of column lane / 4.
template <int count, bool transposed>
struct LoadMatrix {
  const unsigned short* row;
  unsigned words[4];

  UNCHECKED static void combine(void* const* slots, unsigned mask) {
    if (mask != ~0u) fail("ldmatrix needs all 32 lanes of the warp");
    for (int lane = 0; lane < kWarp; ++lane) {
      int major = lane / 4, minor = lane % 4 * 2;
      for (int i = 0; i < count; ++i) {
        auto element = [&](int row, int column) UNCHECKED { return unsigned(static_cast<LoadMatrix*>(slots[8 * i + row])->row[column]); };
        unsigned low = transposed ? element(minor, major) : element(major, minor);
        unsigned high = transposed ? element(minor + 1, major) : element(major, minor + 1);
        static_cast<LoadMatrix*>(slots[lane])->words[i] = low | high << 16;
      }
    }
  }

  UNCHECKED static LoadMatrix load(unsigned address) {
    LoadMatrix slot{reinterpret_cast<unsigned short*>(shared(address)), {}};
    if (lane() < 8 * count) {
      if (address % 16) fail("ldmatrix needs rows that are aligned to 16 bytes");
      check_access(slot.row, 16, false);
    }
    meet_warp(~0u, &slot, combine);
    return slot;
  }
};
#define LDMATRIX(suffix, transposed) \
  UNCHECKED inline void ldmatrix_sync_aligned_m8n8_x1##suffix(unsigned& r0, unsigned address) { \
    r0 = LoadMatrix<1, transposed>::load(address).words[0]; \
  } \
  UNCHECKED inline void ldmatrix_sync_aligned_m8n8_x2##suffix(unsigned& r0, unsigned& r1, unsigned address) { \
    auto loaded = LoadMatrix<2, transposed>::load(address); \
    r0 = loaded.words[0], r1 = loaded.words[1]; \
  } \
  UNCHECKED inline void ldmatrix_sync_aligned_m8n8_x4##suffix(unsigned& r0, unsigned& r1, unsigned& r2, unsigned& r3, unsigned address) { \
    auto loaded = LoadMatrix<4, transposed>::load(address); \
    r0 = loaded.words[0], r1 = loaded.words[1], r2 = loaded.words[2], r3 = loaded.words[3]; \
  }
LDMATRIX(_shared_b16, false)
LDMATRIX(_trans_shared_b16, true)
#undef LDMATRIX

// cp.async reads and writes no earlier than when its group is waited for, and spoils where it will write at once.
inline void cp_async_cg_shared_global(unsigned to, const void* from, int num_bytes) { copy_later(shared(to), from, num_bytes, 0); }
inline void cp_async_ca_shared_global(unsigned to, const void* from, int num_bytes) { copy_later(shared(to), from, num_bytes, 0); }
inline void cp_async_cg_shared_global(unsigned to, const void* from, int num_bytes, int from_bytes) {
  copy_later(shared(to), from, from_bytes, num_bytes - from_bytes);
}
inline void cp_async_ca_shared_global(unsigned to, const void* from, int num_bytes, int from_bytes) {
  copy_later(shared(to), from, from_bytes, num_bytes - from_bytes);
}
inline void cp_async_commit_group() { commit_copies(); }
inline void cp_async_wait_group(int still_open) { wait_for_copies(still_open); }
inline void cp_async_wait_all() {
  commit_copies();
  wait_for_copies(0);
}

// Instructions around a predicated cp.async.
UNCHECKED inline void setp_eq_u32(bool& p, unsigned a, unsigned b) { p = a == b; }
UNCHECKED inline void setp_ne_b32(bool& p, unsigned a, unsigned b) { p = a != b; }
UNCHECKED inline void store_shared(unsigned to, const unsigned* words, int count) {
  check_access(shared(to), 4 * count, true);
  memcpy(shared(to), words, 4 * count);
}
inline void st_shared_u32(unsigned to, unsigned x) { store_shared(to, &x, 1); }
inline void st_shared_v2_u32(unsigned to, unsigned x, unsigned y) {
  unsigned words[] = {x, y};
  store_shared(to, words, 2);
}
inline void st_shared_v4_u32(unsigned to, unsigned x, unsigned y, unsigned z, unsigned w) {
  unsigned words[] = {x, y, z, w};
  store_shared(to, words, 4);
}

// Four of the eight bytes of a and b, each as its digit of c says.
UNCHECKED inline void prmt_b32(unsigned& d, unsigned a, unsigned b, unsigned c) {
  unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
  unsigned picked = 0;
  for (int i = 0; i < 4; ++i) {
    if (c >> 4 * i & 8) fail("prmt with copies of a sign is not emulated");
    picked |= static_cast<unsigned>(bytes >> 8 * (c >> 4 * i & 7) & 0xFF) << 8 * i;
  }
  d = picked;
}
// Two float16 in a word. The sum is rounded to float32 first, which is exact where it matters here.
UNCHECKED inline void fma_rn_f16x2(unsigned& d, unsigned a, unsigned b, unsigned c) {
  unsigned word = 0;
  for (int i = 0; i < 32; i += 16) {
    auto half = [&](unsigned x) UNCHECKED { return Float16Bits::widen(static_cast<unsigned short>(x >> i)); };
    word |= static_cast<unsigned>(Float16Bits::narrow(std::fma(half(a), half(b), half(c)))) << i;
  }
  d = word;
}
UNCHECKED inline void mul_rn_f16x2(unsigned& d, unsigned a, unsigned b) { fma_rn_f16x2(d, a, b, 0x80008000u); }

UNCHECKED inline void ex2_approx_ftz_f32(float& y, float x) { y = std::exp2(x); }

}  // namespace emulator::ptx
