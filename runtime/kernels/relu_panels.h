// A Gemm with a ReLU as a dense product, for many rows that leave little to skip.
#pragma once

#include "packed_gemm.h"

namespace exprune {
namespace EXPRUNE_ISA {

// Whether each row's survivors are computed for it alone. They are where a step's weights fill few vectors: then to
// transpose some of them twice is cheaper than to multiply all of them with rows that do not need them.
constexpr bool kRowByRow = kLanes <= 8;
// What a product costs next to one in panels: of codes, and of floats of an output that survives in some rows.
constexpr float kCodeProduct = 0.3f, kSurvivorProduct = kRowByRow ? 7.0f : 5.0f;
// Of reading and multiplying, the share of the shorter one that does not go on behind the other where outputs are skipped.
constexpr float kNotOverlapped = kRowByRow ? 0.3f : 0.0f;

// What becomes of the sums of a dense product.
template <class Call>
struct ReluResults {
  const Call* call;

  V begin(int64_t row, int64_t n, int64_t used) const {
    const Finish& f = call->finish;
    const V offset = f.offset_full ? load_up_to(f.offset + row * call->layer.outputs + n, used) : splat(f.offset[0]);
    return load_up_to(call->layer.bias + n, used) + offset;
  }

  void end(int64_t row, int64_t n, int64_t used, V sum) const {
    const Finish& f = call->finish;
    const int64_t at = row * call->layer.outputs + n;
    V y = sum;
    y = select(reinterpret_cast<I>(y <= V{}), V{}, y);  // a NaN is not <= 0 and stays
    y = select(reinterpret_cast<I>(y > splat(f.max)), splat(f.max), y);
    store_up_to(call->y + at, y, used);
  }
};

// All outputs in full; false where there are no panels.
template <class Call>
static bool all_outputs(const Call& call, const Env& env) {
  const auto& layer = call.layer;
  const PanelWeights weights = {layer.weight, layer.outputs, layer.groups, true};
  const float* const panels = panels_of(weights, call.panels, env);
  const ReluResults<Call> results = {&call};
  return panels && packed_gemm(call.x, panels, call.rows, layer.groups, layer.outputs, results, env);
}

// `share` of the outputs survives, and a share survives in some row.
template <class Call>
static bool panels_are_faster(const Call& call, float share, float in_some_row) {
  const int64_t weights = call.layer.outputs * call.layer.groups;
  const float rows = static_cast<float>(call.rows);
  const float reading = cycles(weights, 0.25f + in_some_row, 0.0f);
  const float multiplying = cycles(weights, 0.0f, rows * (kCodeProduct + kSurvivorProduct * share));
  const float less = reading < multiplying ? reading : multiplying, more = reading + multiplying - less;
  return more + kNotOverlapped * less > cycles(weights, 1.0f, rows);
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
