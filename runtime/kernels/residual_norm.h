// LayerNormalization of a sum of two tensors and a bias, row by row; the sum is an output as well.
#pragma once

#include "registry.h"
#include "simd.h"
#include "tasks.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kNormRows = 16;         // rows of a task
constexpr int64_t kNormAlone = 1 << 14;   // elements that are not worth other threads

struct ResidualNormPlan {
  const ResidualNormCall* call;

  static void task(void* user, size_t index) {
    const ResidualNormCall& c = *static_cast<const ResidualNormPlan*>(user)->call;
    const int64_t first = static_cast<int64_t>(index) * kNormRows;
    for (int64_t row = first; row < min_of(c.rows, first + kNormRows); row++) norm(c, row * c.width);
  }

  static void norm(const ResidualNormCall& c, int64_t at) {
    const float* const x = c.x + at;
    const float* const y = c.y + at;
    float* const sum_out = c.sum + at;
    float* const out = c.normed + at;
    const int64_t width = c.width;
    V total = {};
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t used = width - i;
      // The bias first, as where it is the bias of the layer that made y.
      const V s = load_up_to(x + i, used) + (load_up_to(y + i, used) + load_up_to(c.bias + i, used));
      store_up_to(sum_out + i, s, used);
      total += s;
    }
    const float mean = sum(total) / static_cast<float>(width);
    V squares = {};
    for (int64_t i = 0; i < width; i += kLanes) {
      V apart = load_up_to(sum_out + i, width - i) - splat(mean);
      if (width - i < kLanes) apart = select(lanes() < splat(static_cast<int32_t>(width - i)), apart, V{});
      squares += apart * apart;
    }
    const float scale = 1.0f / square_root(sum(squares) / static_cast<float>(width) + c.epsilon);
    for (int64_t i = 0; i < width; i += kLanes) {
      const int64_t used = width - i;
      const V apart = load_up_to(sum_out + i, used) - splat(mean);
      store_up_to(out + i, apart * splat(scale) * load_up_to(c.scale + i, used) + load_up_to(c.shift + i, used), used);
    }
  }
};

static bool residual_norm(const ResidualNormCall& call, const Env& env) {
  ResidualNormPlan plan = {&call};
  const bool alone = times(call.rows, call.width) <= kNormAlone;
  return run_tasks(env, alone, blocks_of(call.rows, kNormRows), ResidualNormPlan::task, &plan);
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
