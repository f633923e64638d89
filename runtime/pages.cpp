#include "pages.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace exprune {

constexpr size_t kLarge = 1u << 20;  // smaller arrays stay in the caches, and so do their pages' addresses

#if defined(__linux__) && defined(MADV_HUGEPAGE)
constexpr uintptr_t kPage = 2u << 20;

static bool collapse(uintptr_t begin, uintptr_t end) {
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, Linux 6.1: now and not some time later
  if (begin >= end) return true;
  void* start = reinterpret_cast<void*>(begin);
  return madvise(start, end - begin, MADV_HUGEPAGE) == 0 && madvise(start, end - begin, kCollapse) == 0;
}

// The pages that hold the array, its neighbours' ends included; where those are not to be had (nothing may be
// mapped beside the array, or a file), the pages within it.
static void advise(const void* data, size_t bytes) {
  if (bytes < kLarge) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  if (collapse(begin & ~(kPage - 1), (end + kPage - 1) & ~(kPage - 1))) return;
  collapse((begin + kPage - 1) & ~(kPage - 1), end & ~(kPage - 1));
}
#else
static void advise(const void*, size_t) {}
#endif

static bool wanted() {
  const char* text = getenv("EXPRUNE_LARGE_PAGES");
  return !text || strcmp(text, "0") != 0;
}

void LargePages::ask_for(const void* first, size_t first_bytes, const void* second, size_t second_bytes) {
  if (first_bytes < kLarge || asked_.load(std::memory_order_relaxed) == first) return;
  asked_.store(first, std::memory_order_relaxed);
  if (!wanted()) return;
  advise(first, first_bytes);
  advise(second, second_bytes);
}

}  // namespace exprune
