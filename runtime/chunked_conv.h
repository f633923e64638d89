// What the convolutions that keep all weights in one input share: the exact ones, and those that decide in blocks.
#pragma once

#include "conv_geometry.h"
#include "staged.h"

namespace exprune {

// What a layout of weights tells.
struct ConvSizes {
  int64_t outputs, taps;
  int64_t limits;  // limits of a check, and what to call their shape
  const char* limits_meaning;
};

// Inputs: X; order and ends if staged; W, bias, offset and max; if staged also scale, shift, limit and one more of
// the op's own. With ByEnergy every image has an order of its own, and weight_energy is in the place of order.
// A Derived has
//   kKernelAxis                            the first of W's axes that belong to the kernel
//   read_weights(call, groups, in, sizes)  reads and checks W and bias
//   run(call, context, in, conv)           reads and checks its own input, calls the kernel
template <class Derived, bool Staged, bool ByEnergy = false>
struct ChunkedConv : KernelBase {
  static constexpr size_t kWeights = Staged ? 3 : 1, kFirst = kWeights + 1, kOwn = kFirst + 6;
  static constexpr uint32_t kInts = Staged ? (ByEnergy ? 0u : 1u << kOrder) | (1u << kEnds) | (1u << kOwn) : 0u;
  static constexpr Signature kSignature = {Staged ? 11 : 5, kInts, false};

  const char* op = nullptr;
  Geometry geometry;

  OrtStatus* create(const OrtKernelInfo* info) { return geometry.read(info, op); }

  // Reads and checks X, order or weight_energy, and ends; `groups` has to live as long as `in`.
  OrtStatus* read_input(const Call& call, StagedInputs* in, int64_t* groups) {
    EXPRUNE_RETURN_IF_ERROR(call.input(kX, "X", ort::kFloat, &in->x));
    const int rank = 2 + geometry.rank;
    if (in->x.rank != rank) {
      return call.bad("X", "has %d dimensions, expected %d as the attributes say", in->x.rank, rank);
    }
    *groups = in->x.dims[1];
    if (Staged) {
      if (*groups < 2) return call.bad("X", "must have at least two reduction groups");
      if (ByEnergy) {
        if (*groups > INT32_MAX) return call.bad("X", "has too many reduction groups");
        EXPRUNE_RETURN_IF_ERROR(call.input(kOrder, "weight_energy", ort::kFloat, &in->weight_energy));
        EXPRUNE_RETURN_IF_ERROR(call.shape(in->weight_energy, "weight_energy", "[G]", groups, 1));
      } else {
        EXPRUNE_RETURN_IF_ERROR(read_order(call, per_task, *groups, in));
      }
      return read_ends(call, *groups, in);
    }
    if (*groups < 1) return call.bad("X", "must have at least one channel");
    in->ends.data = groups;  // one chunk
    in->ends.count = 1;
    return nullptr;
  }

  // Reads and checks the test's parameters.
  static OrtStatus* read_test(const Call& call, const ConvSizes& sizes, StagedInputs* in) {
    const int64_t checks = in->ends.count - 1;
    const int64_t per_output[2] = {checks, sizes.outputs}, per_limit[2] = {checks, sizes.limits};
    static const char* const names[] = {"scale", "shift", "limit"};
    for (size_t i = 0; Staged && i < 3; i++) {
      EXPRUNE_RETURN_IF_ERROR(call.input(kFirst + 3 + i, names[i], ort::kFloat, &in->parameters[i]));
      EXPRUNE_RETURN_IF_ERROR(call.shape(in->parameters[i], names[i], i == 2 ? sizes.limits_meaning : "[S, N]",
                                         i == 2 ? per_limit : per_output, 2));
    }
    return nullptr;
  }

  static exprune::Staged staged(const StagedInputs& in, const ConvSizes& sizes, int64_t groups) {
    exprune::Staged staged = {};
    staged.outputs = sizes.outputs;
    staged.groups = groups;
    staged.taps = sizes.taps;
    staged.chunks = in.ends.count;
    staged.order = in.order.data ? in.order.ints() : nullptr;
    staged.ends = in.ends.ints();
    staged.head = in.head.floats();
    staged.bias = in.bias.floats();
    staged.first = in.parameters[0].floats();
    staged.second = in.parameters[1].floats();
    staged.third = in.parameters[2].floats();
    return staged;
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    Derived& self = *static_cast<Derived*>(this);
    StagedInputs in;
    ConvSizes sizes = {};
    ConvCall conv = {};
    const int rank = 2 + geometry.rank;
    int64_t groups = 0, y_dims[4];
    EXPRUNE_RETURN_IF_ERROR(read_input(call, &in, &groups));
    EXPRUNE_RETURN_IF_ERROR(call.input(kWeights, "W", ort::kFloat, &in.head));
    EXPRUNE_RETURN_IF_ERROR(call.input(kFirst, "bias", ort::kFloat, &in.bias));
    EXPRUNE_RETURN_IF_ERROR(self.read_weights(call, groups, in, &sizes));
    EXPRUNE_RETURN_IF_ERROR(read_test(call, sizes, &in));
    conv.staged = staged(in, sizes, groups);
    const int64_t* kernel = in.head.dims + Derived::kKernelAxis;
    EXPRUNE_RETURN_IF_ERROR(geometry.output_dims(call, in.x, sizes.outputs, kernel, y_dims));
    EXPRUNE_RETURN_IF_ERROR(read_finish(call, kFirst + 1, &in.offset, &in.max, y_dims, rank, &conv.finish));

    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, rank, &y));
    const int64_t checks = conv.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(checks) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, checks, uncounted.data(), &conv.survivors));
    geometry.fill(in.x.dims, kernel, y_dims, &conv);
    conv.x = in.x.floats();
    conv.y = static_cast<float*>(y);
    return self.run(call, context, in, &conv);
  }
};

}  // namespace exprune
