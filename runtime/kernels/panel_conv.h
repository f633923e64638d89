// Convolution with a ReLU in panels of 16 output channels, whole or in stages that decide blocks of one
// panel x one output position.
//
// Lanes are output channels, so a position is one or a few registers, and every tap is only taken to the
// positions at which it reads no padding: on an image of 4 x 4, a kernel of 3 x 3 does 100 of 144 products. Weights
// stand as [panel][tap][group][16]; for one tap the groups are the innermost loop, and sums rest in memory
// between taps. After a check the undecided positions of a panel are a list.
#pragma once

#include "block_conv_plan.h"
#include "panel_conv_product.h"
#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

// What the first cache is meant to hold of X and of the weights at a time, in bytes, and the fewest groups.
constexpr int64_t kPanelCache = 24 << 10, kLeastPanelGroups = 32;
// Above this share of undecided positions (in eighths) all are added: a list costs more.
constexpr int64_t kMostlyOpen = 7;

// Output positions first .. end along one axis at which a tap reads no padding.
struct TapRange {
  int64_t first, end;
};

static inline TapRange tap_range(int64_t reach, int64_t pad, int64_t stride, int64_t size, int64_t outputs) {
  const int64_t shift = pad - reach;  // position o reads o * stride - shift
  const int64_t first = shift > 0 ? blocks_of(shift, stride) : 0;
  const int64_t last = size - 1 + shift;
  if (last < 0) return {0, 0};
  return {first, min_of(outputs, last / stride + 1)};
}

struct PanelConvPlan {
  const PanelConvCall* call;
  const Env* env;
  int64_t pairs, panels;  // pairs of panels of an image, panels
  float* ordered;         // [batch][G][plane], X in the order of the reduction; null: X itself
  int64_t* counts;        // [tasks][S]
  std::atomic<bool> failed{false};

  static void task(void* user, size_t index);
  static void order_task(void* user, size_t index);
};

// One image and up to two panels.
struct PanelConvTask {
  const PanelConvPlan& plan;
  const ConvCall& c;
  const float* x;  // this image, in the order of the reduction
  int64_t image, panel, panels;
  float* sums;       // [panels][positions][16]
  int32_t* open[2];    // undecided positions
  int32_t* closed[2];  // decided ones, from the end on
  int64_t opened[2];
  int32_t* at[2];  // of a list for one tap: where X is read, and the position

  int64_t positions() const { return c.out_height * c.out_width; }
  int64_t plane() const { return c.height * c.width; }

  const float* weights(int64_t of_panel, int64_t tap, int64_t group) const {
    return c.staged.head + (((panel + of_panel) * c.staged.taps + tap) * c.staged.groups + group) * kPanelChannels;
  }

  // Adds one tap of some groups to all positions of the rows row .. row_end, in rectangles.
  void add_rectangles(int64_t tap, int64_t group, int64_t groups, TapRange rows, TapRange columns) const {
    const int64_t width = columns.end - columns.first;
    if (rows.end <= rows.first || width <= 0) return;
    // Strides that no product is made for go column by column.
    const bool any_stride = c.stride_w > kMostStride;
    const int64_t column_parts = any_stride ? width : blocks_of(width, kMostColumns);
    const int64_t widest = blocks_of(width, column_parts);
    const int64_t most_rows = min_of(kMostRows, max_of(1, kMostPositions / widest));
    const int64_t row_parts = blocks_of(rows.end - rows.first, most_rows);
    const int64_t shift = (tap / c.kernel_w * c.dilation_h - c.pad_top) * c.width + tap % c.kernel_w * c.dilation_w - c.pad_left;
    PanelProduct p;
    p.x_row = c.stride_h * c.width;
    p.x_group = plane();
    p.groups = groups;
    p.sums_row = c.out_width * kPanelChannels;
    for (int64_t i = 0, row = rows.first; i < row_parts; i++) {
      const int64_t height = blocks_of(rows.end - row, row_parts - i);
      for (int64_t j = 0, column = columns.first; j < column_parts; j++) {
        const int64_t part = blocks_of(columns.end - column, column_parts - j);
        p.x = x + group * plane() + row * p.x_row + column * c.stride_w + shift;
        float* const to = sums + (row * c.out_width + column) * kPanelChannels;
        for_vectors(panels, [&](int64_t first, int64_t second, int vectors) {
          p.weights[0] = weights(first / kPanelChannels, tap, group) + first % kPanelChannels;
          p.sums[0] = to + first / kPanelChannels * positions() * kPanelChannels + first % kPanelChannels;
          p.weights[1] = weights(second / kPanelChannels, tap, group) + second % kPanelChannels;
          p.sums[1] = to + second / kPanelChannels * positions() * kPanelChannels + second % kPanelChannels;
          rectangle_product(vectors, static_cast<int>(height), static_cast<int>(part), any_stride ? 1 : c.stride_w)(p);
        });
        column += part;
      }
      row += height;
    }
  }

