// The low-rank estimate: every output from r numbers that all outputs share, U (V x).
#pragma once

#include "dots.h"
#include "estimate.h"
#include "registry.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kLowRankRows = 16;   // rows of X that one pass over V or U serves
constexpr int64_t kLowRankTask = 16;   // rows of V of a task
constexpr int64_t kFloatsAhead = 2048;  // of a stream over V or U

// A source of estimates; see estimated_gemm.h.
struct LowRankSource {
  static constexpr bool kSound = false;
  const LowRank* layer;
  float* reduced;  // [rows][r], V x

  void carve(Carver& carver, int64_t rows) { reduced = carver.take<float>(rows * layer->rank); }
  static int64_t rows_per_pass() { return kLowRankRows; }
  static bool usable(int64_t) { return true; }  // a NaN shows in the estimate
  static size_t scratch_bytes(int64_t outputs) {
    return static_cast<size_t>(kLowRankRows * outputs) * sizeof(float);
  }

  struct Fill {
    const LowRankSource* source;
    const float* x;
    int64_t rows;
  };

  static void fill_task(void* user, size_t index) {
    const Fill& f = *static_cast<const Fill*>(user);
    const LowRank& layer = *f.source->layer;
    const int64_t first = static_cast<int64_t>(index) * kLowRankTask;
    const int64_t last = min_of(first + kLowRankTask, layer.rank);
    for (int64_t r = 0; r < f.rows; r += kLowRankRows) {
      const int64_t count = min_of(kLowRankRows, f.rows - r);
      for (int64_t i = first; i < last; i++) {
        f.source->products(layer.down + i * layer.groups, f.x + r * layer.groups, layer.groups, count,
                           f.source->reduced + r * layer.rank + i, layer.rank);
      }
    }
  }

  // to[row * stride] = weight . x[row], for at most kLowRankRows rows.
  void products(const float* weight, const float* x, int64_t depth, int64_t rows, float* to,
                int64_t stride) const {
    const float* row[kLowRankRows];
    int64_t at[kLowRankRows];
    for (int64_t r = 0; r < rows; r++) {
      row[r] = x + r * depth;
      at[r] = r * stride;
      to[at[r]] = 0;
    }
    add_dots<false>(weight, row, at, rows, depth, weight + kFloatsAhead, to, nullptr);
  }

  bool fill(const float* x, int64_t rows, const Env& env) const {
    Fill f = {this, x, rows};
    return env.parallel(env.context, static_cast<size_t>(blocks_of(layer->rank, kLowRankTask)), fill_task, &f);
  }

  template <class Offset, class Take>
  void estimates(int64_t first, int64_t outputs, int64_t first_row, int64_t count, int64_t stride, char* scratch,
                 const Offset& offset, const Take& take) const {
    float* sums = reinterpret_cast<float*>(scratch);
    const float* x = reduced + first_row * layer->rank;
    for (int64_t i = 0; i < outputs; i++) {
      products(layer->up + (first + i) * layer->rank, x, layer->rank, count, sums + i, stride);
    }
    for (int64_t r = 0; r < count; r++) {
      for (int64_t i = 0; i < outputs; i += kLanes) {
        const int64_t n = first + i, used = outputs - i;
        const auto at = [&](const float* p) { return load_up_to(p, used); };
        Estimate e;
        e.value = at(sums + r * stride + i) + (at(layer->shift + n) + offset(first_row + r, n, used));
        e.reach = at(layer->reach + n);
        take(first_row + r, i, used, e);
      }
    }
  }
};

}  // namespace EXPRUNE_ISA
}  // namespace exprune
