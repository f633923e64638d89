// SparseConvThreshold: a 1-D or 2-D convolution with a ReLU, in stages, that multiplies no zeros of X.
#include "conv_geometry.h"
#include "staged.h"

namespace exprune {

struct SparseConv : KernelBase {
  // Inputs by position: X, order, ends, W, bias, offset, max, scale, limit.
  static constexpr size_t kWeights = 3, kFirst = 4, kParameters = 7;
  static constexpr Signature kSignature = {9, (1u << kOrder) | (1u << kEnds), false};

  const char* op = nullptr;
  Geometry geometry;

  OrtStatus* create(const OrtKernelInfo* info) { return geometry.read(info, op); }

  // Reads and checks W, bias and the test's parameters.
  OrtStatus* read_weights(const Call& call, int64_t groups, StagedInputs* in, Staged* staged) const {
    EXPRUNE_RETURN_IF_ERROR(call.input(kWeights, "W", ort::kFloat, &in->head));
    EXPRUNE_RETURN_IF_ERROR(call.input(kFirst, "bias", ort::kFloat, &in->bias));
    const int rank = 2 + geometry.rank;
    if (in->head.rank != rank || in->head.dims[rank - 1] < 1) {
      char text[160];
      return call.bad("W", "has shape %s, expected [G, *kernel, N] with N >= 1",
                      shape_text(in->head.dims, in->head.rank, text, sizeof(text)));
    }
    int64_t dims[kMaxRank], taps = 0;
    for (int i = 0; i < rank; i++) dims[i] = in->head.dims[i];
    dims[0] = groups;
    EXPRUNE_RETURN_IF_ERROR(call.shape(in->head, "W", "[G, *kernel, N]", dims, rank));
    if (!product(dims + 1, geometry.rank, &taps) || taps < 1) return call.bad("W", "has an empty kernel");
    const int64_t outputs = dims[rank - 1];
    int64_t rows = 0;
    if (__builtin_mul_overflow(groups, taps, &rows) || rows > INT32_MAX || outputs > INT32_MAX) {
      return call.bad("W", "is too large");
    }
    EXPRUNE_RETURN_IF_ERROR(call.shape(in->bias, "bias", "[N]", &outputs, 1));
    static const char* const names[] = {"scale", "limit"};
    const int64_t checks[2] = {in->ends.count - 1, outputs};
    for (size_t i = 0; i < 2; i++) {
      EXPRUNE_RETURN_IF_ERROR(call.input(kParameters + i, names[i], ort::kFloat, &in->parameters[i]));
      EXPRUNE_RETURN_IF_ERROR(call.shape(in->parameters[i], names[i], "[S, N]", checks, 2));
    }
    staged->outputs = outputs;
    staged->groups = groups;
    staged->taps = taps;
    staged->chunks = in->ends.count;
    staged->order = in->order.ints();
    staged->ends = in->ends.ints();
    staged->head = in->head.floats();
    staged->bias = in->bias.floats();
    staged->first = in->parameters[0].floats();
    staged->second = in->parameters[1].floats();
    return nullptr;
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
    const int64_t groups = in.x.dims[1];
    if (groups < 2) return call.bad("X", "must have at least two reduction groups");
    EXPRUNE_RETURN_IF_ERROR(read_order(call, per_task, groups, &in));
    EXPRUNE_RETURN_IF_ERROR(read_ends(call, groups, &in));
    EXPRUNE_RETURN_IF_ERROR(read_weights(call, groups, &in, &conv.staged));
    int64_t y_dims[4];
    const int64_t* kernel = in.head.dims + 1;
    EXPRUNE_RETURN_IF_ERROR(geometry.output_dims(call, in.x, conv.staged.outputs, kernel, y_dims));
    EXPRUNE_RETURN_IF_ERROR(read_finish(call, kFirst + 1, &in.offset, &in.max, y_dims, 2 + rank, &conv.finish));

    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, 2 + rank, &y));
    // Survivors of each check, then the multiply-accumulates of each chunk.
    const int64_t counts = 2 * conv.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(counts) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, counts, uncounted.data(), &conv.survivors));
    geometry.fill(in.x.dims, kernel, y_dims, &conv);
    conv.x = in.x.floats();
    conv.y = static_cast<float*>(y);
    Runner runner = {context};
    return runner.result(kernels().sparse_conv(conv, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) { return infer_conv(context, kWeights, -1, 1); }
};

const OrtCustomOp* const* sparse_conv_ops(size_t* count) {
  static const Op<SparseConv> op("SparseConvThreshold");
  static const OrtCustomOp* const ops[] = {&op};
  *count = 1;
  return ops;
}

}  // namespace exprune
