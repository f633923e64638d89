// Y = X W + bias, reading only the rows of W for which an x is not 0.
#pragma once

#include "dots.h"
#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kSparseColumns = 1024;  // columns of a task: their Y stays in the first caches
constexpr int64_t kSparseRows = 16;       // rows of X that one pass over W serves
constexpr int64_t kSparseStep = 4;        // rows of W that are added in one pass over Y

struct SparseGemmPlan {
  const SparseGemmCall* call;
  int64_t blocks;   // of columns
  int64_t passes;   // of rows
  int32_t* list;    // [passes][K], which x are not 0 in some row of the pass
  int64_t* listed;  // [passes], how many

  int64_t rows_of(int64_t pass) const { return min_of(kSparseRows, call->rows - pass * kSparseRows); }

  void list_inputs(int64_t pass) const {
    const int64_t depth = call->depth;
    const float* x = call->x + pass * kSparseRows * depth;
    int32_t* to = list + pass * depth;
    int64_t count = 0;
    for (int64_t k = 0; k < depth; k += kLanes) {
      const int64_t used = depth - k;
      I zero = splat(-1);
      for (int64_t r = 0; r < rows_of(pass); r++) {
        const float* at = x + r * depth + k;
        zero &= reinterpret_cast<I>((used >= kLanes ? load(at) : load_first(at, used)) == V{});
      }
      uint32_t alive = ~bits(zero) & (~0u >> (32 - kLanes));  // a NaN is not 0
      for (; alive; alive &= alive - 1) to[count++] = static_cast<int32_t>(k + __builtin_ctz(alive));
    }
    listed[pass] = count;
  }

  // y[0 .. n) += the sum of x[i] w[i][0 .. n); what is read next is fetched meanwhile.
  static void add_four(const float* x, const float* const* w, float* y, int64_t n, const float* const* ahead) {
    const V a = splat(x[0]), b = splat(x[1]), c = splat(x[2]), d = splat(x[3]);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      if (ahead) {
        for (int q = 0; q < kSparseStep; q++) __builtin_prefetch(ahead[q] + i);
      }
      store(y + i, (load(y + i) + a * load(w[0] + i) + b * load(w[1] + i)) +
                       (c * load(w[2] + i) + d * load(w[3] + i)));
    }
    for (; i < n; i++) y[i] = (y[i] + x[0] * w[0][i] + x[1] * w[1][i]) + (x[2] * w[2][i] + x[3] * w[3][i]);
  }

  static void add_one(float x, const float* w, float* y, int64_t n) {
    const V xv = splat(x);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + xv * load(w + i));
    for (; i < n; i++) y[i] += x * w[i];
  }

  static void task(void* user, size_t index) {
    const SparseGemmPlan& plan = *static_cast<SparseGemmPlan*>(user);
    const SparseGemmCall& c = *plan.call;
    const int64_t first = static_cast<int64_t>(index) % plan.blocks * kSparseColumns;
    const int64_t pass = static_cast<int64_t>(index) / plan.blocks;
    const int64_t columns = min_of(kSparseColumns, c.columns - first), rows = plan.rows_of(pass);
    const float* x = c.x + pass * kSparseRows * c.depth;
    const int32_t* list = plan.list + pass * c.depth;
    const int64_t listed = plan.listed[pass];
    float* y = c.y + pass * kSparseRows * c.columns + first;
    for (int64_t r = 0; r < rows; r++) {
      memcpy(y + r * c.columns, c.bias + first, static_cast<size_t>(columns) * sizeof(float));
    }
    int64_t i = 0;
    for (; i + kSparseStep <= listed; i += kSparseStep) {
      const float* w[kSparseStep];
      const float* ahead[kSparseStep];
      for (int64_t q = 0; q < kSparseStep; q++) {
        w[q] = c.w + list[i + q] * c.columns + first;
        ahead[q] = c.w + list[min_of(i + q + kSparseStep, listed - 1)] * c.columns + first;
      }
      bool fetch = true;
      for (int64_t r = 0; r < rows; r++) {
        const float* at = x + r * c.depth;
        const float value[kSparseStep] = {at[list[i]], at[list[i + 1]], at[list[i + 2]], at[list[i + 3]]};
        if (value[0] == 0 && value[1] == 0 && value[2] == 0 && value[3] == 0) continue;
        add_four(value, w, y + r * c.columns, columns, fetch ? ahead : nullptr);
        fetch = false;
      }
    }
    for (; i < listed; i++) {
      for (int64_t r = 0; r < rows; r++) {
        const float value = x[r * c.depth + list[i]];
        if (!(value == 0)) add_one(value, c.w + list[i] * c.columns + first, y + r * c.columns, columns);
      }
    }
  }
};

static bool sparse_gemm(const SparseGemmCall& call, const Env& env) {
  call.survivors[0] = 0;
  for (int64_t i = 0; i < call.rows * call.depth; i++) call.survivors[0] += !(call.x[i] == 0.0f);
  if (call.rows == 0 || call.columns == 0) return true;  // any number of rows may have nothing in it
  SparseGemmPlan plan;
  plan.call = &call;
  plan.blocks = blocks_of(call.columns, kSparseColumns);
  plan.passes = blocks_of(call.rows, kSparseRows);
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.list = carver.take<int32_t>(plan.passes * call.depth);
    plan.listed = carver.take<int64_t>(plan.passes);
    return carver.used();
  };
  Lease scratch(*env.per_call, layout(nullptr));
  if (!scratch.data()) return false;
  layout(scratch.data());
  for (int64_t p = 0; p < plan.passes; p++) plan.list_inputs(p);
  return env.parallel(env.context, static_cast<size_t>(plan.passes * plan.blocks), SparseGemmPlan::task, &plan);
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
