// The quantised estimate: every output from codes of W and X, with a sound bound on its error.
//
// x = step * (hi + lo / 254) + (rest), hi and lo in -127 .. 127. With both planes the rest is next to nothing; where
// products take the time and not the reading of codes, `lo` would cost more than the survivors that it spares.
#pragma once

#include <float.h>

#include "bytes.h"
#include "estimate.h"
#include "registry.h"
#include "simd.h"
#include "tasks.h"
#include "tests.h"

namespace exprune {
namespace EXPRUNE_ISA {

// Elements of a plane in memory: whole groups of codes.
static inline int64_t plane_length(int64_t groups) { return blocks_of(groups, kCodeGroups) * kCodeGroups; }

// Up to so many rows have two planes, of layers whose codes do not come from a cache.
#if defined(EXPRUNE_VNNI)
constexpr int64_t kTwoPlaneRows = 4;
#else
constexpr int64_t kTwoPlaneRows = 2;
#endif
constexpr int kMostPlanes = Byte::kVectors;          // planes of the rows of a pass
constexpr float kLowest = 1e-30f, kHighest = 1e30f;  // of max |x|: norms and steps stay normal numbers

static inline bool codes_are_cached(const Quantized& layer) {
  return times(layer.outputs, layer.groups) <= kCachedCodes;
}

// A row of X.
struct QuantizedRow {
  float step;       // of `hi`; of `lo` it is step / 254
  float norm;       // >= ||x||
  float error;      // >= ||x - x^||
  int32_t sums[2];  // of the planes
  bool usable;      // otherwise no estimate holds: all of the row survives
};

static inline V round_to_integer(V v) {
  const V magic = splat(12582912.0f);  // 1.5 * 2^23
  return (v + magic) - magic;
}

static inline void store_plane(int8_t* p, V v) {
  typedef int8_t Narrow __attribute__((vector_size(EXPRUNE_LANES)));
  const Narrow narrow = __builtin_convertvector(__builtin_convertvector(v, I), Narrow);
  memcpy(p, &narrow, sizeof(narrow));
}

// Fills planes[0 .. count) of plane_length(groups) each.
static inline QuantizedRow quantize_row(const float* x, int64_t groups, int count, int8_t* const* planes) {
  QuantizedRow row = {};
  V top = {};
  I finite = splat(-1);
  const auto at = [&](int64_t i) {
    return load_up_to(x + i, groups - i);
  };
  for (int64_t i = 0; i < groups; i += kLanes) {
    const V a = absolute(at(i));
    finite &= reinterpret_cast<I>(a <= splat(FLT_MAX));  // false for a NaN
    top = select(a > top, a, top);
  }
  float most = 0;
  for (int lane = 0; lane < kLanes; lane++) most = top[lane] > most ? top[lane] : most;
  const bool all = bits(~finite) == 0;
  row.usable = all && (most == 0 || (most >= kLowest && most <= kHighest));
  const float inverse = row.usable && most > 0 ? 127.0f / most : 0.0f;
  if (!row.usable) return row;

  V squares = {}, rests = {};
  I sum_hi = {}, sum_lo = {};
  for (int64_t i = 0; i < plane_length(groups); i += kLanes) {
    const V u = i < groups ? at(i) * splat(inverse) : V{};
    const V hi = round_to_integer(u);
    V rest = u - hi;
    store_plane(planes[0] + i, hi);
    sum_hi += __builtin_convertvector(hi, I);
    if (count == 2) {
      const V lo = round_to_integer(rest * splat(254.0f));
      store_plane(planes[1] + i, lo);
      sum_lo += __builtin_convertvector(lo, I);
      rest -= lo * splat(1.0f / 254.0f);
    }
    squares += u * u;
    rests += rest * rest;
  }
  for (int lane = 0; lane < kLanes; lane++) {
    row.sums[0] += sum_hi[lane];
    row.sums[1] += sum_lo[lane];
  }
  row.step = most / 127.0f;
  // A float sum of G squares errs by less than G 2^-24 of itself; so do a few roundings on the way.
  const float up = 1.0f + static_cast<float>(groups + 64) * 6e-8f;
  row.norm = row.step * square_root(sum(squares)) * up;
  // u is x / step up to 4 roundings: 1e-6 of ||x||, added to what the planes leave over.
  row.error = row.step * square_root(sum(rests)) * up + 1e-6f * row.norm;
  return row;
}

// All rows of a call (or of a part of it).
struct QuantizedInput {
  int64_t groups;
  int planes;          // of a row
  int8_t* memory;      // [rows][planes][plane_length(groups)]
  QuantizedRow* rows;  // [rows]

