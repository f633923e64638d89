// Where a convolution's taps are read: made once for a shape of X and kept by the node.
//
// A channel of X is packed as a plane in which every tap of a run of output positions is a run of
// neighbours: tap t of output position p (row by row) lies at offsets[t] + p. For this the plane holds one
// copy of the channel per column of the kernel, shifted, and one per row phase of the stride; a convolution
// over one axis slides along its row and needs one copy per phase only. Padding becomes zeros, and a
// vector of positions whose tap is all padding is skipped.
#pragma once

#include <stdlib.h>

#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

// Vectors of positions in one pass of the product, at most.
#if EXPRUNE_LANES == 16 || defined(__aarch64__)
constexpr int kMostVectors = 4;
#else
constexpr int kMostVectors = 2;
#endif

// A packed vector: lane i holds channel[base + i] where bit i of mask is set, or channel[gather[i]] where
// gather is not null and gather[i] >= 0; else 0.
struct PackedVector {
  int32_t at;    // in the plane
  int32_t base;  // in the channel
  uint32_t mask;
  int32_t gather;  // first of its indices, or -1
  uint32_t near;   // of a gathered one: which of the 2 * kLanes elements from base on are used, 0: farther apart
};

// Taps first .. first + count of the vectors begin .. end of a tile; outside is padding.
struct Segment {
  int32_t first, count, begin, end;
};

// All that a plan depends on: two calls with an equal one share a plan.
struct GeometryKey {
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  int64_t block;
};

struct BlockGeometry {
  GeometryKey key;

  int64_t positions;          // of an image
  int64_t block_positions;    // block, or the positions of an image if those are fewer
  int64_t blocks;             // of an image
  int64_t vectors;            // of a block
  int64_t tiles;              // of a block
  int64_t plane;              // floats
  int64_t packed;             // packed vectors
  int32_t* offsets;           // [T]
  PackedVector* list;         // [packed]
  int32_t* gathers;           // [packed * kLanes], as far as used
  int32_t* segment_ends;      // [blocks * tiles + 1]
  Segment* segments;

  // First vector of a tile, and how many it has: kMostVectors, at the end of a block fewer.
  static int64_t tile_begin(int64_t tile) { return tile * kMostVectors; }
  int tile_vectors(int64_t tile) const {
    return static_cast<int>(min_of(kMostVectors, vectors - tile * kMostVectors));
  }
};

static inline int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// The elements that a vector gathers. Where they lie within two vectors, as with a stride of 2, those are
// loaded (only the lanes that are used: others may lie outside the tensor) and permuted.
static inline V gather_near(const BlockGeometry& g, const PackedVector& v, const float* in) {
  const I index = load(g.gathers + v.gather);
#if EXPRUNE_LANES == 16
  if (v.near) {
    const float* base = in + v.base;
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(v.near), base);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(v.near >> 16), base + 16);
    const __m512i lane = reinterpret_cast<__m512i>(index - splat(v.base));
    return reinterpret_cast<V>(_mm512_maskz_permutex2var_ps(static_cast<__mmask16>(v.mask), low, lane, high));
  }
#endif
  return gather(in, index);
}

// What making a plan shares between its steps.
struct GeometryMaker {
  const ConvCall& c;
  bool one_axis;
  int64_t rows, copies;  // rows of a copy (two axes)
  int64_t remainders;    // how many remainders a tap's reach can have, divided by the stride
  int64_t phases;        // how many it has

  explicit GeometryMaker(const ConvCall& call) : c(call) {
    one_axis = c.height == 1 && c.kernel_h == 1 && c.out_height == 1 && c.pad_top == 0;
    if (one_axis) {
      remainders = c.stride_w / common_divisor(c.stride_w, c.dilation_w);
      phases = min_of(remainders, c.kernel_w);
      copies = 1;
      rows = 1;
    } else {
      remainders = c.stride_h / common_divisor(c.stride_h, c.dilation_h);
      phases = min_of(remainders, c.kernel_h);
      copies = c.kernel_w;
      rows = c.out_height + (c.kernel_h - 1) * c.dilation_h / c.stride_h;
    }
  }

