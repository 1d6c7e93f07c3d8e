// bfloat16 as in CUDA's header of this name: every operation rounds its result.
#pragma once
#include "float16.h"

struct BFloat16Bits {
  static float widen(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }
  static unsigned short narrow(float value) {
    if (value != value) return 0x7FFF;
    unsigned bits = __float_as_uint(value);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  }
};
using __nv_bfloat16 = emulator::Float16<BFloat16Bits>;
using nv_bfloat16 = __nv_bfloat16;
using __nv_bfloat162 = emulator::Pair<__nv_bfloat16>;
using nv_bfloat162 = __nv_bfloat162;
inline float __bfloat162float(nv_bfloat16 x) { return x; }
inline nv_bfloat16 __float2bfloat16(float x) { return x; }
inline nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
