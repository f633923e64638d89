// The kernels for any processor: vectors of four floats (SSE2, NEON) as far as the compiler has them.
#define EXPRUNE_ISA portable
#define EXPRUNE_LANES 4
#include "isa.h"
