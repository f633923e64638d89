// Products of coded weights with rows of X in planes of 8 or 16 bits. Integer sums, so exact.
//
// Weights stand in blocks of 16 outputs, see `Quantized` in registry.h: a vector of 64 codes is 4 groups of 16
// outputs, and meets 4 bytes of X. So the sums over a vector's lanes are 16 outputs, as they are wanted.
#pragma once

#include "registry.h"
#include "simd.h"

#if EXPRUNE_LANES == 4 && defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace exprune {
namespace EXPRUNE_ISA {

// Bytes between a code's use and its prefetch: far enough that the stream reaches the memory's speed.
constexpr int kCodesAhead = 8192;
// Codes of a layer that come from a cache: faster than they are multiplied, and without being fetched ahead.
#if defined(EXPRUNE_VNNI)
constexpr int64_t kCachedCodes = 0;
#else
constexpr int64_t kCachedCodes = 1 << 21;
#endif

// Per instruction set: Codes, 64 codes; Sums, 16 int32; kVectors, how many planes of X one pass over the codes
// serves; and
//   load(p)                64 bytes
//   low6(b)                b & 63
//   high2(a, b, c)         (a >> 6) | (b >> 6) << 2 | (c >> 6) << 4
//   add8(sums, codes, x)   += (codes - 128 + kShift8) x, kShift8 being 0 or 128
// Where kShift8 is 0, codes below 64 have a product of their own:
//   two6(sums, codes, x)   += codes[0] x[0 .. 4) + codes[1] x[4 .. 8)
// and 8-bit codes meet planes of 16 bits, which cost no more than planes of 8 bits: see wide_dots.
#if EXPRUNE_LANES >= 8 && !defined(EXPRUNE_VNNI)
#define EXPRUNE_WIDE_PLANES 1
#else
#define EXPRUNE_WIDE_PLANES 0
#endif
#if defined(EXPRUNE_VNNI)
struct Byte {
  typedef __m512i Codes;
  typedef __m512i Sums;
  static constexpr int kVectors = 8;
  static constexpr int32_t kShift8 = 128;
  static Sums zero() { return _mm512_setzero_si512(); }
  static Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }
  static void store(int32_t* p, Sums s) { _mm512_storeu_si512(p, s); }
  static Codes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Codes low6(Codes b) { return _mm512_and_si512(b, _mm512_set1_epi8(63)); }
  static Codes high2(Codes a, Codes b, Codes c) {
    // Shifts of 16 bits move neighbours' bits too; the masks take them away. 0xea: (x & y) | z.
    const __m512i z = _mm512_and_si512(_mm512_srli_epi16(a, 6), _mm512_set1_epi8(3));
    const __m512i y = _mm512_ternarylogic_epi32(_mm512_srli_epi16(b, 4), _mm512_set1_epi8(12), z, 0xea);
    return _mm512_ternarylogic_epi32(_mm512_srli_epi16(c, 2), _mm512_set1_epi8(48), y, 0xea);
  }
  static Sums add8(Sums sums, Codes codes, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, sizeof(four));
    return _mm512_dpbusd_epi32(sums, codes, _mm512_set1_epi32(four));
  }
};
#elif EXPRUNE_LANES >= 8
// Also for AVX-512 without VNNI, which has no product of bytes that beats this one.
struct Byte {
  struct Codes {
    __m256i half[2];
  };
  typedef Codes Sums;
  static constexpr int kVectors = 4;
  static constexpr int32_t kShift8 = 0;
  static Sums zero() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  static Sums add(Sums a, Sums b) {
    return {{_mm256_add_epi32(a.half[0], b.half[0]), _mm256_add_epi32(a.half[1], b.half[1])}};
  }
  static void store(int32_t* p, Sums s) {
    for (int i = 0; i < 2; i++) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8 * i), s.half[i]);
  }
  static Codes load(const uint8_t* p) {
    return {{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
             _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))}};
  }
  static Codes low6(Codes b) {
    const __m256i mask = _mm256_set1_epi8(63);
    return {{_mm256_and_si256(b.half[0], mask), _mm256_and_si256(b.half[1], mask)}};
  }
  static Codes high2(Codes a, Codes b, Codes c) {
    Codes r;
    for (int i = 0; i < 2; i++) {
      const __m256i z = _mm256_and_si256(_mm256_srli_epi16(a.half[i], 6), _mm256_set1_epi8(3));
      const __m256i y = _mm256_and_si256(_mm256_srli_epi16(b.half[i], 4), _mm256_set1_epi8(12));
      const __m256i x = _mm256_and_si256(_mm256_srli_epi16(c.half[i], 2), _mm256_set1_epi8(48));
      r.half[i] = _mm256_or_si256(_mm256_or_si256(z, y), x);
    }
    return r;
  }
  static __m256i four(const int8_t* x) {
    int32_t v;
    memcpy(&v, x, sizeof(v));
    return _mm256_set1_epi32(v);
  }
  static __m256i widened(__m256i sums, __m256i products) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
  }
  // |code - 128| (x with its sign): at most 2 * 128 * 127 in 16 bits, nothing saturates. The other way round,
  // |x| (code - 128 with x's sign), a code of 0 would have no negative.
  static Sums add8(Sums sums, Codes codes, const int8_t* x) {
    const __m256i v = four(x);
    for (int i = 0; i < 2; i++) {
      const __m256i w = _mm256_xor_si256(codes.half[i], _mm256_set1_epi8(-128));
      sums.half[i] = widened(sums.half[i], _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(v, w)));
    }
    return sums;
  }
  // At most 4 * 63 * 127 in 16 bits: both products are widened at once.
  static Sums two6(Sums sums, const Codes* codes, const int8_t* x) {
    const __m256i v = four(x), w = four(x + 4);
    for (int i = 0; i < 2; i++) {
      const __m256i first = _mm256_maddubs_epi16(codes[0].half[i], v);
      const __m256i second = _mm256_maddubs_epi16(codes[1].half[i], w);
      sums.half[i] = widened(sums.half[i], _mm256_add_epi16(first, second));
    }
    return sums;
  }
};
#elif defined(__SSE2__)
struct Byte {
  struct Codes {
    __m128i part[4];
  };
  typedef Codes Sums;
  static constexpr int kVectors = 4;
  static constexpr int32_t kShift8 = 128;
  static Sums zero() {
    const __m128i z = _mm_setzero_si128();
    return {{z, z, z, z}};
  }
  static Sums add(Sums a, Sums b) {
    for (int i = 0; i < 4; i++) a.part[i] = _mm_add_epi32(a.part[i], b.part[i]);
    return a;
  }
  static void store(int32_t* p, Sums s) {
    for (int i = 0; i < 4; i++) _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 4 * i), s.part[i]);
  }
  static Codes load(const uint8_t* p) {
    Codes r;
    for (int i = 0; i < 4; i++) r.part[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
    return r;
  }
  static Codes low6(Codes b) {
    for (int i = 0; i < 4; i++) b.part[i] = _mm_and_si128(b.part[i], _mm_set1_epi8(63));
    return b;
  }
  static Codes high2(Codes a, Codes b, Codes c) {
    for (int i = 0; i < 4; i++) {
      const __m128i z = _mm_and_si128(_mm_srli_epi16(a.part[i], 6), _mm_set1_epi8(3));
      const __m128i y = _mm_and_si128(_mm_srli_epi16(b.part[i], 4), _mm_set1_epi8(12));
      const __m128i x = _mm_and_si128(_mm_srli_epi16(c.part[i], 2), _mm_set1_epi8(48));
      a.part[i] = _mm_or_si128(_mm_or_si128(z, y), x);
    }
    return a;
  }
  // Even and odd bytes apart, as 16 bits.
  static Sums add8(Sums sums, Codes codes, const int8_t* x) {
    int32_t four;
    memcpy(&four, x, sizeof(four));
    const __m128i v = _mm_set1_epi32(four), odd = _mm_srai_epi16(v, 8);
    const __m128i even = _mm_srai_epi16(_mm_slli_epi16(v, 8), 8);
    for (int i = 0; i < 4; i++) {
      const __m128i low = _mm_and_si128(codes.part[i], _mm_set1_epi16(255));
      const __m128i high = _mm_srli_epi16(codes.part[i], 8);
      sums.part[i] = _mm_add_epi32(sums.part[i], _mm_madd_epi16(low, even));
      sums.part[i] = _mm_add_epi32(sums.part[i], _mm_madd_epi16(high, odd));
    }
    return sums;
  }
};
#else
struct Byte {
  struct Codes {
    uint8_t code[64];
  };
  struct Sums {
    int32_t sum[16];
  };
  static constexpr int kVectors = 4;
  static constexpr int32_t kShift8 = 128;
  static Sums zero() { return {}; }
  static Sums add(Sums a, Sums b) {
    for (int i = 0; i < 16; i++) a.sum[i] += b.sum[i];
    return a;
  }
  static void store(int32_t* p, Sums s) { memcpy(p, s.sum, sizeof(s.sum)); }
  static Codes load(const uint8_t* p) {
    Codes r;
    memcpy(r.code, p, sizeof(r.code));
    return r;
  }
  static Codes low6(Codes b) {
    for (int i = 0; i < 64; i++) b.code[i] &= 63;
    return b;
  }
  static Codes high2(Codes a, Codes b, Codes c) {
    for (int i = 0; i < 64; i++) {
      a.code[i] = static_cast<uint8_t>((a.code[i] >> 6) | (b.code[i] >> 6) << 2 | (c.code[i] >> 6) << 4);
    }
    return a;
  }
  static Sums add8(Sums sums, Codes codes, const int8_t* x) {
    for (int i = 0; i < 64; i++) sums.sum[i / 4] += codes.code[i] * x[i % 4];
    return sums;
  }
};
#endif

