// Dot products along the reduction: one row of weights with several rows of X at a time.
#pragma once

#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

// Rows of X that share one pass over a row of weights: what the registers hold.
constexpr int kDotRows = kLanes == 16 ? 4 : 2;

// sums[r] = w . x[r] over k elements; squares[r] = sum of the squared terms, if Squares.
//
// Every row has four accumulators whatever Rows is, so a row's result does not depend on its company.
// With Fetch, `ahead` is read soon after: its cache lines are fetched meanwhile.
template <int Rows, bool Squares, bool Fetch>
__attribute__((noinline)) static void dots(const float* w, const float* const* x, int64_t k,
                                           const float* ahead, float* sums, float* squares) {
  constexpr int kUnroll = 4;
  // Four arrays and not one of two dimensions, which the compiler clears and keeps in memory.
  V a0[Rows] = {}, a1[Rows] = {}, a2[Rows] = {}, a3[Rows] = {};
  V q0[Rows] = {}, q1[Rows] = {}, q2[Rows] = {}, q3[Rows] = {};
  const auto add = [&](V weight, int64_t at, int64_t used, V* acc, V* sq) {
    for (int r = 0; r < Rows; r++) {
      const V term = load_up_to(x[r] + at, used);
      if (Squares) {
        const V product = weight * term;
        acc[r] += product;
        sq[r] += product * product;
      } else {
        acc[r] += weight * term;
      }
    }
  };
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= k; i += kUnroll * kLanes) {
    if (Fetch) prefetch_row(ahead + i, kUnroll * kLanes);
    add(load(w + i), i, kLanes, a0, q0);
    add(load(w + i + kLanes), i + kLanes, kLanes, a1, q1);
    add(load(w + i + 2 * kLanes), i + 2 * kLanes, kLanes, a2, q2);
    add(load(w + i + 3 * kLanes), i + 3 * kLanes, kLanes, a3, q3);
  }
  const auto rest = [&](V* acc) {
    if (i >= k) return;
    if (Fetch) fetch_line(ahead + i);
    add(load_up_to(w + i, k - i), i, k - i, acc, q0);
    i += kLanes;
  };
  rest(a0);
  rest(a1);
  rest(a2);
  rest(a3);
  for (int r = 0; r < Rows; r++) {
    sums[r] = sum((a0[r] + a1[r]) + (a2[r] + a3[r]));
    if (Squares) squares[r] = sum((q0[r] + q1[r]) + (q2[r] + q3[r]));
  }
}

template <int Rows, bool Squares>
static inline void dots(const float* w, const float* const* x, int64_t k, const float* ahead, float* sums,
                        float* squares) {
  if (ahead) return dots<Rows, Squares, true>(w, x, k, ahead, sums, squares);
  dots<Rows, Squares, false>(w, x, k, nullptr, sums, squares);
}

// The same for any number of rows; `ahead` may be null. Results are added to sums[at[r]] and squares[at[r]].
template <bool Squares>
static inline void add_dots(const float* w, const float* const* x, const int64_t* at, int64_t rows, int64_t k,
                            const float* ahead, float* sums, float* squares) {
  float s[kDotRows], q[kDotRows];
  int64_t r = 0;
  while (r < rows) {
    int step = 1;
    if (rows - r >= kDotRows) {
      dots<kDotRows, Squares>(w, x + r, k, ahead, s, q);
      step = kDotRows;
    } else if (rows - r >= 2) {
      dots<2, Squares>(w, x + r, k, ahead, s, q);
      step = 2;
    } else {
      dots<1, Squares>(w, x + r, k, ahead, s, q);
    }
    for (int i = 0; i < step; i++) {
      sums[at[r + i]] += s[i];
      if (Squares) squares[at[r + i]] += q[i];
    }
    ahead = nullptr;
    r += step;
  }
}

// X in the order of the reduction; rows [M, G]. Returns the squared norms of every chunk in double, so
// that they neither overflow nor vanish: chunk_squares[c], if wanted.
static inline void gather_row(const float* x, const int64_t* order, const int64_t* ends, int64_t chunks,
                              float* out, double* chunk_squares) {
  int64_t i = 0;
  for (int64_t c = 0; c < chunks; c++) {
    const int64_t first = i;
    for (; i < ends[c]; i++) out[i] = x[order[i]];
    if (!chunk_squares) continue;
    double part[4] = {0, 0, 0, 0};
    for (int64_t j = first; j < ends[c]; j++) part[j & 3] += static_cast<double>(out[j]) * out[j];
    chunk_squares[c] = (part[0] + part[1]) + (part[2] + part[3]);
  }
}

// From squares per chunk to norms[s] = the norm after chunk s, for s < checks, and norms[checks] = of all;
// consecutive norms are `stride` apart.
static inline void suffix_norms(const double* chunk_squares, int64_t checks, float* norms, int64_t stride) {
  double total = 0;
  for (int64_t c = checks; c >= 0; c--) {
    total += chunk_squares[c];
    const int64_t slot = c == 0 ? checks : c - 1;
    norms[slot * stride] = static_cast<float>(__builtin_sqrt(total));
  }
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
