// Convolution with a ReLU in blocks of one output channel x a run of output positions.
//
// A task owns some images and some output channels. It goes through the input channels chunk by chunk, small
// enough for the caches: packs them (block_conv_plan.h), and adds them for all channels of every block that
// are still undecided, several channels x kMostVectors vectors of positions at a time. Weights are read as
// [group][output][tap], so any list of output channels costs the same as all of them, and so do groups in any order.
#pragma once

#include "block_conv_plan.h"
#include "block_conv_product.h"
#include "energy_order.h"
#include "prefix_gemm.h"
#include "registry.h"
#include "simd.h"
#include "tasks.h"

namespace exprune {
namespace EXPRUNE_ISA {

struct BlockConvPlan {
  const BlockConvCall* call;
  const Env* env;
  const BlockGeometry* geometry;
  int64_t images, image_parts;    // of a task; tasks along the batch
  int64_t outputs, output_parts;  // of a task; tasks along the output channels
  int64_t channels;               // added at a time
  bool by_image;                  // images have orders of their own; where they have no elements, any order will do
  int64_t ahead;                  // channels between fetching weights and their use
  float* packed;                  // [batch][G][plane], or null: every task packs what it needs
  int64_t* rows;                  // [batch, or 1][row_step]: of each group of the reduction its row in head
  int64_t row_step;               // G and what may be fetched beyond
  int64_t* counts;                // [tasks][S]
  std::atomic<bool> failed{false};

  const int64_t* rows_of(int64_t image) const { return rows + (by_image ? image * row_step : 0); }
  // Of each group of the reduction its channel in X.
  const int64_t* channels_of(int64_t image) const {
    const int64_t* order = call->conv.staged.order;
    return order ? order : rows_of(image);
  }

  static void task(void* user, size_t index);
  static void pack_task(void* user, size_t index);
  static void order_task(void* user, size_t index);
};

// Channels of the reduction that one packing task takes.
constexpr int64_t kPackChannels = 16;

// Packs one channel.
static inline void pack_channel(const BlockGeometry& g, const float* in, float* out) {
  for (int64_t e = 0; e < g.packed; e++) {
    const PackedVector& v = g.list[e];
    store(out + v.at, v.gather < 0 ? load_masked(in + v.base, v.mask) : gather_near(g, v, in));
  }
}

// One task's work; arrays are per block of the task's images, image by image.
struct BlockConvTask {
  const BlockConvPlan& plan;
  const ConvCall& c;
  const BlockGeometry& g;
  int64_t image, images, first, outputs;
  float* sums;      // [blocks][outputs][vectors * kLanes]
  int32_t* list;    // [blocks][outputs], outputs (from `first`) that are undecided
  int64_t* listed;  // [blocks]
  float* panel;     // [channels][images][plane]

  int64_t width() const { return g.vectors * kLanes; }
  int64_t used(int64_t block) const {
    return min_of(g.block_positions, g.positions - block % g.blocks * g.block_positions);
  }
  int64_t at(int64_t block, int64_t n) const {
    const int64_t b = image + block / g.blocks;
    return (b * c.staged.outputs + n) * g.positions + block % g.blocks * g.block_positions;
  }

  // Packs the channels begin .. end of the reduction.
  void pack(int64_t begin, int64_t end) const {
    const int64_t* channels = plan.channels_of(image);
    const int64_t size = c.height * c.width;
    float* out = panel;
    for (int64_t k = begin; k < end; k++) {
      for (int64_t i = 0; i < images; i++, out += g.plane) {
        pack_channel(g, c.x + ((image + i) * c.staged.groups + channels[k]) * size, out);
      }
    }
  }

