// Staged convolution with a ReLU: Y [B, N, OH, OW] from X [B, G, H, W].
//
// A tile is a run of output pixels of one image, packed as a panel [group * tap][pixel] chunk by chunk: a
// chunk is only packed when some output of the tile is still undecided.
#pragma once

#include "panel.h"
#include "prefix_gemm.h"
#include "registry.h"
#include "simd.h"
#include "stages.h"

namespace exprune {
namespace EXPRUNE_ISA {

template <int PV, bool Squares>
struct ConvPixels {
  const ConvCall* call;
  const double* planes;  // [C][H * W] of this image: squared inputs summed over a chunk's groups (Bound)
  int64_t image, first_pixel, count;
  float* panel;   // [groups of the largest chunk * T][PV * kLanes]
  int32_t* taps;  // [T][PV * kLanes], offset into a channel's plane, or -1 for padding
  uint8_t* run;   // [T][PV], whether the vector is one run of neighbours
  float* norm;    // [C][PV * kLanes]

  int64_t plane() const { return call->height * call->width; }
  int64_t pixels() const { return call->out_height * call->out_width; }

  // Where every tap of every pixel is read.
  void locate() {
    constexpr int kWidth = PV * kLanes;
    const ConvCall& c = *call;
    int64_t oy = first_pixel / c.out_width, ox = first_pixel % c.out_width;
    for (int i = 0; i < kWidth; i++) {
      const int64_t top = oy * c.stride_h - c.pad_top, left = ox * c.stride_w - c.pad_left;
      int64_t t = 0;
      for (int64_t ky = 0; ky < c.kernel_h; ky++) {
        const int64_t y = top + ky * c.dilation_h;
        for (int64_t kx = 0; kx < c.kernel_w; kx++, t++) {
          const int64_t x = left + kx * c.dilation_w;
          const bool inside = i < count && y >= 0 && y < c.height && x >= 0 && x < c.width;
          taps[t * kWidth + i] = inside ? static_cast<int32_t>(y * c.width + x) : -1;
        }
      }
      if (++ox == c.out_width) {
        ox = 0;
        oy++;
      }
    }
    for (int64_t t = 0; t < c.staged.taps * PV; t++) {
      const int32_t* o = taps + t * kLanes;
      bool neighbours = o[0] >= 0;
      for (int i = 1; i < kLanes; i++) neighbours = neighbours && o[i] == o[0] + i;
      run[t] = neighbours;
    }
  }

  // Norms of the patches, from the planes of squares.
  void measure() {
    constexpr int kWidth = PV * kLanes;
    const Staged& p = call->staged;
    double squares[kWidth] = {};
    for (int64_t c = p.chunks - 1; c >= 0; c--) {
      const double* plane_squares = planes + c * plane();
      for (int64_t t = 0; t < p.taps; t++) {
        for (int i = 0; i < kWidth; i++) {
          const int32_t o = taps[t * kWidth + i];
          if (o >= 0) squares[i] += plane_squares[o];
        }
      }
      float* out = norm + (c == 0 ? p.chunks - 1 : c - 1) * kWidth;
      for (int i = 0; i < kWidth; i++) out[i] = static_cast<float>(__builtin_sqrt(squares[i]));
    }
  }

  void pack(int64_t begin, int64_t end) {
    const Staged& p = call->staged;
    float* out = panel;
    for (int64_t g = begin; g < end; g++) {
      const float* channel = call->x + (image * p.groups + p.order[g]) * plane();
      for (int64_t t = 0; t < p.taps * PV; t++, out += kLanes) {
        const int32_t* o = taps + t * kLanes;
        store(out, run[t] ? load(channel + o[0]) : gather(channel, load(o)));
      }
    }
  }

  void add(int64_t chunk, Tile& tile) {
    const Staged& p = call->staged;
    const int64_t begin = chunk_begin(p, chunk), end = p.ends[chunk];
    pack(begin, end);
    int64_t stride;
    const float* weights = chunk_weights(p, chunk, tile.first, &stride);
    add_panel<PV, Squares>(panel, weights, stride, tile.list, tile.listed, end - begin, p.taps, tile.sums,
                           tile.squares);
  }

  int64_t at(int64_t n, int v) const {
    return (image * call->staged.outputs + n) * pixels() + first_pixel + v * kLanes;
  }
  // Positions of vector v in use, at most kLanes, maybe none.
  int64_t used(int v) const { return max_of(0, min_of(kLanes, count - v * kLanes)); }

  V offset(int64_t n, int v) const {
    const Finish& f = call->finish;
    if (!f.offset_full) return splat(f.offset[0]);
    const int64_t lanes_used = used(v);
    return load_up_to(f.offset + at(n, v), lanes_used);
  }
  const float* norms(int64_t slot) const { return norm + slot * PV * kLanes; }
  void flush(const Tile& tile) {
    for (int64_t i = 0; i < tile.outputs; i++) {
      memcpy(call->y + at(tile.first + i, 0), tile.sums + i * PV * kLanes,
             static_cast<size_t>(count) * sizeof(float));
    }
  }
};

template <class Test>
struct ConvPlan {
  const ConvCall* call;
  const Env* env;
  int64_t tiles;  // of one image
  int64_t blocks, block;
  int64_t most_groups;
  double* planes;   // [B][C][H * W] (Bound)
  int64_t* counts;  // [tasks][S]
  std::atomic<bool> failed{false};