// codes[0] x[0 .. 4) and codes[1] x[4 .. 8), in two sums: neither addition waits for the other.
static inline void two8(Byte::Sums& a, Byte::Sums& b, const Byte::Codes* codes, const int8_t* x) {
  a = Byte::add8(a, codes[0], x);
  b = Byte::add8(b, codes[1], x + 4);
}

// A coding unpacks kCodeGroups groups of 16 outputs into four vectors of codes, and multiplies them two at a time.
struct Codes8 {
  static constexpr int32_t kZero = Byte::kShift8;  // what every product has too much, times x
  static constexpr int kBytes = 256;

  static inline void unpack(const uint8_t* p, Byte::Codes* codes) {
    for (int i = 0; i < 4; i++) codes[i] = Byte::load(p + 64 * i);
  }
  static inline void two(Byte::Sums& a, Byte::Sums& b, const Byte::Codes* codes, const int8_t* x) {
    two8(a, b, codes, x);
  }
};

struct Codes6 {
  static constexpr int32_t kZero = 32;
  static constexpr int kBytes = 192;

  static inline void unpack(const uint8_t* p, Byte::Codes* codes) {
    const Byte::Codes a = Byte::load(p), b = Byte::load(p + 64), c = Byte::load(p + 128);
    codes[0] = Byte::low6(a);
    codes[1] = Byte::low6(b);
    codes[2] = Byte::low6(c);
    codes[3] = Byte::high2(a, b, c);
  }
  static inline void two(Byte::Sums& a, Byte::Sums& b, const Byte::Codes* codes, const int8_t* x) {
#if EXPRUNE_LANES >= 8 && !defined(EXPRUNE_VNNI)
    (void)b;
    a = Byte::two6(a, codes, x);
#else
    two8(a, b, codes, x);
#endif
  }
};

