// The scalar kernels of scalar_quantized.cpp and scalar_low_rank.cpp, for the table in scalar.cpp.
#pragma once

#include <math.h>

#include "registry.h"

namespace exprune {
namespace scalar {

// A reach with all of its rounding, or infinity; see registry.h.
inline double sound(double reach, double magnitude, int64_t terms) {
  const double rounding = static_cast<double>(kOffsetRounding) + kTermRounding * static_cast<double>(terms + 4);
  const double whole = (reach + rounding * magnitude + kUnderflow) * (1 + static_cast<double>(kReachRounding));
  return terms < kMostTerms && whole < kMostReach ? whole : INFINITY;
}

bool quantized_gemm(const QuantizedGemmCall& call, const Env& env);
bool quantized_top_k(const QuantizedTopKCall& call, const Env& env);
bool low_rank_gemm(const LowRankGemmCall& call, const Env& env);
bool low_rank_top_k(const LowRankTopKCall& call, const Env& env);

}  // namespace scalar
}  // namespace exprune
