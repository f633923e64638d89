// The k best classes of X W^T + bias, best first. An estimate bounds every score; the classes that can still be
// among the k best are computed in full from the float weights. See estimated_gemm.h for what a Source is.
//
// With a sound estimate the classes that remain are the dense head's k best and those that the bounds cannot
// tell from them.
#pragma once

#include "low_rank.h"
#include "ordered_dots.h"
#include "quantized.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kTopKClasses = 512;   // classes of a task
constexpr int64_t kTopKFinish = 32;     // classes of a task of the finish
constexpr int64_t kTopKState = 1 << 21;  // rows x classes that are in work at once

// The k largest of the values that are put in; values[0] is the smallest of them.
struct Largest {
  float* values;
  int64_t k;

  void clear() {
    for (int64_t i = 0; i < k; i++) values[i] = -INFINITY;
  }
  void put(float value) {
    if (!(value > values[0])) return;  // a NaN neither
    int64_t i = 0;
    for (; i + 1 < k && values[i + 1] < value; i++) values[i] = values[i + 1];
    values[i] = value;
  }
};

template <class Source, class Call>
struct EstimatedTopKPlan {
  const Call* call;
  const Env* env;
  Source source;  // of the rows in work
  int64_t first_row, rows, blocks;
  float* upper;      // [rows][blocks * kTopKClasses], nothing below a score's bound
  float* value;      // [rows][blocks * kTopKClasses], the estimates; only of a cascade
  float* most;       // [rows][blocks], largest of `upper`, NaN if one is NaN
  float* lower;      // [rows][blocks][k], largest lower bounds, ascending
  int32_t* classes;  // [rows][N], those that remain, ascending
  float* scores;     // [rows][N], of those
  int64_t* listed;   // [rows]
  int64_t* starts;   // [rows + 1], finish tasks before a row
  std::atomic<bool> failed{false};

  bool cascade() const {
    if constexpr (Source::kSound) {
      return false;
    } else {
      return call->layer.more > 0;
    }
  }

  float* uppers(int64_t r, int64_t block) const { return upper + (r * blocks + block) * kTopKClasses; }

  // First stage: a block of classes for the rows of a pass.
  static void bound_task(void* user, size_t index) {
    EstimatedTopKPlan& p = *static_cast<EstimatedTopKPlan*>(user);
    const int64_t block = static_cast<int64_t>(index) % p.blocks, step = p.source.rows_per_pass();
    const int64_t pass = static_cast<int64_t>(index) / p.blocks * step;
    const int64_t count = min_of(step, p.rows - pass);
    Lease scratch(*p.env->per_task, Source::scratch_bytes(kTopKClasses));
    if (!scratch.data()) {
      p.failed = true;
      return;
    }
    const int64_t first = block * kTopKClasses;
    const int64_t outputs = min_of(kTopKClasses, p.call->layer.outputs - first);
    for (int64_t r = pass; r < pass + count; r++) {
      p.largest_of(r, block).clear();
      p.most[r * p.blocks + block] = -INFINITY;
    }
    p.source.estimates(
        first, outputs, pass, count, kTopKClasses, scratch.data(),
        [](int64_t, int64_t, int64_t) { return V{}; },
        [&](int64_t r, int64_t i, int64_t used, const Estimate& e) { p.note(r, block, i, used, e); });
  }

  Largest largest_of(int64_t r, int64_t block) const { return {lower + (r * blocks + block) * call->k, call->k}; }