  template <int PV>
  bool run(int64_t image, int64_t first_pixel, int64_t count, int64_t first, int64_t* survivors) {
    constexpr int64_t kWidth = PV * kLanes;
    const Staged& p = call->staged;
    ConvPixels<PV, Test::kSquares> source = {};
    Tile tile = {};
    const auto layout = [&](char* base) {
      Carver carver(base);
      tile = carve_tile<PV, Test>(carver, min_of(block, p.outputs - first));
      source.panel = carver.take<float>(most_groups * p.taps * kWidth);
      source.taps = carver.take<int32_t>(p.taps * kWidth);
      source.run = carver.take<uint8_t>(p.taps * PV);
      source.norm = Test::kNorms ? carver.take<float>(p.chunks * kWidth) : nullptr;
      return carver.used();
    };
    CarvedLease scratch(*env->per_task, layout);
    if (!scratch.data()) return false;
    source.call = call;
    source.planes = Test::kNorms ? planes + image * p.chunks * source.plane() : nullptr;
    source.image = image;
    source.first_pixel = first_pixel;
    source.count = count;
    source.locate();
    if (Test::kNorms) source.measure();
    tile.first = first;
    run_stages<Test, PV>(p, call->finish.max, source, tile, survivors);
    return true;
  }

  static void task(void* user, size_t index) {
    ConvPlan& plan = *static_cast<ConvPlan*>(user);
    const ConvCall& call = *plan.call;
    const int64_t checks = call.staged.chunks - 1;
    int64_t* survivors = plan.counts + static_cast<int64_t>(index) * checks;
    for (int64_t s = 0; s < checks; s++) survivors[s] = 0;
    const int64_t tile = static_cast<int64_t>(index) % (plan.tiles * call.batch);
    const int64_t first = static_cast<int64_t>(index) / (plan.tiles * call.batch) * plan.block;
    const int64_t first_pixel = tile % plan.tiles * 2 * kLanes;
    const int64_t count = min_of(2 * kLanes, call.out_height * call.out_width - first_pixel);
    const int64_t image = tile / plan.tiles;
    const bool done = count <= kLanes ? plan.template run<1>(image, first_pixel, count, first, survivors)
                                      : plan.template run<2>(image, first_pixel, count, first, survivors);
    if (!done) plan.failed = true;
  }

  // planes[b][c] = squares of X summed over the groups of chunk c.
  static void square_task(void* user, size_t index) {
    ConvPlan& plan = *static_cast<ConvPlan*>(user);
    const ConvCall& call = *plan.call;
    const Staged& p = call.staged;
    const int64_t chunk = static_cast<int64_t>(index) % p.chunks;
    const int64_t image = static_cast<int64_t>(index) / p.chunks;
    const int64_t size = call.height * call.width;
    double* out = plan.planes + static_cast<int64_t>(index) * size;
    for (int64_t i = 0; i < size; i++) out[i] = 0;
    for (int64_t g = chunk_begin(p, chunk); g < p.ends[chunk]; g++) {
      const float* x = call.x + (image * p.groups + p.order[g]) * size;
      for (int64_t i = 0; i < size; i++) out[i] += static_cast<double>(x[i]) * x[i];
    }
  }
};

template <class Test>
static bool prefix_conv(const ConvCall& call, const Env& env) {
  const Staged& p = call.staged;
  const int64_t checks = p.chunks - 1;
  ConvPlan<Test> plan;
  plan.call = &call;
  plan.env = &env;
  plan.tiles = blocks_of(call.out_height * call.out_width, 2 * kLanes);
  plan.block = outputs_per_task(p, 64);
  plan.blocks = blocks_of(p.outputs, plan.block);
  plan.most_groups = largest_chunk(p);
  const int64_t tasks = plan.tiles * call.batch * plan.blocks;

  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.planes =
        Test::kNorms ? carver.take<double>(call.batch * p.chunks * call.height * call.width) : nullptr;
    plan.counts = carver.take<int64_t>(tasks * checks);
    return carver.used();
  };
  CarvedLease scratch(*env.per_call, layout);
  if (!scratch.data()) return false;

  if (Test::kNorms && !env.parallel(env.context, static_cast<size_t>(call.batch * p.chunks),
                                    ConvPlan<Test>::square_task, &plan)) {
    return false;
  }
  const bool ran = env.parallel(env.context, static_cast<size_t>(tasks), ConvPlan<Test>::task, &plan);
  add_up(plan.counts, ran ? tasks : 0, checks, call.survivors);
  return ran && !plan.failed;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
