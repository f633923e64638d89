// Working memory that outlives a call: buffers are handed out, taken back and kept.
//
// A pool belongs to one kernel object (one node of one session). It holds as many buffers as were ever in
// use at the same time (concurrent runs, or threads inside one run), each as large as was ever asked of it,
// so that a session in steady state allocates nothing. Contents are not kept between two leases.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <atomic>

namespace exprune {

constexpr size_t kAlignment = 64;

struct ScratchBuffer {
  ScratchBuffer* next = nullptr;
  void* data = nullptr;
  size_t bytes = 0;
};

class ScratchPool {
 public:
  ScratchPool() = default;
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;
  ~ScratchPool();

  // A buffer of at least `bytes`, or null when memory is out.
  ScratchBuffer* acquire(size_t bytes);
  void release(ScratchBuffer* buffer);

 private:
  void lock();
  void unlock();

  std::atomic_flag flag_ = ATOMIC_FLAG_INIT;
  ScratchBuffer* free_ = nullptr;
};

// A buffer for the length of a scope. `data()` is null when memory is out.
class Lease {
 public:
  Lease(ScratchPool& pool, size_t bytes) : pool_(pool), buffer_(pool.acquire(bytes ? bytes : 1)) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (buffer_) pool_.release(buffer_);
  }
  char* data() const { return buffer_ ? static_cast<char*>(buffer_->data) : nullptr; }

 private:
  ScratchPool& pool_;
  ScratchBuffer* buffer_;
};

// A buffer that a layout divides: a function that takes its start (null to only add up the size, see Carver), sets what
// is in it, and returns the size. When memory is out data() is null.
class CarvedLease : public Lease {
 public:
  template <class Layout>
  CarvedLease(ScratchPool& pool, const Layout& layout) : Lease(pool, layout(nullptr)) {
    if (data()) layout(data());
  }
};

// Divides a buffer into aligned arrays. With a null base it only adds up the size, so that one function
// describes a layout both for sizing and for use.
class Carver {
  static constexpr size_t kTooMuch = PTRDIFF_MAX - kAlignment;

 public:
  explicit Carver(char* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    const size_t most = (PTRDIFF_MAX - used_) / sizeof(T);
    if (count < 0 || static_cast<size_t>(count) >= most) {
      used_ = kTooMuch;
    } else {
      used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    }
    return p;
  }
  // Bytes so far; more than any system has where they overflowed.
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace exprune
