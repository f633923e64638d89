// The kernels with a low-rank estimate in the most obvious way, in double precision. See scalar.cpp.
#include <math.h>

#include "scalar_estimated.h"

namespace exprune {
namespace scalar {

static double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; i++) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

// U (V x) + shift of every output, `reduced` being memory for V x.
static void estimate(const LowRank& layer, const float* x, double* reduced, double* estimates) {
  for (int64_t i = 0; i < layer.rank; i++) reduced[i] = dot(layer.down + i * layer.groups, x, layer.groups);
  for (int64_t n = 0; n < layer.outputs; n++) {
    double sum = layer.shift[n];
    for (int64_t i = 0; i < layer.rank; i++) sum += layer.up[n * layer.rank + i] * reduced[i];
    estimates[n] = sum;
  }
}

bool low_rank_gemm(const LowRankGemmCall& c, const Env& env) {
  const LowRank& layer = c.layer;
  c.survivors[0] = 0;
  Lease scratch(*env.per_call, static_cast<size_t>(layer.rank + layer.outputs) * sizeof(double));
  if (!scratch.data()) return false;
  double* reduced = reinterpret_cast<double*>(scratch.data());
  double* estimates = reduced + layer.rank;
  for (int64_t m = 0; m < c.rows; m++) {
    const float* x = c.x + m * layer.groups;
    estimate(layer, x, reduced, estimates);
    for (int64_t n = 0; n < layer.outputs; n++) {
      const double offset = c.finish.offset[c.finish.offset_full ? m * layer.outputs + n : 0];
      float* y = c.y + m * layer.outputs + n;
      *y = 0;
      if (estimates[n] + offset + layer.reach[n] < 0) continue;
      c.survivors[0]++;
      const double sum = dot(layer.weight + n * layer.groups, x, layer.groups) + layer.bias[n] + offset;
      const float value = static_cast<float>(sum);
      *y = value <= 0 ? 0 : value > c.finish.max ? c.finish.max : value;
    }
  }
  return true;
}

// Only k = 1, without values: the op's own form.
bool low_rank_top_k(const LowRankTopKCall& c, const Env& env) {
  const LowRank& layer = c.layer;
  c.survivors[0] = 0;
  Lease scratch(*env.per_call, static_cast<size_t>(layer.rank + layer.outputs) * sizeof(double));
  if (!scratch.data()) return false;
  double* reduced = reinterpret_cast<double*>(scratch.data());
  double* estimates = reduced + layer.rank;
  for (int64_t m = 0; m < c.rows; m++) {
    const float* x = c.x + m * layer.groups;
    estimate(layer, x, reduced, estimates);
    double bar = -INFINITY;
    for (int64_t n = 0; n < layer.outputs; n++) {
      const double low = estimates[n] - layer.reach[n];
      if (low > bar) bar = low;
    }
    int64_t alive = 0, who = -1;
    float top = 0;
    for (int64_t n = 0; n < layer.outputs; n++) {
      if (estimates[n] + layer.reach[n] < bar) continue;
      alive++;
      const double sum = dot(layer.weight + n * layer.groups, x, layer.groups) + layer.bias[n];
      float value = static_cast<float>(sum);
      if (value != value) value = n == 0 ? INFINITY : -INFINITY;  // as in the dense layer
      if (who < 0 || value > top || (c.select_last && value == top)) {
        who = n;
        top = value;
      }
    }
    c.index[m] = who;
    if (alive > 1) c.survivors[0] += alive;
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
