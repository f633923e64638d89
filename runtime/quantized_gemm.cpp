// QuantizedGemmBound: a Gemm with a ReLU; 8-bit codes show which outputs are certainly 0.
#include "quantized.h"

namespace exprune {

struct QuantizedGemm : KernelBase {
  static constexpr Signature kSignature = {static_cast<int>(kQuantizedBias) + 3, 0, false, kQuantizedBytes};

  const char* op = nullptr;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op};
    QuantizedInputs in;
    QuantizedGemmCall gemm = {};
    EXPRUNE_RETURN_IF_ERROR(read_quantized(call, pages, &in, &gemm.layer));
    const int last = in.x.rank - 1;
    int64_t y_dims[kMaxRank], y_count;
    for (int i = 0; i < last; i++) y_dims[i] = in.x.dims[i];
    y_dims[last] = gemm.layer.outputs;
    if (!product(y_dims, in.x.rank, &y_count)) return call.bad("X", "makes Y too large");
    EXPRUNE_RETURN_IF_ERROR(
        read_finish(call, kQuantizedBias + 1, &in.offset, &in.max, y_dims, in.x.rank, &gemm.finish));
    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, in.x.rank, &y));
    int64_t one = 1, uncounted = 0;
    void* survivors = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(1, &one, 1, &survivors));
    gemm.rows = y_count / gemm.layer.outputs;
    gemm.x = in.x.floats();
    gemm.y = static_cast<float*>(y);
    gemm.survivors = survivors ? static_cast<int64_t*>(survivors) : &uncounted;
    Runner runner = {context};
    return runner.result(kernels().quantized_gemm(gemm, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    KnownShape shape, weights;
    infer_input(context, kQuantizedX, &shape);
    infer_input(context, kQuantizedBias, &weights);
    if (shape.rank < 1) return nullptr;
    shape.unknown(shape.rank - 1);
    if (weights.rank == 1) {
      shape.dims[shape.rank - 1] = weights.dims[0];
      shape.names[shape.rank - 1] = weights.names[0];
    }
    return infer_output(context, 0, ort::kFloat, &shape);
  }
};

const OrtCustomOp* const* quantized_gemm_ops(size_t* count) {
  static const Op<QuantizedGemm> op("QuantizedGemmBound");
  static const OrtCustomOp* const ops[] = {&op};
  *count = 1;
  return ops;
}

}  // namespace exprune