  void add_tile(int64_t block, int64_t tile, int64_t begin, int64_t end, int64_t ahead) const {
    const ConvCall& conv = c;
    const int64_t x_step = plan.packed ? g.plane : images * g.plane;
    const int64_t taps = conv.staged.taps, in_image = block % g.blocks, slot = in_image * g.tiles + tile;
    const int64_t most = block_outputs(g.tile_vectors(tile)), count = listed[block];
    const int64_t parts = blocks_of(count, most), small = count / parts, larger = count % parts;
    const int32_t* outputs_left = list + block * outputs;
    float* const tile_sums = sums + block * outputs * width() + g.tile_begin(tile) * kLanes;
    const float* planes = plan.packed ? plan.packed + (image * conv.staged.groups + begin) * g.plane
                                      : panel + block / g.blocks * g.plane;
    const float* x = planes + in_image * g.block_positions + g.tile_begin(tile) * kLanes;
    const float* weights = conv.staged.head + first * taps;
    const int64_t* rows = plan.rows_of(image) + begin;
    const float* w[16];
    float* s[16];
    for (int64_t part = 0; part < parts; part++) {
      const int64_t size = small + (part < larger);
      for (int32_t i = g.segment_ends[slot]; i < g.segment_ends[slot + 1]; i++) {
        const Segment& segment = g.segments[i];
        for (int64_t j = 0; j < size; j++) {
          w[j] = weights + outputs_left[j] * taps + segment.first;
          s[j] = tile_sums + outputs_left[j] * width() + segment.begin * kLanes;
        }
        // A short chunk of long rows is followed by the same rows' next chunk, soon enough to fetch it from
        // memory; short rows by the next rows.
        const bool turn = ahead < plan.channels && part + 1 < parts;
        const Group group = {x + segment.begin * kLanes,
                             x_step,
                             w,
                             conv.staged.outputs * taps,
                             rows,
                             g.offsets + segment.first,
                             segment.count,
                             end - begin,
                             ahead,
                             turn ? (outputs_left[size] - outputs_left[0]) * taps : 0,
                             turn ? rows : rows + (end - begin),
                             s};
        add_group_of(segment.end - segment.begin, static_cast<int>(size))(group);
      }
      outputs_left += size;
    }
  }

  // Adds the channels begin .. end of the reduction wherever something is undecided.
  void add(int64_t begin, int64_t end) const {
    const int64_t blocks = images * g.blocks;
    for (int64_t from = begin; from < end; from += plan.channels) {
      const int64_t to = min_of(end, from + plan.channels);
      if (!plan.packed) pack(from, to);
      int64_t ahead = plan.ahead;
      for (int64_t block = 0; block < blocks; block++) {
        if (!listed[block]) continue;
        for (int64_t tile = 0; tile < g.tiles; tile++) {
          add_tile(block, tile, from, to, ahead);
          ahead = 0;
        }
      }
    }
  }

  V offset(int64_t position, int64_t lanes_used) const {
    const Finish& f = c.finish;
    if (!f.offset_full) return splat(f.offset[0]);
    return load_up_to(f.offset + position, lanes_used);
  }

  // Whether the expected loss of a block, summed over its positions, is below its limit.
  bool decided(int64_t check, int64_t block, int64_t i) const {
    const Staged& p = c.staged;
    const int64_t n = first + i, parameter = check * p.outputs + n, start = at(block, n), count = used(block);
    const float* partial = sums + (block * outputs + i) * width();
    const V scale = splat(p.first[parameter]), shift = splat(p.second[parameter]), bias = splat(p.bias[n]);
    V total = {};
    for (int64_t done = 0; done < count; done += kLanes) {
      V e = scale * load(partial + done) + (bias + offset(start + done, count - done)) + shift;
      e = select(e < V{}, V{}, e);  // a NaN is not < 0 and stays
      if (count - done < kLanes) e = select(lanes() < splat(static_cast<int32_t>(count - done)), e, V{});
      total += e * e;
    }
    return sum(total) < p.third[parameter];
  }

  // Tests all undecided blocks; the decided ones become 0. Returns how many elements are left.
  int64_t check(int64_t check_index) const {
    int64_t survivors = 0;
    for (int64_t block = 0; block < images * g.blocks; block++) {
      int32_t* left = list + block * outputs;
      int64_t kept = 0;
      for (int64_t i = 0; i < listed[block]; i++) {
        const int32_t n = left[i];
        if (decided(check_index, block, n)) {
          memset(c.y + at(block, first + n), 0, static_cast<size_t>(used(block)) * sizeof(float));
        } else {
          left[kept++] = n;
        }
      }
      listed[block] = kept;
      survivors += kept * used(block);
    }
    return survivors;
  }

  void finish() const {
    const V max = splat(c.finish.max);
    for (int64_t block = 0; block < images * g.blocks; block++) {
      const int64_t count = used(block);
      for (int64_t i = 0; i < listed[block]; i++) {
        const int64_t slot = list[block * outputs + i], n = first + slot, start = at(block, n);
        const V bias = splat(c.staged.bias[n]);
        const float* in = sums + (block * outputs + slot) * width();
        for (int64_t done = 0; done < count; done += kLanes) {
          V y = load(in + done) + (bias + offset(start + done, count - done));
          y = select(y <= V{}, V{}, y);  // a NaN is not <= 0 and stays
          y = select(y > max, max, y);
          if (count - done >= kLanes) {
            store(c.y + start + done, y);
          } else {
            float tail[kLanes];
            store(tail, y);
            memcpy(c.y + start + done, tail, static_cast<size_t>(count - done) * sizeof(float));
          }
        }
      }
    }
  }

