// Gemm with a ReLU: Y [M, N] from X [M, G]. An estimate shows which outputs are 0; the others are computed in
// full from the float weights.
//
// A Source knows the estimate:
//   layer                      its weights and bias
//   carve, fill                memory for the rows of a call, and what is made of them once
//   rows_per_pass(), usable(r), scratch_bytes(outputs)
//   estimates(...)             values and reaches of a block of outputs, see quantized.h
//   kSound                     whether the estimate is certain. Then, where it decides too little, the rest
//   of
//                              the call goes straight to the float weights: the first block is the probe.
#pragma once

#include "dots.h"
#include "low_rank.h"
#include "packed_gemm.h"
#include "quantized.h"
#include "tasks.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kStepOutputs = 256;  // outputs that a worker takes at a time
constexpr int64_t kProbeOutputs = 64;  // outputs that show whether most survive
constexpr int64_t kStepRows = 64;  // rows of X that a pass over the weights serves, at most: bits of a mask
constexpr int64_t kStepBytes = 1 << 18;  // of X in such a pass
constexpr int64_t kMostWorkers = 64;
constexpr int64_t kProductsAlone = 1 << 18;  // products of the estimate that are not worth other threads
// Share of survivors from which on reading the codes first (a quarter of the bytes) does not pay.
constexpr float kTooManySurvivors = 0.7f;
// What a product costs next to one in panels: of codes, and of floats of an output that survives in some rows.
constexpr float kCodeProduct = 0.3f, kSurvivorProduct = 5.0f;

template <int N>
struct Count {
  static constexpr int value = N;
};

// Outputs that were tested. They are finished after the next step's test, so that it is known which weights
// to fetch when the last ones of a step are in use.
struct Step {
  uint64_t* rows;  // [kStepOutputs], a bit per row of the pass in which the output can be above 0, if it has several
  int32_t* list;   // [kStepOutputs], outputs (from `first`) with a row
  int64_t listed = 0;
  int64_t first = 0;  // output
  int64_t row = 0;    // first row of the pass

  void carve(Carver& carver) {
    rows = carver.take<uint64_t>(kStepOutputs);
    list = carver.take<int32_t>(kStepOutputs + kLanes);  // as append_lanes wants it
  }
};

template <class Source, class Call>
struct EstimatedGemmPlan {
  const Call* call;
  const Env* env;
  Source source;
  int64_t units;      // steps of outputs
  int64_t pass_rows;  // rows of a pass
  int64_t passes;
  bool dense;                    // all survive, codes are not read
  Step probe;                    // the first step of all
  std::atomic<int64_t> next{0};  // unit that nobody has taken
  std::atomic<int64_t> survivors{0};
  std::atomic<bool> failed{false};

  V offset(int64_t row, int64_t n, int64_t used) const {
    const Finish& f = call->finish;
    if (!f.offset_full) return splat(f.offset[0]);
    const float* p = f.offset + row * call->layer.outputs + n;
    return load_up_to(p, used);
  }

  static uint32_t wanted(int64_t used) { return used >= kLanes ? ~0u >> (32 - kLanes) : (1u << used) - 1; }

  // Which of the outputs first .. end survive. Y is 0 until they are finished.
  void test(int64_t row, int64_t first, int64_t end, char* scratch, Step& step) const {
    const auto& layer = call->layer;
    const int64_t rows = min_of(pass_rows, call->rows - row), outputs = end - first;
    step.first = first;
    step.row = row;
    step.listed = 0;
    if (rows == 1) return test_row(row, first, outputs, scratch, step);
    memset(step.rows, 0, kStepOutputs * sizeof(uint64_t));
    const auto take = [&](int64_t r, int64_t i, uint32_t alive) {
      for (; alive; alive &= alive - 1) step.rows[i + __builtin_ctz(alive)] |= uint64_t{1} << (r - row);
    };
    for (int64_t r = row; r < row + rows; r++) {
      memset(call->y + r * layer.outputs + first, 0, static_cast<size_t>(outputs) * sizeof(float));
    }
    if (dense) {
      for (int64_t i = 0; i < outputs; i++) step.rows[i] = ~uint64_t{0} >> (64 - rows);
    } else {
      const int64_t at_once = source.rows_per_pass();
      for (int64_t r = row; r < row + rows; r += at_once) {
        source.estimates(
            first, outputs, r, min_of(at_once, row + rows - r), kStepOutputs, scratch,
            [&](int64_t at, int64_t n, int64_t used) { return offset(at, n, used); },
            [&](int64_t at, int64_t i, int64_t used, const Estimate& e) {
              // A NaN is not below 0 and survives.
              const uint32_t decided = bits(reinterpret_cast<I>(e.value + e.reach < V{}));
              take(at, i, source.usable(at) ? ~decided & wanted(used) : wanted(used));
            });
      }
    }
    for (int64_t i = 0; i < outputs; i++) {
      step.list[step.listed] = static_cast<int32_t>(i);
      step.listed += step.rows[i] != 0;
    }
  }

