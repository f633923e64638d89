// The three tests as the ops see them: which inputs and attributes each brings.
#pragma once

#include "ort.h"
#include "staged.h"

namespace exprune {

struct TestInputs {
  const char* names[3];
  int count;
};

// For the ReLU ops and for the ArgMax ops, by TestKind.
constexpr TestInputs kReluTests[kTestKinds] = {
    {{"scale", "limit", nullptr}, 2}, {{nullptr, nullptr, nullptr}, 0}, {{"radius", "slack", nullptr}, 2}};
constexpr TestInputs kHeadTests[kTestKinds] = {
    {{"scale", "shift", "margin"}, 3}, {{nullptr, nullptr, nullptr}, 0}, {{"radius", "slack", nullptr}, 2}};

constexpr uint32_t kStagedInts = (1u << kOrder) | (1u << kEnds);

// Reads the attribute z of a Stats op; other tests have none.
template <int Test>
OrtStatus* read_z(const OrtKernelInfo* info, const char* op, float* z) {
  *z = 0;
  if (Test != kStats) return nullptr;
  EXPRUNE_RETURN_IF_ERROR(attribute_float(info, op, "z", z));
  if (*z != *z) return error(ort::kInvalidArgument, "%s: attribute z is not a number", op);
  return nullptr;
}

}  // namespace exprune
