// Y = X W + bias, reading only the rows of W for which an x is not 0.
//
// A task is a tile of columns. Registers hold the sums of a row of X in it, so that a row reads what its own
// inputs need and nothing else; all rows of X use a chunk of W's rows while it is in a cache, and the next
// chunk's rows are fetched meanwhile. Sums run over the inputs in their order, chunk by chunk, as the dense product's
// do (ordered_dots.h): what is left out there adds zeros.
#pragma once

#include "few_sparse_rows.h"
#include "packed_gemm.h"
#include "registry.h"
#include "simd.h"
#include "sparse_inputs.h"
#include "tasks.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kSparseColumns = 128;  // of a tile
constexpr int64_t kSparseRows = 64;      // rows of X that one pass over W serves
// What is not worth waking other threads: elements of X to look through, bytes of W to read.
constexpr int64_t kSparseFewInputs = 1 << 15, kSparseFewBytes = 1 << 19;
constexpr int64_t kSparseAhead = 8;  // rows of W between fetching one and its use, where a row of X is alone
// What a product of an input that is not 0 costs next to one in panels.
constexpr float kInputProduct = 4.0f;

// Vectors of columns whose sums the registers hold while rows of W go by.
constexpr int kSumVectors = kLanes == 16 ? 16 : 8;

struct SparseGemmPlan {
  const SparseGemmCall* call;
  SparseInputs inputs;

  // Y += the sums over the first `count` inputs of a list. With Ahead, the rows of W to come are fetched that many inputs
  // before their use, up to the end of the list.
  template <int Vectors, int64_t Ahead = 0>
  static void add(const int32_t* list, int64_t count, int64_t listed, const float* x, const float* w, int64_t stride,
                  float* y) {
    V sums[Vectors];
    for (int v = 0; v < Vectors; v++) sums[v] = V{};
    for (int64_t i = 0; i < count; i++) {
      if (Ahead) prefetch_row(w + list[min_of(i + Ahead, listed - 1)] * stride, Vectors * kLanes);
      const V value = splat(x[list[i]]);
      const float* row = w + list[i] * stride;
      for (int v = 0; v < Vectors; v++) sums[v] += value * load(row + v * kLanes);
    }
    for (int v = 0; v < Vectors; v++) store(y + v * kLanes, load(y + v * kLanes) + sums[v]);
  }

  // The same for any number of vectors up to Vectors.
  template <int Vectors>
  static void add_up_to(int64_t vectors, const int32_t* list, int64_t count, int64_t listed, const float* x,
                        const float* w, int64_t stride, float* y) {
    if constexpr (Vectors > 0) {
      if (vectors < Vectors) return add_up_to<Vectors - 1>(vectors, list, count, listed, x, w, stride, y);
      add<Vectors, kSparseAhead>(list, count, listed, x, w, stride, y);
    }
  }

  // A row of X that is alone and on one thread: its rows of W are read once from end to end, if the registers hold
  // all sums.
  void row_alone() const {
    const SparseGemmCall& c = *call;
    const float* const x = c.x + inputs.first * c.depth;
    float* const y = c.y + inputs.first * c.columns;
    int32_t* const list = inputs.lists;
    int64_t count = 0;
    for (int64_t chunk = 0; chunk < inputs.chunks; chunk++) {
      const int64_t more = inputs.counts[chunk];
      memmove(list + count, list + chunk * kSparseDepth, static_cast<size_t>(more) * sizeof(int32_t));
      count += more;
    }
    memcpy(y, c.bias, static_cast<size_t>(c.columns) * sizeof(float));
    const int64_t whole = c.columns / kLanes * kLanes;
    for (int64_t column = 0; column < whole; column += kSumVectors * kLanes) {
      const int64_t vectors = min_of(kSumVectors, (c.columns - column) / kLanes);
      int64_t at = 0;
      for (int64_t chunk = 0; chunk < inputs.chunks; at += inputs.counts[chunk++]) {
        add_up_to<kSumVectors>(vectors, list + at, inputs.counts[chunk], count - at, x, c.w + column, c.columns,
                               y + column);
      }
    }
    int64_t at = 0;
    for (int64_t chunk = 0; chunk < inputs.chunks; at += inputs.counts[chunk++]) {
      add_columns(list + at, inputs.counts[chunk], x, c.w + whole, c.columns, c.columns - whole, y + whole);
    }
  }

  static void add_columns(const int32_t* list, int64_t count, const float* x, const float* w, int64_t stride,
                          int64_t columns, float* y) {
    int64_t i = 0;
    for (; i + 8 * kLanes <= columns; i += 8 * kLanes) add<8>(list, count, count, x, w + i, stride, y + i);
    for (; i + 2 * kLanes <= columns; i += 2 * kLanes) add<2>(list, count, count, x, w + i, stride, y + i);
    for (; i + kLanes <= columns; i += kLanes) add<1>(list, count, count, x, w + i, stride, y + i);
    for (; i < columns; i++) {
      float sum = 0;
      for (int64_t l = 0; l < count; l++) sum += x[list[l]] * w[list[l] * stride + i];
      y[i] += sum;
    }
  }

  static void task(void* user, size_t index) {
    static_cast<const SparseGemmPlan*>(user)->tile(static_cast<int64_t>(index));
  }

