// Y = X W + bias for few rows of X, where the rows of W that are read come from memory. It has more to give to several
// streams than to one: rows of W are read from end to end, some of them side by side.
//
// A task is a chunk of W's rows. Its sums are kept, so that those of all chunks can be added up in their order.
#pragma once

#include "sparse_inputs.h"
#include "tasks.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kFewRows = 32;        // of X
constexpr int64_t kTogether = 8;        // rows of W that are read side by side
constexpr int64_t kTogetherStep = 32;   // columns of each at a time
constexpr int64_t kTogetherAhead = 64;  // columns between fetching and using them

struct FewSparseRows {
  const SparseInputs* inputs;
  float* sums;  // [chunks][rows][columns]

  int64_t row_sums() const { return inputs->call->rows * inputs->call->columns; }

  void carve(Carver& carver) { sums = carver.take<float>(inputs->chunks * row_sums()); }

  bool run(const Env& env, bool alone) {
    return run_tasks(env, alone, inputs->chunks, task, this) &&
           run_tasks(env, alone, inputs->call->rows, end_task, this);
  }

  static void end_task(void* user, size_t index) {
    static_cast<const FewSparseRows*>(user)->end(static_cast<int64_t>(index));
  }

  // Adds up a row's sums.
  void end(int64_t row) const {
    const SparseGemmCall& c = *inputs->call;
    float* const y = c.y + row * c.columns;
    memcpy(y, c.bias, static_cast<size_t>(c.columns) * sizeof(float));
    for (int64_t chunk = 0; chunk < inputs->chunks; chunk++) {
      if (!inputs->any_count[chunk]) continue;
      const float* const more = sums + chunk * row_sums() + row * c.columns;
      for (int64_t i = 0; i < c.columns; i++) y[i] += more[i];
    }
  }

  static void task(void* user, size_t index) {
    static_cast<const FewSparseRows*>(user)->add_chunk(static_cast<int64_t>(index));
  }

  void add_chunk(int64_t chunk) const {
    const int64_t count = inputs->any_count[chunk];
    if (!count) return;
    float* const to = sums + chunk * row_sums();
    memset(to, 0, static_cast<size_t>(row_sums()) * sizeof(float));
    const int32_t* const list = inputs->any + chunk * kSparseDepth;
    for (int64_t i = 0; i < count; i += kTogether) {
      const int64_t here = min_of(kTogether, count - i);
      if (i + here < count) {
        add(list + i, here, list + i + here, min_of(kTogether, count - i - here), to);
      } else {
        const int64_t then = chunk + 1 < inputs->chunks ? inputs->any_count[chunk + 1] : 0;
        add(list + i, here, list + kSparseDepth, min_of(kTogether, then), to);
      }
    }
  }

  // An input of a row of X, and what it is multiplied with.
  struct Factor {
    float x;
    const float* w;
  };

  // sums += the products of `count` inputs with their rows of W; those of the inputs `then` are fetched.
  void add(const int32_t* list, int64_t count, const int32_t* then, int64_t thens, float* to) const {
    const SparseGemmCall& c = *inputs->call;
    Factor factors[kFewRows][kTogether];
    int64_t used[kFewRows];
    for (int64_t r = 0; r < c.rows; r++) {
      used[r] = 0;
      for (int64_t i = 0; i < count; i++) {
        const float x = c.x[r * c.depth + list[i]];
        factors[r][used[r]] = {x, c.w + list[i] * c.columns};
        used[r] += !(x == 0.0f);  // a NaN is not 0
      }
    }
    int64_t column = 0;
    for (; column + kTogetherStep <= c.columns; column += kTogetherStep) {
      const int64_t ahead = column + kTogetherAhead;
      if (ahead + kTogetherStep <= c.columns) {
        for (int64_t i = 0; i < count; i++) prefetch_row(c.w + list[i] * c.columns + ahead, kTogetherStep);
      } else {
        const int64_t begin = max_of(0, ahead - c.columns / kTogetherStep * kTogetherStep);
        for (int64_t i = 0; i < thens; i++) prefetch_row(c.w + then[i] * c.columns + begin, kTogetherStep);
      }
      for (int64_t r = 0; r < c.rows; r++) {
        if (used[r]) add_step(factors[r], used[r], column, to + r * c.columns + column);
      }
    }
    for (int64_t r = 0; r < c.rows; r++) {
      for (int64_t i = 0; i < used[r]; i++) {
        for (int64_t n = column; n < c.columns; n++) to[r * c.columns + n] += factors[r][i].x * factors[r][i].w[n];
      }
    }
  }

  static void add_step(const Factor* factors, int64_t used, int64_t column, float* to) {
    constexpr int kVectors = kTogetherStep / kLanes;
    V acc[kVectors];
    for (int v = 0; v < kVectors; v++) acc[v] = load(to + v * kLanes);
    for (int64_t i = 0; i < used; i++) {
      const V x = splat(factors[i].x);
      for (int v = 0; v < kVectors; v++) acc[v] += x * load(factors[i].w + column + v * kLanes);
    }
    for (int v = 0; v < kVectors; v++) store(to + v * kLanes, acc[v]);
  }
};

}  // namespace EXPRUNE_ISA
}  // namespace exprune
