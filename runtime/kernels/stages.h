// The staged loop over one tile: kLanes * PV positions by a block of outputs.
//
// A position is a row of a Gemm or a pixel of a Conv. A Source knows where positions come from:
//   count                        positions in use, <= kLanes * PV
//   add(chunk, tile)             adds the chunk's products to tile.sums (and tile.squares) for the outputs
//                                in tile.list, at least at the lanes that are alive
//   offset(n, v)                 the computed offset of output n at vector v of the tile
//   norms(slot)                  vectors of norms, slot s < S: after check s; slot S: of all (Bound)
//   flush(tile)                  copies Y, finished, from tile.sums to its place
#pragma once

#include "registry.h"
#include "simd.h"
#include "tests.h"

namespace exprune {
namespace EXPRUNE_ISA {

// A tile's state; arrays are [outputs of the block][PV * kLanes].
struct Tile {
  int64_t first;    // first output of the block
  int64_t outputs;  // outputs in the block
  float* sums;
  float* squares;  // Stats only
  int32_t* alive;  // lane masks
  int32_t* list;   // outputs (from `first`) with a lane alive
  int64_t listed;
};

template <int PV, class Test>
static inline Tile carve_tile(Carver& carver, int64_t outputs) {
  Tile tile = {};
  tile.outputs = outputs;
  tile.sums = carver.take<float>(outputs * PV * kLanes);
  tile.squares = Test::kSquares ? carver.take<float>(outputs * PV * kLanes) : nullptr;
  tile.alive = carver.take<int32_t>(outputs * PV * kLanes);
  tile.list = carver.take<int32_t>(outputs);
  return tile;
}

// Weights of the tile's first output in a chunk, and the distance to the next output's.
static inline const float* chunk_weights(const Staged& p, int64_t chunk, int64_t first, int64_t* stride) {
  const int64_t head = p.ends[0], tail = p.groups - head;
  if (chunk == 0) {
    *stride = head * p.taps;
    return p.head + first * *stride;
  }
  *stride = tail * p.taps;
  return p.tail + first * *stride + (p.ends[chunk - 1] - head) * p.taps;
}

static inline int64_t chunk_begin(const Staged& p, int64_t chunk) { return chunk ? p.ends[chunk - 1] : 0; }

// Tests the tile's outputs after a chunk, drops the decided ones, returns how many elements survive.
template <class Test, int PV, class Source>
static inline int64_t check(const Staged& p, int64_t check, const Source& source, Tile& tile) {
  int64_t kept = 0, survivors = 0;
  for (int64_t i = 0; i < tile.listed; i++) {
    const int32_t at = tile.list[i];
    const int64_t n = tile.first + at;
    uint32_t any = 0;
    for (int v = 0; v < PV; v++) {
      const int64_t slot = (static_cast<int64_t>(at) * PV + v) * kLanes;
      Seen seen;
      seen.partial = load(tile.sums + slot);
      seen.offset = source.offset(n, v);
      if (Test::kSquares) seen.squares = load(tile.squares + slot);
      if (Test::kNorms) {
        seen.tail_norm = load(source.norms(check) + v * kLanes);
        seen.norm = load(source.norms(p.chunks - 1) + v * kLanes);
      }
      const I alive = load(tile.alive + slot) & ~reinterpret_cast<I>(Test::prune(p, check, n, seen));
      store(tile.alive + slot, alive);
      const uint32_t lanes_alive = bits(alive);
      survivors += __builtin_popcount(lanes_alive);
      any |= lanes_alive;
    }
    tile.list[kept] = at;
    kept += any != 0;
  }
  tile.listed = kept;
  return survivors;
}

// Runs all stages of a tile and stores its Y. survivors[s] is increased.
template <class Test, int PV, class Source>
static inline void run_stages(const Staged& p, float max, Source& source, Tile& tile, int64_t* survivors) {
  const int64_t elements = tile.outputs * PV * kLanes;
  memset(tile.sums, 0, static_cast<size_t>(elements) * sizeof(float));
  if (Test::kSquares) memset(tile.squares, 0, static_cast<size_t>(elements) * sizeof(float));
  I used[PV];
  for (int v = 0; v < PV; v++) used[v] = lanes() + v * kLanes < splat(static_cast<int32_t>(source.count));
  for (int64_t i = 0; i < tile.outputs; i++) {
    for (int v = 0; v < PV; v++) store(tile.alive + (i * PV + v) * kLanes, used[v]);
    tile.list[i] = static_cast<int32_t>(i);
  }
  tile.listed = tile.outputs;

  for (int64_t chunk = 0; chunk < p.chunks && tile.listed; chunk++) {
    source.add(chunk, tile);
    if (chunk + 1 < p.chunks) survivors[chunk] += check<Test, PV>(p, chunk, source, tile);
  }

  for (int64_t i = 0; i < tile.outputs; i++) {
    const int64_t n = tile.first + i;
    for (int v = 0; v < PV; v++) {
      const int64_t slot = (i * PV + v) * kLanes;
      V y = load(tile.sums + slot) + (splat(p.bias[n]) + source.offset(n, v));
      y = select(y <= V{}, V{}, y);  // a NaN is not <= 0 and stays
      y = select(y > splat(max), splat(max), y);
      store(tile.sums + slot, select(load(tile.alive + slot), y, V{}));
    }
  }
  source.flush(tile);
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
