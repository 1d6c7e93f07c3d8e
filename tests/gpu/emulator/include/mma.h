// nvcuda::wmma. Which lane holds which element of a fragment is not specified by CUDA: here element e lies in lane e % 32.
#pragma once

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int M, int N, int K>
constexpr int kRows = std::is_same_v<Use, matrix_b> ? K : M;
template <class Use, int M, int N, int K>
constexpr int kColumns = std::is_same_v<Use, matrix_a> ? K : N;

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr int rows = kRows<Use, M, N, K>, columns = kColumns<Use, M, N, K>;
  static constexpr int num_elements = rows * columns / 32;
  T x[num_elements];
};

template <class Fragment, class T>
void fill_fragment(Fragment& f, T value) {
  for (auto& element : f.x) element = value;
}

template <class Fragment, class Pointer>
void load(Fragment& f, const Pointer* from, unsigned stride, bool column_major) {
  for (int i = 0; i < f.num_elements; ++i) {
    int element = i * 32 + emulator::lane(), row = element / f.columns, column = element % f.columns;
    f.x[i] = from[column_major ? column * stride + row : row * stride + column];
  }
}
template <class Use, int M, int N, int K, class T, class Layout, class Pointer>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const Pointer* from, unsigned stride) {
  emulator::meet_warp(~0u, nullptr, nullptr);
  load(f, from, stride, std::is_same_v<Layout, col_major>);
}
template <int M, int N, int K, class T, class Pointer>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const Pointer* from, unsigned stride, layout_t layout) {
  emulator::meet_warp(~0u, nullptr, nullptr);
  load(f, from, stride, layout == mem_col_major);
}
template <int M, int N, int K, class T, class Pointer>
void store_matrix_sync(Pointer* to, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
  emulator::meet_warp(~0u, nullptr, nullptr);
  for (int i = 0; i < f.num_elements; ++i) {
    int element = i * 32 + emulator::lane(), row = element / N, column = element % N;
    to[layout == mem_col_major ? column * stride + row : row * stride + column] = f.x[i];
  }
}

// d = a b + c, computed in float32 for 16-bit operands.
template <class A, class B, class C>
struct Multiply {
  const A* a;
  const B* b;
  const C* c;
  C d;

  UNCHECKED static void combine(void* const* slots, unsigned mask) {
    if (mask != ~0u) emulator::fail("wmma needs all 32 lanes of the warp");
    auto at = [&](int lane) UNCHECKED -> Multiply& { return *static_cast<Multiply*>(slots[lane]); };
    float a[A::rows * A::columns], b[B::rows * B::columns];
    for (int e = 0; e < A::rows * A::columns; ++e) a[e] = at(e % 32).a->x[e / 32];
    for (int e = 0; e < B::rows * B::columns; ++e) b[e] = at(e % 32).b->x[e / 32];
    for (int e = 0; e < C::rows * C::columns; ++e) {
      float sum = at(e % 32).c->x[e / 32];
      for (int k = 0; k < A::columns; ++k) sum += a[e / C::columns * A::columns + k] * b[k * B::columns + e % C::columns];
      at(e % 32).d.x[e / 32] = sum;
    }
  }
};
template <class A, class B, class C>
UNCHECKED void mma_sync(C& d, const A& a, const B& b, const C& c) {
  Multiply<A, B, C> slot{&a, &b, &c, {}};
  emulator::meet_warp(~0u, &slot, Multiply<A, B, C>::combine);
  d = slot.d;
}

}  // namespace nvcuda::wmma
