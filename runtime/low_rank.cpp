// LowRankGemmThreshold, LowRankArgMaxThreshold: a Gemm with a ReLU, or a head, with an estimate of low rank.
#include "outputs.h"
#include "staged.h"

namespace exprune {

// Inputs by position: X, V, U, W and bias come first; then offset, max and limit, or shift and margin.
constexpr size_t kLowRankBias = 4;

struct LowRankInputs {
  Tensor x, down, up, weight, bias, offset, max, first, second;
};

static OrtStatus* read_low_rank(const Call& call, LargePages& pages, LowRankInputs* in, LowRank* layer) {
  EXPRUNE_RETURN_IF_ERROR(call.input(0, "X", ort::kFloat, &in->x));
  EXPRUNE_RETURN_IF_ERROR(call.input(1, "V", ort::kFloat, &in->down));
  EXPRUNE_RETURN_IF_ERROR(call.input(2, "U", ort::kFloat, &in->up));
  EXPRUNE_RETURN_IF_ERROR(call.input(3, "W", ort::kFloat, &in->weight));
  EXPRUNE_RETURN_IF_ERROR(call.input(kLowRankBias, "bias", ort::kFloat, &in->bias));
  if (in->x.rank < 1) return call.bad("X", "must have at least one dimension");
  const int64_t groups = in->x.dims[in->x.rank - 1];
  if (groups < 1) return call.bad("X", "must have features");
  char text[160];
  if (in->weight.rank != 2 || in->weight.dims[0] < 1 || in->weight.dims[0] > INT32_MAX) {
    return call.bad("W", "has shape %s, expected [N, G] with N >= 1",
                    shape_text(in->weight.dims, in->weight.rank, text, sizeof(text)));
  }
  if (in->down.rank != 2 || in->down.dims[0] < 1) {
    return call.bad("V", "has shape %s, expected [r, G] with r >= 1",
                    shape_text(in->down.dims, in->down.rank, text, sizeof(text)));
  }
  const int64_t outputs = in->weight.dims[0], rank = in->down.dims[0];
  const int64_t weight[2] = {outputs, groups}, down[2] = {rank, groups}, up[2] = {outputs, rank};
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->weight, "W", "[N, G]", weight, 2));
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->down, "V", "[r, G]", down, 2));
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->up, "U", "[N, r]", up, 2));
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->bias, "bias", "[N]", weight, 1));
  pages.ask_for(in->up.data, static_cast<size_t>(in->up.count) * sizeof(float), in->weight.data,
                static_cast<size_t>(in->weight.count) * sizeof(float));
  layer->outputs = outputs;
  layer->groups = groups;
  layer->rank = rank;
  layer->down = in->down.floats();
  layer->up = in->up.floats();
  layer->weight = in->weight.floats();
  layer->bias = in->bias.floats();
  return nullptr;
}

static OrtStatus* read_vector(const Call& call, size_t index, const char* name, int64_t outputs, Tensor* tensor) {
  EXPRUNE_RETURN_IF_ERROR(call.input(index, name, ort::kFloat, tensor));
  return call.shape(*tensor, name, "[N]", &outputs, 1);
}

struct LowRankGemm : KernelBase {
  static constexpr Signature kSignature = {static_cast<int>(kLowRankBias) + 4, 0, false};

  const char* op = nullptr;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    LowRankInputs in;
    LowRankGemmCall gemm = {};
    EXPRUNE_RETURN_IF_ERROR(read_low_rank(call, pages, &in, &gemm.layer));
    const int64_t outputs = gemm.layer.outputs;
    int64_t y_dims[kMaxRank];
    EXPRUNE_RETURN_IF_ERROR(features_shape(call, in.x, outputs, y_dims, &gemm.rows));
    EXPRUNE_RETURN_IF_ERROR(
        read_finish(call, kLowRankBias + 1, &in.offset, &in.max, y_dims, in.x.rank, &gemm.finish));
    EXPRUNE_RETURN_IF_ERROR(read_vector(call, kLowRankBias + 3, "limit", outputs, &in.first));
    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, in.x.rank, &y));
    int64_t uncounted = 0;
    EXPRUNE_RETURN_IF_ERROR(one_survivors(call, 1, &uncounted, &gemm.survivors));
    // Below the limit is below 0 less the limit.
    Lease scratch(reach, static_cast<size_t>(outputs) * sizeof(float));
    float* minus = reinterpret_cast<float*>(scratch.data());
    if (!minus) return error(ort::kFail, "%s: out of memory", op);
    for (int64_t n = 0; n < outputs; n++) minus[n] = -in.first.floats()[n];
    gemm.layer.shift = gemm.layer.bias;
    gemm.layer.reach = minus;
    gemm.x = in.x.floats();
    gemm.y = static_cast<float*>(y);
    Runner runner = {context};
    return runner.result(kernels().low_rank_gemm(gemm, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    return infer_features(context, kLowRankBias, 1, 0);
  }

  ScratchPool reach;
};

struct LowRankArgMax : KernelBase {
  static constexpr Signature kSignature = {static_cast<int>(kLowRankBias) + 3, 0, true};

  const char* op = nullptr;
  ArgMaxAttributes attributes;

  OrtStatus* create(const OrtKernelInfo* info) {
    return attributes.read(info, op);
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    LowRankInputs in;
    LowRankTopKCall head = {};
    EXPRUNE_RETURN_IF_ERROR(read_low_rank(call, pages, &in, &head.layer));
    EXPRUNE_RETURN_IF_ERROR(read_vector(call, kLowRankBias + 1, "shift", head.layer.outputs, &in.first));
    EXPRUNE_RETURN_IF_ERROR(read_vector(call, kLowRankBias + 2, "margin", head.layer.outputs, &in.second));
    EXPRUNE_RETURN_IF_ERROR(index_output(call, in.x, attributes.keepdims, &head.rows, &head.index));
    int64_t uncounted = 0;
    EXPRUNE_RETURN_IF_ERROR(one_survivors(call, 1, &uncounted, &head.survivors));
    Lease scratch(reach, static_cast<size_t>(head.layer.outputs) * sizeof(float));
    float* margin = reinterpret_cast<float*>(scratch.data());
    if (!margin) return error(ort::kFail, "%s: out of memory", op);
    for (int64_t n = 0; n < head.layer.outputs; n++) {
      margin[n] = in.second.floats()[n] < 0 ? 0 : in.second.floats()[n];
    }
    head.layer.shift = in.first.floats();
    head.layer.reach = margin;
    head.k = 1;
    head.select_last = attributes.select_last;
    head.x = in.x.floats();
    Runner runner = {context};
    return runner.result(kernels().low_rank_top_k(head, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) { return infer_index(context); }

  ScratchPool reach;
};

const OrtCustomOp* const* low_rank_ops(size_t* count) {
  static const Op<LowRankGemm> gemm("LowRankGemmThreshold");
  static const Op<LowRankArgMax> argmax("LowRankArgMaxThreshold");
  static const OrtCustomOp* const ops[] = {&gemm, &argmax};
  *count = 2;
  return ops;
}

}  // namespace exprune
