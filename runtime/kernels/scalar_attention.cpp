// Attention over a cache in the most obvious way, in double precision. See scalar.cpp.
#include <math.h>
#include <string.h>

#include "registry.h"

namespace exprune {
namespace scalar {

// The new rows of one head, query (0), keys (1) or values (2), with their bias.
static double new_value(const AttentionCall& c, int64_t b, int64_t h, int64_t s, int part, int64_t i) {
  const int64_t n = (part * c.heads + h) * c.size + i;
  return static_cast<float>(static_cast<double>(c.x[(b * c.length + s) * 3 * c.heads * c.size + n]) + c.bias[n]);
}

static void join(const AttentionCall& c, int64_t b, int64_t h, int part, const float* past, float* all) {
  const int64_t at = b * c.heads + h, whole = c.past + c.length;
  memcpy(all + at * whole * c.size, past + at * c.past * c.size, static_cast<size_t>(c.past * c.size) * sizeof(float));
  for (int64_t s = 0; s < c.length; s++) {
    for (int64_t i = 0; i < c.size; i++) {
      all[(at * whole + c.past + s) * c.size + i] = static_cast<float>(new_value(c, b, h, s, part, i));
    }
  }
}

bool attention(const AttentionCall& c, const Env& env) {
  const int64_t whole = c.past + c.length;
  Lease scratch(*env.per_call, static_cast<size_t>(whole) * sizeof(double));
  double* scores = reinterpret_cast<double*>(scratch.data());
  if (!scores) return false;
  for (int64_t b = 0; b < c.batch; b++) {
    for (int64_t h = 0; h < c.heads; h++) {
      join(c, b, h, 1, c.past_key, c.key);
      join(c, b, h, 2, c.past_value, c.value);
      const float* keys = c.key + (b * c.heads + h) * whole * c.size;
      const float* values = c.value + (b * c.heads + h) * whole * c.size;
      for (int64_t s = 0; s < c.length; s++) {
        double most = -INFINITY, total = 0;
        for (int64_t t = 0; t < whole; t++) {
          double dot = 0;
          for (int64_t i = 0; i < c.size; i++) dot += new_value(c, b, h, s, 0, i) * keys[t * c.size + i];
          scores[t] = c.scale * dot;
          most = scores[t] > most ? scores[t] : most;
        }
        for (int64_t t = 0; t < whole; t++) total += scores[t] = exp(scores[t] - most);
        for (int64_t i = 0; i < c.size; i++) {
          double sum = 0;
          for (int64_t t = 0; t < whole; t++) sum += scores[t] / total * values[t * c.size + i];
          c.y[((b * c.length + s) * c.heads + h) * c.size + i] = static_cast<float>(sum);
        }
      }
    }
  }
  return true;
}

}  // namespace scalar
}  // namespace exprune
