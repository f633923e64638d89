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
  for (int64_t i = 0; i < layer.rank + layer.more; i++) {
    reduced[i] = dot(layer.down + i * layer.groups, x, layer.groups);
  }
  for (int64_t n = 0; n < layer.outputs; n++) {
    double sum = layer.shift[n];
    for (int64_t i = 0; i < layer.rank; i++) sum += layer.up[n * layer.rank + i] * reduced[i];
    estimates[n] = sum;
  }
}

// What the second estimate of an output adds to the first.
static double more_of(const LowRank& layer, int64_t n, const double* reduced) {
  double sum = 0;
  for (int64_t i = 0; i < layer.more; i++) sum += layer.up_more[n * layer.more + i] * reduced[layer.rank + i];
  return sum;
}

bool low_rank_gemm(const LowRankGemmCall& c, const Env& env) {
  const LowRank& layer = c.layer;
  int64_t first_open = 0, open = 0;
  Lease scratch(*env.per_call, static_cast<size_t>(layer.rank + layer.more + layer.outputs) * sizeof(double));
  if (!scratch.data()) return false;
  double* reduced = reinterpret_cast<double*>(scratch.data());
  double* estimates = reduced + layer.rank + layer.more;
  for (int64_t m = 0; m < c.rows; m++) {
    const float* x = c.x + m * layer.groups;
    estimate(layer, x, reduced, estimates);
    for (int64_t n = 0; n < layer.outputs; n++) {
      const double offset = c.finish.offset[c.finish.offset_full ? m * layer.outputs + n : 0];
      float* y = c.y + m * layer.outputs + n;
      *y = 0;
      if (estimates[n] + offset + layer.reach[n] < 0) continue;
      first_open++;
      if (layer.more && estimates[n] + offset + more_of(layer, n, reduced) + layer.reach_more[n] < 0) continue;
      open++;
      const double sum = dot(layer.weight + n * layer.groups, x, layer.groups) + layer.bias[n] + offset;
      const float value = static_cast<float>(sum);
      *y = value <= 0 ? 0 : value > c.finish.max ? c.finish.max : value;
    }
  }
  if (layer.more) c.survivors[0] = first_open;
  c.survivors[layer.more > 0] = open;
  return true;
}

// In place of a reach, which is never negative: the class was decided by the first estimate.
constexpr double kOut = -1;

static double best_low(const double* estimates, const double* reaches, int64_t count) {
  double bar = -INFINITY;
  for (int64_t n = 0; n < count; n++) {
    const double low = estimates[n] - reaches[n];
    if (low > bar) bar = low;
  }
  return bar;
}

// Only k = 1, without values: the op's own form.
bool low_rank_top_k(const LowRankTopKCall& c, const Env& env) {
  const LowRank& layer = c.layer;
  int64_t* survivors = c.survivors + (layer.more > 0);
  c.survivors[0] = *survivors = 0;
  const int64_t width = layer.rank + layer.more;
  Lease scratch(*env.per_call, static_cast<size_t>(width + 2 * layer.outputs) * sizeof(double));
  if (!scratch.data()) return false;
  double* reduced = reinterpret_cast<double*>(scratch.data());
  double* estimates = reduced + width;
  double* reaches = estimates + layer.outputs;
  for (int64_t m = 0; m < c.rows; m++) {
    const float* x = c.x + m * layer.groups;
    estimate(layer, x, reduced, estimates);
    for (int64_t n = 0; n < layer.outputs; n++) reaches[n] = layer.reach[n];
    double bar = best_low(estimates, reaches, layer.outputs);
    if (layer.more) {
      int64_t open = 0;
      for (int64_t n = 0; n < layer.outputs; n++) {
        if (estimates[n] + reaches[n] < bar) {
          estimates[n] = -INFINITY;
          reaches[n] = kOut;
        } else {
          estimates[n] += more_of(layer, n, reduced) + layer.shift_more[n];
          reaches[n] = layer.reach_more[n];
          open++;
        }
      }
      if (open > 1) c.survivors[0] += open;
      bar = best_low(estimates, reaches, layer.outputs);
    }
    int64_t alive = 0, last = 0, who = -1;
    float top = 0;
    for (int64_t n = 0; n < layer.outputs; n++) {
      if (reaches[n] == kOut || estimates[n] + reaches[n] < bar) continue;
      alive++;
      last = n;
      const double sum = dot(layer.weight + n * layer.groups, x, layer.groups) + layer.bias[n];
      float value = static_cast<float>(sum);
      if (value != value) {
        if (n > 0) continue;
        value = INFINITY;  // nothing is above it, as in the dense layer
      }
      if (who < 0 || value > top || (c.select_last && value == top)) {
        who = n;
        top = value;
      }
    }
    if (who < 0) who = 0;  // all that remain are no numbers
    c.index[m] = alive == 1 ? last : who;  // one class wins whatever its score is
    if (alive > 1) *survivors += alive;
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
