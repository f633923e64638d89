// Dot products of coded weights with rows of X in 8-bit planes. Integer sums, so exact.
//
// Two codings: Codes8, a byte for a weight, and Codes6, 256 weights in 192 bytes. See registry.h.
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

// Elements of a plane in memory: whole steps and groups of every instruction set and coding.
static inline int64_t plane_length(int64_t groups) { return blocks_of(groups, kPackedCodes) * kPackedCodes; }

// Per instruction set: Bytes, a vector of kStep bytes; Sums, a vector of int32; and
//   load(p), load(p, n)      kStep bytes, or the first n of them and zeros
//   low6(b)                  b & 63
//   high2(a, b, c)           (a >> 6) | (b >> 6) << 2 | (c >> 6) << 4
//   add8(sums, codes, x)     += (codes - 128 + kShift8) x, kShift8 being 0 or 128
//   add6(sums, codes, x)     += codes x, for codes below 64
//   sum_four(s, out)         out[i] = the sum over the lanes of s[i]
#if defined(EXPRUNE_VNNI)
struct Byte {
  typedef __m512i Bytes;
  typedef __m512i Sums;
  static constexpr int kStep = 64;
  static constexpr int32_t kShift8 = 128;
  static Sums zero() { return _mm512_setzero_si512(); }
  static Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Bytes load(const uint8_t* p, int64_t n) { return _mm512_maskz_loadu_epi8(~0ull >> (64 - n), p); }
  static Bytes low6(Bytes b) { return _mm512_and_si512(b, _mm512_set1_epi8(63)); }
  static Bytes high2(Bytes a, Bytes b, Bytes c) {
    // Shifts of 16 bits move neighbours' bits too; the masks take them away. 0xea: (x & y) | z.
    const __m512i z = _mm512_and_si512(_mm512_srli_epi16(a, 6), _mm512_set1_epi8(3));
    const __m512i y = _mm512_ternarylogic_epi32(_mm512_srli_epi16(b, 4), _mm512_set1_epi8(12), z, 0xea);
    return _mm512_ternarylogic_epi32(_mm512_srli_epi16(c, 2), _mm512_set1_epi8(48), y, 0xea);
  }
  static Sums add8(Sums sums, Bytes codes, const int8_t* x) {
    return _mm512_dpbusd_epi32(sums, codes, _mm512_loadu_si512(x));
  }
  static Sums add6(Sums sums, Bytes codes, const int8_t* x) { return add8(sums, codes, x); }
  static void sum_four(const Sums* s, int32_t* out) {
    __m256i half[4];
    for (int i = 0; i < 4; i++) {
      half[i] = _mm256_add_epi32(_mm512_castsi512_si256(s[i]), _mm512_extracti64x4_epi64(s[i], 1));
    }
    const __m256i pairs =
        _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
  }
};
#elif EXPRUNE_LANES >= 8
// Also for AVX-512 without VNNI, which has no product of bytes that beats this one.
struct Byte {
  typedef __m256i Bytes;
  typedef __m256i Sums;
  static constexpr int kStep = 32;
  static constexpr int32_t kShift8 = 0;
  static Sums zero() { return _mm256_setzero_si256(); }
  static Bytes load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Bytes load(const uint8_t* p, int64_t n) {
    uint8_t t[kStep] = {};
    memcpy(t, p, static_cast<size_t>(n));
    return load(t);
  }
  static Bytes low6(Bytes b) { return _mm256_and_si256(b, _mm256_set1_epi8(63)); }
  static Bytes high2(Bytes a, Bytes b, Bytes c) {
    const __m256i z = _mm256_and_si256(_mm256_srli_epi16(a, 6), _mm256_set1_epi8(3));
    const __m256i y = _mm256_and_si256(_mm256_srli_epi16(b, 4), _mm256_set1_epi8(12));
    return _mm256_or_si256(
        _mm256_or_si256(z, y), _mm256_and_si256(_mm256_srli_epi16(c, 2), _mm256_set1_epi8(48)));
  }
  static Sums widen(Sums sums, __m256i products) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
  }
  // |x| (code - 128 with x's sign): at most 2 * 127 * 127 in 16 bits, nothing saturates.
  static Sums add8(Sums sums, Bytes codes, const int8_t* x) {
    const __m256i v = load(reinterpret_cast<const uint8_t*>(x));
    const __m256i w = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    return widen(sums, _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(w, v)));
  }
  static Sums add6(Sums sums, Bytes codes, const int8_t* x) {
    return widen(sums, _mm256_maddubs_epi16(codes, load(reinterpret_cast<const uint8_t*>(x))));
  }
  static void sum_four(const Sums* s, int32_t* out) {
    const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(s[0], s[1]), _mm256_hadd_epi32(s[2], s[3]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
  }
};
#elif defined(__SSE2__)
struct Byte {
  typedef __m128i Bytes;
  typedef __m128i Sums;
  static constexpr int kStep = 16;
  static constexpr int32_t kShift8 = 128;
  static Sums zero() { return _mm_setzero_si128(); }
  static Bytes load(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static Bytes load(const uint8_t* p, int64_t n) {
    uint8_t t[kStep] = {};
    memcpy(t, p, static_cast<size_t>(n));
    return load(t);
  }
  static Bytes low6(Bytes b) { return _mm_and_si128(b, _mm_set1_epi8(63)); }
  static Bytes high2(Bytes a, Bytes b, Bytes c) {
    const __m128i z = _mm_and_si128(_mm_srli_epi16(a, 6), _mm_set1_epi8(3));
    const __m128i y = _mm_and_si128(_mm_srli_epi16(b, 4), _mm_set1_epi8(12));
    return _mm_or_si128(_mm_or_si128(z, y), _mm_and_si128(_mm_srli_epi16(c, 2), _mm_set1_epi8(48)));
  }
  static Sums add8(Sums sums, Bytes codes, const int8_t* x) {
    const __m128i v = load(reinterpret_cast<const uint8_t*>(x)), none = _mm_setzero_si128();
    const __m128i low = _mm_madd_epi16(_mm_unpacklo_epi8(codes, none),
                                       _mm_srai_epi16(_mm_unpacklo_epi8(none, v), 8));
    const __m128i high = _mm_madd_epi16(_mm_unpackhi_epi8(codes, none),
                                        _mm_srai_epi16(_mm_unpackhi_epi8(none, v), 8));
    return _mm_add_epi32(sums, _mm_add_epi32(low, high));
  }
  static Sums add6(Sums sums, Bytes codes, const int8_t* x) { return add8(sums, codes, x); }
  static void sum_four(const Sums* s, int32_t* out) {
    for (int i = 0; i < 4; i++) {
      int32_t t[4];
      _mm_storeu_si128(reinterpret_cast<__m128i*>(t), s[i]);
      out[i] = (t[0] + t[1]) + (t[2] + t[3]);
    }
  }
};
#else
struct Byte {
  struct Bytes {
    uint8_t b[8];
  };
  typedef int32_t Sums;
  static constexpr int kStep = 8;
  static constexpr int32_t kShift8 = 128;
  static Sums zero() { return 0; }
  static Bytes load(const uint8_t* p, int64_t n = kStep) {
    Bytes r = {};
    memcpy(r.b, p, static_cast<size_t>(n));
    return r;
  }
  static Bytes low6(Bytes v) {
    for (int i = 0; i < kStep; i++) v.b[i] &= 63;
    return v;
  }
  static Bytes high2(Bytes a, Bytes b, Bytes c) {
    for (int i = 0; i < kStep; i++) {
      a.b[i] = static_cast<uint8_t>((a.b[i] >> 6) | (b.b[i] >> 6) << 2 | (c.b[i] >> 6) << 4);
    }
    return a;
  }
  static Sums add8(Sums sums, Bytes codes, const int8_t* x) {
    for (int i = 0; i < kStep; i++) sums += codes.b[i] * x[i];
    return sums;
  }
  static Sums add6(Sums sums, Bytes codes, const int8_t* x) { return add8(sums, codes, x); }
  static void sum_four(const Sums* s, int32_t* out) { memcpy(out, s, 4 * sizeof(Sums)); }
};
#endif

struct Codes8 {
  static constexpr int32_t kZero = Byte::kShift8;  // what every product has too much, times x

