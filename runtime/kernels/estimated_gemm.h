// Gemm with a ReLU: Y [M, N] from X [M, G]. An estimate shows which outputs are 0; the others are computed in
// full from the float weights.
//
// A Source knows the estimate:
//   layer                      its weights and bias
//   carve, fill                memory for the rows of a call, and what is made of them once
//   rows_per_pass(), usable(r), scratch_bytes(outputs)
//   estimates(...)             values and reaches of a block of outputs, see quantized.h
//   kSound                     whether the estimate is certain. Then, where it decides too little, the rest of
//                              the call goes straight to the float weights: the first block is the probe.
#pragma once

#include "dots.h"
#include "low_rank.h"
#include "quantized.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kTestOutputs = 256;       // outputs of a task of the test
constexpr int64_t kFinishOutputs = 64;      // survivors of a task of the finish
constexpr int64_t kFinishRows = 16;         // rows of X that one pass over a row of weights serves
// Share of survivors from which on reading the codes first (a quarter of the bytes) does not pay.
constexpr float kTooManySurvivors = 0.7f;

template <class Source, class Call>
struct EstimatedGemmPlan {
  const Call* call;
  const Env* env;
  Source source;
  int64_t blocks;   // of outputs
  int64_t vectors;  // of kLanes outputs, in a row
  int64_t passes;   // of kFinishRows rows
  uint32_t* alive;  // [rows][vectors], a bit per output that can be above 0
  int32_t* list;    // [passes][N], outputs that are alive in a row of the pass
  int64_t* starts;  // [passes + 1], finish tasks before a pass
  int64_t* listed;  // [passes]
  bool dense;       // all survive, codes are not read
  std::atomic<bool> failed{false};

  V offset(int64_t row, int64_t n, int64_t used) const {
    const Finish& f = call->finish;
    if (!f.offset_full) return splat(f.offset[0]);
    const float* p = f.offset + row * call->layer.outputs + n;
    return used >= kLanes ? load(p) : load_first(p, used);
  }

  // First stage: which of a block of outputs survive. Y is 0 until they are finished.
  static void test_task(void* user, size_t index) {
    EstimatedGemmPlan& plan = *static_cast<EstimatedGemmPlan*>(user);
    plan.test(static_cast<int64_t>(index) + 1);  // the probe was task 0
  }

  void test(int64_t index) {
    const int64_t pass = index / blocks * kFinishRows, first = index % blocks * kTestOutputs;
    const int64_t rows = min_of(kFinishRows, call->rows - pass);
    const int64_t outputs = min_of(kTestOutputs, call->layer.outputs - first);
    for (int64_t r = pass; r < pass + rows; r++) {
      memset(call->y + r * call->layer.outputs + first, 0, static_cast<size_t>(outputs) * sizeof(float));
    }
    if (dense) {
      for (int64_t r = pass; r < pass + rows; r++) {
        for (int64_t i = 0; i < outputs; i += kLanes) *mask(r, first + i) = wanted(outputs - i);
      }
      return;
    }
    Lease scratch(*env->per_task, Source::scratch_bytes(kTestOutputs));
    if (!scratch.data()) {
      failed = true;
      return;
    }
    const int64_t step = source.rows_per_pass();
    for (int64_t r = pass; r < pass + rows; r += step) {
      source.estimates(
          first, outputs, r, min_of(step, pass + rows - r), kTestOutputs, scratch.data(),
          [&](int64_t row, int64_t n, int64_t used) { return offset(row, n, used); },
          [&](int64_t row, int64_t i, int64_t used, const Estimate& e) {
            // A NaN is not below 0 and survives.
            const uint32_t decided = bits(reinterpret_cast<I>(e.value + e.reach < V{}));
            *mask(row, first + i) = source.usable(row) ? ~decided & wanted(used) : wanted(used);
          });
    }
  }

  uint32_t* mask(int64_t row, int64_t n) const { return alive + row * vectors + n / kLanes; }
  static uint32_t wanted(int64_t used) { return used >= kLanes ? ~0u >> (32 - kLanes) : (1u << used) - 1; }

  int64_t rows_of(int64_t pass) const { return min_of(kFinishRows, call->rows - pass * kFinishRows); }

  int64_t count_survivors(int64_t begin, int64_t end) const {
    int64_t count = 0;
    for (int64_t i = begin; i < end; i++) count += __builtin_popcount(alive[i]);
    return count;
  }

  void list_survivors() {
    starts[0] = 0;
    for (int64_t p = 0; p < passes; p++) {
      int32_t* to = list + p * call->layer.outputs;
      int64_t count = 0;
      for (int64_t v = 0; v < vectors; v++) {
        uint32_t any = 0;
        for (int64_t r = 0; r < rows_of(p); r++) any |= alive[(p * kFinishRows + r) * vectors + v];
        for (; any; any &= any - 1) to[count++] = static_cast<int32_t>(v * kLanes + __builtin_ctz(any));
      }
      listed[p] = count;
      starts[p + 1] = starts[p] + blocks_of(count, kFinishOutputs);
    }
  }

