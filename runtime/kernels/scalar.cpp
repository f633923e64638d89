// The kernels written in the most obvious way, one output at a time, serially and in double precision.
//
// They are the oracle that the fast ones are compared with, and say in code what the ops mean. Decisions are
// the specification's formulas, evaluated in double: they may differ from a float kernel's only where a
// value lies within float rounding of its cut.
#include <math.h>
#include <stdlib.h>

#include "registry.h"
#include "scalar_estimated.h"

namespace exprune {
namespace scalar {

bool block_conv(const BlockConvCall& call, const Env&);  // scalar_block_conv.cpp
bool sparse_conv(const ConvCall& c, const Env&);         // scalar_sparse_conv.cpp
bool panel_conv(const PanelConvCall& call, const Env&);  // scalar_panel_conv.cpp
bool attention(const AttentionCall& c, const Env& env);  // scalar_attention.cpp
bool residual_norm(const ResidualNormCall& c, const Env&);  // scalar_residual_norm.cpp

// Weight of output n for position g of the reduction and tap t.
static double weight(const Staged& p, int64_t n, int64_t g, int64_t t) {
  const int64_t head = p.ends[0], tail = p.groups - head;
  if (g < head) return p.head[(n * head + g) * p.taps + t];
  return p.tail[(n * tail + g - head) * p.taps + t];
}

static double sample_variance(double sum, double squares, double k) {
  if (k < 2) return 0;
  const double v = (squares - sum * sum / k) / (k - 1);
  return v < 0 ? 0 : v;
}

// Whether a check decides an output of a ReLU site.
template <int Test>
static bool prune(const Staged& p, int64_t check, int64_t n, double sum, double squares, double tail_squares,
                  double all_squares, double offset) {
  const int64_t at = check * p.outputs + n;
  const double k = static_cast<double>(p.ends[check]), bias = p.bias[n];
  switch (Test) {
    case kThreshold:
      return p.first[at] * sum + bias + offset < p.second[at];
    case kStats: {
      const double mean = sum / k + (bias + offset) / static_cast<double>(p.groups);
      return mean < p.z * sqrt(sample_variance(sum, squares, k) / k);
    }
    default: {
      const double radius = p.first[at] * sqrt(tail_squares) + p.second[at] * sqrt(all_squares);
      return sum + bias + offset + sound(radius, fabs(bias) + fabs(offset), p.groups * p.taps) < 0;
    }
  }
}

// One output at one position, stage by stage; input(g, t) reads X. survivors[s] is increased.
template <int Test, class Input>
static float finish(const Staged& p, float max, int64_t n, double offset, const Input& input,
                    int64_t* survivors) {
  double sum = 0, squares = 0;
  int64_t g = 0;
  for (int64_t chunk = 0; chunk < p.chunks; chunk++) {
    for (; g < p.ends[chunk]; g++) {
      double term = 0;
      for (int64_t t = 0; t < p.taps; t++) term += weight(p, n, g, t) * input(g, t);
      sum += term;
      squares += term * term;
    }
    if (chunk + 1 == p.chunks) break;
    double tail_squares = 0, all_squares = 0;
    for (int64_t i = 0; Test == kBound && i < p.groups; i++) {
      for (int64_t t = 0; t < p.taps; t++) {
        const double x = input(i, t);
        all_squares += x * x;
        if (i >= g) tail_squares += x * x;
      }
    }
    if (prune<Test>(p, chunk, n, sum, squares, tail_squares, all_squares, offset)) return 0;
    survivors[chunk]++;
  }
  const float y = static_cast<float>(sum + p.bias[n] + offset);
  if (y <= 0) return max < 0 ? max : 0;
  return y > max ? max : y;
}

template <int Test>
static bool prefix_gemm(const GemmCall& c, const Env&) {
  const Staged& p = c.staged;
  for (int64_t s = 0; s + 1 < p.chunks; s++) c.survivors[s] = 0;
  for (int64_t m = 0; m < c.rows; m++) {
    const auto input = [&](int64_t g, int64_t) {
      return static_cast<double>(c.x[m * p.groups + p.order[g]]);
    };
    for (int64_t n = 0; n < p.outputs; n++) {
      const int64_t at = m * p.outputs + n;
      const float offset = c.finish.offset[c.finish.offset_full ? at : 0];
      c.y[at] = finish<Test>(p, c.finish.max, n, offset, input, c.survivors);
    }
  }
  return true;
}

template <int Test>
static bool prefix_conv(const ConvCall& c, const Env&) {
  const Staged& p = c.staged;
  for (int64_t s = 0; s + 1 < p.chunks; s++) c.survivors[s] = 0;
  int64_t at = 0;
  for (int64_t b = 0; b < c.batch; b++) {
    for (int64_t n = 0; n < p.outputs; n++) {
      for (int64_t oy = 0; oy < c.out_height; oy++) {
        for (int64_t ox = 0; ox < c.out_width; ox++, at++) {
          const auto input = [&](int64_t g, int64_t t) {
            const int64_t y = oy * c.stride_h - c.pad_top + t / c.kernel_w * c.dilation_h;
            const int64_t x = ox * c.stride_w - c.pad_left + t % c.kernel_w * c.dilation_w;
            if (y < 0 || y >= c.height || x < 0 || x >= c.width) return 0.0;
            const int64_t channel = b * p.groups + p.order[g];
            return static_cast<double>(c.x[(channel * c.height + y) * c.width + x]);
          };
          const float offset = c.finish.offset[c.finish.offset_full ? at : 0];
          c.y[at] = finish<Test>(p, c.finish.max, n, offset, input, c.survivors);
        }
      }
    }
  }
  return true;
}

// State of a row of a head: all in double, one entry per class.
struct Head {
  const Staged& p;
  const float* x;
  double* sums;   // [N]
  double* lower;  // [N]
  double* upper;  // [N]
  bool* alive;    // [N]

