// Large pages for large weights.
#pragma once

#include <stddef.h>

#include <atomic>

namespace exprune {

// Asks the system, once per kernel object, to keep weights in large pages: a stream over tens of megabytes
// otherwise spends a fifth of its time on looking pages up. Only a hint: nothing happens where the system has
// no such pages, or where the memory is not its own kind.
class LargePages {
 public:
  void ask_for(const void* codes, size_t code_bytes, const void* weight, size_t weight_bytes);

 private:
  std::atomic<const void*> asked_{nullptr};
};

}  // namespace exprune