  float finished(int64_t row, int64_t n, float sum) const {
    const Finish& f = call->finish;
    const float off = f.offset[f.offset_full ? row * call->layer.outputs + n : 0];
    const float y = sum + (call->layer.bias[n] + off);
    if (y <= 0.0f) return 0.0f;  // a NaN is not <= 0 and stays
    return y > f.max ? f.max : y;
  }

  // Second stage: some of the survivors of a pass. Rows of weights are fetched ahead over the end of a task,
  // so that the stream goes on where tasks follow each other.
  static void finish_task(void* user, size_t index) {
    const EstimatedGemmPlan& plan = *static_cast<const EstimatedGemmPlan*>(user);
    const int64_t p = part_of(plan.starts, plan.passes, static_cast<int64_t>(index));
    const int64_t begin = (static_cast<int64_t>(index) - plan.starts[p]) * kFinishOutputs;
    plan.finish(p, begin, min_of(begin + kFinishOutputs, plan.listed[p]));
  }

  void finish(int64_t pass, int64_t begin, int64_t end) const {
    const int64_t groups = call->layer.groups, apart = rows_ahead(groups);
    const int32_t* outputs = list + pass * call->layer.outputs;
    for (int64_t l = begin; begin == 0 && l < min_of(apart, end); l++) {
      prefetch_row(call->layer.weight + outputs[l] * groups, groups);
    }
    for (int64_t l = begin; l < end; l++) {
      const int64_t n = outputs[l];
      const float* x[kFinishRows];
      int64_t row[kFinishRows], at[kFinishRows];
      float sums[kFinishRows];
      int64_t used = 0;
      for (int64_t r = pass * kFinishRows; r < pass * kFinishRows + rows_of(pass); r++) {
        x[used] = call->x + r * groups;
        row[used] = r;
        at[used] = used;
        sums[used] = 0;
        used += (alive[r * vectors + n / kLanes] >> (n % kLanes)) & 1;
      }
      const int64_t next = l + apart;
      const float* ahead = next < listed[pass] ? call->layer.weight + outputs[next] * groups : nullptr;
      add_dots<false>(call->layer.weight + n * groups, x, at, used, groups, ahead, sums, nullptr);
      for (int64_t r = 0; r < used; r++) {
        call->y[row[r] * call->layer.outputs + n] = finished(row[r], n, sums[r]);
      }
    }
  }
};

template <class Source, class Call>
static bool estimated_gemm(const Call& call, const Env& env) {
  using Plan = EstimatedGemmPlan<Source, Call>;
  call.survivors[0] = 0;
  if (call.rows == 0) return true;
  Plan plan;
  plan.call = &call;
  plan.env = &env;
  plan.source.layer = &call.layer;
  plan.blocks = blocks_of(call.layer.outputs, kTestOutputs);
  plan.vectors = blocks_of(call.layer.outputs, kLanes);
  plan.passes = blocks_of(call.rows, kFinishRows);
  plan.dense = false;
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.source.carve(carver, call.rows);
    plan.alive = carver.take<uint32_t>(call.rows * plan.vectors);
    plan.list = carver.take<int32_t>(plan.passes * call.layer.outputs);
    plan.starts = carver.take<int64_t>(plan.passes + 1);
    plan.listed = carver.take<int64_t>(plan.passes);
    return carver.used();
  };
  Lease scratch(*env.per_call, layout(nullptr));
  if (!scratch.data()) return false;
  layout(scratch.data());
  if (!plan.source.fill(call.x, call.rows, env)) return false;

  plan.test(0);
  if (plan.failed) return false;
  const int64_t probed = min_of(kTestOutputs, call.layer.outputs);
  int64_t alive = 0;
  for (int64_t r = 0; r < plan.rows_of(0); r++) {
    alive += plan.count_survivors(r * plan.vectors, r * plan.vectors + blocks_of(probed, kLanes));
  }
  plan.dense = Source::kSound && static_cast<float>(alive) > kTooManySurvivors * static_cast<float>(probed * plan.rows_of(0));
  const size_t tests = static_cast<size_t>(plan.blocks * plan.passes);
  if (!env.parallel(env.context, tests - 1, Plan::test_task, &plan) || plan.failed) return false;
  plan.list_survivors();
  call.survivors[0] = plan.count_survivors(0, call.rows * plan.vectors);
  return env.parallel(env.context, static_cast<size_t>(plan.starts[plan.passes]),
                      Plan::finish_task, &plan);
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
