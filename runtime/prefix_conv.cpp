// PrefixConvThreshold, PrefixConvStats, PrefixConvBound: a 1-D or 2-D convolution with a ReLU, in stages.
#include "conv_geometry.h"
#include "staged.h"
#include "test_traits.h"

namespace exprune {

template <int Test>
struct PrefixConv : KernelBase {
  static constexpr TestInputs kTest = kReluTests[Test];
  static constexpr Signature kSignature = {static_cast<int>(kMax) + 1 + kTest.count, kStagedInts, false};

  const char* op = nullptr;
  float z = 0;
  Geometry geometry;

  OrtStatus* create(const OrtKernelInfo* info) {
    EXPRUNE_RETURN_IF_ERROR(geometry.read(info, op));
    return read_z<Test>(info, op, &z);
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    StagedInputs in;
    ConvCall conv = {};
    const int rank = geometry.rank;
    EXPRUNE_RETURN_IF_ERROR(call.input(kX, "X", ort::kFloat, &in.x));
    if (in.x.rank != 2 + rank) {
      return call.bad("X", "has %d dimensions, expected %d as the attributes say", in.x.rank, 2 + rank);
    }
    EXPRUNE_RETURN_IF_ERROR(read_staged(call, per_task, in.x.dims[1], rank, kTest.names, kTest.count,
                                        kMax + 1, &in, &conv.staged));
    conv.staged.z = z;

    int64_t y_dims[4];
    EXPRUNE_RETURN_IF_ERROR(geometry.output_dims(call, in.x, conv.staged.outputs, in.head.dims + 2, y_dims));
    EXPRUNE_RETURN_IF_ERROR(read_finish(call, kOffset, &in.offset, &in.max, y_dims, 2 + rank, &conv.finish));

    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, 2 + rank, &y));
    const int64_t checks = conv.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(checks) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, checks, uncounted.data(), &conv.survivors));
    geometry.fill(in.x.dims, in.head.dims + 2, y_dims, &conv);
    conv.x = in.x.floats();
    conv.y = static_cast<float*>(y);
    Runner runner = {context};
    return runner.result(kernels().prefix_conv[Test](conv, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    return infer_conv(context, kHead, 0);
  }
};

const OrtCustomOp* const* prefix_conv_ops(size_t* count) {
  static const Op<PrefixConv<kThreshold>> threshold("PrefixConvThreshold");
  static const Op<PrefixConv<kStats>> stats("PrefixConvStats");
  static const Op<PrefixConv<kBound>> bound("PrefixConvBound");
  static const OrtCustomOp* const ops[] = {&threshold, &stats, &bound};
  *count = 3;
  return ops;
}

}  // namespace exprune
