// The kernels for AVX2 with FMA.
#if defined(__x86_64__)
#define EXPRUNE_ISA avx2
#define EXPRUNE_LANES 8
#include "isa.h"
#endif
