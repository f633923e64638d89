// The products of the convolution in panels: one tap of some groups, for two vectors of output channels x a
// rectangle of positions, or one panel x a list of positions, accumulated in registers.
#pragma once

#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

// Vectors of output channels in a panel.
constexpr int kPanelVectors = static_cast<int>(kPanelChannels) / kLanes;
// Two vectors x so many positions, two weights and a value of X have to fit the registers.
#if EXPRUNE_LANES == 16 || defined(__aarch64__)
constexpr int kMostPositions = 12;
#else
constexpr int kMostPositions = 6;
#endif
constexpr int kMostRows = 4, kMostColumns = kMostPositions;
constexpr int64_t kMostStride = 2;  // of a rectangle's columns
// Groups between fetching weights and their use.
constexpr int kAhead = 48;
// Positions of a list: each takes a pointer as well.
constexpr int kMostListed = kMostPositions < 10 ? kMostPositions : 10;
// Vectors of output channels that share a list's positions.
constexpr int kListVectors = kPanelVectors < 2 ? kPanelVectors : 2;

// Weights [groups][16] of each vector; X at the rectangle's first position of the first group; sums at its first
// position, 16 floats apart.
struct PanelProduct {
  const float* x;
  int64_t x_row, x_group;
  const float* weights[2];
  int64_t groups;
  float* sums[2];
  int64_t sums_row;
};

// Never inlined: in a larger function GCC spills the accumulators.
template <int Vectors, int Rows, int Columns, int Stride>
__attribute__((noinline)) static void rectangle(const PanelProduct& p) {
  V acc[Vectors][Rows][Columns];
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; v++) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 12
      for (int k = 0; k < Columns; k++) acc[v][r][k] = load(p.sums[v] + r * p.sums_row + k * kPanelChannels);
    }
  }
  const float* x = p.x;
  const float* w0 = p.weights[0];
  const float* w1 = p.weights[Vectors - 1];
  const int64_t row = p.x_row, step = p.x_group;
  for (const float* const end = w0 + p.groups * kPanelChannels; w0 != end; w0 += kPanelChannels) {
    const V first = load(w0), second = load(w1);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 12
      for (int k = 0; k < Columns; k++) {
        const V in = splat(x[r * row + k * Stride]);
        acc[0][r][k] += first * in;
        if (Vectors == 2) acc[Vectors - 1][r][k] += second * in;
      }
    }
    __builtin_prefetch(w0 + kAhead * kPanelChannels);
    if (Vectors == 2) __builtin_prefetch(w1 + kAhead * kPanelChannels);
    w1 += kPanelChannels;
    x += step;
    // Keeps the compiler from reusing loads over iterations, which spills the accumulators.
    __asm__ volatile("" : "+r"(x));
  }
#pragma GCC unroll 2
  for (int v = 0; v < Vectors; v++) {
#pragma GCC unroll 4
    for (int r = 0; r < Rows; r++) {
#pragma GCC unroll 12
      for (int k = 0; k < Columns; k++) store(p.sums[v] + r * p.sums_row + k * kPanelChannels, acc[v][r][k]);
    }
  }
}

// Positions anywhere: X at x + offsets[i], sums of positions[i].
struct ListProduct {
  const float* x;
  int64_t x_group;
  const float* weights;  // [groups][16]
  int64_t groups;
  float* sums;  // [positions][16]
  const int32_t* offsets;
  const int32_t* positions;
};

template <int Count>
__attribute__((noinline)) static void listed(const ListProduct& p) {
  for (int part = 0; part < kPanelVectors; part += kListVectors) {
    float* const sums = p.sums + part * kLanes;
    V acc[kListVectors][Count];
    const float* x[Count];
#pragma GCC unroll 12
    for (int i = 0; i < Count; i++) {
      x[i] = p.x + p.offsets[i];
#pragma GCC unroll 2
      for (int v = 0; v < kListVectors; v++) acc[v][i] = load(sums + p.positions[i] * kPanelChannels + v * kLanes);
    }
    const float* w = p.weights + part * kLanes;
    const float* const end = w + p.groups * kPanelChannels;
    // One index moves for all positions.
    for (int64_t at = 0; w != end; w += kPanelChannels, at += p.x_group) {
      V weight[kListVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kListVectors; v++) weight[v] = load(w + v * kLanes);
#pragma GCC unroll 12
      for (int i = 0; i < Count; i++) {
        const V in = splat(x[i][at]);
#pragma GCC unroll 2
        for (int v = 0; v < kListVectors; v++) acc[v][i] += weight[v] * in;
      }
      __builtin_prefetch(w + kAhead * kPanelChannels);
    }
#pragma GCC unroll 12
    for (int i = 0; i < Count; i++) {
#pragma GCC unroll 2
      for (int v = 0; v < kListVectors; v++) store(sums + p.positions[i] * kPanelChannels + v * kLanes, acc[v][i]);
    }
  }
}