  // Keeps what matters of some classes' bounds.
  void note(int64_t r, int64_t block, int64_t i, int64_t used, const Estimate& e) const {
    const V high = e.value + e.reach, low = e.value - e.reach;
    store(uppers(r, block) + i, high);
    if (cascade()) store(value + (r * blocks + block) * kTopKClasses + i, e.value);
    const I wanted = used >= kLanes ? splat(-1) : lanes() < splat(static_cast<int32_t>(used));
    Largest largest = largest_of(r, block);
    uint32_t better = bits(reinterpret_cast<I>(low > splat(largest.values[0])) & wanted);
    for (; better; better &= better - 1) largest.put(low[__builtin_ctz(better)]);
    float* top = most + r * blocks + block;
    const uint32_t above = bits(~reinterpret_cast<I>(high <= splat(*top)) & wanted);  // a NaN too
    for (uint32_t left = above; left; left &= left - 1) {
      const float value = high[__builtin_ctz(left)];
      if (!(value <= *top)) *top = value;  // and a NaN stays
    }
  }

  // Lists the classes of a row that can be among the k best.
  void list_row(int64_t r, float* storage) const {
    const int64_t outputs = call->layer.outputs;
    int32_t* to = classes + r * outputs;
    int64_t count = 0;
    if (!source.usable(r)) return list_all(r);
    Largest largest = {storage, call->k};
    largest.clear();
    const float* lows = lower + r * blocks * call->k;
    for (int64_t i = 0; i < blocks * call->k; i++) largest.put(lows[i]);
    const float bar = largest.values[0];
    for (int64_t b = 0; b < blocks; b++) {
      if (most[r * blocks + b] < bar) continue;  // a NaN is not below
      const float* up = uppers(r, b);
      const int64_t first = b * kTopKClasses, used = min_of(kTopKClasses, outputs - first);
      for (int64_t i = 0; i < used; i += kLanes) {
        uint32_t left = bits(~reinterpret_cast<I>(load(up + i) < splat(bar)));  // a NaN is not below
        if (used - i < kLanes) left &= (1u << (used - i)) - 1;
        for (; left; left &= left - 1) to[count++] = static_cast<int32_t>(first + i + __builtin_ctz(left));
      }
    }
    listed[r] = count;
    if (count < call->k) list_all(r);
  }

  // Bounds that contradict themselves (an upper one below its lower one, or below its score) say nothing.
  void list_all(int64_t r) const {
    const int64_t outputs = call->layer.outputs;
    for (int64_t n = 0; n < outputs; n++) classes[r * outputs + n] = static_cast<int32_t>(n);
    listed[r] = outputs;
  }

  const float* weights_of(int64_t n) const { return call->layer.weight + n * call->layer.groups; }

  // Scores of at most kOrderedOutputs classes; `to` has room for so many. The weights of those in ahead are fetched.
  void scores_of(int64_t r, const int32_t* which, int64_t count, const int32_t* ahead, int64_t aheads,
                 float* to) const {
    const auto& layer = call->layer;
    const float *w[kOrderedOutputs], *after[kOrderedOutputs];
    for (int64_t i = 0; i < count; i++) {
      w[i] = weights_of(which[i]);
      to[i] = layer.bias[which[i]];
    }
    for (int64_t i = 0; i < aheads; i++) after[i] = weights_of(ahead[i]);
    ordered_dots_of(w, count, call->x + (first_row + r) * layer.groups, layer.groups, after, aheads, to);
  }

  // Of a long list, computes the k classes with the largest upper bounds first: no class whose bound is below
  // the least of their scores can be among the k best. That takes most of a bound's width off the bar.
  static void narrow_task(void* user, size_t index) {
    const EstimatedTopKPlan& p = *static_cast<const EstimatedTopKPlan*>(user);
    const int64_t r = static_cast<int64_t>(index);
    if (p.source.usable(r) && p.listed[r] > 4 * p.call->k) p.narrow(r);
  }

  float upper_of(int64_t r, int64_t n) const { return uppers(r, n / kTopKClasses)[n % kTopKClasses]; }

