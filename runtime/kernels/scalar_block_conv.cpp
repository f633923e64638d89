// The oracle of the convolution in blocks: one output at a time, serially and in double precision.
#include "registry.h"

namespace exprune {
namespace scalar {

// Sum of output (image, n) at position (oy, ox) over the groups begin .. end of the reduction.
static double part(const ConvCall& c, int64_t image, int64_t n, int64_t oy, int64_t ox, int64_t begin,
                   int64_t end) {
  const Staged& p = c.staged;
  double sum = 0;
  for (int64_t g = begin; g < end; g++) {
    const float* channel = c.x + (image * p.groups + (p.order ? p.order[g] : g)) * c.height * c.width;
    for (int64_t t = 0; t < p.taps; t++) {
      const int64_t y = oy * c.stride_h - c.pad_top + t / c.kernel_w * c.dilation_h;
      const int64_t x = ox * c.stride_w - c.pad_left + t % c.kernel_w * c.dilation_w;
      if (y < 0 || y >= c.height || x < 0 || x >= c.width) continue;
      sum += static_cast<double>(p.head[(g * p.outputs + n) * p.taps + t]) * channel[y * c.width + x];
    }
  }
  return sum;
}

// One block of `count` positions from `first` on; y points to its first output, sums holds `count` doubles.
static void one_block(const BlockConvCall& call, int64_t image, int64_t n, int64_t first, int64_t count,
                      double* sums) {
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
      sums[i] += part(c, image, n, position / c.out_width, position % c.out_width, begin, p.ends[chunk]);
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
  const int64_t positions = c.out_height * c.out_width;
  Lease scratch(*env.per_call, static_cast<size_t>(positions) * sizeof(double));
  if (!scratch.data()) return false;
  double* sums = reinterpret_cast<double*>(scratch.data());
  for (int64_t s = 0; s + 1 < c.staged.chunks; s++) c.survivors[s] = 0;
  for (int64_t b = 0; b < c.batch; b++) {
    for (int64_t n = 0; n < c.staged.outputs; n++) {
      for (int64_t first = 0; first < positions; first += call.block) {
        const int64_t left = positions - first;
        one_block(call, b, n, first, left < call.block ? left : call.block, sums);
      }
    }
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
