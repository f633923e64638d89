#include "pages.h"

#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace exprune {

#if defined(__linux__) && defined(MADV_HUGEPAGE)
static void advise(const void* data, size_t bytes) {
  constexpr uintptr_t kPage = 2u << 20;
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1: now and not some time later
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kPage - 1);
  void* start = reinterpret_cast<void*>(begin);
  if (begin < end && madvise(start, end - begin, MADV_HUGEPAGE) == 0) madvise(start, end - begin, kCollapse);
}
#else
static void advise(const void*, size_t) {}
#endif

void LargePages::ask_for(const void* codes, size_t code_bytes, const void* weight, size_t weight_bytes) {
  constexpr size_t kLarge = 8u << 20;
  if (code_bytes < kLarge || asked_.load(std::memory_order_relaxed) == codes) return;
  asked_.store(codes, std::memory_order_relaxed);
  advise(codes, code_bytes);
  advise(weight, weight_bytes);
}

}  // namespace exprune
