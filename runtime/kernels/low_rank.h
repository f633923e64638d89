// The low-rank estimate: every output from r numbers that all outputs share, U (V x).
#pragma once

#include "dots.h"
#include "estimate.h"
#include "registry.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kLowRankRows = 16;   // rows of X that one pass over V or U serves
constexpr int64_t kLowRankTask = 16;   // rows of V of a task
constexpr int64_t kLowRankColumns = 32;  // of a small rank
constexpr int64_t kFloatsAhead = 2048;  // of a stream over V or U

// A source of estimates; see estimated_gemm.h.
struct LowRankSource {
  static constexpr bool kSound = false;
  const LowRank* layer;
  float* reduced;  // [rows][r + more], V x

  int64_t width() const { return layer->rank + layer->more; }
  void carve(Carver& carver, int64_t rows) { reduced = carver.take<float>(rows * width()); }
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
    const int64_t width = f.source->width(), last = min_of(first + kLowRankTask, width);
    for (int64_t r = 0; r < f.rows; r += kLowRankRows) {
      const int64_t count = min_of(kLowRankRows, f.rows - r);
      for (int64_t i = first; i < last; i++) {
        f.source->products(layer.down + i * layer.groups, f.x + r * layer.groups, layer.groups, layer.groups, count,
                           f.source->reduced + r * width + i, width);
      }
    }
  }

  // to[row * stride] = weight . x[row], for at most kLowRankRows rows that are `apart`.
  void products(const float* weight, const float* x, int64_t apart, int64_t depth, int64_t rows, float* to,
                int64_t stride) const {
    const float* row[kLowRankRows];
    int64_t at[kLowRankRows];
    for (int64_t r = 0; r < rows; r++) {
      row[r] = x + r * apart;
      at[r] = r * stride;
      to[at[r]] = 0;
    }
    add_dots<false>(weight, row, at, rows, depth, weight + kFloatsAhead, to, nullptr);
  }

  bool fill(const float* x, int64_t rows, const Env& env) const {
    Fill f = {this, x, rows};
    return env.parallel(env.context, static_cast<size_t>(blocks_of(width(), kLowRankTask)), fill_task, &f);
  }

  // A sum takes its terms in the same order whatever the rows of the pass are.
  template <class Offset, class Take>
  void estimates(int64_t first, int64_t outputs, int64_t first_row, int64_t count, int64_t stride, char* scratch,
                 const Offset& offset, const Take& take) const {
    float* sums = reinterpret_cast<float*>(scratch);
    const bool turn = layer->rank <= kLowRankColumns;
    for (int64_t i = 0; !turn && i < outputs; i++) {
      products(layer->up + (first + i) * layer->rank, reduced + first_row * width(), width(), layer->rank, count,
               sums + i, stride);
    }
    for (int64_t i = 0; i < outputs; i += kLanes) {
      const int64_t n = first + i, used = outputs - i;
      if (turn) columns(n, min_of(used, kLanes), first_row, count, sums + i, stride);
      const auto at = [&](const float* p) { return load_up_to(p, used); };
      const V shift = at(layer->shift + n), reach = at(layer->reach + n);
      for (int64_t r = 0; r < count; r++) {
        const V sum = at(sums + r * stride + i);
        take(first_row + r, i, used, Estimate{sum + (shift + offset(first_row + r, n, used)), reach});
      }
    }
  }

  // U (V x) of a vector of outputs, of a small rank: a dot product would be its own end more than its terms. U is
  // turned, so that lanes are outputs, and then serves all rows.
  void columns(int64_t n, int64_t lanes, int64_t first_row, int64_t count, float* to, int64_t stride) const {
    float turned[kLowRankColumns * kLanes];
    const int64_t rank = layer->rank;
    if (lanes < kLanes) memset(turned, 0, sizeof(turned));
    const float* up = layer->up + n * rank;
    prefetch_row(up + kFloatsAhead, lanes * rank);
    for (int64_t lane = 0; lane < lanes; lane++, up += rank) {
      for (int64_t c = 0; c < rank; c++) turned[c * kLanes + lane] = up[c];
    }
    for (int64_t r = 0; r < count; r++) {
      const float* x = reduced + (first_row + r) * width();
      V sum = {};
      for (int64_t c = 0; c < rank; c++) sum += load(turned + c * kLanes) * x[c];
      store_up_to(to + r * stride, sum, lanes);
    }
  }

  // What the second estimate of an output adds to the first.
  float more_of(int64_t row, int64_t n) const {
    const float* x = reduced + row * width() + layer->rank;
    float sum;
    dots<1, false>(layer->up_more + n * layer->more, &x, layer->more, nullptr, &sum, nullptr);
    return sum;
  }
};

// The same for a Gemm in a cascade: what the first estimate decides stays decided, the rest is estimated again.
struct CascadeSource : LowRankSource {
  template <class Offset, class Take>
  void estimates(int64_t first, int64_t outputs, int64_t first_row, int64_t count, int64_t stride, char* scratch,
                 const Offset& offset, const Take& take) const {
    int64_t counted = 0;
    const auto again = [&](int64_t row, int64_t i, int64_t used, const Estimate& e) {
      const uint32_t wanted = used >= kLanes ? ~0u >> (32 - kLanes) : (1u << used) - 1;
      const uint32_t open = ~bits(reinterpret_cast<I>(e.value + e.reach < V{})) & wanted;
      counted += __builtin_popcount(open);
      float values[kLanes], reaches[kLanes];
      store(values, splat(-INFINITY));  // below any limit
      store(reaches, V{});
      for (uint32_t left = open; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        values[lane] = e.value[lane] + more_of(row, first + i + lane);
        reaches[lane] = layer->reach_more[first + i + lane];
      }
      take(row, i, used, Estimate{load(values), load(reaches)});
    };
    LowRankSource::estimates(first, outputs, first_row, count, stride, scratch, offset, again);
    __atomic_fetch_add(layer->open, counted, __ATOMIC_RELAXED);
  }
};

}  // namespace EXPRUNE_ISA
}  // namespace exprune
