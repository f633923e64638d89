// A dense product with weights in panels: what is left to do where many rows leave little to skip.
//
// A panel is kPackVectors vectors of outputs, one group after the other, so that the loop over groups reads it in
// order. A tile of kTileRows rows by one panel has its sums in registers; kPackDepth groups of a panel stay in the
// cache while a block's rows go by.
#pragma once

#include <stdlib.h>

#include "ordered_dots.h"
#include "registry.h"
#include "simd.h"
#include "tasks.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int kPackVectors = 2;
constexpr int kPackOutputs = kPackVectors * kLanes;
constexpr int kTileRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 4;
constexpr int64_t kPackDepth = kSumDepth;
constexpr int64_t kBlockRows = 64;     // rows that a panel serves before the next one
constexpr int64_t kPacksAtOnce = 8;   // panels of a task
constexpr int64_t kPackLine = 16;      // groups of an output that are packed before the next output's

// What decides between the panels and skipping, roughly: the time for a float of a layer's weights, in cycles, is what
// it takes to read it, or to multiply it with all rows, whichever is more.
constexpr int64_t kCachedWeights = 1 << 21;  // more floats are read from memory
constexpr float kMemoryFloats = 2.5f, kCacheFloats = 10.0f, kFloatProducts = 2.0f * kLanes;  // a cycle

// `read`: floats that are read, and `products` in full, both for each weight of the layer.
static inline float cycles(int64_t weights, float read, float products) {
  const float reading = read / (weights > kCachedWeights ? kMemoryFloats : kCacheFloats);
  const float multiplying = products / kFloatProducts;
  return reading > multiplying ? reading : multiplying;
}

// Weights as the model has them: [N, G], or [G, N].
struct PanelWeights {
  const float* data;
  int64_t outputs, groups;
  bool outputs_first;

  int64_t panels() const { return blocks_of(outputs, kPackOutputs); }
};

struct PackPlan {
  PanelWeights weights;
  float* packed;

  static void task(void* user, size_t index) {
    static_cast<const PackPlan*>(user)->pack(static_cast<int64_t>(index));
  }

  void pack(int64_t panel) const {
    const PanelWeights& w = weights;
    const int64_t first = panel * kPackOutputs, used = min_of(kPackOutputs, w.outputs - first);
    const int64_t of_output = w.outputs_first ? w.groups : 1, of_group = w.outputs_first ? 1 : w.outputs;
    const float* const from = w.data + first * of_output;
    float* const to = packed + first * w.groups;
    for (int64_t start = 0; start < w.groups; start += kPackLine) {
      const int64_t end = min_of(start + kPackLine, w.groups);
      for (int64_t n = 0; n < kPackOutputs; n++) {
        for (int64_t g = start; g < end; g++) {
          to[g * kPackOutputs + n] = n < used ? from[n * of_output + g * of_group] : 0.0f;
        }
      }
    }
  }
};

// The weights in panels. They are packed once and kept in `kept`, which frees them with free(); null where `kept` is
// null (the weights may be others in the next call) or memory is out.
static const float* panels_of(const PanelWeights& weights, std::atomic<void*>* kept, const Env& env) {
  if (!kept) return nullptr;
  if (void* found = kept->load(std::memory_order_acquire)) return static_cast<const float*>(found);
  const int64_t floats = times(weights.panels() * kPackOutputs, weights.groups);
  if (floats > PTRDIFF_MAX / 8) return nullptr;
  void* made = nullptr;
  if (posix_memalign(&made, kAlignment, static_cast<size_t>(floats) * sizeof(float)) != 0) return nullptr;
  PackPlan plan = {weights, static_cast<float*>(made)};
  if (!env.parallel(env.context, static_cast<size_t>(weights.panels()), PackPlan::task, &plan)) {
    free(made);
    return nullptr;
  }
  void* other = nullptr;
  if (kept->compare_exchange_strong(other, made, std::memory_order_acq_rel)) return plan.packed;
  free(made);  // another run was first
  return static_cast<const float*>(other);
}

