// Large pages for large weights.
#pragma once

#include <stddef.h>

#include <atomic>

namespace exprune {

// Asks the system, once per kernel object, to keep weights in large pages: a stream over megabytes otherwise
// spends a tenth of its time and more on looking pages up. Only a hint: nothing happens where the system has
// no such pages, where the memory is not of the right kind, or with EXPRUNE_LARGE_PAGES=0.
class LargePages {
 public:
  // Two arrays at a time; the first one stands for both.
  void ask_for(const void* first, size_t first_bytes, const void* second, size_t second_bytes);

 private:
  std::atomic<const void*> asked_{nullptr};
};

}  // namespace exprune
