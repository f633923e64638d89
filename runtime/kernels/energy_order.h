// The order of an image's channels by falling energy: the sum of a channel's squares times that of its weights.
#pragma once

#include <float.h>

#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

typedef double D __attribute__((vector_size(4 * EXPRUNE_LANES)));
typedef float HalfU __attribute__((vector_size(2 * EXPRUNE_LANES), aligned(4), may_alias));

// Sum of the squares of `count` floats. In double precision, so that after rounding to float it does not depend on
// the order of summation: the function, another kernel and this one sort channels alike.
static inline double sum_of_squares(const float* x, int64_t count) {
  D low_sum = {}, high_sum = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const D low = __builtin_convertvector(*reinterpret_cast<const HalfU*>(x + i), D);
    const D high = __builtin_convertvector(*reinterpret_cast<const HalfU*>(x + i + kLanes / 2), D);
    low_sum += low * low;
    high_sum += high * high;
  }
  low_sum += high_sum;
  double total = 0;
  for (int lane = 0; lane < kLanes / 2; lane++) total += low_sum[lane];
  for (; i < count; i++) total += static_cast<double>(x[i]) * x[i];
  return total;
}

// A channel, and a key that ascends as its score falls.
struct Ranked {
  uint32_t key;
  int32_t channel;
};

// NaN and infinity come first: what they spoil is then seen by every check.
static inline uint32_t key_of(double energy, float weight_energy) {
  float score = static_cast<float>(energy * static_cast<double>(weight_energy));
  score = (score < FLT_MAX ? score : FLT_MAX) + 0.0f;  // -0 and 0 are one score
  uint32_t b;
  memcpy(&b, &score, sizeof(b));
  return b >> 31 ? b : ~(b | 0x80000000u);
}

// Sorts by key; equal keys keep their order. Returns where the result is: `items` or `spare`.
static inline Ranked* sort_ranked(Ranked* items, Ranked* spare, int64_t count) {
  for (int shift = 0; shift < 32; shift += 8) {
    int64_t starts[257] = {};
    for (int64_t i = 0; i < count; i++) starts[(items[i].key >> shift & 255) + 1]++;
    for (int digit = 1; digit < 257; digit++) starts[digit] += starts[digit - 1];
    for (int64_t i = 0; i < count; i++) spare[starts[items[i].key >> shift & 255]++] = items[i];
    Ranked* sorted = spare;
    spare = items;
    items = sorted;
  }
  return items;
}

// Fills order [G] for image x [G, pixels]: the groups of each chunk. Within a chunk, where the sum is the same but
// for rounding, they ascend, as they lie in memory. False without working memory.
static inline bool energy_order(const Staged& staged, const float* x, int64_t pixels, const float* weight_energy,
                                ScratchPool& pool, int64_t* order) {
  const int64_t groups = staged.groups;
  Ranked *items, *spare;
  int64_t *chunk_of, *next;
  const auto layout = [&](char* base) {
    Carver carver(base);
    items = carver.take<Ranked>(groups);
    spare = carver.take<Ranked>(groups);
    chunk_of = carver.take<int64_t>(groups);
    next = carver.take<int64_t>(staged.chunks);
    return carver.used();
  };
  CarvedLease scratch(pool, layout);
  if (!scratch.data()) return false;
  for (int64_t g = 0; g < groups; g++) {
    items[g] = {key_of(sum_of_squares(x + g * pixels, pixels), weight_energy[g]), static_cast<int32_t>(g)};
  }
  const Ranked* sorted = sort_ranked(items, spare, groups);
  int64_t begin = 0;
  for (int64_t chunk = 0; chunk < staged.chunks; chunk++) {
    next[chunk] = begin;
    for (; begin < staged.ends[chunk]; begin++) chunk_of[sorted[begin].channel] = chunk;
  }
  for (int64_t g = 0; g < groups; g++) order[next[chunk_of[g]]++] = g;
  return true;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
