// Staged Gemm with a ReLU: Y [M, N] from X [M, G].
//
// Few rows: dot products along the reduction, one stream over each row of weights; only the rows of X that
// are alive for an output are multiplied. Many rows: rows of X are packed as the columns of a panel.
#pragma once

#include "dots.h"
#include "panel.h"
#include "registry.h"
#include "simd.h"
#include "stages.h"

namespace exprune {
namespace EXPRUNE_ISA {

// What both ways of reading X share: positions are rows first_row .. first_row + count.
struct GemmPositions {
  const GemmCall* call;
  const float* x;     // [M, G], in the order of the reduction
  const float* norm;  // [S + 1][padded M] (Bound)
  int64_t norm_stride;
  int64_t first_row;
  int64_t count;

  V offset(int64_t n, int v) const {
    const Finish& f = call->finish;
    if (!f.offset_full) return splat(f.offset[0]);
    V r = {};
    for (int i = 0; i < kLanes && v * kLanes + i < count; i++) {
      r[i] = f.offset[(first_row + v * kLanes + i) * call->staged.outputs + n];
    }
    return r;
  }
  const float* norms(int64_t slot) const { return norm + slot * norm_stride + first_row; }
  // Row by row: writes are contiguous, and the strided reads are from memory that is in the first cache.
  void copy_rows(const Tile& tile, int64_t tile_width) {
    for (int64_t r = 0; r < count; r++) {
      float* y = call->y + (first_row + r) * call->staged.outputs + tile.first;
      for (int64_t i = 0; i < tile.outputs; i++) y[i] = tile.sums[i * tile_width + r];
    }
  }
};

template <bool Squares>
struct GemmDots : GemmPositions {
  void flush(const Tile& tile) { copy_rows(tile, kLanes); }
  void add(int64_t chunk, Tile& tile) {
    const Staged& p = call->staged;
    const int64_t begin = chunk_begin(p, chunk), depth = p.ends[chunk] - begin;
    int64_t stride;
    const float* weights = chunk_weights(p, chunk, tile.first, &stride);
    const float* rows[kLanes];
    int64_t at[kLanes];
    for (int64_t i = 0; i < tile.listed; i++) {
      const int64_t n = tile.list[i];
      const float* ahead = i + 1 < tile.listed ? weights + tile.list[i + 1] * stride : nullptr;
      const int32_t* alive = tile.alive + n * kLanes;
      int64_t used = 0;
      for (int64_t r = 0; r < count; r++) {
        rows[used] = x + (first_row + r) * p.groups + begin;
        at[used] = n * kLanes + r;
        used += alive[r] != 0;
      }
      add_dots<Squares>(weights + n * stride, rows, at, used, depth, ahead, tile.sums, tile.squares);
    }
  }
};

template <int PV, bool Squares>
struct GemmPanel : GemmPositions {
  float* panel;  // [groups of the largest chunk][PV * kLanes]

  void flush(const Tile& tile) { copy_rows(tile, PV * kLanes); }
  void add(int64_t chunk, Tile& tile) {
    const Staged& p = call->staged;
    const int64_t begin = chunk_begin(p, chunk), depth = p.ends[chunk] - begin;
    constexpr int64_t kWidth = PV * kLanes;
    if (count < kWidth) memset(panel, 0, static_cast<size_t>(depth * kWidth) * sizeof(float));
    constexpr int64_t kBlock = 64;  // steps at a time, so that the part of the panel stays in cache
    for (int64_t first = 0; first < depth; first += kBlock) {
      const int64_t last = min_of(first + kBlock, depth);
      for (int64_t r = 0; r < count; r++) {
        const float* row = x + (first_row + r) * p.groups + begin;
        for (int64_t k = first; k < last; k++) panel[k * kWidth + r] = row[k];
      }
    }
    int64_t stride;
    const float* weights = chunk_weights(p, chunk, tile.first, &stride);
    add_panel<PV, Squares>(panel, weights, stride, tile.list, tile.listed, depth, 1, tile.sums, tile.squares);
  }
};

static inline int64_t largest_chunk(const Staged& p) {
  int64_t most = 0;
  for (int64_t c = 0; c < p.chunks; c++) most = max_of(most, p.ends[c] - chunk_begin(p, c));
  return most;
}

// Outputs of a task: enough to pay for packing, few enough that their weights stay in the second cache.
static inline int64_t outputs_per_task(const Staged& p, int64_t least) {
  const int64_t fit = 262144 / (p.groups * p.taps);
  const int64_t block = min_of(max_of(fit / 16 * 16, least), 256);
  const int64_t blocks = blocks_of(p.outputs, block);
  return blocks_of(p.outputs, blocks);  // blocks of one size, not a small one at the end
}

static inline void add_up(const int64_t* counts, int64_t tasks, int64_t checks, int64_t* survivors) {
  for (int64_t s = 0; s < checks; s++) {
    survivors[s] = 0;
    for (int64_t t = 0; t < tasks; t++) survivors[s] += counts[t * checks + s];
  }
}

template <class Test>
struct GemmPlan {
  const GemmCall* call;
  const Env* env;
  bool panels;    // by panels or by dots
  int64_t width;  // rows of a tile
  int64_t row_tiles, blocks, block;
  int64_t most_groups;
  const float* x;  // ordered
  float* norm;     // [S + 1][norm_stride]
  int64_t norm_stride;
  int64_t* counts;  // [tasks][S]
  std::atomic<bool> failed{false};