  double input(int64_t g) const { return x[p.order[g]]; }

  // The ends of every class's interval at a check; false when an alive one's lower end is a NaN.
  bool intervals(int test, int64_t check) const {
    double tail = 0, all = 0;
    for (int64_t g = 0; g < p.groups; g++) {
      all += input(g) * input(g);
      if (g >= p.ends[check]) tail += input(g) * input(g);
    }
    bool comparable = true;
    for (int64_t j = 0; j < p.outputs; j++) {
      if (!alive[j]) continue;
      const int64_t at = check * p.outputs + j;
      double e, h;
      if (test == kThreshold) {
        e = p.first[at] * sums[j] + p.second[at];
        h = p.third[at];
      } else {
        e = sums[j] + p.bias[j];
        h = sound(p.first[at] * sqrt(tail) + p.second[at] * sqrt(all), fabs(p.bias[j]), p.groups);
      }
      lower[j] = e - h;
      upper[j] = e + h;
      comparable = comparable && lower[j] == lower[j];
    }
    return comparable;
  }

  void prune_intervals(int test, int64_t check) const {
    if (!intervals(test, check)) return;
    double best = -INFINITY;
    for (int64_t j = 0; j < p.outputs; j++) {
      if (alive[j] && lower[j] > best) best = lower[j];
    }
    for (int64_t j = 0; j < p.outputs; j++) {
      if (upper[j] < best && lower[j] < best) alive[j] = false;
    }
  }

  void prune_dominated(int64_t check) const {
    const double k = static_cast<double>(p.ends[check]), groups = static_cast<double>(p.groups);
    int64_t leader = -1;
    double best = 0;
    for (int64_t j = 0; j < p.outputs; j++) {
      if (!alive[j]) continue;
      const double v = sums[j] / k + p.bias[j] / groups;
      if (v != v) return;
      if (leader < 0 || v > best) {
        leader = j;
        best = v;
      }
    }
    for (int64_t j = 0; j < p.outputs; j++) {
      if (!alive[j] || j == leader) continue;
      double squares = 0;
      for (int64_t g = 0; g < p.ends[check]; g++) {
        const double term = (weight(p, j, g, 0) - weight(p, leader, g, 0)) * input(g);
        squares += term * term;
      }
      const double lead = sums[j] - sums[leader];
      const double mean = lead / k + (static_cast<double>(p.bias[j]) - p.bias[leader]) / groups;
      if (mean < p.z * sqrt(sample_variance(lead, squares, k) / k)) alive[j] = false;
    }
  }

