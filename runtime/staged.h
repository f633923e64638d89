// The checks at the door that all staged ops share.
#pragma once

#include "ort.h"

namespace exprune {

// Inputs of a staged op by position. X, order, ends, W_head, W_tail and bias come first; then, for the ReLU
// ops, offset and max; then the test's parameters.
constexpr size_t kX = 0, kOrder = 1, kEnds = 2, kHead = 3, kTail = 4, kBias = 5, kOffset = 6, kMax = 7;

struct StagedInputs {
  Tensor x, order, weight_energy, ends, head, tail, bias, offset, max, parameters[3], survivors;
};

// Reads and checks a vector that must be a permutation of 0 to count - 1.
OrtStatus* read_permutation(const Call& call, ScratchPool& scratch, size_t index, const char* name,
                            const char* meaning, int64_t count, Tensor* tensor);

// Reads and checks order and ends, for X with so many groups.
OrtStatus* read_order(const Call& call, ScratchPool& scratch, int64_t groups, StagedInputs* in);
OrtStatus* read_ends(const Call& call, int64_t groups, StagedInputs* in);

// Reads and checks everything but X's own shape. `groups` is X's size on the reduction axis, `kernel` the
// kernel's dims (none for a Gemm), `parameters` the names of the test's [S, N] inputs, `parameter_start`
// the first one's position. Fills `staged` (taps from the kernel dims of W_head).
OrtStatus* read_staged(const Call& call, ScratchPool& scratch, int64_t groups, int kernel_rank,
                       const char* const* parameters, int parameter_count, size_t parameter_start,
                       StagedInputs* in, Staged* staged);

// Reads and checks offset and max, the inputs from `start` on, for an output of this shape.
OrtStatus* read_finish(const Call& call, size_t start, Tensor* offset, Tensor* max, const int64_t* y_dims,
                       int y_rank, Finish* finish);

// The survivors output, or the kernel's own memory where the node does not ask for it. Call with the lease
// held until the kernel is done.
OrtStatus* survivors_output(const Call& call, int64_t checks, char* fallback, int64_t** survivors);

}  // namespace exprune