  // Fetches rows [begin, end) of a chunk's list.
  void fetch(int64_t chunk, int64_t begin, int64_t end, const float* w, int64_t columns) const {
    const int32_t* list = inputs.any + chunk * kSparseDepth;
    for (int64_t i = begin; i < end; i++) prefetch_row(w + list[i] * call->columns, columns);
  }

  void tile(int64_t index) const {
    const SparseGemmCall& c = *call;
    const int64_t column = index * kSparseColumns, rows = inputs.rows;
    const int64_t columns = min_of(kSparseColumns, c.columns - column);
    const float* w = c.w + column;
    for (int64_t r = 0; r < rows; r++) {
      memcpy(c.y + (inputs.first + r) * c.columns + column, c.bias + column,
             static_cast<size_t>(columns) * sizeof(float));
    }
    if (inputs.chunks) fetch(0, 0, inputs.any_count[0], w, columns);
    for (int64_t chunk = 0; chunk < inputs.chunks; chunk++) {
      const int64_t next = chunk + 1 < inputs.chunks ? inputs.any_count[chunk + 1] : 0;
      for (int64_t r = 0; r < rows; r++) {
        // The next chunk's rows arrive while this one's are used.
        fetch(chunk + 1, next * r / rows, next * (r + 1) / rows, w, columns);
        const int64_t row = inputs.first + r;
        add_columns(inputs.lists + r * inputs.list_size() + chunk * kSparseDepth, inputs.counts[chunk * rows + r],
                    c.x + row * c.depth, w, c.columns, columns, c.y + row * c.columns + column);
      }
    }
  }
};

// Sums begin with the bias, as they do where zeros are left out: they are the same numbers.
struct SparseResults {
  const SparseGemmCall* call;
  int64_t first;  // row of X

  V begin(int64_t, int64_t n, int64_t used) const {
    return load_up_to(call->bias + n, used);
  }

  void end(int64_t row, int64_t n, int64_t used, V sum) const {
    store_up_to(call->y + (first + row) * call->columns + n, sum, used);
  }
};

// All products of the rows that `inputs` is at; false where there are no panels.
static bool all_products(const SparseInputs& inputs, const Env& env) {
  const SparseGemmCall& c = *inputs.call;
  const float* const panels = panels_of({c.w, c.columns, c.depth, false}, c.panels, env);
  const SparseResults results = {&c, inputs.first};
  return panels &&
         packed_gemm(c.x + inputs.first * c.depth, panels, inputs.rows, c.depth, c.columns, results, env);
}

// `alive` inputs of the rows are not 0; if by chance, some row has one where the rows of W stand that are read.
static bool panels_are_faster(const SparseInputs& inputs, int64_t alive) {
  const SparseGemmCall& c = *inputs.call;
  const float rows = static_cast<float>(inputs.rows);
  const float share = static_cast<float>(alive) / (rows * static_cast<float>(c.depth));
  float in_no_row = 1.0f;
  for (int64_t r = 0; r < inputs.rows; r++) in_no_row *= 1.0f - share;
  const int64_t weights = c.depth * c.columns;
  return cycles(weights, 1.0f - in_no_row, rows * kInputProduct * share) > cycles(weights, 1.0f, rows);
}

static bool sparse_gemm(const SparseGemmCall& call, const Env& env) {
  call.survivors[0] = 0;
  if (call.depth == 0 && call.columns == 0) return true;  // any number of rows may have nothing in it
  SparseGemmPlan plan;
  SparseInputs& inputs = plan.inputs;
  plan.call = inputs.call = &call;
  inputs.chunks = blocks_of(call.depth, kSparseDepth);
  FewSparseRows few_rows = {&inputs, nullptr};
  const bool is_few = call.rows <= kFewRows && times(call.depth, call.columns) > kCachedWeights;
  const auto layout = [&](char* base) {
    Carver carver(base);
    inputs.carve(carver, min_of(call.rows, kSparseRows));
    if (is_few) few_rows.carve(carver);
    return carver.used();
  };
  CarvedLease scratch(*env.per_call, layout);
  if (!scratch.data()) return false;
  for (inputs.first = 0; inputs.first < call.rows; inputs.first += kSparseRows) {
    inputs.rows = min_of(kSparseRows, call.rows - inputs.first);
    const bool few = inputs.rows * call.depth <= kSparseFewInputs;
    if (inputs.rows > 1) {
      const int64_t before = inputs.survivors;
      if (!run_tasks(env, few, inputs.rows, SparseInputs::count_task, &inputs)) return false;
      if (panels_are_faster(inputs, inputs.survivors - before) && all_products(inputs, env)) continue;
      inputs.survivors = before;  // they are counted once more where they are listed
    }
    if (!run_tasks(env, few, inputs.chunks, SparseInputs::chunk_task, &inputs)) return false;
    const bool small =
        inputs.needed() * call.columns * static_cast<int64_t>(sizeof(float)) <= kSparseFewBytes;
    if (is_few) {
      if (!few_rows.run(env, small)) return false;
      continue;
    }
    if (small && inputs.rows == 1) {
      plan.row_alone();
      continue;
    }
    if (!run_tasks(env, small, blocks_of(call.columns, kSparseColumns), SparseGemmPlan::task, &plan))
      return false;
  }
  call.survivors[0] = inputs.survivors;
  return true;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