  // Adds one tap of some groups to the undecided positions of one panel.
  void add_list(int64_t of_panel, int64_t tap, int64_t group, int64_t groups, TapRange rows, TapRange columns) const {
    const int64_t shift = (tap / c.kernel_w * c.dilation_h - c.pad_top) * c.width + tap % c.kernel_w * c.dilation_w - c.pad_left;
    int64_t count = 0;
    for (int64_t i = 0; i < opened[of_panel]; i++) {
      const int64_t position = open[of_panel][i], row = position / c.out_width, column = position % c.out_width;
      if (row < rows.first || row >= rows.end || column < columns.first || column >= columns.end) continue;
      at[0][count] = static_cast<int32_t>(row * c.stride_h * c.width + column * c.stride_w + shift);
      at[1][count++] = static_cast<int32_t>(position);
    }
    ListProduct p;
    p.x = x + group * plane();
    p.x_group = plane();
    p.groups = groups;
    p.weights = weights(of_panel, tap, group);
    p.sums = sums + of_panel * positions() * kPanelChannels;
    const int64_t parts = blocks_of(count, kMostListed);
    for (int64_t i = 0, done = 0; i < parts; i++) {
      const int64_t part = blocks_of(count - done, parts - i);
      p.offsets = at[0] + done;
      p.positions = at[1] + done;
      list_product(static_cast<int>(part))(p);
      done += part;
    }
  }

  // Adds the groups begin .. end wherever something is undecided.
  void add(int64_t begin, int64_t end) const {
    bool all = true;
    for (int64_t p = 0; p < panels; p++) all = all && opened[p] * 8 >= positions() * kMostlyOpen;
    // Groups at a time, and rows of positions at a time, that keep what is read in the first cache.
    const int64_t plane_bytes = plane() * static_cast<int64_t>(sizeof(float));
    const int64_t fits = max_of(kLeastPanelGroups, kPanelCache / plane_bytes);
    const int64_t parts = blocks_of(end - begin, fits);
    const int64_t most = blocks_of(end - begin, parts);
    const int64_t row_bytes = c.stride_h * c.width * most * static_cast<int64_t>(sizeof(float));
    const int64_t reach = (c.kernel_h - 1) * c.dilation_h / c.stride_h;
    int64_t band = max_of(2, kPanelCache / row_bytes - reach);
    if (!all || band > c.out_height) band = c.out_height;
    for (int64_t group = begin; group < end;) {
      const int64_t groups = min_of(most, end - group);
      for (int64_t row = 0; row < c.out_height; row += band) {
        for (int64_t tap = 0; tap < c.staged.taps; tap++) {
          TapRange rows = tap_range(tap / c.kernel_w * c.dilation_h, c.pad_top, c.stride_h, c.height, c.out_height);
          const TapRange columns = tap_range(tap % c.kernel_w * c.dilation_w, c.pad_left, c.stride_w, c.width, c.out_width);
          if (all) {
            rows = {max_of(rows.first, row), min_of(rows.end, row + band)};
            add_rectangles(tap, group, groups, rows, columns);
            continue;
          }
          for (int64_t p = 0; p < panels; p++) add_list(p, tap, group, groups, rows, columns);
        }
      }
      group += groups;
    }
  }

  // Index in Y of lane i of a panel; -1 for a lane that is no output.
  int64_t output(int64_t of_panel, int64_t lane) const {
    const int64_t slot = (panel + of_panel) * kPanelChannels + lane;
    if (slot >= c.staged.outputs) return -1;
    return plan.call->channels ? plan.call->channels[slot] : slot;
  }

