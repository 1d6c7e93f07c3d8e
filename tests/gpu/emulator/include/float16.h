// A 16-bit float whose every operation is computed in float32 and rounded; Bits knows the format.
#pragma once

namespace emulator {

template <class Bits>
struct alignas(2) Float16 {
  unsigned short bits;

  Float16() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  Float16(T value) : bits(Bits::narrow(static_cast<float>(value))) {}
  operator float() const { return Bits::widen(bits); }

  Float16 operator-() const { return -float(*this); }
  template <class T>
  Float16& operator+=(T other) {
    return *this = Float16(float(*this) + float(other));
  }
  template <class T>
  Float16& operator*=(T other) {
    return *this = Float16(float(*this) * float(other));
  }
};

template <class T>
struct alignas(4) Pair {
  T x, y;

  Pair() = default;
  Pair(T x, T y) : x(x), y(y) {}
};

#define ARITHMETIC(op) \
  template <class Bits> \
  Float16<Bits> operator op(Float16<Bits> a, Float16<Bits> b) { \
    return float(a) op float(b); \
  }
ARITHMETIC(+)
ARITHMETIC(-)
ARITHMETIC(*)
ARITHMETIC(/)
#undef ARITHMETIC

#define COMPARISON(op, name) \
  template <class Bits> \
  bool name(Float16<Bits> a, Float16<Bits> b) { \
    return float(a) op float(b); \
  }
COMPARISON(<, __hlt)
COMPARISON(>, __hgt)
COMPARISON(<=, __hle)
COMPARISON(>=, __hge)
COMPARISON(==, __heq)
COMPARISON(!=, __hne)
#undef COMPARISON

#define FUNCTION(name, value) \
  template <class Bits> \
  Float16<Bits> name(Float16<Bits> half) { \
    float x = half; \
    return value; \
  }
FUNCTION(__habs, std::fabs(x))
FUNCTION(hexp, std::exp(x))
FUNCTION(hexp2, std::exp2(x))
FUNCTION(hlog, std::log(x))
FUNCTION(hlog2, std::log2(x))
FUNCTION(hsqrt, std::sqrt(x))
FUNCTION(hrsqrt, 1.0f / std::sqrt(x))
FUNCTION(hsin, std::sin(x))
FUNCTION(hcos, std::cos(x))
FUNCTION(hfloor, std::floor(x))
FUNCTION(hceil, std::ceil(x))
FUNCTION(htrunc, std::trunc(x))
FUNCTION(hrint, std::nearbyint(x))
#undef FUNCTION

template <class Bits>
Float16<Bits> __hfma(Float16<Bits> a, Float16<Bits> b, Float16<Bits> c) {
  return std::fma(float(a), float(b), float(c));
}

}  // namespace emulator

using emulator::__habs;
using emulator::__heq;
using emulator::__hfma;
using emulator::__hge;
using emulator::__hgt;
using emulator::__hle;
using emulator::__hlt;
using emulator::__hne;
