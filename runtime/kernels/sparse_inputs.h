// Which inputs of a SparseGemm are not 0.
#pragma once

#include "ordered_dots.h"
#include "registry.h"
#include "simd.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kSparseDepth = kSumDepth;  // rows of W of a chunk

// The inputs of some rows of X that are not 0.
struct SparseInputs {
  const SparseGemmCall* call;
  int64_t first, rows;  // of X
  int64_t chunks;
  int32_t* lists;      // [rows][list_size()], by chunk
  int32_t* counts;     // [chunks][rows]
  int32_t* any;        // [list_size()], by chunk: not 0 in some row
  int32_t* any_count;  // [chunks]
  std::atomic<int64_t> survivors{0};

  // K and what append_lanes writes beyond.
  int64_t list_size() const { return blocks_of(call->depth, kLanes) * kLanes; }

  // Rows of W that have to be read.
  int64_t needed() const {
    int64_t count = 0;
    for (int64_t c = 0; c < chunks; c++) count += any_count[c];
    return count;
  }

  // A bit for each of the first n of a vector's inputs that is not 0; a NaN is not.
  static uint32_t not_zero(const float* x, int64_t n) {
    return ~bits(reinterpret_cast<I>(load_up_to(x, n) == V{})) & (~0u >> (32 - kLanes));
  }

  // Adds a row's inputs that are not 0 to the survivors.
  static void count_task(void* user, size_t index) {
    auto& inputs = *static_cast<SparseInputs*>(user);
    const int64_t depth = inputs.call->depth;
    const float* const x = inputs.call->x + (inputs.first + static_cast<int64_t>(index)) * depth;
    int64_t count = 0;
    for (int64_t k = 0; k < depth; k += kLanes) {
      count += __builtin_popcount(not_zero(x + k, depth - k));
    }
    inputs.survivors.fetch_add(count, std::memory_order_relaxed);
  }

  void carve(Carver& carver, int64_t most_rows) {
    lists = carver.take<int32_t>(most_rows * list_size());
    counts = carver.take<int32_t>(chunks * most_rows);
    any = carver.take<int32_t>(list_size());
    any_count = carver.take<int32_t>(chunks);
  }

  static void chunk_task(void* user, size_t index) {
    static_cast<SparseInputs*>(user)->fill(static_cast<int64_t>(index));
  }

  void fill(int64_t chunk) {
    const int64_t depth = call->depth, begin = chunk * kSparseDepth,
                  end = min_of(begin + kSparseDepth, depth);
    int32_t* const count = counts + chunk * rows;
    memset(count, 0, static_cast<size_t>(rows) * sizeof(int32_t));
    int64_t together = 0;
    for (int64_t k = begin; k < end; k += kLanes) {
      uint32_t some = 0;
      for (int64_t r = 0; r < rows; r++) {
        const uint32_t alive = not_zero(call->x + (first + r) * depth + k, end - k);
        some |= alive;
        int32_t* const list = lists + r * list_size() + begin;
        count[r] += static_cast<int32_t>(append_lanes(list + count[r], static_cast<int32_t>(k), alive));
      }
      together += append_lanes(any + begin + together, static_cast<int32_t>(k), some);
    }
    any_count[chunk] = static_cast<int32_t>(together);
    int64_t total = 0;
    for (int64_t r = 0; r < rows; r++) total += count[r];
    survivors.fetch_add(total, std::memory_order_relaxed);
  }
};

}  // namespace EXPRUNE_ISA
}  // namespace exprune
