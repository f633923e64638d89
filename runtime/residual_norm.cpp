// ResidualNorm: LayerNormalization over the last axis of X + (Y + bias), and that sum.
#include "outputs.h"

namespace exprune {

struct ResidualNorm : KernelBase {
  static constexpr Signature kSignature = {5, 0, false, 0, 2, 3, false};

  const char* op = nullptr;
  float epsilon = 1e-5f;

  OrtStatus* create(const OrtKernelInfo* info) { return attribute_float(info, op, "epsilon", &epsilon); }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    Tensor x, y, bias, scale, shift;
    EXPRUNE_RETURN_IF_ERROR(call.input(0, "X", ort::kFloat, &x));
    EXPRUNE_RETURN_IF_ERROR(call.input(1, "Y", ort::kFloat, &y));
    EXPRUNE_RETURN_IF_ERROR(call.input(2, "bias", ort::kFloat, &bias));
    EXPRUNE_RETURN_IF_ERROR(call.input(3, "scale", ort::kFloat, &scale));
    EXPRUNE_RETURN_IF_ERROR(call.input(4, "shift", ort::kFloat, &shift));
    if (x.rank < 1) return call.bad("X", "must have at least one dimension");
    EXPRUNE_RETURN_IF_ERROR(call.shape(y, "Y", "that of X", x.dims, x.rank));
    ResidualNormCall norm = {};
    norm.width = x.dims[x.rank - 1];
    EXPRUNE_RETURN_IF_ERROR(call.shape(bias, "bias", "[C]", &norm.width, 1));
    EXPRUNE_RETURN_IF_ERROR(call.shape(scale, "scale", "[C]", &norm.width, 1));
    EXPRUNE_RETURN_IF_ERROR(call.shape(shift, "shift", "[C]", &norm.width, 1));
    void *normed = nullptr, *sum = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, x.dims, x.rank, &normed));
    EXPRUNE_RETURN_IF_ERROR(call.output(1, x.dims, x.rank, &sum));
    if (x.count == 0) return nullptr;
    norm.rows = x.count / norm.width;
    norm.x = x.floats();
    norm.y = y.floats();
    norm.bias = bias.floats();
    norm.scale = scale.floats();
    norm.shift = shift.floats();
    norm.epsilon = epsilon;
    norm.normed = static_cast<float*>(normed);
    norm.sum = static_cast<float*>(sum);
    Runner runner = {context};
    return runner.result(kernels().residual_norm(norm, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    KnownShape shape;
    infer_input(context, 0, &shape);
    if (shape.rank < 1) return nullptr;
    EXPRUNE_RETURN_IF_ERROR(infer_output(context, 0, ort::kFloat, &shape));
    return infer_output(context, 1, ort::kFloat, &shape);
  }
};

const OrtCustomOp* const* residual_norm_ops(size_t* count) {
  static const Op<ResidualNorm> op("ResidualNorm");
  static const OrtCustomOp* const ops[] = {&op};
  *count = 1;
  return ops;
}

}  // namespace exprune