  int8_t* plane(int64_t row, int which) const {
    return memory + (row * planes + which) * plane_length(groups);
  }
  void carve(Carver& carver, int64_t count, const Quantized& layer) {
    groups = layer.groups;
    planes = count <= kTwoPlaneRows && !codes_are_cached(layer) ? 2 : 1;
    memory = carver.take<int8_t>(count * planes * plane_length(groups));
    rows = carver.take<QuantizedRow>(count);
  }
  void fill(const float* x, int64_t first, int64_t count) const {
    for (int64_t r = first; r < first + count; r++) {
      int8_t* const both[2] = {plane(r, 0), planes == 2 ? plane(r, 1) : nullptr};
      rows[r] = quantize_row(x + r * groups, groups, planes, both);
    }
  }
  int64_t rows_per_pass() const { return kMostPlanes / planes; }
};

constexpr int64_t kQuantizeRows = 4;         // rows of a task
constexpr int64_t kQuantizeAlone = 1 << 15;  // elements of X that are not worth other threads

// Codes for rows of X.
struct QuantizedFill {
  const QuantizedInput* in;
  const float* x;
  int64_t rows;

  static void task(void* user, size_t index) {
    const QuantizedFill& f = *static_cast<const QuantizedFill*>(user);
    const int64_t first = static_cast<int64_t>(index) * kQuantizeRows;
    f.in->fill(f.x, first, min_of(kQuantizeRows, f.rows - first));
  }
};

// Too much of every product, times x: see Coding::kZero.
static inline int32_t zero_point(const Quantized& layer) {
  return layer.bits == 6 ? Codes6::kZero : Codes8::kZero;
}

template <class Coding>
static inline void byte_sums_of(const uint8_t* codes, int64_t groups, int64_t blocks,
                                const int8_t* const* planes, int64_t vectors, bool fetch, int64_t stride,
                                int32_t* sums) {
  if (vectors == 1) {
    byte_dots<Coding, 1>(codes, groups, blocks, planes, fetch, stride, sums);
  } else if (vectors == 2) {
    byte_dots<Coding, 2>(codes, groups, blocks, planes, fetch, stride, sums);
  } else if (vectors <= 4) {
    byte_dots<Coding, 4>(codes, groups, blocks, planes, fetch, stride, sums);
  } else {
    byte_dots<Coding, kMostPlanes>(codes, groups, blocks, planes, fetch, stride, sums);
  }
}

// Exact integer sums of `outputs` outputs, the first one starting a block, with rows first .. first + count
// (at most rows_per_pass) of X; sums is [kMostPlanes][stride], row r's planes being at r * planes.
static inline void byte_sums(const Quantized& layer, int64_t first_output, int64_t outputs,
                             const QuantizedInput& in, int64_t first, int64_t count, int64_t stride,
                             int32_t* sums) {
  const int8_t* planes[kMostPlanes];
  const int64_t vectors = count * in.planes;
  // Missing vectors are the last one again: their sums fall on rows that nobody reads.
  for (int64_t v = 0; v < kMostPlanes; v++) {
    const int64_t used = min_of(v, vectors - 1);
    planes[v] = in.plane(first + used / in.planes, static_cast<int>(used % in.planes));
  }
  const int64_t bytes = blocks_of(layer.groups, kCodeGroups) * 32 * layer.bits;
  const uint8_t* codes = layer.codes + first_output / kQuantizedBlock * bytes;
  const int64_t blocks = blocks_of(outputs, kQuantizedBlock);
  const bool fetch = !codes_are_cached(layer);
  if (layer.bits == 6) {
    byte_sums_of<Codes6>(codes, layer.groups, blocks, planes, vectors, fetch, stride, sums);
  } else {
    byte_sums_of<Codes8>(codes, layer.groups, blocks, planes, vectors, fetch, stride, sums);
  }
}

// `used` lanes are wanted; offset is the computed offset. sums is the row's, by plane, at output n.
static inline Estimate estimate(const Quantized& layer, int64_t n, int64_t used, const QuantizedRow& row,
                                int planes, const int32_t* sums, int64_t stride, V offset) {
  const auto at = [&](const float* p) { return load_up_to(p + n, used); };
  const V bias = at(layer.bias);
  const int32_t zero = zero_point(layer);
  V value = __builtin_convertvector(load(sums) - splat(zero * row.sums[0]), V);
  if (planes == 2) {
    value +=
        __builtin_convertvector(load(sums + stride) - splat(zero * row.sums[1]), V) * splat(1.0f / 254.0f);
  }
  Estimate e;
  e.value = value * (at(layer.scale) * splat(row.step)) + (bias + offset);
  const V rounding = splat(offset_rounding(layer.groups)) * (absolute(bias) + absolute(offset)) + splat(kUnderflow);
  const V radius = at(layer.error) * splat(row.norm) + at(layer.norm) * splat(row.error) + rounding;
  e.reach = sound(radius);
  return e;
}

// The quantised estimate as a source of estimates; see estimated_gemm.h.
struct QuantizedSource {
  static constexpr bool kSound = true;  // |exact - value| <= reach for certain
  const Quantized* layer;
  QuantizedInput in;

