// Staged convolution with a ReLU that multiplies no zeros of X: Y [B, N, OH, OW] from X [B, G, H, W].
//
// Lanes are outputs: for every position the inputs that are not 0 are listed, and each adds its row of weights
// [G, T, N] to the vectors of outputs of which some are undecided. A tile is a run of output positions.
#pragma once

#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kSparsePositions = 16;  // of a tile: they share the rows of weights in the caches
constexpr int kSparseVectors = 4;         // vectors of outputs that share one pass over the listed inputs

// sums[at[j] ..] += sum over the listed inputs of x w[row][at[j] ..)
template <int Count>
static inline void add_listed(const float* w, int64_t stride, const int32_t* rows, const float* x, int64_t listed,
                              const int64_t* at, float* sums) {
  V total[Count];
  for (int j = 0; j < Count; j++) total[j] = load(sums + at[j]);
  for (int64_t i = 0; i < listed; i++) {
    const float* row = w + rows[i] * stride;
    const V value = splat(x[i]);
    for (int j = 0; j < Count; j++) total[j] += value * load(row + at[j]);
  }
  for (int j = 0; j < Count; j++) store(sums + at[j], total[j]);
}

struct SparseConvTile {
  const ConvCall* call;
  int64_t image, first, count;  // output positions first .. first + count of an image
  int64_t width;                // N, filled up to whole vectors
  float* sums;                  // [positions][width]
  float* offset;                // the same: bias + offset
  uint32_t* alive;              // [positions][vectors], a bit per lane
  int64_t* open;                // [positions], how many outputs are undecided
  float* x;                     // [groups of the largest chunk * T], the listed inputs of a position
  int32_t* rows;                // and their rows of weights
  int32_t* taps;                // [T], offset into a channel's plane, or -1 for padding

  int64_t vectors() const { return width / kLanes; }
  int64_t plane() const { return call->height * call->width; }
  int64_t pixels() const { return call->out_height * call->out_width; }
  int64_t used(int64_t v) const { return min_of(kLanes, call->staged.outputs - v * kLanes); }
  V of_outputs(const float* values, int64_t v) const {
    return used(v) == kLanes ? load(values + v * kLanes) : load_first(values + v * kLanes, used(v));
  }

  void start() {
    const Staged& p = call->staged;
    const Finish& f = call->finish;
    memset(sums, 0, static_cast<size_t>(count * width) * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
      float* to = offset + i * width;
      for (int64_t n = 0; n < p.outputs; n++) {
        const float computed = f.offset[f.offset_full ? (image * p.outputs + n) * pixels() + first + i : 0];
        to[n] = p.bias[n] + computed;
      }
      for (int64_t n = p.outputs; n < width; n++) to[n] = 0;
      for (int64_t v = 0; v < vectors(); v++) alive[i * vectors() + v] = ~0u >> (32 - used(v));
      open[i] = p.outputs;
    }
  }

  // Where every tap of a position is read.
  void locate(int64_t position) {
    const ConvCall& c = *call;
    const int64_t top = position / c.out_width * c.stride_h - c.pad_top;
    const int64_t left = position % c.out_width * c.stride_w - c.pad_left;
    for (int64_t t = 0; t < c.staged.taps; t++) {
      const int64_t y = top + t / c.kernel_w * c.dilation_h, at = left + t % c.kernel_w * c.dilation_w;
      const bool inside = y >= 0 && y < c.height && at >= 0 && at < c.width;
      taps[t] = inside ? static_cast<int32_t>(y * c.width + at) : -1;
    }
  }

  // Lists what is not 0 (a NaN is not) of the groups begin .. end of the reduction.
  int64_t list(int64_t begin, int64_t end) {
    const Staged& p = call->staged;
    int64_t listed = 0;
    for (int64_t g = begin; g < end; g++) {
      const float* channel = call->x + (image * p.groups + p.order[g]) * plane();
      for (int64_t t = 0; t < p.taps; t++) {
        if (taps[t] < 0) continue;
        const float value = channel[taps[t]];
        x[listed] = value;
        rows[listed] = static_cast<int32_t>(g * p.taps + t);
        listed += !(value == 0.0f);
      }
    }
    return listed;
  }

  // Adds what is listed to the vectors of outputs of position i with a lane alive.
  void add(int64_t i, int64_t listed) {
    const Staged& p = call->staged;
    float* to = sums + i * width;
    const uint32_t* lanes_alive = alive + i * vectors();
    const int64_t whole = p.outputs / kLanes;
    int64_t at[kSparseVectors];
    int held = 0;
    for (int64_t v = 0; v < whole; v++) {
      if (!lanes_alive[v]) continue;
      at[held++] = v * kLanes;
      if (held < kSparseVectors) continue;
      add_listed<kSparseVectors>(p.head, p.outputs, rows, x, listed, at, to);
      held = 0;
    }
    if (held == 3) add_listed<3>(p.head, p.outputs, rows, x, listed, at, to);
    if (held == 2) add_listed<2>(p.head, p.outputs, rows, x, listed, at, to);
    if (held == 1) add_listed<1>(p.head, p.outputs, rows, x, listed, at, to);
    if (whole == vectors() || !lanes_alive[whole]) return;
    V total = load(to + whole * kLanes);  // the last outputs, fewer than a vector
    for (int64_t l = 0; l < listed; l++) total += splat(x[l]) * of_outputs(p.head + rows[l] * p.outputs, whole);
    store(to + whole * kLanes, total);
  }

