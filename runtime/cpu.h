// What the processor and the operating system let us use.
#pragma once

namespace exprune {

struct CpuFeatures {
  bool avx2;        // AVX2 and FMA
  bool avx512;      // AVX-512 F, BW, DQ, VL, with AVX2 and FMA
  bool avx512vnni;  // the same with VNNI
};

CpuFeatures cpu_features();

}  // namespace exprune
