// LayerNormalization of a sum in the most obvious way, in double precision. See scalar.cpp.
#include <math.h>

#include "registry.h"

namespace exprune {
namespace scalar {

bool residual_norm(const ResidualNormCall& c, const Env&) {
  for (int64_t at = 0; at < c.rows * c.width; at += c.width) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < c.width; i++) {
      c.sum[at + i] = c.x[at + i] + (c.y[at + i] + c.bias[i]);
      mean += static_cast<double>(c.sum[at + i]) / static_cast<double>(c.width);
    }
    for (int64_t i = 0; i < c.width; i++) {
      const double apart = c.sum[at + i] - mean;
      variance += apart * apart / static_cast<double>(c.width);
    }
    const double scale = 1 / sqrt(variance + c.epsilon);
    for (int64_t i = 0; i < c.width; i++) {
      c.normed[at + i] = static_cast<float>((c.sum[at + i] - mean) * scale * c.scale[i] + c.shift[i]);
    }
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
