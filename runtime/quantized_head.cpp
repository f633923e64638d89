// QuantizedArgMaxBound, QuantizedTopKBound: a linear head of which the best classes are wanted; codes of the
// weights show which classes cannot be among them.
#include "outputs.h"
#include "quantized.h"

namespace exprune {

// What both heads do once they know what they want.
static OrtStatus* run_head(OrtKernelContext* context, const char* op, KernelBase& kernel, size_t last_output,
                           QuantizedTopKCall* head) {
  const Call call = {context, op, &kernel.constants};
  int64_t uncounted = 0;
  EXPRUNE_RETURN_IF_ERROR(one_survivors(call, last_output, &uncounted, &head->survivors));
  Runner runner = {context};
  return runner.result(kernels().quantized_top_k(*head, runner.env(kernel)), op);
}

struct QuantizedArgMax : KernelBase {
  static constexpr Signature kSignature = {static_cast<int>(kQuantizedBias) + 1, 0, true, kQuantizedBytes};

  const char* op = nullptr;
  ArgMaxAttributes attributes;

  OrtStatus* create(const OrtKernelInfo* info) {
    return attributes.read(info, op);
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    QuantizedInputs in;
    QuantizedTopKCall head = {};
    EXPRUNE_RETURN_IF_ERROR(read_quantized(call, pages, &in, &head.layer));
    EXPRUNE_RETURN_IF_ERROR(index_output(call, in.x, attributes.keepdims, &head.rows, &head.index));
    head.k = 1;
    head.select_last = attributes.select_last;
    head.x = in.x.floats();
    return run_head(context, op, *this, 1, &head);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) { return infer_index(context); }
};

struct QuantizedTopK : KernelBase {
  static constexpr size_t kK = kQuantizedBias + 1;
  static constexpr Signature kSignature = {static_cast<int>(kK) + 1, 1u << kK, false, kQuantizedBytes, 3};

  const char* op = nullptr;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    QuantizedInputs in;
    Tensor k;
    QuantizedTopKCall head = {};
    EXPRUNE_RETURN_IF_ERROR(read_quantized(call, pages, &in, &head.layer));
    EXPRUNE_RETURN_IF_ERROR(call.input(kK, "k", ort::kInt64, &k));
    if (k.count != 1) return call.bad("k", "must have one element");
    head.k = k.ints()[0];
    const int64_t most = head.layer.outputs < kMostK ? head.layer.outputs : kMostK;
    if (head.k < 1 || head.k > most) {
      return call.bad("k", "must be 1 to %lld and not %lld", static_cast<long long>(most),
                      static_cast<long long>(head.k));
    }
    int64_t dims[kMaxRank];
    EXPRUNE_RETURN_IF_ERROR(features_shape(call, in.x, head.k, dims, &head.rows));
    void *values = nullptr, *index = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, dims, in.x.rank, &values));
    EXPRUNE_RETURN_IF_ERROR(call.output(1, dims, in.x.rank, &index));
    if (!index && head.rows > 0) return call.bad("indices", "must be an output of the node");
    head.x = in.x.floats();
    head.values = static_cast<float*>(values);
    head.index = static_cast<int64_t*>(index);
    return run_head(context, op, *this, 2, &head);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    KnownShape shape;
    infer_input(context, kQuantizedX, &shape);
    if (shape.rank < 1) return nullptr;
    shape.unknown(shape.rank - 1);
    KnownShape index = shape;
    EXPRUNE_RETURN_IF_ERROR(infer_output(context, 0, ort::kFloat, &shape));
    return infer_output(context, 1, ort::kInt64, &index);
  }
};

const OrtCustomOp* const* quantized_head_ops(size_t* count) {
  static const Op<QuantizedArgMax> argmax("QuantizedArgMaxBound");
  static const Op<QuantizedTopK> top_k("QuantizedTopKBound");
  static const OrtCustomOp* const ops[] = {&argmax, &top_k};
  *count = 2;
  return ops;
}

}  // namespace exprune
