// Vectors of EXPRUNE_LANES floats, on GNU vector extensions with intrinsics where those fall short.
//
// Included once per instruction set, inside namespace exprune::EXPRUNE_ISA: everything here and in the
// other kernel headers is compiled for that set, and must not leak out (no shared inline functions).
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if EXPRUNE_LANES > 4
#include <immintrin.h>
#endif

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int kLanes = EXPRUNE_LANES;

typedef float V __attribute__((vector_size(4 * EXPRUNE_LANES)));
typedef int32_t I __attribute__((vector_size(4 * EXPRUNE_LANES)));  // a mask: 0 or -1 per lane
typedef float Vu __attribute__((vector_size(4 * EXPRUNE_LANES), aligned(4), may_alias));
typedef int32_t Iu __attribute__((vector_size(4 * EXPRUNE_LANES), aligned(4), may_alias));

static inline V load(const float* p) { return *reinterpret_cast<const Vu*>(p); }
static inline I load(const int32_t* p) { return *reinterpret_cast<const Iu*>(p); }
static inline void store(float* p, V v) { *reinterpret_cast<Vu*>(p) = v; }
static inline void store(int32_t* p, I v) { *reinterpret_cast<Iu*>(p) = v; }

static inline V splat(float s) { return s - V{}; }
static inline I splat(int32_t s) { return s - I{}; }

static inline I lanes() {
  I v;
  for (int i = 0; i < kLanes; i++) v[i] = i;
  return v;
}

static inline V select(I mask, V yes, V no) {
  return reinterpret_cast<V>((reinterpret_cast<I>(yes) & mask) | (reinterpret_cast<I>(no) & ~mask));
}

// The first n of the lanes, zeros in the others; 0 <= n < kLanes.
static inline V load_first(const float* p, int64_t n) {
#if EXPRUNE_LANES == 16
  return reinterpret_cast<V>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
#else
  float t[kLanes] = {};
  memcpy(t, p, static_cast<size_t>(n) * sizeof(float));
  return load(t);
#endif
}

// As many lanes as n says, all of them if it says more.
static inline V load_up_to(const float* p, int64_t n) { return n >= kLanes ? load(p) : load_first(p, n); }
static inline void store_up_to(float* p, V v, int64_t n) {
  if (n >= kLanes) return store(p, v);
  for (int64_t i = 0; i < n; i++) p[i] = v[i];
}

// The lanes whose bit is set, zeros in the others; nothing else is read.
static inline V load_masked(const float* p, uint32_t lane_bits) {
  if (lane_bits == (1u << kLanes) - 1) return load(p);
#if EXPRUNE_LANES == 16
  return reinterpret_cast<V>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(lane_bits), p));
#else
  V v = {};
  for (int i = 0; i < kLanes; i++) {
    if (lane_bits >> i & 1) v[i] = p[i];
  }
  return v;
#endif
}

// One bit per lane.
static inline uint32_t bits(I mask) {
#if EXPRUNE_LANES == 16
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif EXPRUNE_LANES == 8
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  uint32_t b = 0;
  for (int i = 0; i < kLanes; i++) b |= (static_cast<uint32_t>(mask[i]) & 1u) << i;
  return b;
#endif
}

#if EXPRUNE_LANES == 8
// The lanes whose bit is set, a byte each, for every byte of bits.
struct LaneLists {
  uint64_t lists[256];
  constexpr LaneLists() : lists() {
    for (uint32_t set = 0; set < 256; set++) {
      int at = 0;
      for (uint64_t lane = 0; lane < 8; lane++) {
        if (set >> lane & 1) lists[set] |= lane << (8 * at++);
      }
    }
  }
};
static constexpr LaneLists kLaneLists;
#endif