  float offset(int64_t n, int64_t position) const {
    const Finish& f = c.finish;
    return f.offset_full ? f.offset[(image * c.staged.outputs + n) * positions() + position] : f.offset[0];
  }

  // Tests all undecided positions of a panel. Returns how many elements are left.
  int64_t check(int64_t check_index, int64_t of_panel) {
    const Staged& p = c.staged;
    float scale[kPanelChannels] = {}, shift[kPanelChannels] = {}, off[kPanelChannels] = {};
    int64_t used = 0, from[kPanelChannels];
    for (; used < kPanelChannels && output(of_panel, used) >= 0; used++) {
      const int64_t n = output(of_panel, used);
      from[used] = n;
      scale[used] = p.first[check_index * p.outputs + n];
      shift[used] = p.second[check_index * p.outputs + n];
      off[used] = p.bias[n] + (c.finish.offset_full ? 0.0f : c.finish.offset[0]);
    }
    const float limit = p.third[check_index * plan.panels + panel + of_panel];
    float* const panel_sums = sums + of_panel * positions() * kPanelChannels;
    int64_t kept = 0, done = positions() - opened[of_panel];
    for (int64_t i = 0; i < opened[of_panel]; i++) {
      const int32_t position = open[of_panel][i];
      float* const partial = panel_sums + position * kPanelChannels;
      float given[kPanelChannels] = {};
      if (c.finish.offset_full) {
        for (int64_t k = 0; k < used; k++) given[k] = p.bias[from[k]] + offset(from[k], position);
      }
      V total = {};
      for (int64_t k = 0; k < used; k += kLanes) {
        const V o = load((c.finish.offset_full ? given : off) + k);
        V e = load(scale + k) * load(partial + k) + o + load(shift + k);
        e = select(e < V{}, V{}, e);  // a NaN is not < 0 and stays
        if (used - k < kLanes) e = select(lanes() < splat(static_cast<int32_t>(used - k)), e, V{});
        total += e * e;
      }
      if (sum(total) < limit) {
        closed[of_panel][positions() - ++done] = position;
      } else {
        open[of_panel][kept++] = position;
      }
    }
    opened[of_panel] = kept;
    return kept * used;
  }

  void finish() const {
    for (int64_t p = 0; p < panels; p++) {
      float* const from = sums + p * positions() * kPanelChannels;
      // Sums that end as 0, whatever was added since.
      for (int64_t i = opened[p]; i < positions(); i++) {
        for (int64_t k = 0; k < kPanelChannels; k += kLanes) {
          store(from + closed[p][i] * kPanelChannels + k, splat(-INFINITY));
        }
      }
      int64_t done = 0;
#if EXPRUNE_LANES == 16
      for (; done + kLanes <= positions() && output(p, kPanelChannels - 1) >= 0; done += kLanes) {
        V rows[kLanes];
        transpose(from + done * kPanelChannels, rows);
        for (int64_t k = 0; k < kPanelChannels; k++) {
          const int64_t n = output(p, k), start = (image * c.staged.outputs + n) * positions() + done;
          const V o = c.finish.offset_full ? load(c.finish.offset + start) : splat(c.finish.offset[0]);
          V y = rows[k] + (splat(c.staged.bias[n]) + o);
          y = select(y <= V{}, V{}, y);  // a NaN is not <= 0 and stays
          y = select(y > splat(c.finish.max), splat(c.finish.max), y);
          store(c.y + start, y);
        }
      }
#endif
      for (int64_t k = 0; k < kPanelChannels && output(p, k) >= 0; k++) {
        const int64_t n = output(p, k);
        float* const to = c.y + (image * c.staged.outputs + n) * positions();
        for (int64_t i = done; i < positions(); i++) {
          float y = from[i * kPanelChannels + k] + (c.staged.bias[n] + offset(n, i));
          y = y <= 0.0f ? 0.0f : y;
          to[i] = y > c.finish.max ? c.finish.max : y;
        }
      }
    }
  }

