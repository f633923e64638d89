// Which kernels run: read once from the processor and EXPRUNE_ISA, when the library is loaded.
#include "registry.h"

#include <stdlib.h>
#include <string.h>

#include "../cpu.h"

namespace exprune {

#if defined(__x86_64__)
namespace avx512vnni {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
#endif
namespace portable {
extern const Kernels kKernels;
}
namespace scalar {
extern const Kernels kKernels;
}

static const Kernels* choose() {
  struct Entry {
    const Kernels* kernels;
    bool available;
  };
  const CpuFeatures cpu = cpu_features();
  (void)cpu;
  const Entry entries[] = {
#if defined(__x86_64__)
      {&avx512vnni::kKernels, cpu.avx512vnni},
      {&avx512::kKernels, cpu.avx512},
      {&avx2::kKernels, cpu.avx2},
#endif
      {&portable::kKernels, true},
      {&scalar::kKernels, true},
  };
  const size_t count = sizeof(entries) / sizeof(entries[0]);
  size_t start = 0;
  const char* wanted = getenv("EXPRUNE_ISA");
  for (size_t i = 0; wanted && i < count; i++) {
    if (strcmp(wanted, entries[i].kernels->name) == 0) start = i;
  }
  for (size_t i = start; i < count; i++) {
    if (entries[i].available) return entries[i].kernels;
  }
  return &scalar::kKernels;
}

const Kernels& kernels() {
  // The choice is the same whoever makes it, so a race writes the same pointer twice.
  static std::atomic<const Kernels*> chosen{nullptr};
  const Kernels* k = chosen.load(std::memory_order_acquire);
  if (!k) {
    k = choose();
    chosen.store(k, std::memory_order_release);
  }
  return *k;
}

// So that EXPRUNE_ISA is read at load and not in the middle of a run.
__attribute__((constructor)) static void choose_at_load() { kernels(); }

}  // namespace exprune
