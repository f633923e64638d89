// The oracle of the convolution that skips zeros: one output at a time, serially and in double precision.
#include "registry.h"

namespace exprune {
namespace scalar {

// X at tap t of group g (of the reduction) for output position (oy, ox); 0 on padding.
static double input(const ConvCall& c, int64_t image, int64_t g, int64_t t, int64_t oy, int64_t ox) {
  const int64_t y = oy * c.stride_h - c.pad_top + t / c.kernel_w * c.dilation_h;
  const int64_t x = ox * c.stride_w - c.pad_left + t % c.kernel_w * c.dilation_w;
  if (y < 0 || y >= c.height || x < 0 || x >= c.width) return 0;
  return c.x[((image * c.staged.groups + c.staged.order[g]) * c.height + y) * c.width + x];
}

// Output n at a position; counts has [S] survivors and [C] multiply-accumulates, both are increased.
static float output(const ConvCall& c, int64_t image, int64_t n, int64_t oy, int64_t ox, double offset) {
  const Staged& p = c.staged;
  int64_t* work = c.survivors + p.chunks - 1;
  double sum = 0;
  int64_t g = 0;
  for (int64_t chunk = 0; chunk < p.chunks; chunk++) {
    for (; g < p.ends[chunk]; g++) {
      for (int64_t t = 0; t < p.taps; t++) {
        const double x = input(c, image, g, t, oy, ox);
        if (x == 0) continue;
        sum += p.head[(g * p.taps + t) * p.outputs + n] * x;
        work[chunk]++;
      }
    }
    if (chunk + 1 == p.chunks) break;
    const int64_t at = chunk * p.outputs + n;
    if (p.first[at] * sum + p.bias[n] + offset < p.second[at]) return 0;
    c.survivors[chunk]++;
  }
  const float y = static_cast<float>(sum + p.bias[n] + offset);
  if (y <= 0) return c.finish.max < 0 ? c.finish.max : 0;
  return y > c.finish.max ? c.finish.max : y;
}

bool sparse_conv(const ConvCall& c, const Env&) {
  const Staged& p = c.staged;
  for (int64_t s = 0; s < 2 * p.chunks - 1; s++) c.survivors[s] = 0;
  int64_t at = 0;
  for (int64_t b = 0; b < c.batch; b++) {
    for (int64_t n = 0; n < p.outputs; n++) {
      for (int64_t oy = 0; oy < c.out_height; oy++) {
        for (int64_t ox = 0; ox < c.out_width; ox++, at++) {
          c.y[at] = output(c, b, n, oy, ox, c.finish.offset[c.finish.offset_full ? at : 0]);
        }
      }
    }
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
