// The kernels for AVX-512 (F, BW, DQ, VL) with VNNI, the dot product of bytes.
#if defined(__x86_64__)
#define EXPRUNE_ISA avx512vnni
#define EXPRUNE_LANES 16
#define EXPRUNE_VNNI 1
#include "isa.h"
#endif
