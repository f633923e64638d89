// Reads cpuid and xgetbv itself: __builtin_cpu_supports needs a constructor of the compiler's runtime
// library, and answers false where that is not linked in (clang with -nostdlib++).
#include "cpu.h"

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace exprune {

#if defined(__x86_64__)

static uint64_t enabled_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

CpuFeatures cpu_features() {
  CpuFeatures features = {false, false, false};
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool fma = c & (1u << 12);
  const bool osxsave = c & (1u << 27);
  if (!osxsave || !fma) return features;
  const uint64_t states = enabled_states();
  const uint64_t ymm = 0x6, zmm = 0xe6;  // what the system saves on a context switch
  if ((states & ymm) != ymm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  features.avx2 = b & (1u << 5);
  const unsigned avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  features.avx512 = features.avx2 && (b & avx512) == avx512 && (states & zmm) == zmm;
  features.avx512vnni = features.avx512 && (c & (1u << 11));
  return features;
}

#else

CpuFeatures cpu_features() { return {false, false, false}; }

#endif

}  // namespace exprune