  // Width of a row of a copy: of an output row, longer by the kernel's reach where taps slide along it.
  int64_t row() const {
    return one_axis ? c.out_width + (c.kernel_w - 1) * c.dilation_w / c.stride_w : c.out_width;
  }

  // Taps with the same remainder share a copy; 0 <= result < phases.
  int64_t phase_of(int64_t tap) const {
    const int64_t stride = one_axis ? c.stride_w : c.stride_h;
    const int64_t dilation = one_axis ? c.dilation_w : c.dilation_h;
    return phases < remainders ? tap : tap * dilation % stride / (stride / remainders);
  }

  // Marks what every element of the plane holds: an index into the channel, or -1.
  void fill(int32_t* index, int64_t plane, int32_t* offsets) const {
    for (int64_t i = 0; i < plane; i++) index[i] = -1;
    const int64_t size = rows * row();
    if (one_axis) {
      for (int64_t k = 0; k < c.kernel_w; k++) {
        const int64_t reach = k * c.dilation_w, phase = phase_of(k);
        offsets[k] = static_cast<int32_t>(phase * size + reach / c.stride_w);
        for (int64_t i = 0; i < size; i++) {
          const int64_t x = i * c.stride_w + reach % c.stride_w - c.pad_left;
          if (x >= 0 && x < c.width) index[phase * size + i] = static_cast<int32_t>(x);
        }
      }
      return;
    }
    for (int64_t ky = 0; ky < c.kernel_h; ky++) {
      const int64_t reach = ky * c.dilation_h, phase = phase_of(ky);
      for (int64_t kx = 0; kx < c.kernel_w; kx++) {
        const int64_t start = (kx * phases + phase) * size;
        offsets[ky * c.kernel_w + kx] = static_cast<int32_t>(start + reach / c.stride_h * c.out_width);
        for (int64_t r = 0; r < rows; r++) {
          const int64_t y = r * c.stride_h + reach % c.stride_h - c.pad_top;
          if (y < 0 || y >= c.height) continue;
          for (int64_t ox = 0; ox < c.out_width; ox++) {
            const int64_t x = ox * c.stride_w - c.pad_left + kx * c.dilation_w;
            if (x >= 0 && x < c.width) {
              index[start + r * c.out_width + ox] = static_cast<int32_t>(y * c.width + x);
            }
          }
        }
      }
    }
  }
};

// Packed vectors of a plane whose elements are `index`.
static inline void list_vectors(const int32_t* index, BlockGeometry& g) {
  int64_t gathers = 0;
  g.packed = 0;
  for (int64_t at = 0; at < g.plane; at += kLanes) {
    PackedVector v = {static_cast<int32_t>(at), 0, 0, -1, 0};
    bool run = true;
    for (int i = 0; i < kLanes; i++) {
      const int32_t from = index[at + i];
      if (from < 0) continue;
      if (!v.mask) v.base = from - i;
      v.mask |= 1u << i;
      run = run && from - i == v.base;
    }
    if (!run) {
      v.gather = static_cast<int32_t>(gathers);
      v.base = INT32_MAX;
      for (int i = 0; i < kLanes; i++) {
        g.gathers[gathers++] = index[at + i];
        if (index[at + i] >= 0 && index[at + i] < v.base) v.base = index[at + i];
      }
      bool near = kLanes == 16;
      for (int i = 0; i < kLanes && near; i++) {
        const int32_t lane = index[at + i] - v.base;
        if (index[at + i] < 0) continue;
        near = lane < 32;
        v.near |= 1u << (lane & 31);
      }
      if (!near) v.near = 0;
    }
    g.list[g.packed++] = v;
  }
}

