// PrefixArgMaxThreshold, PrefixArgMaxStats, PrefixArgMaxBound: a linear head with an ArgMax, in stages.
#include "outputs.h"
#include "staged.h"
#include "test_traits.h"

namespace exprune {

template <int Test>
struct PrefixArgMax : KernelBase {
  static constexpr TestInputs kTest = kHeadTests[Test];
  static constexpr Signature kSignature = {static_cast<int>(kBias) + 1 + kTest.count, kStagedInts, true};

  const char* op = nullptr;
  float z = 0;
  ArgMaxAttributes attributes;

  OrtStatus* create(const OrtKernelInfo* info) {
    EXPRUNE_RETURN_IF_ERROR(attributes.read(info, op));
    return read_z<Test>(info, op, &z);
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    StagedInputs in;
    ArgMaxCall head = {};
    EXPRUNE_RETURN_IF_ERROR(call.input(kX, "X", ort::kFloat, &in.x));
    if (in.x.rank < 1) return call.bad("X", "must have at least one dimension");
    EXPRUNE_RETURN_IF_ERROR(read_staged(call, per_task, in.x.dims[in.x.rank - 1], 0, kTest.names, kTest.count,
                                        kBias + 1, &in, &head.staged));
    head.staged.z = z;

    EXPRUNE_RETURN_IF_ERROR(index_output(call, in.x, attributes.keepdims, &head.rows, &head.index));
    const int64_t checks = head.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(checks) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, checks, uncounted.data(), &head.survivors));
    head.select_last = attributes.select_last;
    head.x = in.x.floats();
    Runner runner = {context};
    return runner.result(kernels().prefix_argmax[Test](head, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) { return infer_index(context); }
};

const OrtCustomOp* const* prefix_argmax_ops(size_t* count) {
  static const Op<PrefixArgMax<kThreshold>> threshold("PrefixArgMaxThreshold");
  static const Op<PrefixArgMax<kStats>> stats("PrefixArgMaxStats");
  static const Op<PrefixArgMax<kBound>> bound("PrefixArgMaxBound");
  static const OrtCustomOp* const ops[] = {&threshold, &stats, &bound};
  *count = 3;
  return ops;
}

}  // namespace exprune
