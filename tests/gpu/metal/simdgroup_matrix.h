// Matrices of 8 x 8 that the 32 lanes of a simdgroup hold together, as in Metal's header metal_simdgroup_matrix.
//
// Which lane holds which element is not specified by Metal: here element e of the rows side by side lies in lane e % 32. All
// lanes have to come to each operation. None orders memory: what other lanes stored needs a barrier before it is loaded.
#pragma once

namespace metal {

template <class T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8);
  static constexpr int size = 64;
  T elements[size / emulator::kWarp];
};
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;

UNCHECKED inline void all_lanes(void* const*, unsigned mask) {
  if (mask != ~0u) emulator::fail("simdgroup matrices need all 32 lanes");
}

template <class T, int Columns, int Rows>
simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  return {value, value};
}

// Where element e of a matrix lies in memory, whose rows are `stride` elements apart.
inline long place(int e, long stride, bool transposed) {
  return transposed ? e % 8 * stride + e / 8 : e / 8 * stride + e % 8;
}

// `origin` must be 0.
template <class T>
void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const T* from, long stride, int, bool transposed) {
  emulator::meet_warp(~0u, nullptr, all_lanes);
  // A lane reads the elements of others too: whoever holds one, it has to be there.
  for (int e = 0; e < m.size; ++e) {
    T element = from[place(e, stride, transposed)];
    if (e % emulator::kWarp == emulator::lane()) m.elements[e / emulator::kWarp] = element;
  }
}

template <class T>
void simdgroup_store(const simdgroup_matrix<T, 8, 8>& m, T* to, long stride, int, bool transposed) {
  emulator::meet_warp(~0u, nullptr, all_lanes);
  for (int e = emulator::lane(); e < m.size; e += emulator::kWarp) {
    to[place(e, stride, transposed)] = m.elements[e / emulator::kWarp];
  }
}

// d = a b + c, computed in float32 and rounded once.
template <class D, class A, class B, class C>
struct MultiplyAccumulate {
  const simdgroup_matrix<A, 8, 8>* a;
  const simdgroup_matrix<B, 8, 8>* b;
  const simdgroup_matrix<C, 8, 8>* c;
  simdgroup_matrix<D, 8, 8> d;

  UNCHECKED static void combine(void* const* slots, unsigned mask) {
    all_lanes(slots, mask);
    auto at = [&](int e) UNCHECKED -> MultiplyAccumulate& { return *static_cast<MultiplyAccumulate*>(slots[e % 32]); };
    float a[64], b[64];
    for (int e = 0; e < 64; ++e) {
      A a_element = at(e).a->elements[e / 32];  // a copy: its conversion is checked, and another lane's stack is not ours
      B b_element = at(e).b->elements[e / 32];
      a[e] = a_element;
      b[e] = b_element;
    }
    for (int e = 0; e < 64; ++e) {
      C c_element = at(e).c->elements[e / 32];
      float sum = c_element;
      for (int k = 0; k < 8; ++k) sum += a[e / 8 * 8 + k] * b[k * 8 + e % 8];
      at(e).d.elements[e / 32] = sum;
    }
  }
};
template <class D, class A, class B, class C>
UNCHECKED void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a,
                                             const simdgroup_matrix<B, 8, 8>& b, const simdgroup_matrix<C, 8, 8>& c) {
  MultiplyAccumulate<D, A, B, C> slot{&a, &b, &c, {}};
  emulator::meet_warp(~0u, &slot, MultiplyAccumulate<D, A, B, C>::combine);
  d = slot.d;
}

// Orders threadgroup memory among the lanes; the checker takes device memory for ordered, too.
inline void simdgroup_barrier(mem_flags flags) {
  emulator::meet_warp(~0u, nullptr, nullptr, flags == mem_flags::mem_threadgroup);
}

}  // namespace metal