// sums[v * stride + 16 b + n] = codes of output n of block b . planes[v], for `blocks` consecutive blocks. With
// `fetch`, codes are fetched ahead, beyond these blocks.
template <class Coding, int Vectors>
__attribute__((noinline)) static void byte_dots(const uint8_t* codes, int64_t groups, int64_t blocks,
                                                const int8_t* const* planes, bool fetch, int64_t stride,
                                                int32_t* sums) {
  // Enough sums that are independent to hide an addition's latency.
  constexpr int kChains = Vectors >= 4 ? 1 : 4 / Vectors;
  for (int64_t b = 0; b < blocks; b++, sums += kQuantizedBlock) {
    Byte::Sums acc[Vectors][kChains];
    for (int v = 0; v < Vectors; v++) {
      for (int i = 0; i < kChains; i++) acc[v][i] = Byte::zero();
    }
    for (int64_t g = 0; g < groups; g += kCodeGroups, codes += Coding::kBytes) {
      if (fetch) {
        for (int line = 0; line < Coding::kBytes; line += 64) __builtin_prefetch(codes + line + kCodesAhead);
      }
      Byte::Codes part[4];
      Coding::unpack(codes, part);
      for (int i = 0; i < 4; i += 2) {
        for (int v = 0; v < Vectors; v++) {
          Coding::two(acc[v][i % kChains], acc[v][(i + 1) % kChains], part + i, planes[v] + g + 4 * i);
        }
      }
    }
    for (int v = 0; v < Vectors; v++) {
      Byte::Sums total = acc[v][0];
      for (int i = 1; i < kChains; i++) total = Byte::add(total, acc[v][i]);
      Byte::store(sums + v * stride, total);
    }
  }
}

