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
  int32_t sums[2];  // of planes of 8 bits
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

// As 16 bits, of each four elements the middle ones swapped; see wide_dots.
static inline void store_wide_plane(int8_t* p, V v) {
  typedef int16_t Narrow __attribute__((vector_size(2 * EXPRUNE_LANES)));
  typedef uint64_t Fours __attribute__((vector_size(2 * EXPRUNE_LANES)));
  const Fours fours = reinterpret_cast<Fours>(__builtin_convertvector(__builtin_convertvector(v, I), Narrow));
  constexpr uint64_t kOuter = 0xffff00000000ffff, kSecond = 0xffff0000;
  const Fours swapped = (fours & kOuter) | (fours & kSecond) << 16 | (fours >> 16 & kSecond);
  memcpy(p, &swapped, sizeof(swapped));
}

// How a row is coded: with steps of max |x| / most, in one or two planes of 8 bits, or one of 16.
struct Planes {
  int count;
  bool wide;
  int32_t most;

  int64_t bytes(int64_t groups) const { return plane_length(groups) * (wide ? 2 : 1); }
};

static inline Planes planes_for(const Quantized& layer, int64_t rows) {
#if EXPRUNE_WIDE_PLANES
  // G products with codes of -128 .. 127 stay below 2^31.
  if (layer.bits == 8) return {1, true, static_cast<int32_t>(min_of(INT16_MAX, INT32_MAX / (128 * layer.groups)))};
#endif
  return {rows <= kTwoPlaneRows && !codes_are_cached(layer) ? 2 : 1, false, 127};
}

// Fills the planes at memory[0], memory[1].
static inline QuantizedRow quantize_row(const float* x, int64_t groups, Planes planes, int8_t* const* memory) {
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
  float highest = 0;
  for (int lane = 0; lane < kLanes; lane++) highest = top[lane] > highest ? top[lane] : highest;
  const bool all = bits(~finite) == 0;
  row.usable = all && (highest == 0 || (highest >= kLowest && highest <= kHighest));
  const float most = static_cast<float>(planes.most);
  const float inverse = row.usable && highest > 0 ? most / highest : 0.0f;
  if (!row.usable) return row;

  V squares = {}, rests = {};
  I sum_hi = {}, sum_lo = {};
  for (int64_t i = 0; i < plane_length(groups); i += kLanes) {
    const V u = i < groups ? at(i) * splat(inverse) : V{};
    const V hi = round_to_integer(u);
    V rest = u - hi;
    if (planes.wide) {
      store_wide_plane(memory[0] + 2 * i, hi);
    } else {
      store_plane(memory[0] + i, hi);
      sum_hi += __builtin_convertvector(hi, I);
    }
    if (planes.count == 2) {
      const V lo = round_to_integer(rest * splat(254.0f));
      store_plane(memory[1] + i, lo);
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
  row.step = highest / most;
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
  Planes planes;       // of a row
  int8_t* memory;      // [rows][planes.count][planes.bytes(groups)]
  QuantizedRow* rows;  // [rows]

  int8_t* plane(int64_t row, int which) const {
    return memory + (row * planes.count + which) * planes.bytes(groups);
  }
  void carve(Carver& carver, int64_t count, const Quantized& layer) {
    groups = layer.groups;
    planes = planes_for(layer, count);
    memory = carver.take<int8_t>(count * planes.count * planes.bytes(groups));
    rows = carver.take<QuantizedRow>(count);
  }
  void fill(const float* x, int64_t first, int64_t count) const {
    for (int64_t r = first; r < first + count; r++) {
      int8_t* const both[2] = {plane(r, 0), planes.count == 2 ? plane(r, 1) : nullptr};
      rows[r] = quantize_row(x + r * groups, groups, planes, both);
    }
  }
  int64_t rows_per_pass() const { return kMostPlanes / planes.count; }
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
// (at most rows_per_pass) of X; sums is [kMostPlanes][stride], row r's planes being at r * planes.count.
static inline void byte_sums(const Quantized& layer, int64_t first_output, int64_t outputs,
                             const QuantizedInput& in, int64_t first, int64_t count, int64_t stride,
                             int32_t* sums) {
  const int8_t* planes[kMostPlanes];
  const int64_t vectors = count * in.planes.count;
  // Missing vectors are the last one again: their sums fall on rows that nobody reads.
  for (int64_t v = 0; v < kMostPlanes; v++) {
    const int64_t used = min_of(v, vectors - 1);
    planes[v] = in.plane(first + used / in.planes.count, static_cast<int>(used % in.planes.count));
  }
  const int64_t bytes = blocks_of(layer.groups, kCodeGroups) * 32 * layer.bits;
  const uint8_t* codes = layer.codes + first_output / kQuantizedBlock * bytes;
  const int64_t blocks = blocks_of(outputs, kQuantizedBlock);
  const bool fetch = !codes_are_cached(layer);
#if EXPRUNE_WIDE_PLANES
  if (in.planes.wide) {
    const int16_t* wide[kMostPlanes];
    for (int v = 0; v < kMostPlanes; v++) wide[v] = reinterpret_cast<const int16_t*>(planes[v]);
    const auto dots = vectors == 1 ? wide_dots<1> : vectors == 2 ? wide_dots<2> : wide_dots<kMostPlanes>;
    return dots(codes, layer.groups, blocks, wide, fetch, stride, sums);
  }
#endif
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
    const int planes = in.planes.count;
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
