// PrefixArgMaxThreshold, PrefixArgMaxStats, PrefixArgMaxBound: a linear head with an ArgMax, in stages.
#include "staged.h"
#include "test_traits.h"

namespace exprune {

template <int Test>
struct PrefixArgMax : KernelBase {
  static constexpr TestInputs kTest = kHeadTests[Test];
  static constexpr Signature kSignature = {static_cast<int>(kBias) + 1 + kTest.count, kStagedInts, true};

  const char* op = nullptr;
  float z = 0;
  bool keepdims = true;
  bool select_last = false;

  // Attributes that a node leaves out have ArgMax's defaults.
  OrtStatus* create(const OrtKernelInfo* info) {
    int64_t value;
    if (attribute_int(info, "keepdims", &value)) keepdims = value != 0;
    if (attribute_int(info, "select_last_index", &value)) select_last = value != 0;
    return read_z<Test>(info, op, &z);
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op};
    StagedInputs in;
    ArgMaxCall head = {};
    EXPRUNE_RETURN_IF_ERROR(call.input(kX, "X", ort::kFloat, &in.x));
    if (in.x.rank < 1) return call.bad("X", "must have at least one dimension");
    const int last = in.x.rank - 1;
    EXPRUNE_RETURN_IF_ERROR(read_staged(call, per_task, in.x.dims[last], 0, kTest.names, kTest.count,
                                        kBias + 1, &in, &head.staged));
    head.staged.z = z;

    int64_t dims[kMaxRank];
    for (int i = 0; i < last; i++) dims[i] = in.x.dims[i];
    dims[last] = 1;
    if (!product(dims, last, &head.rows)) return call.bad("X", "is too large");
    void* index = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, dims, keepdims ? in.x.rank : last, &index));
    const int64_t checks = head.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(checks) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, checks, uncounted.data(), &head.survivors));
    head.select_last = select_last;
    head.x = in.x.floats();
    head.index = static_cast<int64_t*>(index);
    Runner runner = {context};
    return runner.result(kernels().prefix_argmax[Test](head, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    KnownShape shape;
    infer_input(context, kX, &shape);
    if (shape.rank < 1) return nullptr;
    int64_t keep = 1;
    infer_attribute_int(context, "keepdims", &keep);
    if (keep) {
      shape.dims[shape.rank - 1] = 1;
    } else {
      shape.rank--;
    }
    return infer_output(context, 0, ort::kInt64, &shape);
  }
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