  int64_t count() const {
    int64_t n = 0;
    for (int64_t j = 0; j < p.outputs; j++) n += alive[j];
    return n;
  }

  int64_t index(int test, bool select_last, int64_t* survivors) const {
    for (int64_t j = 0; j < p.outputs; j++) {
      sums[j] = 0;
      alive[j] = true;
    }
    int64_t done = 0;
    for (int64_t chunk = 0; chunk < p.chunks && count() > 1; chunk++) {
      for (int64_t j = 0; j < p.outputs; j++) {
        for (int64_t g = done; alive[j] && g < p.ends[chunk]; g++) sums[j] += weight(p, j, g, 0) * input(g);
      }
      done = p.ends[chunk];
      if (chunk + 1 == p.chunks) break;
      if (test == kStats) {
        prune_dominated(chunk);
      } else {
        prune_intervals(test, chunk);
      }
      if (count() > 1) survivors[chunk] += count();
    }
    // As in the dense layer, a NaN is above nothing, but nothing is above one in first place.
    const bool many = count() > 1;
    int64_t who = -1;
    float top = 0;
    for (int64_t j = 0; j < p.outputs; j++) {
      if (!alive[j]) continue;
      const float value = static_cast<float>(sums[j] + p.bias[j]);
      if (many && value != value) {
        if (j == 0) return 0;
        continue;
      }
      if (who < 0 || value > top || (select_last && value == top)) {
        who = j;
        top = value;
      }
    }
    return who < 0 ? 0 : who;
  }
};

template <int Test>
static bool prefix_argmax(const ArgMaxCall& c, const Env& env) {
  const Staged& p = c.staged;
  for (int64_t s = 0; s + 1 < p.chunks; s++) c.survivors[s] = 0;
  Lease scratch(*env.per_call, static_cast<size_t>(p.outputs) * (3 * sizeof(double) + sizeof(bool)));
  if (!scratch.data()) return false;
  double* numbers = reinterpret_cast<double*>(scratch.data());
  bool* alive = reinterpret_cast<bool*>(numbers + 3 * p.outputs);
  for (int64_t m = 0; m < c.rows; m++) {
    const Head head = {p, c.x + m * p.groups, numbers, numbers + p.outputs, numbers + 2 * p.outputs, alive};
    c.index[m] = head.index(Test, c.select_last, c.survivors);
  }
  return true;
}

static bool sparse_gemm(const SparseGemmCall& c, const Env&) {
  c.survivors[0] = 0;
  if (c.columns == 0 && c.depth == 0) return true;  // any number of rows may have nothing in it
  for (int64_t m = 0; m < c.rows; m++) {
    const float* x = c.x + m * c.depth;
    for (int64_t k = 0; k < c.depth; k++) c.survivors[0] += !(x[k] == 0);
    for (int64_t n = 0; n < c.columns; n++) {
      double sum = c.bias[n];
      for (int64_t k = 0; k < c.depth; k++) {
        if (!(x[k] == 0)) sum += static_cast<double>(x[k]) * c.w[k * c.columns + n];
      }
      c.y[m * c.columns + n] = static_cast<float>(sum);
    }
  }
  return true;
}

extern const Kernels kKernels;
const Kernels kKernels = {
    "scalar",
    {prefix_gemm<kThreshold>, prefix_gemm<kStats>, prefix_gemm<kBound>},
    {prefix_conv<kThreshold>, prefix_conv<kStats>, prefix_conv<kBound>},
    {prefix_argmax<kThreshold>, prefix_argmax<kStats>, prefix_argmax<kBound>},
    sparse_gemm,
    quantized_gemm,
    quantized_top_k,
    low_rank_gemm,
    low_rank_top_k,
    block_conv,
    sparse_conv,
    panel_conv,
    attention,
    residual_norm,
};

}  // namespace scalar
}  // namespace exprune