  // The same for a pass of one row: the outputs are listed as they are tested.
  void test_row(int64_t row, int64_t first, int64_t outputs, char* scratch, Step& step) const {
    memset(call->y + row * call->layer.outputs + first, 0, static_cast<size_t>(outputs) * sizeof(float));
    if (dense || !source.usable(row)) {
      for (int64_t i = 0; i < outputs; i++) step.list[i] = static_cast<int32_t>(i);
      step.listed = outputs;
      return;
    }
    source.estimates(
        first, outputs, row, 1, kStepOutputs, scratch,
        [&](int64_t at, int64_t n, int64_t used) { return offset(at, n, used); },
        [&](int64_t, int64_t i, int64_t used, const Estimate& e) {
          const uint32_t decided = bits(reinterpret_cast<I>(e.value + e.reach < V{}));
          step.listed += append_lanes(step.list + step.listed, static_cast<int32_t>(i), ~decided & wanted(used));
        });
  }

  float finished(int64_t row, int64_t n, float sum) const {
    const Finish& f = call->finish;
    const float off = f.offset[f.offset_full ? row * call->layer.outputs + n : 0];
    return clipped(sum + (call->layer.bias[n] + off), f.max);
  }

  static float clipped(float y, float max) {
    if (y <= 0.0f) return 0.0f;  // a NaN is not <= 0 and stays
    return y > max ? max : y;
  }

  // Weights of survivor l of a step, or of the step after it; null if there is none.
  const float* weights(const Step& step, int64_t l, const Step& after) const {
    const Step& at = l < step.listed ? step : after;
    const int64_t i = l < step.listed ? l : l - step.listed;
    return i < at.listed ? call->layer.weight + (at.first + at.list[i]) * call->layer.groups : nullptr;
  }

  // Computes a step's survivors; returns how many. Meanwhile the weights of those that follow are fetched.
  int64_t finish(const Step& step, const Step& after) const {
    const int64_t groups = call->layer.groups, apart = rows_ahead(groups);
    if (min_of(pass_rows, call->rows - step.row) == 1) return finish_row(step, after, max_of(apart, kDotRows));
    int64_t count = 0;
    for (int64_t l = 0; l < step.listed; l++) {
      const int64_t n = step.first + step.list[l];
      const float* x[kStepRows];
      int64_t row[kStepRows], at[kStepRows];
      float sums[kStepRows];
      int64_t used = 0;
      for (uint64_t left = step.rows[step.list[l]]; left; left &= left - 1) {
        row[used] = step.row + __builtin_ctzll(left);
        x[used] = call->x + row[used] * groups;
        at[used] = used;
        sums[used++] = 0;
      }
      add_dots<false>(call->layer.weight + n * groups, x, at, used, groups, weights(step, l + apart, after),
                      sums, nullptr);
      for (int64_t r = 0; r < used; r++)
        call->y[row[r] * call->layer.outputs + n] = finished(row[r], n, sums[r]);
      count += used;
    }
    return count;
  }

  // The same for a pass of one row: several outputs at a time.
  int64_t finish_row(const Step& step, const Step& after, int64_t apart) const {
    const int64_t groups = call->layer.groups;
    const float* const x = call->x + step.row * groups;
    const Finish& f = call->finish;
    const int64_t at = step.row * call->layer.outputs + step.first;
    float* const y = call->y + at;
    const float *const bias = call->layer.bias + step.first, *const offset = f.offset + (f.offset_full ? at : 0);
    const bool full = f.offset_full;
    const float max = f.max;
    int64_t l = 0;
    const auto take = [&](auto count) {
      constexpr int kCount = decltype(count)::value;
      const float *w[kCount], *ahead[kCount];
      float sums[kCount];
      for (int i = 0; i < kCount; i++) {
        w[i] = weights(step, l + i, after);
        const float* next = weights(step, l + apart + i, after);
        ahead[i] = next ? next : w[i];
      }
      dots<kCount, false, kCount>(x, w, groups, ahead, sums, nullptr);
      for (int i = 0; i < kCount; i++) {
        const int32_t n = step.list[l + i];
        y[n] = clipped(sums[i] + (bias[n] + offset[full ? n : 0]), max);
      }
      l += kCount;
    };
    while (l + 2 <= step.listed) take(Count<2>());
    while (l < step.listed) take(Count<1>());
    return step.listed;
  }

  // A worker takes unit after unit until none is left: its stream of codes and weights does not end with a
  // task, and threads that are slower take fewer.
  static void work_task(void* user, size_t) { static_cast<EstimatedGemmPlan*>(user)->work(); }

