// The kernels for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#define EXPRUNE_ISA avx512
#define EXPRUNE_LANES 16
#include "isa.h"
#endif
