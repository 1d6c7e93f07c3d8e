// float16 as in CUDA's header of this name: every operation rounds its result.
#pragma once
#include "float16.h"

struct Float16Bits {
  static float widen(unsigned short bits) {
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
  static unsigned short narrow(float value) {
    _Float16 narrow = value;
    unsigned short bits;
    memcpy(&bits, &narrow, sizeof bits);
    return bits;
  }
};
using __half = emulator::Float16<Float16Bits>;
using half = __half;
using __half2 = emulator::Pair<__half>;
using half2 = __half2;
inline float __half2float(half x) { return x; }
inline half __float2half(float x) { return x; }
inline half __float2half_rn(float x) { return x; }
inline half2 make_half2(half x, half y) { return {x, y}; }
inline unsigned short __half_as_ushort(half x) { return x.bits; }
