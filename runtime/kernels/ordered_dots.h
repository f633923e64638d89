// Dot products in the order of ONNX Runtime's matrix product (MLAS): the groups of an output one after the other, in
// blocks whose sums are added up. An output that is finished so has the bits that it has in the dense layer, where that
// is computed with fused multiply-adds as well (AVX2 and AVX-512).
//
// A lane is an output: rows of weights are transposed on their way from memory.
#pragma once

#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kSumDepth = 256;     // groups of a block
constexpr int kQuads = kLanes / 4;     // of a vector
// Vectors of outputs at a time. A sum waits for the one before: shorter vectors need a second chain to keep up with memory.
constexpr int kOrderedVectors = kLanes == 16 ? 1 : 2;
constexpr int kOrderedRows = 4;        // rows of X that share the transposed weights
constexpr int64_t kOrderedAhead = 128;  // groups between fetching a weight and its use
constexpr int kOrderedOutputs = kOrderedVectors * kLanes;

// Four floats in a quarter (AVX-512) or half (AVX2) of a vector.
static inline V with_quad(V v, int quad, const float* p) {
#if EXPRUNE_LANES == 16
  return reinterpret_cast<V>(_mm512_mask_broadcast_f32x4(
      reinterpret_cast<__m512>(v), static_cast<__mmask16>(0xf << (4 * quad)), _mm_loadu_ps(p)));
#elif EXPRUNE_LANES == 8
  if (quad == 0) return reinterpret_cast<V>(_mm256_castps128_ps256(_mm_loadu_ps(p)));
  return reinterpret_cast<V>(_mm256_insertf128_ps(reinterpret_cast<__m256>(v), _mm_loadu_ps(p), 1));
#else
  (void)v;
  (void)quad;
  return load(p);
#endif
}

// Transposes the 4 x 4 floats of every quad.
static inline void transpose_quads(const V* rows, V* out) {
  const V even_low = interleave_low(rows[0], rows[2]), odd_low = interleave_low(rows[1], rows[3]);
  const V even_high = interleave_high(rows[0], rows[2]), odd_high = interleave_high(rows[1], rows[3]);
  out[0] = interleave_low(even_low, odd_low);
  out[1] = interleave_high(even_low, odd_low);
  out[2] = interleave_low(even_high, odd_high);
  out[3] = interleave_high(even_high, odd_high);
}

// out[i]: element i of each of kLanes rows, one row a lane, for i < kLanes.
static inline void transposed(const float* const* rows, int64_t at, V* out) {
  V quads[kQuads][4];
  for (int q = 0; q < kQuads; q++) {
    for (int i = 0; i < 4; i++) {
      const float* const row = rows[4 * q + i] + at;
      for (int column = 0; column < kQuads; column++) {
        quads[column][i] = with_quad(q ? quads[column][i] : V{}, q, row + 4 * column);
      }
    }
  }
  for (int column = 0; column < kQuads; column++) transpose_quads(quads[column], out + 4 * column);
}

// sums[r][lane] += w[lane] . x[r] over k groups, for Rows rows of X and Vectors * kLanes rows of weights.
// ahead[0 .. aheads) are read soon after: their cache lines are fetched meanwhile.
template <int Vectors, int Rows>
__attribute__((noinline)) static void ordered_dots(const float* const* w, const float* const* x, int64_t k,
                                                   const float* const* ahead, int64_t aheads, float* sums) {
  for (int64_t block = 0; block < k; block += kSumDepth) {
    const int64_t end = min_of(block + kSumDepth, k);
    V acc[Vectors * Rows] = {};
    const auto add = [&](int64_t at, int v, V weight) {
      for (int r = 0; r < Rows; r++) acc[r * Vectors + v] += splat(x[r][at]) * weight;
    };
    int64_t i = block;
    for (; i + kLanes <= end; i += kLanes) {
      if (i % 16 == 0) {
        const int64_t later = i + kOrderedAhead;
        if (later < k) {
          for (int lane = 0; lane < Vectors * kLanes; lane++) fetch_line(w[lane] + later);
        } else {
          for (int64_t a = 0; a < aheads; a++) fetch_line(ahead[a] + (later - k));
        }
      }
      V columns[Vectors][kLanes];
      for (int v = 0; v < Vectors; v++) transposed(w + v * kLanes, i, columns[v]);
      for (int c = 0; c < kLanes; c++) {
        for (int v = 0; v < Vectors; v++) add(i + c, v, columns[v][c]);
      }
    }
    for (; i < end; i++) {
      for (int v = 0; v < Vectors; v++) {
        V weight;
        for (int lane = 0; lane < kLanes; lane++) weight[lane] = w[v * kLanes + lane][i];
        add(i, v, weight);
      }
    }
    for (int s = 0; s < Vectors * Rows; s++) store(sums + s * kLanes, load(sums + s * kLanes) + acc[s]);
  }
}

// sums[i] += w[i] . x for `count` rows of weights, at most kOrderedOutputs; sums has room for so many.
static inline void ordered_dots_of(const float** w, int64_t count, const float* x, int64_t k,
                                   const float* const* ahead, int64_t aheads, float* sums) {
  if (count <= 0) return;
  const int64_t lanes = count > kLanes ? kOrderedOutputs : kLanes;
  for (int64_t i = count; i < lanes; i++) {
    w[i] = w[count - 1];
    sums[i] = 0;
  }
  if (count > kLanes) return ordered_dots<kOrderedVectors, 1>(w, &x, k, ahead, aheads, sums);
  ordered_dots<1, 1>(w, &x, k, ahead, aheads, sums);
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