  void test(int64_t i, int64_t check) {
    const Staged& p = call->staged;
    const float *scale = p.first + check * p.outputs, *limit = p.second + check * p.outputs;
    open[i] = 0;
    for (int64_t v = 0; v < vectors(); v++) {
      uint32_t* lanes_alive = alive + i * vectors() + v;
      if (!*lanes_alive) continue;
      const int64_t at = i * width + v * kLanes;
      const V estimate = of_outputs(scale, v) * load(sums + at) + load(offset + at);
      *lanes_alive &= ~bits(reinterpret_cast<I>(estimate < of_outputs(limit, v)));
      open[i] += __builtin_popcount(*lanes_alive);
    }
  }

  void flush() {
    const Staged& p = call->staged;
    const float max = call->finish.max;
    for (int64_t n = 0; n < p.outputs; n++) {
      float* y = call->y + (image * p.outputs + n) * pixels() + first;
      for (int64_t i = 0; i < count; i++) {
        float value = sums[i * width + n] + offset[i * width + n];
        if (value <= 0) value = 0;  // a NaN is not <= 0 and stays
        if (value > max) value = max;
        y[i] = alive[i * vectors() + n / kLanes] >> n % kLanes & 1 ? value : 0.0f;
      }
    }
  }
};

struct SparseConvPlan {
  const ConvCall* call;
  const Env* env;
  int64_t tiles;    // of one image
  int64_t most;     // groups of the largest chunk * T
  int64_t* counts;  // [tasks][S + C]
  std::atomic<bool> failed{false};

  bool run(int64_t image, int64_t first, int64_t* result) {
    const Staged& p = call->staged;
    SparseConvTile tile = {};
    tile.call = call;
    tile.image = image;
    tile.first = first;
    tile.count = min_of(kSparsePositions, tile.pixels() - first);
    tile.width = blocks_of(p.outputs, kLanes) * kLanes;
    const auto layout = [&](char* base) {
      Carver carver(base);
      tile.sums = carver.take<float>(tile.count * tile.width);
      tile.offset = carver.take<float>(tile.count * tile.width);
      tile.alive = carver.take<uint32_t>(tile.count * tile.vectors());
      tile.open = carver.take<int64_t>(tile.count);
      // What is looked at is written down before it is known to be kept: one entry more.
      tile.x = carver.take<float>(most + 1);
      tile.rows = carver.take<int32_t>(most + 1);
      tile.taps = carver.take<int32_t>(p.taps);
      return carver.used();
    };
    Lease scratch(*env->per_task, layout(nullptr));
    if (!scratch.data()) return false;
    layout(scratch.data());
    tile.start();
    const int64_t checks = p.chunks - 1;
    for (int64_t chunk = 0; chunk < p.chunks; chunk++) {
      for (int64_t i = 0; i < tile.count; i++) {
        if (!tile.open[i]) continue;
        tile.locate(first + i);
        const int64_t listed = tile.list(chunk ? p.ends[chunk - 1] : 0, p.ends[chunk]);
        result[checks + chunk] += listed * tile.open[i];
        tile.add(i, listed);
        if (chunk == checks) continue;
        tile.test(i, chunk);
        result[chunk] += tile.open[i];
      }
    }
    tile.flush();
    return true;
  }

  static void task(void* user, size_t index) {
    SparseConvPlan& plan = *static_cast<SparseConvPlan*>(user);
    const int64_t at = static_cast<int64_t>(index), counts = 2 * plan.call->staged.chunks - 1;
    int64_t* result = plan.counts + at * counts;
    for (int64_t s = 0; s < counts; s++) result[s] = 0;
    if (!plan.run(at / plan.tiles, at % plan.tiles * kSparsePositions, result)) plan.failed = true;
  }
};

static bool sparse_conv(const ConvCall& call, const Env& env) {
  const Staged& p = call.staged;
  SparseConvPlan plan;
  plan.call = &call;
  plan.env = &env;
  plan.tiles = blocks_of(call.out_height * call.out_width, kSparsePositions);
  plan.most = largest_chunk(p) * p.taps;
  const int64_t tasks = plan.tiles * call.batch, counts = 2 * p.chunks - 1;
  Lease scratch(*env.per_call, static_cast<size_t>(tasks * counts) * sizeof(int64_t));
  if (!scratch.data()) return false;
  plan.counts = reinterpret_cast<int64_t*>(scratch.data());
  const bool ran = env.parallel(env.context, static_cast<size_t>(tasks), SparseConvPlan::task, &plan);
  add_up(plan.counts, ran ? tasks : 0, counts, call.survivors);
  return ran && !plan.failed;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
