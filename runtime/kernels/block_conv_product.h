// The product of the convolution in blocks: some output channels x some vectors of positions, accumulated in
// registers over channels and taps.
#pragma once

#include "block_conv_plan.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

// Output channels that share the loads of VN vectors of positions; accumulators, positions and one weight
// have to fit the registers.
constexpr int block_outputs(int vn) {
#if EXPRUNE_LANES == 16 || defined(__aarch64__)
  return vn == 4 ? 6 : vn == 3 ? 8 : vn == 2 ? 10 : 10;
#else
  return vn == 2 ? 6 : 10;
#endif
}

struct Group {
  const float* x;          // packed, first channel
  int64_t x_step;          // floats between channels
  const float* const* w;   // [outputs] row 0, first tap
  int64_t w_step;          // floats between rows
  const int64_t* rows;     // [channels], each channel's row of weights
  const int32_t* offsets;  // [taps]
  int64_t taps, channels;
  int64_t ahead;           // how many channels ahead weights are fetched, 0: not
  int64_t next;            // what will probably be read after the last: weights so far from w,
  const int64_t* next_rows;  // [ahead] in these rows
  float* const* sums;      // [outputs]
};

// Fetches `outputs` rows of `taps` weights, which are neighbours as long as nothing has been decided.
// Inlined by force: GCC takes a function that only fetches for one without effects and drops its calls.
__attribute__((always_inline)) static inline void fetch(const float* const* w, int outputs, int64_t taps, int64_t shift) {
  const float* row = w[0] + shift;
  if (w[outputs - 1] - w[0] == (outputs - 1) * taps) {
    for (int64_t t = 0; t < outputs * taps; t += 16) __builtin_prefetch(row + t, 0, 2);
    return;
  }
  for (int j = 0; j < outputs; j++) {
    for (int64_t t = 0; t < taps; t += 16) __builtin_prefetch(w[j] + shift + t, 0, 2);
    __builtin_prefetch(w[j] + shift + taps - 1, 0, 2);
  }
}

// sums[j][p] += sum over channels and taps of w[j] * x, for VN vectors of positions.
// Never inlined: in a larger function GCC spills the accumulators.
template <int VN, int Outputs>
__attribute__((noinline)) static void add_group(const Group& group) {
  V acc[Outputs][VN];
#pragma GCC unroll 16
  for (int j = 0; j < Outputs; j++) {
#pragma GCC unroll 4
    for (int v = 0; v < VN; v++) acc[j][v] = load(group.sums[j] + v * kLanes);
  }
  const float* w[Outputs];
#pragma GCC unroll 16
  for (int j = 0; j < Outputs; j++) w[j] = group.w[j];
  const float* x = group.x;
  const int32_t* const offsets = group.offsets;
  const int64_t taps = group.taps;
  for (int64_t channel = 0; channel < group.channels; channel++) {
    if (group.ahead) {
      const int64_t later = channel + group.ahead, after = later - group.channels;
      fetch(group.w, Outputs, taps,
            after < 0 ? group.rows[later] * group.w_step : group.next + group.next_rows[after] * group.w_step);
    }
    // One index moves for all weights: a pointer each would not fit the registers.
    const int64_t step = group.rows[channel] * group.w_step;
    const int32_t* tap = offsets;
    for (int64_t k = step; k < step + taps; k++) {
      const float* at = x + *tap++;
      V in[VN];
#pragma GCC unroll 4
      for (int v = 0; v < VN; v++) in[v] = load(at + v * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < Outputs; j++) {
        const V weight = splat(w[j][k]);
#pragma GCC unroll 4
        for (int v = 0; v < VN; v++) acc[j][v] += weight * in[v];
      }
      // Keeps the compiler from reusing loads over iterations, which spills the accumulators.
      __asm__ volatile("" : "+r"(x));
    }
    x += group.x_step;
  }
#pragma GCC unroll 16
  for (int j = 0; j < Outputs; j++) {
#pragma GCC unroll 4
    for (int v = 0; v < VN; v++) store(group.sums[j] + v * kLanes, acc[j][v]);
  }
}

using AddGroup = void (*)(const Group&);

template <int VN, int... I>
struct GroupTable {
  static constexpr AddGroup kFunctions[] = {add_group<VN, I>...};
};
static inline AddGroup add_group_of(int vectors, int outputs) {
  switch (vectors) {
    case 1:
#if EXPRUNE_LANES == 16 || defined(__aarch64__)
      return GroupTable<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14>::kFunctions[outputs - 1];
    case 3:
      return GroupTable<3, 1, 2, 3, 4, 5, 6, 7, 8>::kFunctions[outputs - 1];
    case 4:
      return GroupTable<4, 1, 2, 3, 4, 5, 6>::kFunctions[outputs - 1];
    default:
      return GroupTable<2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12>::kFunctions[outputs - 1];
#else
      return GroupTable<1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10>::kFunctions[outputs - 1];
    default:
      return GroupTable<2, 1, 2, 3, 4, 5, 6>::kFunctions[outputs - 1];
#endif
  }
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
