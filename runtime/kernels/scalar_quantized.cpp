// The kernels with a quantised estimate in the most obvious way, in double precision: the oracle of the fast
// ones. See scalar.cpp.
#include "scalar_estimated.h"

#include <math.h>

namespace exprune {
namespace scalar {

// |u| <= 127, so an int holds it.
static int rounded(double u) { return static_cast<int>(nearbyint(u)); }

namespace {

// One row of X in one or two planes of codes, as in quantized.h.
struct Row {
  const float* x;
  int64_t groups;
  int planes;
  double step = 0, norm = 0, error = 0;
  bool usable = true;

  Row(const float* values, int64_t count, int plane_count) : x(values), groups(count), planes(plane_count) {
    double most = 0;
    for (int64_t g = 0; g < groups; g++) {
      const double a = fabs(static_cast<double>(x[g]));
      if (!(a <= 3.4028234663852886e38)) usable = false;
      if (a > most) most = a;
    }
    usable = usable && (most == 0 || (most >= 1e-30 && most <= 1e30));
    if (!usable) return;
    step = most / 127;
    double rests = 0;
    for (int64_t g = 0; g < groups; g++) {
      const double rest = x[g] - value(g);
      norm += static_cast<double>(x[g]) * x[g];
      rests += rest * rest;
    }
    norm = sqrt(norm);
    error = sqrt(rests) + 1e-6 * norm;
  }

  // x[g] as its codes say.
  double value(int64_t g) const {
    if (step == 0) return 0;
    const double u = x[g] / step;
    const int hi = rounded(u);
    const int lo = planes == 2 ? rounded((u - hi) * 254) : 0;
    return step * (hi + lo / 254.0);
  }
};

// Code of weight g of output n, less its zero point.
int level(const Quantized& q, int64_t n, int64_t g) {
  const int64_t blocks = (q.groups + kCodeGroups - 1) / kCodeGroups;
  const int64_t vector = g % kCodeGroups / 4, at = n % kQuantizedBlock * 4 + g % 4;
  const uint8_t* block = q.codes + (n / kQuantizedBlock * blocks + g / kCodeGroups) * 32 * q.bits;
  if (q.bits == 8) return block[64 * vector + at] - 128;
  if (vector < 3) return (block[64 * vector + at] & 63) - 32;
  return ((block[at] >> 6) | (block[64 + at] >> 6) << 2 | (block[128 + at] >> 6) << 4) - 32;
}

struct Interval {
  double low, high;
};

Interval interval(const Quantized& q, int64_t n, const Row& row, double offset) {
  double sum = 0;
  for (int64_t g = 0; g < q.groups; g++) sum += level(q, n, g) * row.value(g);
  const double value = sum * q.scale[n] + q.bias[n] + offset;
  const double magnitude = fabs(static_cast<double>(q.bias[n])) + fabs(offset);
  const double reach = sound(q.error[n] * row.norm + q.norm[n] * row.error, magnitude, q.groups);
  return {value - reach, value + reach};
}

float exact(const Quantized& q, int64_t n, const float* x) {
  double sum = q.bias[n];
  for (int64_t g = 0; g < q.groups; g++) sum += static_cast<double>(q.weight[n * q.groups + g]) * x[g];
  return static_cast<float>(sum);
}

}  // namespace

bool quantized_gemm(const QuantizedGemmCall& c, const Env&) {
  const Quantized& q = c.layer;
  c.survivors[0] = 0;
  for (int64_t m = 0; m < c.rows; m++) {
    const Row row(c.x + m * q.groups, q.groups, c.rows <= 4 ? 2 : 1);
    for (int64_t n = 0; n < q.outputs; n++) {
      const double offset = c.finish.offset[c.finish.offset_full ? m * q.outputs + n : 0];
      float* y = c.y + m * q.outputs + n;
      *y = 0;
      if (row.usable && interval(q, n, row, offset).high < 0) continue;
      c.survivors[0]++;
      const float value = static_cast<float>(exact(q, n, row.x) + offset);
      *y = value <= 0 ? 0 : value > c.finish.max ? c.finish.max : value;
    }
  }
  return true;
}

// As in the dense layer, a NaN is above nothing, but nothing is above one in first place.
static float rank_of(float score, int64_t n, int64_t k) {
  if (score == score) return score;
  return k == 1 && n == 0 ? INFINITY : -INFINITY;
}

// Whether class i with rank a comes before class j with rank b.
static bool before(float a, int64_t i, float b, int64_t j, bool select_last) {
  if (a != b) return a > b;
  return select_last ? i > j : i < j;
}

bool quantized_top_k(const QuantizedTopKCall& c, const Env& env) {
  const Quantized& q = c.layer;
  c.survivors[0] = 0;
  Lease scratch(*env.per_call, static_cast<size_t>(q.outputs) * (sizeof(Interval) + sizeof(float) + sizeof(bool)));
  if (!scratch.data()) return false;
  Interval* bounds = reinterpret_cast<Interval*>(scratch.data());
  float* scores = reinterpret_cast<float*>(bounds + q.outputs);
  bool* out = reinterpret_cast<bool*>(scores + q.outputs);
  for (int64_t m = 0; m < c.rows; m++) {
    const Row row(c.x + m * q.groups, q.groups, c.rows <= 4 ? 2 : 1);
    for (int64_t n = 0; n < q.outputs; n++) bounds[n] = interval(q, n, row, 0);
    int64_t alive = 0, last = 0;
    for (int64_t n = 0; n < q.outputs; n++) {
      int64_t above = 0;  // classes that are certainly better
      for (int64_t j = 0; j < q.outputs; j++) above += bounds[n].high < bounds[j].low;
      out[n] = row.usable && above >= c.k;
      if (out[n]) continue;
      scores[n] = exact(q, n, row.x);
      alive++;
      last = n;
    }
    int64_t* index = c.index + m * c.k;
    if (c.k == 1 && !c.values && alive == 1) {
      index[0] = last;
      continue;
    }
    c.survivors[0] += alive;
    int64_t held = 0;
    for (int64_t n = 0; n < q.outputs; n++) {
      if (out[n]) continue;
      int64_t at = held;  // its place among the best so far
      const float rank = rank_of(scores[n], n, c.k);
      while (at > 0) {
        const int64_t other = index[at - 1];
        if (!before(rank, n, rank_of(scores[other], other, c.k), other, c.select_last)) break;
        at--;
      }
      if (at == c.k) continue;
      if (held < c.k) held++;
      for (int64_t i = held - 1; i > at; i--) index[i] = index[i - 1];
      index[at] = n;
    }
    for (int64_t i = 0; c.values && i < c.k; i++) c.values[m * c.k + i] = scores[index[i]];
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
