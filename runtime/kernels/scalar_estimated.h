// The scalar kernels of scalar_quantized.cpp and scalar_low_rank.cpp, for the table in scalar.cpp.
#pragma once

#include "registry.h"

namespace exprune {
namespace scalar {

bool quantized_gemm(const QuantizedGemmCall& call, const Env& env);
bool quantized_top_k(const QuantizedTopKCall& call, const Env& env);
bool low_rank_gemm(const LowRankGemmCall& call, const Env& env);
bool low_rank_top_k(const LowRankTopKCall& call, const Env& env);

}  // namespace scalar
}  // namespace exprune
