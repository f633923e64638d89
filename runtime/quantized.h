// The checks at the door that the ops with a quantised estimate share.
#pragma once

#include "staged.h"

namespace exprune {

// Inputs by position. X, codes, scale, error, norm, W and bias come first; then, for the ReLU op, offset and
// max.
constexpr size_t kQuantizedX = 0, kQuantizedWeight = 5, kQuantizedBias = 6;
constexpr uint32_t kQuantizedBytes = 1u << 1;

struct QuantizedInputs {
  Tensor x, codes, scale, error, norm, weight, bias, offset, max;
};

// Reads and checks the first seven inputs.
OrtStatus* read_quantized(const Call& call, LargePages& pages, QuantizedInputs* in, Quantized* layer);

}  // namespace exprune
