// The oracle of the convolution in panels: one output at a time, serially and in double precision.
#include "registry.h"

namespace exprune {
namespace scalar {

namespace {

// One panel at one position.
struct PanelAt {
  const PanelConvCall& call;
  const ConvCall& c;
  int64_t image, panel, row, column;

  // The output of a lane, or -1.
  int64_t output(int64_t lane) const {
    const int64_t slot = panel * kPanelChannels + lane;
    if (slot >= c.staged.outputs) return -1;
    return call.channels ? call.channels[slot] : slot;
  }

  int64_t index(int64_t n) const {
    return ((image * c.staged.outputs + n) * c.out_height + row) * c.out_width + column;
  }

  double offset(int64_t n) const {
    return static_cast<double>(c.staged.bias[n]) + c.finish.offset[c.finish.offset_full ? index(n) : 0];
  }

  // Sum of a lane over the groups begin .. end of the reduction.
  double part(int64_t lane, int64_t begin, int64_t end) const {
    const Staged& p = c.staged;
    double sum = 0;
    for (int64_t t = 0; t < p.taps; t++) {
      const int64_t y = row * c.stride_h - c.pad_top + t / c.kernel_w * c.dilation_h;
      const int64_t x = column * c.stride_w - c.pad_left + t % c.kernel_w * c.dilation_w;
      if (y < 0 || y >= c.height || x < 0 || x >= c.width) continue;
      const float* w = p.head + (panel * p.taps + t) * p.groups * kPanelChannels + lane;
      for (int64_t g = begin; g < end; g++) {
        const float* channel = c.x + (image * p.groups + (p.order ? p.order[g] : g)) * c.height * c.width;
        sum += static_cast<double>(w[g * kPanelChannels]) * channel[y * c.width + x];
      }
    }
    return sum;
  }

  void run() const {
    const Staged& p = c.staged;
    double sums[kPanelChannels] = {};
    bool decided = false;
    int64_t begin = 0, used = 0;
    while (used < kPanelChannels && output(used) >= 0) used++;
    for (int64_t chunk = 0; chunk < p.chunks && !decided; chunk++) {
      for (int64_t k = 0; k < used; k++) sums[k] += part(k, begin, p.ends[chunk]);
      begin = p.ends[chunk];
      if (chunk + 1 == p.chunks) break;
      double score = 0;
      for (int64_t k = 0; k < used; k++) {
        const int64_t n = output(k), at = chunk * p.outputs + n;
        const double e = p.first[at] * sums[k] + offset(n) + p.second[at];
        score += e < 0 ? 0 : e * e;
      }
      const int64_t panels = (p.outputs + kPanelChannels - 1) / kPanelChannels;
      decided = score < p.third[chunk * panels + panel];
      if (!decided) c.survivors[chunk] += used;
    }
    for (int64_t k = 0; k < used; k++) {
      const int64_t n = output(k);
      const float value = static_cast<float>(sums[k] + offset(n));
      float y = decided || value <= 0 ? 0 : value;
      if (y > c.finish.max) y = c.finish.max;
      c.y[index(n)] = y;
    }
  }
};

}  // namespace

bool panel_conv(const PanelConvCall& call, const Env&) {
  const ConvCall& c = call.conv;
  for (int64_t s = 0; s + 1 < c.staged.chunks; s++) c.survivors[s] = 0;
  for (int64_t b = 0; b < c.batch; b++) {
    for (int64_t panel = 0; panel * kPanelChannels < c.staged.outputs; panel++) {
      for (int64_t row = 0; row < c.out_height; row++) {
        for (int64_t column = 0; column < c.out_width; column++) PanelAt{call, c, b, panel, row, column}.run();
      }
    }
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