  void run(int64_t* survivors) {
    const Staged& p = c.staged;
    memset(sums, 0, static_cast<size_t>(panels * positions() * kPanelChannels) * sizeof(float));
    for (int64_t i = 0; i < panels; i++) {
      opened[i] = positions();
      for (int64_t k = 0; open[i] && k < positions(); k++) open[i][k] = static_cast<int32_t>(k);
    }
    int64_t begin = 0;
    for (int64_t chunk = 0; chunk < p.chunks; chunk++) {
      add(begin, p.ends[chunk]);
      begin = p.ends[chunk];
      if (chunk + 1 == p.chunks) break;
      int64_t left = 0;
      for (int64_t i = 0; i < panels; i++) left += check(chunk, i);
      survivors[chunk] += left;
      if (!left) break;
    }
    finish();
  }
};

inline void PanelConvPlan::task(void* user, size_t index) {
  PanelConvPlan& plan = *static_cast<PanelConvPlan*>(user);
  const ConvCall& c = plan.call->conv;
  const int64_t image = static_cast<int64_t>(index) / plan.pairs, panel = static_cast<int64_t>(index) % plan.pairs * 2;
  const int64_t checks = c.staged.chunks - 1, positions = c.out_height * c.out_width;
  int64_t* survivors = plan.counts + static_cast<int64_t>(index) * checks;
  for (int64_t s = 0; s < checks; s++) survivors[s] = 0;
  const float* x = (plan.ordered ? plan.ordered : c.x) + image * c.staged.groups * c.height * c.width;
  PanelConvTask work = {plan, c, x, image, panel, min_of(2, plan.panels - panel), nullptr, {}, {}, {}, {}};
  const auto layout = [&](char* base) {
    Carver carver(base);
    work.sums = carver.take<float>(work.panels * positions * kPanelChannels);
    for (int i = 0; i < 2; i++) {
      work.open[i] = checks ? carver.take<int32_t>(positions) : nullptr;
      work.closed[i] = checks ? carver.take<int32_t>(positions) : nullptr;
      work.at[i] = checks ? carver.take<int32_t>(positions) : nullptr;
    }
    return carver.used();
  };
  CarvedLease scratch(*plan.env->per_task, layout);
  if (!scratch.data()) {
    plan.failed = true;
    return;
  }
  work.run(survivors);
}

// Copies the channels of one image in the order of the reduction.
inline void PanelConvPlan::order_task(void* user, size_t index) {
  const PanelConvPlan& plan = *static_cast<PanelConvPlan*>(user);
  const ConvCall& c = plan.call->conv;
  const int64_t plane = c.height * c.width, image = static_cast<int64_t>(index) * c.staged.groups * plane;
  for (int64_t g = 0; g < c.staged.groups; g++) {
    memcpy(plan.ordered + image + g * plane, c.x + image + c.staged.order[g] * plane,
           static_cast<size_t>(plane) * sizeof(float));
  }
}

static bool panel_conv(const PanelConvCall& call, const Env& env) {
  const ConvCall& c = call.conv;
  const int64_t checks = c.staged.chunks - 1;
  PanelConvPlan plan;
  plan.call = &call;
  plan.env = &env;
  plan.panels = blocks_of(c.staged.outputs, kPanelChannels);
  plan.pairs = blocks_of(plan.panels, 2);
  const int64_t tasks = c.batch * plan.pairs;
  if (tasks == 0 || c.out_height * c.out_width == 0) {
    for (int64_t s = 0; s < checks; s++) c.survivors[s] = 0;
    return true;
  }
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.counts = carver.take<int64_t>(tasks * checks);
    plan.ordered =
        c.staged.order ? carver.take<float>(c.batch * c.staged.groups * c.height * c.width) : nullptr;
    return carver.used();
  };
  CarvedLease scratch(*env.per_call, layout);
  if (!scratch.data()) return false;
  bool done = true;
  if (c.staged.order) done = env.parallel(env.context, static_cast<size_t>(c.batch), PanelConvPlan::order_task, &plan);
  done = done && env.parallel(env.context, static_cast<size_t>(tasks), PanelConvPlan::task, &plan);
  add_up(plan.counts, done ? tasks : 0, checks, c.survivors);
  return done && !plan.failed;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