// sums [Rows, kPackOutputs] += x [Rows, groups] w [groups, kPackOutputs]; rows of x are `stride` apart. Sums run over
// the groups in their order, as in ordered_dots.h. `ahead`, if Fetch, is as much as w and read soon.
template <int Rows, bool Fetch>
static inline void add_tile(const float* x, int64_t stride, const float* w, int64_t groups, const float* ahead,
                            float* sums) {
  V acc[Rows][kPackVectors];
  for (int r = 0; r < Rows; r++) {
    for (int v = 0; v < kPackVectors; v++) acc[r][v] = V{};
  }
  for (int64_t g = 0; g < groups; g++) {
    if (Fetch) {
      for (int line = 0; line < kPackOutputs; line += 16) __builtin_prefetch(ahead + g * kPackOutputs + line);
    }
    V weight[kPackVectors];
    for (int v = 0; v < kPackVectors; v++) weight[v] = load(w + g * kPackOutputs + v * kLanes);
    for (int r = 0; r < Rows; r++) {
      const V value = splat(x[r * stride + g]);
      for (int v = 0; v < kPackVectors; v++) acc[r][v] += value * weight[v];
    }
  }
  for (int r = 0; r < Rows; r++) {
    for (int v = 0; v < kPackVectors; v++) {
      float* const sum = sums + r * kPackOutputs + v * kLanes;
      store(sum, load(sum) + acc[r][v]);
    }
  }
}

// Y [M, N] of X [M, G]. Results says where a sum begins and what becomes of it:
//   V begin(row, n, used)          for `used` outputs from n on (kLanes, or fewer at the end)
//   void end(row, n, used, sum)
template <class Results>
struct PackedGemmPlan {
  const float* x;
  const float* panels;
  int64_t rows, groups, outputs;
  const Results* results;

  int64_t parts() const { return blocks_of(outputs, kPackOutputs * kPacksAtOnce); }

  static void task(void* user, size_t index) {
    const auto& plan = *static_cast<const PackedGemmPlan*>(user);
    const int64_t block = static_cast<int64_t>(index) / plan.parts(), part = static_cast<int64_t>(index) % plan.parts();
    const int64_t first = part * kPacksAtOnce * kPackOutputs;
    const int64_t end = min_of(first + kPacksAtOnce * kPackOutputs, plan.outputs);
    for (int64_t n = first; n < end; n += kPackOutputs) plan.panel(block * kBlockRows, n);
  }

  void panel(int64_t row, int64_t n) const {
    V memory[kBlockRows * kPackVectors];
    float* const sums = reinterpret_cast<float*>(memory);
    const int64_t count = min_of(kBlockRows, rows - row);
    for (int v = 0; v < kPackVectors; v++) {
      const int64_t used = min_of(kLanes, outputs - n - v * kLanes);
      for (int64_t r = 0; r < count; r++) {
        memory[r * kPackVectors + v] = used > 0 ? results->begin(row + r, n + v * kLanes, used) : V{};
      }
    }
    for (int64_t g = 0; g < groups; g += kPackDepth) {
      const int64_t depth = min_of(kPackDepth, groups - g);
      const float* const w = panels + n * groups + g * kPackOutputs;
      const float* const at = x + row * groups + g;
      int64_t r = first_tile<kTileRows>(count, at, w, depth, sums);
      for (; r + kTileRows <= count; r += kTileRows) add_rows<kTileRows>(at, w, depth, r, sums);
      for (; r + 4 <= count; r += 4) add_rows<4>(at, w, depth, r, sums);
      for (; r + 2 <= count; r += 2) add_rows<2>(at, w, depth, r, sums);
      for (; r < count; r++) add_rows<1>(at, w, depth, r, sums);
    }
    for (int v = 0; v < kPackVectors; v++) {
      const int64_t used = min_of(kLanes, outputs - n - v * kLanes);
      if (used <= 0) break;
      for (int64_t r = 0; r < count; r++) {
        results->end(row + r, n + v * kLanes, used, memory[r * kPackVectors + v]);
      }
    }
  }

  // Of as many rows as there are, up to Rows. What follows in memory, the next chunk or panel, is read meanwhile.
  template <int Rows>
  int64_t first_tile(int64_t count, const float* at, const float* w, int64_t depth, float* sums) const {
    if constexpr (Rows > 1) {
      if (count < Rows) return first_tile<Rows - 1>(count, at, w, depth, sums);
    }
    add_tile<Rows, true>(at, groups, w, depth, w + depth * kPackOutputs, sums);
    return Rows;
  }

  template <int Rows>
  void add_rows(const float* at, const float* w, int64_t depth, int64_t r, float* sums) const {
    add_tile<Rows, false>(at + r * groups, groups, w, depth, nullptr, sums + r * kPackOutputs);
  }
};

template <class Results>
static bool packed_gemm(const float* x, const float* panels, int64_t rows, int64_t groups, int64_t outputs,
                        const Results& results, const Env& env) {
  PackedGemmPlan<Results> plan = {x, panels, rows, groups, outputs, &results};
  const int64_t tasks = blocks_of(rows, kBlockRows) * plan.parts();
  return env.parallel(env.context, static_cast<size_t>(tasks), PackedGemmPlan<Results>::task, &plan);
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
