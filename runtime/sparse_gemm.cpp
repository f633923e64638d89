// SparseGemm: Y = X W + bias, reading only the rows of W whose x is not 0.
#include "outputs.h"

namespace exprune {

struct SparseGemm : KernelBase {
  static constexpr Signature kSignature = {3, 0, false};

  const char* op = nullptr;
  KeptMemory panels;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    Tensor x, w, bias;
    EXPRUNE_RETURN_IF_ERROR(call.input(0, "X", ort::kFloat, &x));
    EXPRUNE_RETURN_IF_ERROR(call.input(1, "W", ort::kFloat, &w));
    EXPRUNE_RETURN_IF_ERROR(call.input(2, "bias", ort::kFloat, &bias));
    if (x.rank < 1) return call.bad("X", "must have at least one dimension");
    const int last = x.rank - 1;
    if (w.rank != 2) return call.bad("W", "must have two dimensions, [K, N]");
    const int64_t w_dims[2] = {x.dims[last], w.dims[1]};
    EXPRUNE_RETURN_IF_ERROR(call.shape(w, "W", "[K, N]", w_dims, 2));
    EXPRUNE_RETURN_IF_ERROR(call.shape(bias, "bias", "[N]", w_dims + 1, 1));
    if (x.dims[last] > INT32_MAX) return call.bad("X", "has too many features");

    int64_t y_dims[kMaxRank];
    SparseGemmCall gemm = {};
    EXPRUNE_RETURN_IF_ERROR(features_shape(call, x, w.dims[1], y_dims, &gemm.rows));
    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, x.rank, &y));
    int64_t uncounted = 0;
    EXPRUNE_RETURN_IF_ERROR(one_survivors(call, 1, &uncounted, &gemm.survivors));
    gemm.depth = x.dims[last];
    gemm.columns = w.dims[1];
    gemm.x = x.floats();
    gemm.w = w.floats();
    pages.ask_for(w.data, static_cast<size_t>(w.count) * sizeof(float), nullptr, 0);
    gemm.bias = bias.floats();
    gemm.y = static_cast<float*>(y);
    gemm.panels = constants.has(1) ? &panels.data : nullptr;
    Runner runner = {context};
    return runner.result(kernels().sparse_gemm(gemm, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) { return infer_features(context, 1, 2, 1); }
};

const OrtCustomOp* const* sparse_gemm_ops(size_t* count) {
  static const Op<SparseGemm> op("SparseGemm");
  static const OrtCustomOp* const ops[] = {&op};
  *count = 1;
  return ops;
}

}  // namespace exprune