  void run(int64_t* survivors) const {
    const Staged& p = c.staged;
    memset(sums, 0, static_cast<size_t>(images * g.blocks * outputs * width()) * sizeof(float));
    for (int64_t block = 0; block < images * g.blocks; block++) {
      for (int64_t i = 0; i < outputs; i++) list[block * outputs + i] = static_cast<int32_t>(i);
      listed[block] = outputs;
    }
    int64_t begin = 0;
    for (int64_t chunk = 0; chunk < p.chunks; chunk++) {
      add(begin, p.ends[chunk]);
      begin = p.ends[chunk];
      if (chunk + 1 == p.chunks) break;
      const int64_t left = check(chunk);
      survivors[chunk] += left;
      if (!left) return;
    }
    finish();
  }
};

inline void BlockConvPlan::task(void* user, size_t index) {
  BlockConvPlan& plan = *static_cast<BlockConvPlan*>(user);
  const ConvCall& c = plan.call->conv;
  const BlockGeometry& g = *plan.geometry;
  const int64_t image = static_cast<int64_t>(index) / plan.output_parts * plan.images;
  const int64_t first = static_cast<int64_t>(index) % plan.output_parts * plan.outputs;
  const int64_t checks = c.staged.chunks - 1;
  int64_t* survivors = plan.counts + static_cast<int64_t>(index) * checks;
  for (int64_t s = 0; s < checks; s++) survivors[s] = 0;
  BlockConvTask work = {plan, c, g, image, min_of(plan.images, c.batch - image),
                        first, min_of(plan.outputs, c.staged.outputs - first), nullptr, nullptr, nullptr, nullptr};
  const int64_t blocks = work.images * g.blocks;
  const auto layout = [&](char* base) {
    Carver carver(base);
    work.sums = carver.take<float>(blocks * work.outputs * work.width());
    work.list = carver.take<int32_t>(blocks * work.outputs);
    work.listed = carver.take<int64_t>(blocks);
    work.panel = plan.packed ? nullptr : carver.take<float>(plan.channels * work.images * g.plane);
    return carver.used();
  };
  CarvedLease scratch(*plan.env->per_task, layout);
  if (!scratch.data()) {
    plan.failed = true;
    return;
  }
  work.run(survivors);
}

inline void BlockConvPlan::pack_task(void* user, size_t index) {
  const BlockConvPlan& plan = *static_cast<BlockConvPlan*>(user);
  const ConvCall& c = plan.call->conv;
  const BlockGeometry& g = *plan.geometry;
  const int64_t parts = blocks_of(c.staged.groups, kPackChannels), groups = c.staged.groups;
  const int64_t image = static_cast<int64_t>(index) / parts, first = static_cast<int64_t>(index) % parts * kPackChannels;
  for (int64_t k = first; k < min_of(groups, first + kPackChannels); k++) {
    const int64_t channel = plan.channels_of(image)[k];
    pack_channel(g, c.x + (image * groups + channel) * c.height * c.width, plan.packed + (image * groups + k) * g.plane);
  }
}

inline void BlockConvPlan::order_task(void* user, size_t index) {
  BlockConvPlan& plan = *static_cast<BlockConvPlan*>(user);
  const ConvCall& c = plan.call->conv;
  const int64_t image = static_cast<int64_t>(index), pixels = c.height * c.width;
  int64_t* order = plan.rows + image * plan.row_step;
  if (!energy_order(c.staged, c.x + image * c.staged.groups * pixels, pixels, plan.call->weight_energy,
                    *plan.env->per_task, order)) {
    plan.failed = true;
    return;
  }
  for (int64_t k = c.staged.groups; k < plan.row_step; k++) order[k] = order[k - c.staged.groups];
}

// Sums of a task, and the packed channels of a tile, that the caches are meant to hold.
constexpr int64_t kSumsBytes = 512 << 10, kPanelBytes = 32 << 10;
// What is packed once for all tasks, at most: copies of a larger input would cost memory that nobody expects.
constexpr int64_t kPackedBytes = 16 << 20;
// Taps between fetching weights and their use: longer than memory takes.
constexpr int64_t kFetchTaps = 512;
// Weights of so many bytes do not stay in the caches from one run to the next.
constexpr int64_t kFetchBytes = 3 << 20;
// Elements of X whose energies are worth other threads.
constexpr int64_t kOrderWork = 1 << 17;
// Multiply-accumulates that are worth a task.
constexpr int64_t kTaskWork = 3 << 20;

static void divide(BlockConvPlan& plan) {
  const ConvCall& c = plan.call->conv;
  const BlockGeometry& g = *plan.geometry;
  const Staged& p = c.staged;
  const int64_t per_output = g.blocks * g.vectors * kLanes * static_cast<int64_t>(sizeof(float));
  // Channels at a time: as many as keep what one tile reads in the first cache.
  const int64_t reads = min_of(g.plane, c.kernel_w * (g.vectors * kLanes + (c.kernel_h - 1) * c.out_width));
  const int64_t most = max_of(1, min_of(p.groups, kPanelBytes / (reads * static_cast<int64_t>(sizeof(float)))));
  plan.channels = blocks_of(p.groups, blocks_of(p.groups, most));
  if (p.taps >= 16) plan.channels = min_of(plan.channels, 8);
  const bool large = p.groups * p.outputs * p.taps * static_cast<int64_t>(sizeof(float)) >= kFetchBytes;
  plan.ahead = large ? min_of(plan.channels, blocks_of(kFetchTaps, p.taps)) : 0;
  const int64_t work = times(p.groups * p.taps * p.outputs, g.positions);
  plan.outputs = p.outputs;
  plan.images = 1;
  if (c.batch < 4) {
    const int64_t parts = max_of(1, min_of(min_of(4, p.outputs / 16), work / kTaskWork));
    plan.outputs = blocks_of(p.outputs, parts);
  } else if (!plan.by_image) {
    // Weights are read once for all images of a task, if these have one order.
    plan.images = max_of(1, min_of(kSumsBytes / (per_output * plan.outputs), c.batch / 4));
  }
  plan.outputs = min_of(plan.outputs, max_of(16, 4 * kSumsBytes / per_output));
  plan.output_parts = blocks_of(p.outputs, plan.outputs);
  plan.image_parts = blocks_of(c.batch, plan.images);
  plan.row_step = p.groups + plan.channels;
}

// Fills the rows: each image's own order, or all in order.
static bool set_rows(BlockConvPlan& plan) {
  const ConvCall& c = plan.call->conv;
  if (plan.by_image) {
    const bool alone = times(c.batch * c.staged.groups, c.height * c.width) < kOrderWork;
    return run_tasks(*plan.env, alone, c.batch, BlockConvPlan::order_task, &plan) && !plan.failed;
  }
  for (int64_t k = 0; k < plan.row_step; k++) plan.rows[k] = k < c.staged.groups ? k : k - c.staged.groups;
  return true;
}

static bool block_conv(const BlockConvCall& call, const Env& env) {
  const ConvCall& c = call.conv;
  const int64_t checks = c.staged.chunks - 1;
  if (c.batch == 0 || c.out_height * c.out_width == 0) {
    for (int64_t s = 0; s < checks; s++) c.survivors[s] = 0;
    return true;
  }
  // The plan is taken out while in use: a second call at the same time makes one of its own.
  BlockGeometry* geometry = static_cast<BlockGeometry*>(call.geometry->exchange(nullptr));
  if (!geometry || !fits(*geometry, c, call.block)) {
    free(geometry);
    geometry = make_geometry(c, call.block);
    if (!geometry) return false;
  }
  BlockConvPlan plan;
  plan.call = &call;
  plan.env = &env;
  plan.geometry = geometry;
  plan.by_image = call.weight_energy && c.height * c.width > 0;
  divide(plan);
  const int64_t tasks = plan.image_parts * plan.output_parts;
  bool done = false;
  {
    // Few taps make packing a share of the work that is worth doing once for all tasks.
    const int64_t packed_bytes = times(times(c.batch, c.staged.groups), geometry->plane * static_cast<int64_t>(sizeof(float)));
    const bool once = plan.output_parts > 1 && c.staged.taps <= 32 && packed_bytes <= kPackedBytes;
    const auto layout = [&](char* base) {
      Carver carver(base);
      plan.counts = carver.take<int64_t>(tasks * checks);
      plan.rows = carver.take<int64_t>(times(plan.by_image ? c.batch : 1, plan.row_step));
      plan.packed = once ? carver.take<float>(c.batch * c.staged.groups * geometry->plane) : nullptr;
      return carver.used();
    };
    CarvedLease scratch(*env.per_call, layout);
    if (scratch.data()) {
      const int64_t packing = c.batch * blocks_of(c.staged.groups, kPackChannels);
      done = set_rows(plan);
      done = done && (!once || env.parallel(env.context, static_cast<size_t>(packing), BlockConvPlan::pack_task, &plan));
      done = done && env.parallel(env.context, static_cast<size_t>(tasks), BlockConvPlan::task, &plan);
      add_up(plan.counts, done ? tasks : 0, checks, c.survivors);
    }
  }
  free(call.geometry->exchange(geometry));
  return done && !plan.failed;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