  void narrow(int64_t r) const {
    int32_t* list = classes + r * call->layer.outputs;
    float storage[kMostK];
    Largest largest = {storage, call->k};
    largest.clear();
    for (int64_t i = 0; i < listed[r]; i++) largest.put(upper_of(r, list[i]));
    const float level = largest.values[0];
    int32_t which[kMostK];
    int64_t wanted = 0;
    for (int64_t i = 0; i < listed[r] && wanted < call->k; i++) {
      if (upper_of(r, list[i]) >= level) which[wanted++] = list[i];
    }
    if (wanted < call->k) return;
    float bar = INFINITY;
    for (int64_t first = 0; first < wanted; first += kOrderedOutputs) {
      const int64_t count = min_of(kOrderedOutputs, wanted - first);
      float score[kOrderedOutputs];
      scores_of(r, which + first, count, nullptr, 0, score);
      for (int64_t i = 0; i < count; i++) {
        if (score[i] != score[i]) return;  // nothing can be said
        bar = score[i] < bar ? score[i] : bar;
      }
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < listed[r]; i++) {
      const int32_t n = list[i];
      list[kept] = n;
      kept += !(upper_of(r, n) < bar);
    }
    listed[r] = kept;
    if (kept < call->k) list_all(r);
  }

  // Of a cascade, estimates the classes that remain again, and lists those that can still be the best.
  static void again_task(void* user, size_t index) {
    const EstimatedTopKPlan& p = *static_cast<const EstimatedTopKPlan*>(user);
    const int64_t r = static_cast<int64_t>(index);
    if (!p.decided(r)) p.again(r);
  }

  void again(int64_t r) const {
    if constexpr (!Source::kSound) {
      const auto& layer = call->layer;
      int32_t* list = classes + r * layer.outputs;
      float* second = scores + r * layer.outputs;
      const float* first = value + r * blocks * kTopKClasses;
      float bar = -INFINITY;
      for (int64_t i = 0; i < listed[r]; i++) {
        const int64_t n = list[i];
        second[i] = first[n] + (source.more_of(r, n) + layer.shift_more[n]);
        const float low = second[i] - layer.reach_more[n];
        if (low > bar) bar = low;  // a NaN is not
      }
      int64_t kept = 0;
      for (int64_t i = 0; i < listed[r]; i++) {
        const int32_t n = list[i];
        list[kept] = n;
        kept += !(second[i] + layer.reach_more[n] < bar);
      }
      listed[r] = kept;
    }
  }

  static void finish_task(void* user, size_t index) {
    const EstimatedTopKPlan& p = *static_cast<const EstimatedTopKPlan*>(user);
    const auto& layer = p.call->layer;
    const int64_t r = part_of(p.starts, p.rows, static_cast<int64_t>(index));
    const int64_t begin = (static_cast<int64_t>(index) - p.starts[r]) * kTopKFinish;
    const int64_t end = min_of(begin + kTopKFinish, p.listed[r]);
    const int32_t* which = p.classes + r * layer.outputs;
    for (int64_t i = begin; i < end; i += kOrderedOutputs) {
      const int64_t count = min_of(kOrderedOutputs, end - i), next = i + count;
      // Fetched ahead over the end of a task too: the stream goes on where tasks follow each other.
      const int64_t aheads = min_of(kOrderedOutputs, p.listed[r] - next);
      float score[kOrderedOutputs];
      p.scores_of(r, which + i, count, which + next, aheads, score);
      memcpy(p.scores + r * layer.outputs + i, score, static_cast<size_t>(count) * sizeof(float));
    }
  }

  // Whether the classes that remain are the answer as they are: one class, and its score is not wanted.
  bool decided(int64_t r) const { return listed[r] == 1 && call->k == 1 && !call->values; }