// Appends first + lane to a list for every lane whose bit is set; returns how many. Beyond them kLanes - 1 more
// elements of the list may be written.
static inline int64_t append_lanes(int32_t* list, int32_t first, uint32_t lane_bits) {
#if EXPRUNE_LANES == 16
  const __m512i which = reinterpret_cast<__m512i>(lanes() + splat(first));
  _mm512_storeu_si512(list, _mm512_maskz_compress_epi32(static_cast<__mmask16>(lane_bits), which));
  return __builtin_popcount(lane_bits);
#elif EXPRUNE_LANES == 8
  const __m128i which = _mm_cvtsi64_si128(static_cast<int64_t>(kLaneLists.lists[lane_bits]));
  store(list, reinterpret_cast<I>(_mm256_cvtepu8_epi32(which)) + splat(first));
  return __builtin_popcount(lane_bits);
#else
  int64_t count = 0;
  for (; lane_bits; lane_bits &= lane_bits - 1) list[count++] = first + __builtin_ctz(lane_bits);
  return count;
#endif
}

// base[offset] per lane; 0 where the offset is negative (padding).
static inline V gather(const float* base, I offset) {
#if EXPRUNE_LANES == 16
  const __m512i o = reinterpret_cast<__m512i>(offset);
  const __mmask16 inside = static_cast<__mmask16>(~_mm512_movepi32_mask(o));
  return reinterpret_cast<V>(_mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, o, base, 4));
#elif EXPRUNE_LANES == 8
  const __m256i o = reinterpret_cast<__m256i>(offset);
  const __m256 inside = reinterpret_cast<__m256>(~(offset >> 31));
  return reinterpret_cast<V>(_mm256_mask_i32gather_ps(_mm256_setzero_ps(), base, o, inside, 4));
#else
  V v;
  for (int i = 0; i < kLanes; i++) v[i] = offset[i] < 0 ? 0.0f : base[offset[i]];
  return v;
#endif
}

// Of every four lanes the first two of a and b in turn, and the last two: a0 b0 a1 b1, a2 b2 a3 b3.
static inline V interleave_low(V a, V b) {
#if EXPRUNE_LANES == 16
  return reinterpret_cast<V>(_mm512_unpacklo_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif EXPRUNE_LANES == 8
  return reinterpret_cast<V>(_mm256_unpacklo_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  const V v = {a[0], b[0], a[1], b[1]};
  return v;
#endif
}
static inline V interleave_high(V a, V b) {
#if EXPRUNE_LANES == 16
  return reinterpret_cast<V>(_mm512_unpackhi_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif EXPRUNE_LANES == 8
  return reinterpret_cast<V>(_mm256_unpackhi_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  const V v = {a[2], b[2], a[3], b[3]};
  return v;
#endif
}

static inline V square_root(V v) {
#if EXPRUNE_LANES == 16
  return reinterpret_cast<V>(_mm512_sqrt_ps(reinterpret_cast<__m512>(v)));
#elif EXPRUNE_LANES == 8
  return reinterpret_cast<V>(_mm256_sqrt_ps(reinterpret_cast<__m256>(v)));
#else
  V r;
  for (int i = 0; i < kLanes; i++) r[i] = __builtin_sqrtf(v[i]);
  return r;
#endif
}

// Sum over the lanes, halves first: the same tree on every call.
static inline float sum(V v) {
#if EXPRUNE_LANES == 16
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#elif EXPRUNE_LANES == 8
  const __m256 w = reinterpret_cast<__m256>(v);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

// The helpers below take one float or a vector of them, so that a test is written once.
static inline V like(V, float s) { return splat(s); }
static inline float like(float, float s) { return s; }
static inline V absolute(V v) { return reinterpret_cast<V>(reinterpret_cast<I>(v) & splat(0x7fffffff)); }
static inline float absolute(float v) { return __builtin_fabsf(v); }
static inline float square_root(float v) { return __builtin_sqrtf(v); }
static inline float select(bool mask, float yes, float no) { return mask ? yes : no; }

// Has a cache line of weights brought into the second cache. Far more lines can be on their way there than to the first
// one, and weights that are read once need not be nearer.
static inline void fetch_line(const void* p) { __builtin_prefetch(p, 0, 2); }

static inline void prefetch_row(const float* row, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) fetch_line(row + i);
}

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// a b, for a, b >= 0; the largest number there is where that overflows.
static inline int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

// The part p with starts[p] <= index < starts[p + 1], of `parts` parts; starts ascend from 0.
static inline int64_t part_of(const int64_t* starts, int64_t parts, int64_t index) {
  int64_t low = 0, high = parts;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (starts[middle] <= index ? low : high) = middle;
  }
  return low;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