// The segments of one tile: taps with the same vectors that read more than padding.
static inline int64_t list_segments(const int32_t* index, const BlockGeometry& g, int64_t taps, int64_t block,
                                    int64_t tile, Segment* segments) {
  const int all = g.tile_vectors(tile);
  const int64_t first = block * g.block_positions + g.tile_begin(tile) * kLanes;
  int64_t count = 0, work = 0;
  for (int64_t t = 0; t < taps; t++) {
    int begin = all, end = 0;
    for (int v = 0; v < all; v++) {
      const int64_t position = first + v * kLanes;
      const int64_t used = min_of(kLanes, g.positions - position);
      bool alive = false;
      for (int64_t i = 0; i < used && !alive; i++) alive = index[g.offsets[t] + position + i] >= 0;
      if (alive) {
        if (begin == all) begin = v;
        end = v + 1;
      }
    }
    if (begin >= end) continue;
    work += end - begin;
    Segment* last = count ? segments + count - 1 : nullptr;
    if (last && last->first + last->count == t && last->begin == begin && last->end == end) {
      last->count++;
    } else {
      segments[count++] = {static_cast<int32_t>(t), 1, begin, end};
    }
  }
  // A cut costs more than the padding where that is little.
  if (work * 16 > taps * all * 15) {
    segments[0] = {0, static_cast<int32_t>(taps), 0, all};
    count = 1;
  }
  return count;
}

static inline GeometryKey key_of(const ConvCall& c, int64_t block) {
  return {c.height,   c.width,    c.out_height, c.out_width,  c.kernel_h, c.kernel_w, c.stride_h,
          c.stride_w, c.dilation_h, c.dilation_w, c.pad_top, c.pad_left, block};
}

// Floats of a plane at most: those that a tap may read of a channel, some times over. Only a reach far beyond
// the input makes more: a kernel over almost nothing but padding.
static inline int64_t most_plane(const ConvCall& c) {
  const int64_t pixels = c.height * c.width + c.out_height * c.out_width;
  return (1 << 20) + min_of(INT32_MAX, times(8 * c.staged.taps, pixels));
}

constexpr int64_t kMostSegments = 1 << 28;

// A plan in one piece of memory (free() it), or null when memory is out.
static inline BlockGeometry* make_geometry(const ConvCall& c, int64_t block) {
  const GeometryMaker maker(c);
  BlockGeometry head = {};
  head.key = key_of(c, block);
  head.positions = c.out_height * c.out_width;
  head.block_positions = min_of(block, head.positions);
  head.blocks = blocks_of(head.positions, head.block_positions);
  head.vectors = blocks_of(head.block_positions, kLanes);
  head.tiles = blocks_of(head.vectors, kMostVectors);
  int64_t plane = times(times(maker.rows, maker.row()), maker.copies * maker.phases);
  if (plane > most_plane(c)) return nullptr;
  // The last vector of the last block may reach past the plane's last run.
  plane = blocks_of(plane + head.vectors * kLanes, kLanes) * kLanes;
  if (plane > INT32_MAX) return nullptr;
  head.plane = plane;
  const int64_t taps = c.staged.taps, tiles = head.blocks * head.tiles;
  if (times(tiles, taps) > kMostSegments) return nullptr;

  BlockGeometry* plan = nullptr;
  int32_t* index = nullptr;
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan = carver.take<BlockGeometry>(1);
    head.offsets = carver.take<int32_t>(taps);
    head.list = carver.take<PackedVector>(plane / kLanes);
    head.gathers = carver.take<int32_t>(plane);
    head.segment_ends = carver.take<int32_t>(tiles + 1);
    head.segments = carver.take<Segment>(tiles * taps);
    index = carver.take<int32_t>(plane);
    return carver.used();
  };
  void* memory = nullptr;
  if (posix_memalign(&memory, kAlignment, layout(nullptr)) != 0) return nullptr;
  layout(static_cast<char*>(memory));
  maker.fill(index, plane, head.offsets);
  list_vectors(index, head);
  int64_t segments = 0;
  for (int64_t b = 0; b < head.blocks; b++) {
    for (int64_t t = 0; t < head.tiles; t++) {
      head.segment_ends[b * head.tiles + t] = static_cast<int32_t>(segments);
      segments += list_segments(index, head, taps, b, t, head.segments + segments);
    }
  }
  head.segment_ends[tiles] = static_cast<int32_t>(segments);
  *plan = head;
  return plan;
}

static inline bool fits(const BlockGeometry& g, const ConvCall& c, int64_t block) {
  const GeometryKey key = key_of(c, block);
  return memcmp(&g.key, &key, sizeof(key)) == 0;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
