// Products with a packed panel: K reduction steps by kLanes * PV positions, weights broadcast.
#pragma once

#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

// Outputs that share one pass over the panel: accumulators (outputs * PV), PV positions and one weight
// have to fit the registers (32 with AVX-512 and on aarch64, 16 otherwise).
#if EXPRUNE_LANES == 16 || defined(__aarch64__)
constexpr int kPanelOutputs = 8;
constexpr int kPanelOutputsSquares = 4;
#elif EXPRUNE_LANES == 8
constexpr int kPanelOutputs = 6;
constexpr int kPanelOutputsSquares = 2;
#else
constexpr int kPanelOutputs = 4;
constexpr int kPanelOutputsSquares = 2;
#endif

// sums[j][p] += sum over k of w[j][k] * panel[k][p], for PV vectors of positions.
// Never inlined: in a larger function GCC spills the positions to the stack in the innermost loop.
template <int Outputs, int PV>
__attribute__((noinline)) static void panel_block(const float* panel, const float* const* w, int64_t steps,
                                                  float* const* sums) {
  V acc[Outputs][PV];
  for (int j = 0; j < Outputs; j++) {
    for (int v = 0; v < PV; v++) acc[j][v] = load(sums[j] + v * kLanes);
  }
  const float* row[Outputs];
  for (int j = 0; j < Outputs; j++) row[j] = w[j];
  for (int64_t k = 0; k < steps; k++) {
    V x[PV];
    for (int v = 0; v < PV; v++) x[v] = load(panel + v * kLanes);
    for (int j = 0; j < Outputs; j++) {
      const V weight = splat(row[j][k]);
      for (int v = 0; v < PV; v++) acc[j][v] += weight * x[v];
    }
    panel += PV * kLanes;
    // Keeps the compiler from reusing loads over iterations, which spills the accumulators.
    __asm__ volatile("" : "+r"(panel));
  }
  for (int j = 0; j < Outputs; j++) {
    for (int v = 0; v < PV; v++) store(sums[j] + v * kLanes, acc[j][v]);
  }
}

// As panel_block, and squares[j][p] += sum over groups of (sum over the group's taps)^2.
template <int Outputs, int PV>
__attribute__((noinline)) static void panel_block_squares(const float* panel, const float* const* w,
                                                          int64_t groups, int64_t taps, float* const* sums,
                                                          float* const* squares) {
  V acc[Outputs][PV], sq[Outputs][PV];
  for (int j = 0; j < Outputs; j++) {
    for (int v = 0; v < PV; v++) {
      acc[j][v] = load(sums[j] + v * kLanes);
      sq[j][v] = load(squares[j] + v * kLanes);
    }
  }
  int64_t k = 0;
  for (int64_t g = 0; g < groups; g++) {
    V term[Outputs][PV] = {};
    for (int64_t t = 0; t < taps; t++, k++, panel += PV * kLanes) {
      V x[PV];
      for (int v = 0; v < PV; v++) x[v] = load(panel + v * kLanes);
      for (int j = 0; j < Outputs; j++) {
        const V weight = splat(w[j][k]);
        for (int v = 0; v < PV; v++) term[j][v] += weight * x[v];
      }
    }
    for (int j = 0; j < Outputs; j++) {
      for (int v = 0; v < PV; v++) {
        acc[j][v] += term[j][v];
        sq[j][v] += term[j][v] * term[j][v];
      }
    }
  }
  for (int j = 0; j < Outputs; j++) {
    for (int v = 0; v < PV; v++) {
      store(sums[j] + v * kLanes, acc[j][v]);
      store(squares[j] + v * kLanes, sq[j][v]);
    }
  }
}

// The same for the outputs list[0 .. count): weights of output i start at weights + i * stride, its
// sums at sums + i * PV * kLanes.
template <int PV, bool Squares>
static inline void add_panel(const float* panel, const float* weights, int64_t stride, const int32_t* list,
                             int64_t count, int64_t groups, int64_t taps, float* sums, float* squares) {
  constexpr int kMost = Squares ? kPanelOutputsSquares : kPanelOutputs;
  const float* w[kMost];
  float* s[kMost];
  float* q[kMost];
  for (int64_t i = 0; i < count;) {
    const int step = static_cast<int>(min_of(count - i, kMost));
    for (int j = 0; j < step; j++) {
      w[j] = weights + list[i + j] * stride;
      s[j] = sums + list[i + j] * static_cast<int64_t>(PV * kLanes);
      q[j] = Squares ? squares + list[i + j] * static_cast<int64_t>(PV * kLanes) : nullptr;
    }
    int done;
    if (Squares) {
      if (step == kMost) {
        panel_block_squares<kMost, PV>(panel, w, groups, taps, s, q);
        done = kMost;
      } else {
        panel_block_squares<1, PV>(panel, w, groups, taps, s, q);
        done = 1;
      }
    } else if (step == kMost) {
      panel_block<kMost, PV>(panel, w, groups * taps, s);
      done = kMost;
    } else if (step >= 4) {
      panel_block<4, PV>(panel, w, groups * taps, s);
      done = 4;
    } else if (step >= 2) {
      panel_block<2, PV>(panel, w, groups * taps, s);
      done = 2;
    } else {
      panel_block<1, PV>(panel, w, groups * taps, s);
      done = 1;
    }
    i += done;
  }
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
