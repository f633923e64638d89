// LowRankGemmThreshold, LowRankArgMaxThreshold: a Gemm with a ReLU, or a head, with an estimate of low rank.
// LowRankCascadeGemmThreshold, LowRankCascadeArgMaxThreshold: the same with two, one after the other.
#include "outputs.h"
#include "staged.h"

namespace exprune {

// Inputs by position: X, V, U, W and bias come first; then offset, max and limit, or shift and margin. A cascade
// goes on with U_more, and limit_more, or shift_more and margin_more.
constexpr size_t kLowRankBias = 4;

struct LowRankInputs {
  Tensor x, down, up, weight, bias, offset, max, first, second, up_more, first_more, second_more;
};

// `more`: position of U_more; 0 where there is none.
static OrtStatus* read_low_rank(const Call& call, LargePages& pages, size_t more, LowRankInputs* in, LowRank* layer) {
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
  const int64_t outputs = in->weight.dims[0];
  int64_t rank = in->down.dims[0];
  if (more) {
    EXPRUNE_RETURN_IF_ERROR(call.input(more, "U_more", ort::kFloat, &in->up_more));
    const Tensor& u = in->up_more;
    if (u.rank != 2 || u.dims[0] != outputs || u.dims[1] < 1 || u.dims[1] >= rank) {
      return call.bad("U_more", "has shape %s, expected [N, m] with m from 1 to less than r",
                      shape_text(u.dims, u.rank, text, sizeof(text)));
    }
    layer->more = u.dims[1];
    layer->up_more = u.floats();
    rank -= layer->more;
  }
  const int64_t weight[2] = {outputs, groups}, down[2] = {in->down.dims[0], groups}, up[2] = {outputs, rank};
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

// The kernels' form of vectors [N], for the time of a call.
template <class Turn>
static const float* turned(const Tensor& vector, float* to, const Turn& turn) {
  for (int64_t n = 0; n < vector.count; n++) to[n] = turn(vector.floats()[n]);
  return to;
}

// The second estimate's part is there with `Cascade` only.
template <bool Cascade>
struct LowRankGemm : KernelBase {
  static constexpr size_t kMore = Cascade ? kLowRankBias + 4 : 0;
  static constexpr Signature kSignature = {static_cast<int>(kLowRankBias) + (Cascade ? 6 : 4), 0, false};

  const char* op = nullptr;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    LowRankInputs in;
    LowRankGemmCall gemm = {};
    EXPRUNE_RETURN_IF_ERROR(read_low_rank(call, pages, kMore, &in, &gemm.layer));
    const int64_t outputs = gemm.layer.outputs;
    int64_t y_dims[kMaxRank];
    EXPRUNE_RETURN_IF_ERROR(features_shape(call, in.x, outputs, y_dims, &gemm.rows));
    EXPRUNE_RETURN_IF_ERROR(
        read_finish(call, kLowRankBias + 1, &in.offset, &in.max, y_dims, in.x.rank, &gemm.finish));
    EXPRUNE_RETURN_IF_ERROR(read_vector(call, kLowRankBias + 3, "limit", outputs, &in.first));
    if (Cascade) EXPRUNE_RETURN_IF_ERROR(read_vector(call, kMore + 1, "limit_more", outputs, &in.first_more));
    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, in.x.rank, &y));
    int64_t uncounted[2];
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, Cascade ? 2 : 1, reinterpret_cast<char*>(uncounted), &gemm.survivors));
    Lease scratch(reach, static_cast<size_t>(2 * outputs) * sizeof(float));
    float* memory = reinterpret_cast<float*>(scratch.data());
    if (!memory) return error(ort::kFail, "%s: out of memory", op);
    const auto minus = [](float limit) { return -limit; };  // below the limit is below 0 less the limit
    gemm.layer.shift = gemm.layer.bias;
    gemm.layer.reach = turned(in.first, memory, minus);
    if (Cascade) gemm.layer.reach_more = turned(in.first_more, memory + outputs, minus);
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

template <bool Cascade>
struct LowRankArgMax : KernelBase {
  static constexpr size_t kMore = Cascade ? kLowRankBias + 3 : 0;
  static constexpr Signature kSignature = {static_cast<int>(kLowRankBias) + (Cascade ? 6 : 3), 0, true};

  const char* op = nullptr;
  ArgMaxAttributes attributes;

  OrtStatus* create(const OrtKernelInfo* info) {
    return attributes.read(info, op);
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    LowRankInputs in;
    LowRankTopKCall head = {};
    EXPRUNE_RETURN_IF_ERROR(read_low_rank(call, pages, kMore, &in, &head.layer));
    const int64_t outputs = head.layer.outputs;
    EXPRUNE_RETURN_IF_ERROR(read_vector(call, kLowRankBias + 1, "shift", outputs, &in.first));
    EXPRUNE_RETURN_IF_ERROR(read_vector(call, kLowRankBias + 2, "margin", outputs, &in.second));
    if (Cascade) {
      EXPRUNE_RETURN_IF_ERROR(read_vector(call, kMore + 1, "shift_more", outputs, &in.first_more));
      EXPRUNE_RETURN_IF_ERROR(read_vector(call, kMore + 2, "margin_more", outputs, &in.second_more));
      head.layer.shift_more = in.first_more.floats();
    }
    EXPRUNE_RETURN_IF_ERROR(index_output(call, in.x, attributes.keepdims, &head.rows, &head.index));
    int64_t uncounted[2];
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, Cascade ? 2 : 1, reinterpret_cast<char*>(uncounted), &head.survivors));
    Lease scratch(reach, static_cast<size_t>(2 * outputs) * sizeof(float));
    float* memory = reinterpret_cast<float*>(scratch.data());
    if (!memory) return error(ort::kFail, "%s: out of memory", op);
    const auto not_negative = [](float margin) { return margin < 0 ? 0 : margin; };
    head.layer.shift = in.first.floats();
    head.layer.reach = turned(in.second, memory, not_negative);
    if (Cascade) head.layer.reach_more = turned(in.second_more, memory + outputs, not_negative);
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
  static const Op<LowRankGemm<false>> gemm("LowRankGemmThreshold");
  static const Op<LowRankArgMax<false>> argmax("LowRankArgMaxThreshold");
  static const Op<LowRankGemm<true>> gemm_cascade("LowRankCascadeGemmThreshold");
  static const Op<LowRankArgMax<true>> argmax_cascade("LowRankCascadeArgMaxThreshold");
  static const OrtCustomOp* const ops[] = {&gemm, &argmax, &gemm_cascade, &argmax_cascade};
  *count = 4;
  return ops;
}

}  // namespace exprune
