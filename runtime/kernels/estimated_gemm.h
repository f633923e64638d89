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

#include "low_rank.h"
#include "ordered_dots.h"
#include "quantized.h"
#include "relu_panels.h"
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
  int64_t done = 0;   // of those listed, finished with the step before
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
    step.listed = step.done = 0;
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

  // Where the sum of an output begins, as in the dense layer.
  float begin(int64_t row, int64_t n) const {
    const Finish& f = call->finish;
    return call->layer.bias[n] + f.offset[f.offset_full ? row * call->layer.outputs + n : 0];
  }

  static float clipped(float y, float max) {
    if (y <= 0.0f) return 0.0f;  // a NaN is not <= 0 and stays
    return y > max ? max : y;
  }

  const float* weights(const Step& step, int64_t l) const {
    return call->layer.weight + (step.first + step.list[l]) * call->layer.groups;
  }

  // Weights of `most` survivors, from l on, of a step and of the one after it; returns how many there are.
  int64_t weights(const Step& step, int64_t l, const Step& after, int64_t most, const float** w) const {
    int64_t count = 0;
    for (; count < most && l < step.listed; l++) w[count++] = weights(step, l);
    for (l = after.done; count < most && l < after.listed; l++) w[count++] = weights(after, l);
    return count;
  }

  // Computes a step's survivors; returns how many. Meanwhile the weights of those that follow are fetched.
  int64_t finish(const Step& step, Step& after) const {
    const int64_t rows = min_of(pass_rows, call->rows - step.row);
    if (rows == 1) return finish_row(step, after);
    if (kRowByRow) return finish_each_row(step, rows, after);
    int64_t count = 0;
    for (int64_t l = 0; l < step.listed; l += kLanes) count += finish_rows(step, l, after);
    return count;
  }

  // Up to kLanes survivors of a pass of several rows: all of them for every row in which one survives.
  int64_t finish_rows(const Step& step, int64_t l, const Step& after) const {
    const int64_t used = min_of(kLanes, step.listed - l), groups = call->layer.groups;
    const float *w[kLanes], *ahead[kLanes];
    int64_t aheads = weights(step, l + used, after, kLanes, ahead);
    uint64_t some = 0;
    for (int i = 0; i < kLanes; i++) {
      const int32_t n = step.list[l + min_of(i, used - 1)];
      w[i] = call->layer.weight + (step.first + n) * groups;
      some |= step.rows[n];
    }
    int64_t count = 0;
    const auto take = [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      const float* x[kRows];
      int64_t row[kRows];
      float sums[kRows * kLanes];
      for (int r = 0; r < kRows; r++, some &= some - 1) {
        row[r] = step.row + __builtin_ctzll(some);
        x[r] = call->x + row[r] * groups;
        for (int i = 0; i < kLanes; i++) {
          sums[r * kLanes + i] = i < used ? begin(row[r], step.first + step.list[l + i]) : 0.0f;
        }
      }
      ordered_dots<1, kRows>(w, x, groups, ahead, aheads, sums);
      aheads = 0;
      for (int r = 0; r < kRows; r++) {
        for (int64_t i = 0; i < used; i++) {
          const int32_t n = step.list[l + i];
          if (!(step.rows[n] >> (row[r] - step.row) & 1)) continue;
          call->y[row[r] * call->layer.outputs + step.first + n] = clipped(sums[r * kLanes + i], call->finish.max);
          count++;
        }
      }
    };
    while (__builtin_popcountll(some) >= kOrderedRows) take(Count<kOrderedRows>());
    while (__builtin_popcountll(some) >= 2) take(Count<2>());
    while (some) take(Count<1>());
    return count;
  }

  // The same, row by row: after the first one a cache holds the weights.
  int64_t finish_each_row(const Step& step, int64_t rows, const Step& after) const {
    const int64_t groups = call->layer.groups;
    int64_t lists[2][kStepOutputs], count = 0;
    int64_t listed = survivors_of(step, 0, lists[0]);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t *const list = lists[r % 2], row = step.row + r;
      int64_t* const next = lists[(r + 1) % 2];
      const int64_t nexts = r + 1 < rows ? survivors_of(step, r + 1, next) : 0;
      for (int64_t first = 0; first < listed; first += kOrderedOutputs) {
        const float *w[kOrderedOutputs], *ahead[kOrderedOutputs];
        float sums[kOrderedOutputs];
        const int64_t used = min_of(kOrderedOutputs, listed - first);
        for (int64_t i = 0; i < used; i++) {
          w[i] = call->layer.weight + list[first + i] * groups;
          sums[i] = begin(row, list[first + i]);
        }
        int64_t aheads = 0;
        const auto fetch = [&](const int64_t* from, int64_t many) {
          for (int64_t i = 0; i < many && aheads < kOrderedOutputs; i++) {
            ahead[aheads++] = call->layer.weight + from[i] * groups;
          }
        };
        fetch(list + first + used, listed - first - used);
        fetch(next, nexts);
        if (aheads == 0) aheads = weights(step, step.listed, after, kOrderedOutputs, ahead);
        ordered_dots_of(w, used, call->x + row * groups, groups, ahead, aheads, sums);
        for (int64_t i = 0; i < used; i++) {
          call->y[row * call->layer.outputs + list[first + i]] = clipped(sums[i], call->finish.max);
        }
      }
      count += listed;
      listed = nexts;
    }
    return count;
  }

  // Outputs of a step that survive in its row r.
  static int64_t survivors_of(const Step& step, int64_t r, int64_t* list) {
    int64_t count = 0;
    for (int64_t l = 0; l < step.listed; l++) {
      list[count] = step.first + step.list[l];
      count += step.rows[step.list[l]] >> r & 1;
    }
    return count;
  }

  // The same for a pass of one row. The last survivors are finished with the first ones of the step after it.
  int64_t finish_row(const Step& step, Step& after) const {
    const int64_t groups = call->layer.groups, borrowed = after.row == step.row ? kOrderedOutputs : 0;
    const float* const x = call->x + step.row * groups;
    float* const y = call->y + step.row * call->layer.outputs;
    int64_t count = 0;
    for (int64_t l = step.done; l < step.listed;) {
      const float *w[kOrderedOutputs], *ahead[kOrderedOutputs];
      int64_t which[kOrderedOutputs];
      float sums[kOrderedOutputs];
      int64_t used = 0;
      const auto take = [&](const Step& from, int64_t at) {
        which[used] = from.first + from.list[at];
        w[used] = weights(from, at);
        sums[used] = begin(step.row, which[used]);
        used++;
      };
      while (used < kOrderedOutputs && l < step.listed) take(step, l++);
      while (used < borrowed && after.done < after.listed) take(after, after.done++);
      const int64_t aheads = weights(step, l, after, kOrderedOutputs, ahead);
      ordered_dots_of(w, used, x, groups, ahead, aheads, sums);
      for (int64_t i = 0; i < used; i++) y[which[i]] = clipped(sums[i], call->finish.max);
      count += used;
    }
    return count;
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
    current->listed = current->done = 0;
    count += finish(*waiting, *current);
    survivors.fetch_add(count, std::memory_order_relaxed);
  }
};

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
