// Staged convolution with a ReLU that multiplies no zeros of X: Y [B, N, OH, OW] from X [B, G, H, W].
//
// Lanes are outputs. The inputs that are not 0 are listed once per pixel; each adds its row of weights [G, T, N], at
// every tap that reads its pixel, to the vectors of outputs of which some are undecided. A tile is a run of output
// positions.
#pragma once

#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kSparsePositions = 16;  // of a tile: they share the rows of weights in the caches
constexpr int kSparseVectors = 8;         // vectors of outputs that share one pass over the listed inputs

// The inputs of one pixel that are not 0, of some groups: rows[i] is the first tap of their group in the weights.
struct PixelList {
  const float* w;  // of the tap
  const float* x;
  const int32_t* rows;
  int64_t count;
};

// sums[at[j] ..] += sum over the listed inputs of x w[row][at[j] ..)
template <int Count>
static void add_listed(const PixelList* lists, int64_t taps, int64_t stride, const int64_t* at, float* sums) {
  V total[Count];
#pragma GCC unroll 8
  for (int j = 0; j < Count; j++) total[j] = load(sums + at[j]);
  for (int64_t t = 0; t < taps; t++) {
    const PixelList list = lists[t];
    for (int64_t i = 0; i < list.count; i++) {
      const float* row = list.w + list.rows[i] * stride;
      const V value = splat(list.x[i]);
#pragma GCC unroll 8
      for (int j = 0; j < Count; j++) total[j] += value * load(row + at[j]);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < Count; j++) store(sums + at[j], total[j]);
}

using AddListed = void (*)(const PixelList*, int64_t, int64_t, const int64_t*, float*);
constexpr AddListed kAddListed[kSparseVectors] = {add_listed<1>, add_listed<2>, add_listed<3>, add_listed<4>,
                                                  add_listed<5>, add_listed<6>, add_listed<7>, add_listed<8>};

// What is not 0 of all pixels of a batch (a NaN is not). Those of chunk c of a pixel stand from its ends[c - 1] on.
struct PixelLists {
  float* x;         // [batch][plane][G]
  int32_t* rows;    // the same
  int32_t* counts;  // [batch][plane][C]
};

struct SparseConvTile {
  const ConvCall* call;
  int64_t image, first, count;  // output positions first .. first + count of an image
  int64_t width;                // N, filled up to whole vectors
  float* sums;                  // [positions][width]
  float* offset;                // the same: bias + offset
  uint32_t* alive;              // [positions][vectors], a bit per lane
  int64_t* open;                // [positions], how many outputs are undecided
  const PixelLists* pixels_of;
  PixelList* lists;  // [T], of a position: the taps that read no padding
  int64_t tap_count;

  int64_t vectors() const { return width / kLanes; }
  int64_t plane() const { return call->height * call->width; }
  int64_t pixels() const { return call->out_height * call->out_width; }
  int64_t used(int64_t v) const { return min_of(kLanes, call->staged.outputs - v * kLanes); }
  V of_outputs(const float* values, int64_t v) const {
    return load_up_to(values + v * kLanes, used(v));
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

  // Finds the lists of a position for one chunk; returns how many inputs they hold.
  int64_t locate(int64_t position, int64_t chunk) {
    const ConvCall& c = *call;
    const Staged& p = c.staged;
    const int64_t top = position / c.out_width * c.stride_h - c.pad_top;
    const int64_t left = position % c.out_width * c.stride_w - c.pad_left;
    const int64_t begin = chunk ? p.ends[chunk - 1] : 0;
    int64_t listed = 0;
    tap_count = 0;
    for (int64_t t = 0; t < p.taps; t++) {
      const int64_t y = top + t / c.kernel_w * c.dilation_h, at = left + t % c.kernel_w * c.dilation_w;
      if (y < 0 || y >= c.height || at < 0 || at >= c.width) continue;
      const int64_t pixel = image * plane() + y * c.width + at, start = pixel * p.groups + begin;
      const int64_t count = pixels_of->counts[pixel * p.chunks + chunk];
      if (!count) continue;
      lists[tap_count++] = {p.head + t * p.outputs, pixels_of->x + start, pixels_of->rows + start, count};
      listed += count;
    }
    return listed;
  }

  // Adds what is listed to the vectors of outputs of position i with a lane alive.
  void add(int64_t i) {
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
      kAddListed[held - 1](lists, tap_count, p.outputs, at, to);
      held = 0;
    }
    if (held) kAddListed[held - 1](lists, tap_count, p.outputs, at, to);
    if (whole == vectors() || !lanes_alive[whole]) return;
    V total = load(to + whole * kLanes);  // the last outputs, fewer than a vector
    for (int64_t t = 0; t < tap_count; t++) {
      const PixelList& list = lists[t];
      for (int64_t l = 0; l < list.count; l++) {
        total += splat(list.x[l]) * of_outputs(list.w + list.rows[l] * p.outputs, whole);
      }
    }
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
  int64_t* counts;  // [tasks][S + C]
  PixelLists lists;
  std::atomic<bool> failed{false};

  bool run(int64_t image, int64_t first, int64_t* result) {
    const Staged& p = call->staged;
    SparseConvTile tile = {};
    tile.call = call;
    tile.pixels_of = &lists;
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
      tile.lists = carver.take<PixelList>(p.taps);
      return carver.used();
    };
    CarvedLease scratch(*env->per_task, layout);
    if (!scratch.data()) return false;
    tile.start();
    const int64_t checks = p.chunks - 1;
    for (int64_t chunk = 0; chunk < p.chunks; chunk++) {
      for (int64_t i = 0; i < tile.count; i++) {
        if (!tile.open[i]) continue;
        result[checks + chunk] += tile.locate(first + i, chunk) * tile.open[i];
        tile.add(i);
        if (chunk == checks) continue;
        tile.test(i, chunk);
        result[chunk] += tile.open[i];
      }
    }
    tile.flush();
    return true;
  }

  // Lists one image.
  static void list_task(void* user, size_t index) {
    const SparseConvPlan& plan = *static_cast<const SparseConvPlan*>(user);
    const Staged& p = plan.call->staged;
    const int64_t plane = plan.call->height * plan.call->width, image = static_cast<int64_t>(index);
    const float* from = plan.call->x + image * p.groups * plane;
    float* x = plan.lists.x + image * plane * p.groups;
    int32_t* rows = plan.lists.rows + image * plane * p.groups;
    int32_t* counts = plan.lists.counts + image * plane * p.chunks;
    memset(counts, 0, static_cast<size_t>(plane * p.chunks) * sizeof(int32_t));
    int64_t begin = 0;
    for (int64_t chunk = 0; chunk < p.chunks; begin = p.ends[chunk++]) {
      for (int64_t g = begin; g < p.ends[chunk]; g++) {
        const float* channel = from + p.order[g] * plane;
        for (int64_t pixel = 0; pixel < plane; pixel++) {
          // What is looked at is written down before it is known to be kept: there is room for all.
          int32_t* count = counts + pixel * p.chunks + chunk;
          const int64_t at = pixel * p.groups + begin + *count;
          x[at] = channel[pixel];
          rows[at] = static_cast<int32_t>(g * p.taps);
          *count += !(channel[pixel] == 0.0f);
        }
      }
    }
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
  const int64_t tasks = plan.tiles * call.batch, counts = 2 * p.chunks - 1;
  const int64_t pixels = call.batch * call.height * call.width;
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.counts = carver.take<int64_t>(tasks * counts);
    plan.lists.x = carver.take<float>(pixels * p.groups);
    plan.lists.rows = carver.take<int32_t>(pixels * p.groups);
    plan.lists.counts = carver.take<int32_t>(pixels * p.chunks);
    return carver.used();
  };
  CarvedLease scratch(*env.per_call, layout);
  if (!scratch.data()) return false;
  const bool ran = env.parallel(env.context, static_cast<size_t>(call.batch), SparseConvPlan::list_task, &plan) &&
                   env.parallel(env.context, static_cast<size_t>(tasks), SparseConvPlan::task, &plan);
  add_up(plan.counts, ran ? tasks : 0, counts, call.survivors);
  return ran && !plan.failed;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