  template <int PV, class Source>
  void run(Source& source, Carver& carver, int64_t first, int64_t* survivors) {
    Tile tile = carve_tile<PV, Test>(carver, min_of(block, call->staged.outputs - first));
    tile.first = first;
    run_stages<Test, PV>(call->staged, call->finish.max, source, tile, survivors);
  }

  void positions(GemmPositions& g, int64_t row_tile) const {
    g.call = call;
    g.x = x;
    g.norm = norm;
    g.norm_stride = norm_stride;
    g.first_row = row_tile * width;
    g.count = min_of(width, call->rows - g.first_row);
  }

  static void task(void* user, size_t index) {
    GemmPlan& plan = *static_cast<GemmPlan*>(user);
    const int64_t checks = plan.call->staged.chunks - 1;
    int64_t* survivors = plan.counts + static_cast<int64_t>(index) * checks;
    for (int64_t s = 0; s < checks; s++) survivors[s] = 0;
    const int64_t row_tile = static_cast<int64_t>(index) % plan.row_tiles;
    const int64_t first = static_cast<int64_t>(index) / plan.row_tiles * plan.block;

    Carver size(nullptr);
    carve_tile<2, Test>(size, plan.block);
    if (plan.panels) size.take<float>(plan.most_groups * 2 * kLanes);
    Lease scratch(*plan.env->per_task, size.used());
    if (!scratch.data()) {
      plan.failed = true;
      return;
    }
    Carver carver(scratch.data());
    if (!plan.panels) {
      GemmDots<Test::kSquares> source;
      plan.positions(source, row_tile);
      plan.template run<1>(source, carver, first, survivors);
      return;
    }
    float* panel = carver.take<float>(plan.most_groups * 2 * kLanes);
    GemmPositions g;
    plan.positions(g, row_tile);
    if (g.count <= kLanes) {
      GemmPanel<1, Test::kSquares> source;
      plan.positions(source, row_tile);
      source.panel = panel;
      plan.template run<1>(source, carver, first, survivors);
    } else {
      GemmPanel<2, Test::kSquares> source;
      plan.positions(source, row_tile);
      source.panel = panel;
      plan.template run<2>(source, carver, first, survivors);
    }
  }
};

template <class Test>
static bool prefix_gemm(const GemmCall& call, const Env& env) {
  const Staged& p = call.staged;
  const int64_t checks = p.chunks - 1;
  GemmPlan<Test> plan;
  plan.call = &call;
  plan.env = &env;
  plan.panels = call.rows >= kLanes;
  plan.width = plan.panels ? 2 * kLanes : kLanes;
  plan.row_tiles = blocks_of(call.rows, plan.width);
  plan.block = outputs_per_task(p, 64);
  plan.blocks = blocks_of(p.outputs, plan.block);
  plan.most_groups = largest_chunk(p);
  plan.norm_stride = plan.row_tiles * plan.width;
  const int64_t tasks = plan.row_tiles * plan.blocks;

  float *x = nullptr, *norm = nullptr;
  double* squares = nullptr;
  int64_t* counts = nullptr;
  size_t bytes = 0;
  const auto layout = [&](char* base) {
    Carver carver(base);
    x = carver.take<float>(call.rows * p.groups);
    norm = Test::kNorms ? carver.take<float>(p.chunks * plan.norm_stride) : nullptr;
    squares = Test::kNorms ? carver.take<double>(p.chunks) : nullptr;
    counts = carver.take<int64_t>(tasks * checks);
    bytes = carver.used();
  };
  layout(nullptr);
  Lease scratch(*env.per_call, bytes);
  if (!scratch.data()) return false;
  layout(scratch.data());

  if (Test::kNorms) memset(norm, 0, static_cast<size_t>(p.chunks * plan.norm_stride) * sizeof(float));
  for (int64_t r = 0; r < call.rows; r++) {
    gather_row(call.x + r * p.groups, p.order, p.ends, p.chunks, x + r * p.groups, squares);
    if (Test::kNorms) suffix_norms(squares, checks, norm + r, plan.norm_stride);
  }
  plan.x = x;
  plan.norm = norm;
  plan.counts = counts;
  const bool ran = env.parallel(env.context, static_cast<size_t>(tasks), GemmPlan<Test>::task, &plan);
  add_up(counts, ran ? tasks : 0, checks, call.survivors);
  return ran && !plan.failed;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
