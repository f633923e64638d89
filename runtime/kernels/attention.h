// Attention of some new positions over those of a cache and themselves, for every head: softmax(s q K^T) V.
//
// A task is a head of a batch entry. Its keys and values are put together first, so that each is a run of rows; a
// position's scores, their exponentials and its result then take one pass each. Meant for decoding, where one
// position is new and a call costs more than its products.
#pragma once

#include "registry.h"
#include "simd.h"
#include "tasks.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kAttentionAlone = 1 << 16;  // products that are not worth other threads

// e^x for x <= 0, within 2 units in the last place; 0 where that is below 2^-126. A NaN stays.
static inline V exponential(V x) {
  const V n = (x * splat(1.44269504f) + splat(12582912.0f)) - splat(12582912.0f);  // rounded: + 1.5 * 2^23
  const V r = (x - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);          // ln 2 in two parts
  V p = splat(1.0f / 5040);
  p = p * r + splat(1.0f / 720);
  p = p * r + splat(1.0f / 120);
  p = p * r + splat(1.0f / 24);
  p = p * r + splat(1.0f / 6);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  const I small = reinterpret_cast<I>(x < splat(-87.0f));
  const V safe = select(reinterpret_cast<I>(x >= splat(-87.0f)), n, V{});  // of a NaN no power is taken
  const V power = reinterpret_cast<V>((__builtin_convertvector(safe, I) + splat(127)) << 23);
  return select(small, V{}, p * power);
}

struct AttentionTask {
  const AttentionCall& c;
  int64_t batch, head;
  float* scores;  // [past + length], and a vector beyond
  float* query;   // [size]

  int64_t whole() const { return c.past + c.length; }
  const float* row(int64_t position, int64_t part) const {
    return c.x + ((batch * c.length + position) * 3 + part) * c.heads * c.size + head * c.size;
  }

  void add_bias(const float* from, int64_t part, float* to) const {
    const float* bias = c.bias + (part * c.heads + head) * c.size;
    for (int64_t i = 0; i < c.size; i += kLanes) {
      store_up_to(to + i, load_up_to(from + i, c.size - i) + load_up_to(bias + i, c.size - i), c.size - i);
    }
  }

  // The cache and the new rows behind it.
  float* join(const float* past, int64_t part, float* all) const {
    const int64_t at = batch * c.heads + head;
    float* to = all + at * whole() * c.size;
    memcpy(to, past + at * c.past * c.size, static_cast<size_t>(c.past * c.size) * sizeof(float));
    for (int64_t s = 0; s < c.length; s++) add_bias(row(s, part), part, to + (c.past + s) * c.size);
    return to;
  }

  float dot(const float* a, const float* b) const {
    V total = {};
    for (int64_t i = 0; i < c.size; i += kLanes) total += load_up_to(a + i, c.size - i) * load_up_to(b + i, c.size - i);
    return sum(total);
  }

  // Scores become their exponentials; returns the sum of these.
  float exponentials() const {
    const int64_t count = whole();
    float most = scores[0];
    for (int64_t t = 1; t < count; t++) most = scores[t] > most ? scores[t] : most;
    V total = {};
    for (int64_t t = 0; t < count; t += kLanes) {
      // Beyond the last score e^x is not wanted: 0 - most may be anything.
      const V e = exponential(load_up_to(scores + t, count - t) - splat(most));
      const I wanted = count - t >= kLanes ? splat(-1) : lanes() < splat(static_cast<int32_t>(count - t));
      const V kept = select(wanted, e, V{});
      store(scores + t, kept);
      total += kept;
    }
    return sum(total);
  }

  void run() const {
    const float* keys = join(c.past_key, 1, c.key);
    const float* values = join(c.past_value, 2, c.value);
    for (int64_t s = 0; s < c.length; s++) {
      add_bias(row(s, 0), 0, query);
      for (int64_t t = 0; t < whole(); t++) scores[t] = c.scale * dot(query, keys + t * c.size);
      const V share = splat(1.0f / exponentials());
      float* y = c.y + ((batch * c.length + s) * c.heads + head) * c.size;
      for (int64_t i = 0; i < c.size; i += kLanes) {
        V total = {};
        for (int64_t t = 0; t < whole(); t++) {
          total += splat(scores[t]) * load_up_to(values + t * c.size + i, c.size - i);
        }
        store_up_to(y + i, total * share, c.size - i);
      }
    }
  }
};

struct AttentionPlan {
  const AttentionCall* call;
  const Env* env;
  std::atomic<bool> failed{false};

  static void task(void* user, size_t index) {
    AttentionPlan& plan = *static_cast<AttentionPlan*>(user);
    const AttentionCall& c = *plan.call;
    const int64_t at = static_cast<int64_t>(index);
    AttentionTask work = {c, at / c.heads, at % c.heads, nullptr, nullptr};
    const auto layout = [&](char* base) {
      Carver carver(base);
      work.scores = carver.take<float>(work.whole() + kLanes);
      work.query = carver.take<float>(c.size);
      return carver.used();
    };
    CarvedLease scratch(*plan.env->per_task, layout);
    if (!scratch.data()) {
      plan.failed = true;
      return;
    }
    work.run();
  }
};

static bool attention(const AttentionCall& call, const Env& env) {
  AttentionPlan plan = {&call, &env};
  const int64_t products = times(times(call.batch * call.heads * call.size, call.length), call.past + call.length);
  return run_tasks(env, products <= kAttentionAlone, call.batch * call.heads, AttentionPlan::task, &plan) &&
         !plan.failed;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
