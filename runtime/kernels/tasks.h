// Work that may not be worth other threads.
#pragma once

#include "registry.h"

namespace exprune {
namespace EXPRUNE_ISA {

// Runs tasks on this thread if `alone`, else on the session's: to wake threads and to wait for them takes
// some microseconds.
static inline bool run_tasks(const Env& env, bool alone, int64_t tasks, void (*task)(void*, size_t),
                             void* user) {
  if (!alone) return env.parallel(env.context, static_cast<size_t>(tasks), task, user);
  for (int64_t i = 0; i < tasks; i++) task(user, static_cast<size_t>(i));
  return true;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
