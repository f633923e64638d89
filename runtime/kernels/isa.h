// Everything that is compiled once per instruction set, and its table.
//
// A file that includes this defines EXPRUNE_ISA (the namespace and name), EXPRUNE_LANES (floats in a
// vector) and is compiled with that set's flags, see ISA_FLAGS in ../build.py.
#pragma once

#include "attention.h"
#include "block_conv.h"
#include "estimated_gemm.h"
#include "estimated_top_k.h"
#include "panel_conv.h"
#include "prefix_argmax.h"
#include "prefix_conv.h"
#include "prefix_gemm.h"
#include "registry.h"
#include "residual_norm.h"
#include "sparse_conv.h"
#include "sparse_gemm.h"

#define EXPRUNE_NAME_OF(name) #name
#define EXPRUNE_NAME(name) EXPRUNE_NAME_OF(name)

namespace exprune {
namespace EXPRUNE_ISA {

static bool low_rank_gemm(const LowRankGemmCall& call, const Env& env) {
  if (!call.layer.more) return estimated_gemm<LowRankSource>(call, env);
  LowRankGemmCall second = call;
  second.layer.open = call.survivors;
  second.survivors = call.survivors + 1;
  *second.layer.open = 0;
  return estimated_gemm<CascadeSource>(second, env);
}

extern const Kernels kKernels;
const Kernels kKernels = {
    EXPRUNE_NAME(EXPRUNE_ISA),
    {prefix_gemm<Threshold>, prefix_gemm<Stats>, prefix_gemm<Bound>},
    {prefix_conv<Threshold>, prefix_conv<Stats>, prefix_conv<Bound>},
    {prefix_argmax<ByInterval<ThresholdInterval>>, prefix_argmax<ByDominance>,
     prefix_argmax<ByInterval<BoundInterval>>},
    sparse_gemm,
    estimated_gemm<QuantizedSource>,
    estimated_top_k<QuantizedSource>,
    low_rank_gemm,
    estimated_top_k<LowRankSource>,
    block_conv,
    sparse_conv,
    panel_conv,
    attention,
    residual_norm,
};

}  // namespace EXPRUNE_ISA
}  // namespace exprune
