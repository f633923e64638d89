// CachedAttention and StackedCachedAttention: attention of new positions over a cache and themselves, with the bias
// of the projections before it. The caches of all layers may stand in one tensor.
#include "ort.h"

namespace exprune {

template <bool Stacked>
struct CachedAttention : KernelBase {
  static constexpr int kInputs = Stacked ? 7 : 6;
  // heads, and the layer, are int64; all three outputs are floats.
  static constexpr Signature kSignature = {kInputs, Stacked ? 0x50u : 0x10u, false, 0, 3, 7, false};

  const char* op = nullptr;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    Tensor x, bias, past_key, past_value, scale;
    AttentionCall a = {};
    EXPRUNE_RETURN_IF_ERROR(call.input(0, "X", ort::kFloat, &x));
    EXPRUNE_RETURN_IF_ERROR(call.input(1, "bias", ort::kFloat, &bias));
    EXPRUNE_RETURN_IF_ERROR(call.input(2, "past_key", ort::kFloat, &past_key));
    EXPRUNE_RETURN_IF_ERROR(call.input(3, "past_value", ort::kFloat, &past_value));
    EXPRUNE_RETURN_IF_ERROR(call.input(5, "scale", ort::kFloat, &scale));
    if (scale.count != 1) return call.bad("scale", "must have one element");
    if (x.rank != 3) return call.bad("X", "must have three dimensions, [batch, length, 3 * heads * size]");
    const int64_t width = x.dims[2];
    if (width < 3) return call.bad("X", "must have 3 * heads * size features");
    EXPRUNE_RETURN_IF_ERROR(call.number(4, "heads", 1, width / 3, &a.heads));
    if (width % (3 * a.heads) != 0) return call.bad("X", "must have 3 * heads * size features");
    EXPRUNE_RETURN_IF_ERROR(call.shape(bias, "bias", "[3 * heads * size]", &width, 1));
    constexpr int kFirst = Stacked ? 1 : 0;
    if (past_key.rank != 4 + kFirst) {
      return call.bad("past_key", Stacked ? "must be [layers, batch, heads, past, size]" : "must be [batch, heads, past, size]");
    }
    a.batch = x.dims[0];
    a.length = x.dims[1];
    a.size = width / (3 * a.heads);
    a.past = past_key.dims[kFirst + 2];
    const int64_t dims[5] = {past_key.dims[0], a.batch, a.heads, a.past, a.size};
    EXPRUNE_RETURN_IF_ERROR(call.shape(past_key, "past_key", "[(layers,) batch, heads, past, size]", dims + 1 - kFirst, 4 + kFirst));
    EXPRUNE_RETURN_IF_ERROR(call.shape(past_value, "past_value", "that of past_key", dims + 1 - kFirst, 4 + kFirst));
    int64_t layer = 0;
    if (Stacked) {
      if (dims[0] < 1) return call.bad("past_key", "has no layer");
      EXPRUNE_RETURN_IF_ERROR(call.number(6, "layer", 0, dims[0] - 1, &layer));
    }
    const int64_t y_dims[3] = {a.batch, a.length, a.heads * a.size};
    int64_t whole[5] = {1, a.batch, a.heads, a.past, a.size}, count;  // the first one if stacked
    if (__builtin_add_overflow(a.past, a.length, &whole[3]) || !product(whole, 5, &count)) {
      return call.bad("X", "makes the cache too large");
    }
    void *y = nullptr, *key = nullptr, *value = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, 3, &y));
    EXPRUNE_RETURN_IF_ERROR(call.output(1, whole + 1 - kFirst, 4 + kFirst, &key));
    EXPRUNE_RETURN_IF_ERROR(call.output(2, whole + 1 - kFirst, 4 + kFirst, &value));
    const int64_t one = a.batch * a.heads * a.past * a.size;  // elements of a layer's cache
    a.x = x.floats();
    a.bias = bias.floats();
    a.past_key = past_key.floats() + layer * one;
    a.past_value = past_value.floats() + layer * one;
    a.scale = scale.floats()[0];
    a.y = static_cast<float*>(y);
    a.key = static_cast<float*>(key);
    a.value = static_cast<float*>(value);
    if (a.batch == 0 || whole[3] == 0) return nullptr;
    Runner runner = {context};
    return runner.result(kernels().attention(a, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    KnownShape x, past;
    infer_input(context, 0, &x);
    infer_input(context, 2, &past);
    constexpr int kFirst = Stacked ? 1 : 0;
    if (x.rank == 3) {
      if (x.dims[2] >= 0) {
        x.dims[2] /= 3;
      } else {
        x.unknown(2);
      }
      EXPRUNE_RETURN_IF_ERROR(infer_output(context, 0, ort::kFloat, &x));
    }
    if (past.rank != 4 + kFirst) return nullptr;
    if (Stacked) past.dims[0] = 1;
    past.unknown(kFirst + 2);
    EXPRUNE_RETURN_IF_ERROR(infer_output(context, 1, ort::kFloat, &past));
    return infer_output(context, 2, ort::kFloat, &past);
  }
};

const OrtCustomOp* const* attention_ops(size_t* count) {
  static const Op<CachedAttention<false>> one("CachedAttention");
  static const Op<CachedAttention<true>> stacked("StackedCachedAttention");
  static const OrtCustomOp* const ops[] = {&one, &stacked};
  *count = 2;
  return ops;
}

}  // namespace exprune
