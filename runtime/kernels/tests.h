// The tests as compile-time policies: which outputs of a ReLU site a check decides.
//
// `prune` takes vectors and answers a lane mask. Every comparison is `a < b`, which is
// false for a NaN: what cannot be compared survives.
#pragma once

#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

// The rounding of so many terms' sums, per |bias| + |offset|; see registry.h.
static inline float offset_rounding(int64_t terms) {
  return terms < kMostTerms ? kOffsetRounding + kTermRounding * static_cast<float>(terms + 4) : INFINITY;
}

// A reach with the rounding of its own arithmetic, or infinity where it does not stand for a bound: there a NaN
// becomes infinite too.
static inline float sound(float reach) {
  const float whole = reach * (1.0f + kReachRounding);
  return whole < kMostReach ? whole : INFINITY;
}
static inline V sound(V reach) {
  const V whole = reach * splat(1.0f + kReachRounding);
  return select(whole < splat(kMostReach), whole, splat(INFINITY));
}

// What a check knows of one output at some positions. Unused members cost nothing.
struct Seen {
  V partial;    // P_s
  V offset;     // the computed offset alone
  V squares;    // sum over the groups so far of the squared terms (Stats)
  V tail_norm;  // ||x|| over the groups to come (Bound)
  V norm;       // ||x|| over all groups (Bound)
};

// (Q - P P / k) / (k - 1), never below 0; NaN stays NaN.
template <class T>
static inline T sample_variance(T partial, T squares, float k) {
  if (k < 2.0f) return like(partial, 0.0f);
  const T v = (squares - partial * partial * like(partial, 1.0f / k)) * like(partial, 1.0f / (k - 1.0f));
  return select(v < like(v, 0.0f), like(v, 0.0f), v);
}

struct Threshold {
  static constexpr bool kSquares = false;
  static constexpr bool kNorms = false;
  static inline I prune(const Staged& p, int64_t check, int64_t n, const Seen& seen) {
    const int64_t at = check * p.outputs + n;
    return splat(p.first[at]) * seen.partial + (splat(p.bias[n]) + seen.offset) < splat(p.second[at]);
  }
};

struct Stats {
  static constexpr bool kSquares = true;
  static constexpr bool kNorms = false;
  static inline I prune(const Staged& p, int64_t check, int64_t n, const Seen& seen) {
    const float k = static_cast<float>(p.ends[check]);
    const float groups = static_cast<float>(p.groups);
    const V mean = seen.partial / splat(k) + (splat(p.bias[n]) + seen.offset) / splat(groups);
    const V variance = sample_variance(seen.partial, seen.squares, k);
    return mean < splat(p.z) * square_root(variance / splat(k));
  }
};

struct Bound {
  static constexpr bool kSquares = false;
  static constexpr bool kNorms = true;
  static inline I prune(const Staged& p, int64_t check, int64_t n, const Seen& seen) {
    const int64_t at = check * p.outputs + n;
    const V bias = splat(p.bias[n]);
    const V magnitude = absolute(bias) + absolute(seen.offset);
    const V rounding = splat(offset_rounding(p.groups * p.taps)) * magnitude + splat(kUnderflow);
    const V radius = splat(p.first[at]) * seen.tail_norm + splat(p.second[at]) * seen.norm + rounding;
    return (seen.partial + (bias + seen.offset)) + sound(radius) < V{};
  }
};

}  // namespace EXPRUNE_ISA
}  // namespace exprune