  // acc[v] += codes . planes[v] over one row of codes.
  template <int Vectors>
  static inline void add_row(const uint8_t* codes, const int8_t* const* planes, int64_t groups,
                             Byte::Sums* acc) {
    int64_t i = 0;
    for (; i + Byte::kStep <= groups; i += Byte::kStep) {
      __builtin_prefetch(codes + i + kCodesAhead);
      const Byte::Bytes w = Byte::load(codes + i);
      for (int v = 0; v < Vectors; v++) acc[v] = Byte::add8(acc[v], w, planes[v] + i);
    }
    if (i < groups) {
      const Byte::Bytes w = Byte::load(codes + i, groups - i);
      for (int v = 0; v < Vectors; v++) acc[v] = Byte::add8(acc[v], w, planes[v] + i);
    }
  }
};

struct Codes6 {
  static constexpr int32_t kZero = 32;

  template <int Vectors>
  static inline void add_row(const uint8_t* codes, const int8_t* const* planes, int64_t groups,
                             Byte::Sums* acc) {
    for (int64_t i = 0; i < groups; i += kPackedCodes, codes += kPackedBytes) {
      for (int j = 0; j < 64; j += Byte::kStep) {
        for (int part = 0; part < 3; part++) __builtin_prefetch(codes + 64 * part + j + kCodesAhead);
        const Byte::Bytes a = Byte::load(codes + j), b = Byte::load(codes + 64 + j),
                          c = Byte::load(codes + 128 + j);
        const Byte::Bytes w[4] = {Byte::low6(a), Byte::low6(b), Byte::low6(c), Byte::high2(a, b, c)};
        for (int part = 0; part < 4; part++) {
          for (int v = 0; v < Vectors; v++) {
            acc[v] = Byte::add6(acc[v], w[part], planes[v] + i + 64 * part + j);
          }
        }
      }
    }
  }
};

// sums[v * stride + n] = codes[n] . planes[v], for `outputs` consecutive rows of `row_bytes` of codes.
template <class Coding, int Vectors>
__attribute__((noinline)) static void byte_dots(const uint8_t* codes, int64_t row_bytes, int64_t groups,
                                                int64_t outputs, const int8_t* const* planes, int64_t stride,
                                                int32_t* sums) {
  constexpr int kPadded = (Vectors + 3) / 4 * 4;
  int64_t n = 0;
  if (Vectors <= 2) {  // four rows at a time, so that their sums over the lanes are taken together
    for (; n + 4 <= outputs; n += 4) {
      Byte::Sums by_vector[Vectors][4];
      for (int row = 0; row < 4; row++) {
        Byte::Sums acc[Vectors];
        for (int v = 0; v < Vectors; v++) acc[v] = Byte::zero();
        Coding::template add_row<Vectors>(codes + (n + row) * row_bytes, planes, groups, acc);
        for (int v = 0; v < Vectors; v++) by_vector[v][row] = acc[v];
      }
      for (int v = 0; v < Vectors; v++) Byte::sum_four(by_vector[v], sums + v * stride + n);
    }
  }
  for (; n < outputs; n++) {
    Byte::Sums acc[kPadded];
    int32_t out[kPadded];
    for (int v = 0; v < kPadded; v++) acc[v] = Byte::zero();
    Coding::template add_row<Vectors>(codes + n * row_bytes, planes, groups, acc);
    for (int v = 0; v < kPadded; v += 4) Byte::sum_four(acc + v, out + v);
    for (int v = 0; v < Vectors; v++) sums[v * stride + n] = out[v];
  }
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
