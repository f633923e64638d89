// PrefixGemmThreshold, PrefixGemmStats, PrefixGemmBound: a Gemm with a ReLU, in stages.
#include "outputs.h"
#include "staged.h"
#include "test_traits.h"

namespace exprune {

template <int Test>
struct PrefixGemm : KernelBase {
  static constexpr TestInputs kTest = kReluTests[Test];
  static constexpr Signature kSignature = {static_cast<int>(kMax) + 1 + kTest.count, kStagedInts, false};

  const char* op = nullptr;
  float z = 0;

  OrtStatus* create(const OrtKernelInfo* info) { return read_z<Test>(info, op, &z); }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    StagedInputs in;
    GemmCall gemm = {};
    EXPRUNE_RETURN_IF_ERROR(call.input(kX, "X", ort::kFloat, &in.x));
    if (in.x.rank < 1) return call.bad("X", "must have at least one dimension");
    const int last = in.x.rank - 1;
    EXPRUNE_RETURN_IF_ERROR(read_staged(call, per_task, in.x.dims[last], 0, kTest.names, kTest.count,
                                        kMax + 1, &in, &gemm.staged));
    gemm.staged.z = z;

    int64_t y_dims[kMaxRank];
    EXPRUNE_RETURN_IF_ERROR(features_shape(call, in.x, gemm.staged.outputs, y_dims, &gemm.rows));
    EXPRUNE_RETURN_IF_ERROR(read_finish(call, kOffset, &in.offset, &in.max, y_dims, in.x.rank, &gemm.finish));

    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, in.x.rank, &y));
    const int64_t checks = gemm.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(checks) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, checks, uncounted.data(), &gemm.survivors));
    gemm.x = in.x.floats();
    gemm.y = static_cast<float*>(y);
    Runner runner = {context};
    return runner.result(kernels().prefix_gemm[Test](gemm, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) { return infer_features(context, kHead, 2, 0); }
};

const OrtCustomOp* const* prefix_gemm_ops(size_t* count) {
  static const Op<PrefixGemm<kThreshold>> threshold("PrefixGemmThreshold");
  static const Op<PrefixGemm<kStats>> stats("PrefixGemmStats");
  static const Op<PrefixGemm<kBound>> bound("PrefixGemmBound");
  static const OrtCustomOp* const ops[] = {&threshold, &stats, &bound};
  *count = 3;
  return ops;
}

}  // namespace exprune