  void work() {
    int64_t unit = next.fetch_add(1, std::memory_order_relaxed);
    if (unit >= units * passes) return;
    char* scratch = nullptr;
    Step both[2];
    const auto layout = [&](char* base) {
      Carver carver(base);
      both[0].carve(carver);
      both[1].carve(carver);
      scratch = carver.take<char>(static_cast<int64_t>(Source::scratch_bytes(kStepOutputs)));
      return carver.used();
    };
    CarvedLease lease(*env->per_task, layout);
    if (!lease.data()) {
      failed = true;
      return;
    }
    int64_t count = 0;
    Step *current = &both[0], *waiting = &both[1];
    for (; unit < units * passes; unit = next.fetch_add(1, std::memory_order_relaxed)) {
      int64_t first = unit % units * kStepOutputs;
      const int64_t row = unit / units * pass_rows, end = min_of(first + kStepOutputs, call->layer.outputs);
      if (row == 0 && first == 0) {
        count += finish(*waiting, probe);
        *waiting = probe;
        first = min_of(kProbeOutputs, end);
      }
      if (first == end) continue;
      test(row, first, end, scratch, *current);
      count += finish(*waiting, *current);
      Step* const done = waiting;
      waiting = current;
      current = done;
    }
    current->listed = 0;
    count += finish(*waiting, *current);
    survivors.fetch_add(count, std::memory_order_relaxed);
  }
};

// What becomes of the sums of a dense product.
template <class Call>
struct ReluResults {
  const Call* call;

  V begin(int64_t, int64_t) const { return V{}; }

  void end(int64_t row, int64_t n, int64_t used, V sum) const {
    const Finish& f = call->finish;
    const int64_t at = row * call->layer.outputs + n;
    const V offset = f.offset_full ? load_up_to(f.offset + at, used) : splat(f.offset[0]);
    V y = sum + (load_up_to(call->layer.bias + n, used) + offset);
    y = select(reinterpret_cast<I>(y <= V{}), V{}, y);  // a NaN is not <= 0 and stays
    y = select(reinterpret_cast<I>(y > splat(f.max)), splat(f.max), y);
    store_up_to(call->y + at, y, used);
  }
};

// All outputs in full; false where there are no panels.
template <class Call>
static bool all_outputs(const Call& call, const Env& env) {
  const auto& layer = call.layer;
  const PanelWeights weights = {layer.weight, layer.outputs, layer.groups, true};
  const float* const panels = panels_of(weights, call.panels, env);
  const ReluResults<Call> results = {&call};
  return panels && packed_gemm(call.x, panels, call.rows, layer.groups, layer.outputs, results, env);
}

// `share` of the outputs survives, and a share survives in some row.
template <class Call>
static bool panels_are_faster(const Call& call, float share, float in_some_row) {
  const int64_t weights = call.layer.outputs * call.layer.groups;
  const float rows = static_cast<float>(call.rows);
  const float skipping =
      cycles(weights, 0.25f + in_some_row, rows * (kCodeProduct + kSurvivorProduct * share));
  return skipping > cycles(weights, 1.0f, rows);
}

template <class Source, class Call>
static bool estimated_gemm(const Call& call, const Env& env) {
  using Plan = EstimatedGemmPlan<Source, Call>;
  call.survivors[0] = 0;
  if (call.rows == 0) return true;
  const auto& layer = call.layer;
  Plan plan;
  plan.call = &call;
  plan.env = &env;
  plan.source.layer = &layer;
  plan.units = blocks_of(layer.outputs, kStepOutputs);
  const int64_t fitting = kStepBytes / (layer.groups * static_cast<int64_t>(sizeof(float)));
  plan.pass_rows = min_of(max_of(fitting, 16), kStepRows);
  plan.passes = blocks_of(call.rows, plan.pass_rows);
  plan.dense = false;
  char* probe_scratch = nullptr;
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.source.carve(carver, call.rows);
    plan.probe.carve(carver);
    probe_scratch = carver.take<char>(static_cast<int64_t>(Source::scratch_bytes(kStepOutputs)));
    return carver.used();
  };
  CarvedLease scratch(*env.per_call, layout);
  if (!scratch.data()) return false;
  // Where most outputs survive, the rows beyond the probe are not estimated.
  const int64_t shown = Source::kSound ? min_of(call.rows, plan.pass_rows) : call.rows;
  if (!plan.source.fill(call.x, shown, env)) return false;

  const int64_t probed = min_of(kProbeOutputs, layer.outputs);
  plan.test(0, 0, probed, probe_scratch, plan.probe);
  if (Source::kSound) {
    int64_t alive = 0;
    for (int64_t l = 0; l < plan.probe.listed; l++)
      alive += shown == 1 ? 1 : __builtin_popcountll(plan.probe.rows[plan.probe.list[l]]);
    const float share = static_cast<float>(alive) / static_cast<float>(probed * shown);
    const float in_some_row = static_cast<float>(plan.probe.listed) / static_cast<float>(probed);
    plan.dense = share > kTooManySurvivors;
    if (call.rows > 1 && panels_are_faster(call, share, in_some_row) && all_outputs(call, env)) {
      call.survivors[0] = call.rows * layer.outputs;
      return true;
    }
    if (shown < call.rows && !plan.source.fill(call.x, call.rows, env)) return false;
  }
  const bool alone = call.rows * layer.outputs * layer.groups <= kProductsAlone;
  const int64_t workers = alone ? 1 : min_of(plan.units * plan.passes, kMostWorkers);
  if (!run_tasks(env, alone, workers, Plan::work_task, &plan) || plan.failed) return false;
  call.survivors[0] = plan.survivors;
  return true;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