  // Equal scores: the class with the lower index comes first (the higher one if select_last, with k = 1).
  void choose(int64_t r) const {
    const int64_t k = call->k, n = listed[r];
    int64_t* index = call->index + (first_row + r) * k;
    const int32_t* which = classes + r * call->layer.outputs;
    if (decided(r)) {
      index[0] = which[0];
      return;
    }
    const float* score = scores + r * call->layer.outputs;
    float best[kMostK];
    int64_t place[kMostK], held = 0;
    for (int64_t i = 0; i < n; i++) {
      // As in the dense layer, a NaN is above nothing, but nothing is above one in first place.
      const bool first = k == 1 && which[i] == 0;
      if (!Source::kSound && score[i] != score[i] && !first) continue;  // all of them: class 0, as in the function
      const float value = score[i] == score[i] ? score[i] : first ? INFINITY : -INFINITY;
      const bool tie = call->select_last && held == k && value == best[k - 1];
      if (held == k && !(value > best[k - 1]) && !tie) continue;
      int64_t at = held < k ? held : k - 1;
      for (; at > 0 && value > best[at - 1]; at--) {
        best[at] = best[at - 1];
        place[at] = place[at - 1];
      }
      best[at] = value;
      place[at] = i;
      held += held < k;
    }
    for (int64_t i = 0; i < k; i++) index[i] = i < held ? which[place[i]] : 0;
    for (int64_t i = 0; call->values && i < k; i++) {
      call->values[(first_row + r) * k + i] = score[place[i]];
    }
  }

  bool run() {
    if (!source.fill(call->x + first_row * call->layer.groups, rows, *env)) return false;
    const int64_t passes = blocks_of(rows, source.rows_per_pass());
    if (!env->parallel(env->context, static_cast<size_t>(passes * blocks), bound_task, this) || failed) return false;
    float storage[kMostK];
    for (int64_t r = 0; r < rows; r++) list_row(r, storage);
    // An estimate that is not certain decides as its function does: by its own bar.
    if (Source::kSound && !env->parallel(env->context, static_cast<size_t>(rows), narrow_task, this)) return false;
    int64_t* survivors = call->survivors;
    if (cascade()) {
      for (int64_t r = 0; r < rows; r++) *survivors += decided(r) ? 0 : listed[r];
      survivors++;
      if (!env->parallel(env->context, static_cast<size_t>(rows), again_task, this)) return false;
    }
    starts[0] = 0;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t left = decided(r) ? 0 : listed[r];
      *survivors += left;
      starts[r + 1] = starts[r] + blocks_of(left, kTopKFinish);
    }
    if (!env->parallel(env->context, static_cast<size_t>(starts[rows]), finish_task, this)) return false;
    for (int64_t r = 0; r < rows; r++) choose(r);
    return true;
  }
};

template <class Source, class Call>
static bool estimated_top_k(const Call& call, const Env& env) {
  const int64_t outputs = call.layer.outputs;
  EstimatedTopKPlan<Source, Call> plan;
  plan.call = &call;
  call.survivors[0] = 0;
  if (plan.cascade()) call.survivors[1] = 0;
  plan.env = &env;
  plan.source.layer = &call.layer;
  plan.blocks = blocks_of(outputs, kTopKClasses);
  const int64_t group = max_of(1, min_of(call.rows, kTopKState / outputs));
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.source.carve(carver, group);
    plan.upper = carver.take<float>(group * plan.blocks * kTopKClasses);
    plan.value = carver.take<float>(plan.cascade() ? group * plan.blocks * kTopKClasses : 0);
    plan.most = carver.take<float>(group * plan.blocks);
    plan.lower = carver.take<float>(group * plan.blocks * call.k);
    plan.classes = carver.take<int32_t>(group * outputs);
    plan.scores = carver.take<float>(group * outputs);
    plan.listed = carver.take<int64_t>(group);
    plan.starts = carver.take<int64_t>(group + 1);
    return carver.used();
  };
  CarvedLease scratch(*env.per_call, layout);
  if (!scratch.data()) return false;
  for (int64_t r = 0; r < call.rows; r += group) {
    plan.first_row = r;
    plan.rows = min_of(group, call.rows - r);
    if (!plan.run()) return false;
  }
  return true;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