using AddRectangle = void (*)(const PanelProduct&);
using AddList = void (*)(const ListProduct&);

template <int Vectors, int Stride, int Rows, int Columns>
constexpr AddRectangle rectangle_or_null() {
  if constexpr (Rows * Columns <= kMostPositions) {
    return rectangle<Vectors, Rows, Columns, Stride>;
  } else {
    return nullptr;
  }
}

template <int Vectors, int Stride, int Rows>
struct RowOfRectangles {
  static constexpr AddRectangle kFunctions[12] = {
      rectangle_or_null<Vectors, Stride, Rows, 1>(),  rectangle_or_null<Vectors, Stride, Rows, 2>(),
      rectangle_or_null<Vectors, Stride, Rows, 3>(),  rectangle_or_null<Vectors, Stride, Rows, 4>(),
      rectangle_or_null<Vectors, Stride, Rows, 5>(),  rectangle_or_null<Vectors, Stride, Rows, 6>(),
      rectangle_or_null<Vectors, Stride, Rows, 7>(),  rectangle_or_null<Vectors, Stride, Rows, 8>(),
      rectangle_or_null<Vectors, Stride, Rows, 9>(),  rectangle_or_null<Vectors, Stride, Rows, 10>(),
      rectangle_or_null<Vectors, Stride, Rows, 11>(), rectangle_or_null<Vectors, Stride, Rows, 12>()};
};

template <int Vectors, int Stride>
static inline AddRectangle rectangle_of(int rows, int columns) {
  switch (rows) {
    case 1:
      return RowOfRectangles<Vectors, Stride, 1>::kFunctions[columns - 1];
    case 2:
      return RowOfRectangles<Vectors, Stride, 2>::kFunctions[columns - 1];
    case 3:
      return RowOfRectangles<Vectors, Stride, 3>::kFunctions[columns - 1];
    default:
      return RowOfRectangles<Vectors, Stride, 4>::kFunctions[columns - 1];
  }
}

// The product for so many vectors, rows and columns (rows * columns <= kMostPositions), and a stride of 1 or 2.
static inline AddRectangle rectangle_product(int vectors, int rows, int columns, int64_t stride) {
  if (vectors == 2) return stride == 2 ? rectangle_of<2, 2>(rows, columns) : rectangle_of<2, 1>(rows, columns);
  return stride == 2 ? rectangle_of<1, 2>(rows, columns) : rectangle_of<1, 1>(rows, columns);
}

template <int... Count>
struct ListTable {
  static constexpr AddList kFunctions[] = {listed<Count>...};
};

static inline AddList list_product(int count) {
#if EXPRUNE_LANES == 16 || defined(__aarch64__)
  return ListTable<1, 2, 3, 4, 5, 6, 7, 8, 9, 10>::kFunctions[count - 1];
#else
  return ListTable<1, 2, 3, 4, 5, 6>::kFunctions[count - 1];
#endif
}

// Calls use(first, second, vectors) for the vectors of output channels of one or two panels, two at a time; first
// and second are their first lanes, counted over the panels.
template <class Use>
static inline void for_vectors(int64_t panels, const Use& use) {
  const int64_t all = panels * kPanelChannels;
  for (int64_t first = 0; first < all; first += 2 * kLanes) {
    const bool two = first + kLanes < all;
    use(first, two ? first + kLanes : first, two ? 2 : 1);
  }
}

#if EXPRUNE_LANES == 16
// rows[i] holds element i of 16 vectors that follow each other in memory.
static inline void transpose(const float* from, V* rows) {
  __m512 r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_ps(from + i * 16);
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    for (int k = 0; k < 2; k++) {
      const __m512d a = _mm512_castps_pd(t[4 * i + k]), b = _mm512_castps_pd(t[4 * i + 2 + k]);
      r[4 * i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[4 * i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    rows[i] = reinterpret_cast<V>(_mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
    rows[i + 8] = reinterpret_cast<V>(_mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
    rows[i + 4] = reinterpret_cast<V>(_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
    rows[i + 12] = reinterpret_cast<V>(_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
  }
}
#endif

}  // namespace EXPRUNE_ISA
}  // namespace exprune
