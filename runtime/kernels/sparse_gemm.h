// Y = X W + bias, reading only the rows of W whose x is not 0.
#pragma once

#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kSparseColumns = 1024;  // columns of a task: their Y stays in the first cache

struct SparseGemmPlan {
  const SparseGemmCall* call;
  int64_t blocks;
  int32_t* list;    // [M][K], which x of a row are not 0
  int64_t* listed;  // [M], how many

  // y[0 .. n) += x * w[0 .. n)
  static void axpy(float x, const float* w, float* y, int64_t n, const float* ahead) {
    const V xv = splat(x);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      if (ahead) __builtin_prefetch(ahead + i);
      store(y + i, load(y + i) + xv * load(w + i));
    }
    for (; i < n; i++) y[i] += x * w[i];
  }

  static void task(void* user, size_t index) {
    const SparseGemmPlan& plan = *static_cast<SparseGemmPlan*>(user);
    const SparseGemmCall& c = *plan.call;
    const int64_t first = static_cast<int64_t>(index) % plan.blocks * kSparseColumns;
    const int64_t row = static_cast<int64_t>(index) / plan.blocks;
    const int64_t columns = min_of(kSparseColumns, c.columns - first);
    const float* x = c.x + row * c.depth;
    const int32_t* list = plan.list + row * c.depth;
    const int64_t listed = plan.listed[row];
    float* y = c.y + row * c.columns + first;
    for (int64_t i = 0; i < columns; i++) y[i] = c.bias[first + i];
    for (int64_t i = 0; i < listed; i++) {
      const float* ahead = i + 1 < listed ? c.w + list[i + 1] * c.columns + first : nullptr;
      axpy(x[list[i]], c.w + list[i] * c.columns + first, y, columns, ahead);
    }
  }
};

static bool sparse_gemm(const SparseGemmCall& call, const Env& env) {
  SparseGemmPlan plan;
  plan.call = &call;
  plan.blocks = blocks_of(call.columns, kSparseColumns);
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.list = carver.take<int32_t>(call.rows * call.depth);
    plan.listed = carver.take<int64_t>(call.rows);
    return carver.used();
  };
  Lease scratch(*env.per_call, layout(nullptr));
  if (!scratch.data()) return false;
  layout(scratch.data());
  int64_t total = 0;
  for (int64_t r = 0; r < call.rows; r++) {
    const float* x = call.x + r * call.depth;
    int32_t* list = plan.list + r * call.depth;
    int64_t listed = 0;
    for (int64_t k = 0; k < call.depth; k++) {
      list[listed] = static_cast<int32_t>(k);
      listed += !(x[k] == 0.0f);
    }
    plan.listed[r] = listed;
    total += listed;
  }
  call.survivors[0] = total;
  return env.parallel(env.context, static_cast<size_t>(call.rows * plan.blocks), SparseGemmPlan::task, &plan);
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