#if EXPRUNE_WIDE_PLANES
static inline __m256i pair(const int16_t* x) {
  typedef float Loaded __attribute__((may_alias));  // as a float it is loaded into all lanes at once
  return _mm256_castps_si256(_mm256_set1_ps(*reinterpret_cast<const Loaded*>(x)));
}

// The same for 8-bit codes less 128 and planes of 16 bits, in which groups stand in the order 0, 2, 1, 3 of each four.
template <int Vectors>
__attribute__((noinline)) static void wide_dots(const uint8_t* codes, int64_t groups, int64_t blocks,
                                                const int16_t* const* planes, bool fetch, int64_t stride,
                                                int32_t* sums) {
  for (int64_t b = 0; b < blocks; b++, sums += kQuantizedBlock) {
    __m256i acc[Vectors][2] = {};
    for (int64_t g = 0; g < groups; g += kCodeGroups, codes += Codes8::kBytes) {
      if (fetch) {
        for (int line = 0; line < Codes8::kBytes; line += 64) __builtin_prefetch(codes + line + kCodesAhead);
      }
      for (int i = 0; i < 4; i++) {
        __m256i even[2], odd[2];
        for (int half = 0; half < 2; half++) {
          const __m256i* const from = reinterpret_cast<const __m256i*>(codes + 64 * i + 32 * half);
          const __m256i w = _mm256_xor_si256(_mm256_loadu_si256(from), _mm256_set1_epi8(-128));
          even[half] = _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8);
          odd[half] = _mm256_srai_epi16(w, 8);
        }
        for (int v = 0; v < Vectors; v++) {
          const int16_t* const x = planes[v] + g + 4 * i;
          for (int half = 0; half < 2; half++) {
            __m256i& sum = acc[v][half];
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even[half], pair(x)));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(odd[half], pair(x + 2)));
            __asm__ volatile("" : "+x"(sum));  // else all products come first, and wait in memory to be added
          }
        }
      }
    }
    for (int v = 0; v < Vectors; v++) Byte::store(sums + v * stride, {{acc[v][0], acc[v][1]}});
  }
}
#endif

}  // namespace EXPRUNE_ISA
}  // namespace exprune