  void carve(Carver& carver, int64_t rows) { in.carve(carver, rows, *layer); }
  bool fill(const float* x, int64_t rows, const Env& env) const {
    QuantizedFill f = {&in, x, rows};
    return run_tasks(env, rows * in.groups <= kQuantizeAlone, blocks_of(rows, kQuantizeRows),
                     QuantizedFill::task, &f);
  }
  int64_t rows_per_pass() const { return in.rows_per_pass(); }
  bool usable(int64_t row) const { return in.rows[row].usable; }
  static size_t scratch_bytes(int64_t outputs) {
    return static_cast<size_t>(kMostPlanes * outputs) * sizeof(int32_t);
  }

  // Calls take(row, i, used, estimate) for vectors of outputs first + i of rows first_row .. + count. The
  // scratch is for `stride` outputs; offset(row, n, used) is the computed offset.
  template <class Offset, class Take>
  void estimates(int64_t first, int64_t outputs, int64_t first_row, int64_t count, int64_t stride,
                 char* scratch, const Offset& offset, const Take& take) const {
    int32_t* sums = reinterpret_cast<int32_t*>(scratch);
    byte_sums(*layer, first, outputs, in, first_row, count, stride, sums);
    // Copies: what is stored below might be these, for all the compiler knows.
    const Quantized weights = *layer;
    const int planes = in.planes;
    for (int64_t r = 0; r < count; r++) {
      const int64_t row = first_row + r;
      const int32_t* const row_sums = sums + r * planes * stride;
      const QuantizedRow codes = in.rows[row];
      const auto one = [&](int64_t i, int64_t used) {
        take(row, i, used,
             estimate(weights, first + i, used, codes, planes, row_sums + i, stride, offset(row, first + i, used)));
      };
      int64_t i = 0;
      for (; i + kLanes <= outputs; i += kLanes) one(i, kLanes);
      if (i < outputs) one(i, outputs - i);
    }
  }
};

}  // namespace EXPRUNE_ISA
}  // namespace exprune
