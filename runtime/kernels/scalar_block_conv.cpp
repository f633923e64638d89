// The oracle of the convolution in blocks: one output at a time, serially and in double precision.
#include <float.h>

#include "registry.h"

namespace exprune {
namespace scalar {

// Where position g of an image's reduction is read: X's channel, and the row of head.
struct Order {
  const int64_t* channels;  // null: 0 to G-1
  const int64_t* rows;      // the same

  int64_t channel(int64_t g) const { return channels ? channels[g] : g; }
  int64_t row(int64_t g) const { return rows ? rows[g] : g; }
};

// Fills scores and order, [G] both, of an image: by falling score, equal ones by index.
static void by_energy(const BlockConvCall& call, int64_t image, float* scores, int64_t* order) {
  const ConvCall& c = call.conv;
  const int64_t groups = c.staged.groups, pixels = c.height * c.width;
  for (int64_t g = 0; g < groups; g++) {
    const float* x = c.x + (image * groups + g) * pixels;
    double energy = 0;
    for (int64_t i = 0; i < pixels; i++) energy += static_cast<double>(x[i]) * x[i];
    const float score = static_cast<float>(energy * static_cast<double>(call.weight_energy[g]));
    scores[g] = score < FLT_MAX ? score : FLT_MAX;  // NaN and infinity come first
  }
  for (int64_t g = 0; g < groups; g++) {
    int64_t rank = 0;
    for (int64_t other = 0; other < groups; other++) {
      rank += scores[other] > scores[g] || (scores[other] == scores[g] && other < g);
    }
    order[rank] = g;
  }
}

// Sum of output (image, n) at position (oy, ox) over the groups begin .. end of the reduction.
static double part(const ConvCall& c, const Order& order, int64_t image, int64_t n, int64_t oy, int64_t ox,
                   int64_t begin, int64_t end) {
  const Staged& p = c.staged;
  double sum = 0;
  for (int64_t g = begin; g < end; g++) {
    const float* channel = c.x + (image * p.groups + order.channel(g)) * c.height * c.width;
    const float* weights = p.head + (order.row(g) * p.outputs + n) * p.taps;
    for (int64_t t = 0; t < p.taps; t++) {
      const int64_t y = oy * c.stride_h - c.pad_top + t / c.kernel_w * c.dilation_h;
      const int64_t x = ox * c.stride_w - c.pad_left + t % c.kernel_w * c.dilation_w;
      if (y < 0 || y >= c.height || x < 0 || x >= c.width) continue;
      sum += static_cast<double>(weights[t]) * channel[y * c.width + x];
    }
  }
  return sum;
}

// One block of `count` positions from `first` on; y points to its first output, sums holds `count` doubles.
static void one_block(const BlockConvCall& call, const Order& order, int64_t image, int64_t n, int64_t first,
                      int64_t count, double* sums) {
  const ConvCall& c = call.conv;
  const Staged& p = c.staged;
  const int64_t at = (image * p.outputs + n) * c.out_height * c.out_width + first;
  const float* offset = c.finish.offset + (c.finish.offset_full ? at : 0);
  const int64_t step = c.finish.offset_full ? 1 : 0;
  float* y = c.y + at;
  for (int64_t i = 0; i < count; i++) sums[i] = 0;
  int64_t begin = 0;
  for (int64_t chunk = 0; chunk < p.chunks; chunk++) {
    for (int64_t i = 0; i < count; i++) {
      const int64_t position = first + i;
      sums[i] += part(c, order, image, n, position / c.out_width, position % c.out_width, begin, p.ends[chunk]);
    }
    begin = p.ends[chunk];
    if (chunk + 1 == p.chunks) break;
    const int64_t parameter = chunk * p.outputs + n;
    double score = 0;
    for (int64_t i = 0; i < count; i++) {
      const double e =
          p.first[parameter] * sums[i] + p.bias[n] + offset[i * step] + p.second[parameter];
      score += e < 0 ? 0 : e * e;
    }
    if (score < p.third[parameter]) {
      for (int64_t i = 0; i < count; i++) y[i] = 0;
      return;
    }
    c.survivors[chunk] += count;
  }
  for (int64_t i = 0; i < count; i++) {
    const float value = static_cast<float>(sums[i] + p.bias[n] + offset[i * step]);
    y[i] = value <= 0 ? 0 : value;
    if (y[i] > c.finish.max) y[i] = c.finish.max;
  }
}

bool block_conv(const BlockConvCall& call, const Env& env) {
  const ConvCall& c = call.conv;
  const int64_t positions = c.out_height * c.out_width, ranked = call.weight_energy ? c.staged.groups : 0;
  double* sums;
  float* scores;
  int64_t* channels;
  const auto layout = [&](char* base) {
    Carver carver(base);
    sums = carver.take<double>(positions);
    scores = carver.take<float>(ranked);
    channels = carver.take<int64_t>(ranked);
    return carver.used();
  };
  CarvedLease scratch(*env.per_call, layout);
  if (!scratch.data()) return false;
  Order order = {c.staged.order, nullptr};
  for (int64_t s = 0; s + 1 < c.staged.chunks; s++) c.survivors[s] = 0;
  for (int64_t b = 0; b < c.batch; b++) {
    if (call.weight_energy) {
      by_energy(call, b, scores, channels);
      order = {channels, channels};
    }
    for (int64_t n = 0; n < c.staged.outputs; n++) {
      for (int64_t first = 0; first < positions; first += call.block) {
        const int64_t left = positions - first;
        one_block(call, order, b, n, first, left < call.block ? left : call.block, sums);
      }
    }
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
