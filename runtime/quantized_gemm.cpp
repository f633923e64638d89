// QuantizedGemmBound: a Gemm with a ReLU; 8-bit codes show which outputs are certainly 0.
#include "outputs.h"
#include "quantized.h"

namespace exprune {

struct QuantizedGemm : KernelBase {
  static constexpr Signature kSignature = {static_cast<int>(kQuantizedBias) + 3, 0, false, kQuantizedBytes};

  const char* op = nullptr;
  KeptMemory panels;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    QuantizedInputs in;
    QuantizedGemmCall gemm = {};
    EXPRUNE_RETURN_IF_ERROR(read_quantized(call, pages, &in, &gemm.layer));
    int64_t y_dims[kMaxRank];
    EXPRUNE_RETURN_IF_ERROR(features_shape(call, in.x, gemm.layer.outputs, y_dims, &gemm.rows));
    EXPRUNE_RETURN_IF_ERROR(
        read_finish(call, kQuantizedBias + 1, &in.offset, &in.max, y_dims, in.x.rank, &gemm.finish));
    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, in.x.rank, &y));
    int64_t uncounted = 0;
    EXPRUNE_RETURN_IF_ERROR(one_survivors(call, 1, &uncounted, &gemm.survivors));
    gemm.x = in.x.floats();
    gemm.y = static_cast<float*>(y);
    gemm.panels = constants.has(kQuantizedWeight) ? &panels.data : nullptr;
    Runner runner = {context};
    return runner.result(kernels().quantized_gemm(gemm, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    return infer_features(context, kQuantizedBias, 1, 0);
  }
};

const OrtCustomOp* const* quantized_gemm_ops(size_t* count) {
  static const Op<QuantizedGemm> op("QuantizedGemmBound");
  static const OrtCustomOp* const ops[] = {&op};
  *count = 1;
  return ops;
}

}  // namespace exprune
