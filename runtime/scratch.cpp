// Out of line on purpose: the kernels are compiled for instruction sets that the rest must not depend on,
// and an inline function that they share could be linked from any of them.
#include "scratch.h"

#include <stdlib.h>

namespace exprune {

ScratchPool::~ScratchPool() {
  while (free_) {
    ScratchBuffer* buffer = free_;
    free_ = buffer->next;
    ::free(buffer->data);
    ::free(buffer);
  }
}

ScratchBuffer* ScratchPool::acquire(size_t bytes) {
  lock();
  ScratchBuffer* buffer = free_;
  if (buffer) free_ = buffer->next;
  unlock();
  if (!buffer) {
    buffer = static_cast<ScratchBuffer*>(malloc(sizeof(ScratchBuffer)));
    if (!buffer) return nullptr;
    *buffer = ScratchBuffer();
  }
  if (buffer->bytes < bytes) {
    ::free(buffer->data);
    buffer->bytes = 0;
    if (posix_memalign(&buffer->data, kAlignment, bytes) != 0) {
      buffer->data = nullptr;
      release(buffer);
      return nullptr;
    }
    buffer->bytes = bytes;
  }
  return buffer;
}

void ScratchPool::release(ScratchBuffer* buffer) {
  lock();
  buffer->next = free_;
  free_ = buffer;
  unlock();
}

// Held for a few instructions only, so spinning is right.
void ScratchPool::lock() {
  while (flag_.test_and_set(std::memory_order_acquire)) {
  }
}

void ScratchPool::unlock() { flag_.clear(std::memory_order_release); }

}  // namespace exprune
