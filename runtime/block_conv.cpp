// ConvRelu: a 1-D or 2-D convolution with a ReLU, exact. PrefixConvBlock: the same in stages, decided in
// blocks of one output channel x a run of output positions. Both skip the taps that only see padding.
#include "conv_geometry.h"
#include "staged.h"

namespace exprune {

template <bool Staged>
struct BlockConv : KernelBase {
  // Inputs by position.
  static constexpr size_t kWeights = Staged ? 3 : 1, kFirst = kWeights + 1;
  static constexpr size_t kBlock = 10;
  static constexpr uint32_t kInts = Staged ? (1u << kOrder) | (1u << kEnds) | (1u << kBlock) : 0u;
  static constexpr Signature kSignature = {Staged ? 11 : 5, kInts, false};

  const char* op = nullptr;
  Geometry geometry;
  std::atomic<void*> remembered{nullptr};

  ~BlockConv() { free(remembered.load()); }

  OrtStatus* create(const OrtKernelInfo* info) { return geometry.read(info, op); }

  // Positions of a block; an exact convolution's own choice.
  static OrtStatus* read_block(const Call& call, int64_t* block) {
    *block = 64;
    if (!Staged) return nullptr;
    Tensor tensor;
    EXPRUNE_RETURN_IF_ERROR(call.input(kBlock, "block", ort::kInt64, &tensor));
    if (tensor.rank != 1 || tensor.count != 1) return call.bad("block", "must be a vector of one element");
    *block = tensor.ints()[0];
    if (*block < 1 || *block > INT32_MAX) return call.bad("block", "must be at least 1");
    return nullptr;
  }

  // Reads and checks W, bias and the test's parameters.
  OrtStatus* read_weights(const Call& call, int64_t groups, StagedInputs* in, ConvCall* conv) const {
    exprune::Staged& staged = conv->staged;
    EXPRUNE_RETURN_IF_ERROR(call.input(kWeights, "W", ort::kFloat, &in->head));
    EXPRUNE_RETURN_IF_ERROR(call.input(kFirst, "bias", ort::kFloat, &in->bias));
    const int rank = 2 + geometry.rank;
    if (in->head.rank != rank || in->head.dims[1] < 1) {
      char text[160];
      return call.bad("W", "has shape %s, expected [G, N, *kernel] with N >= 1",
                      shape_text(in->head.dims, in->head.rank, text, sizeof(text)));
    }
    int64_t dims[kMaxRank];
    for (int i = 0; i < rank; i++) dims[i] = in->head.dims[i];
    dims[0] = groups;
    EXPRUNE_RETURN_IF_ERROR(call.shape(in->head, "W", "[G, N, *kernel]", dims, rank));
    int64_t taps = 0;
    if (!product(dims + 2, geometry.rank, &taps) || taps < 1) return call.bad("W", "has an empty kernel");
    const int64_t outputs = dims[1];
    if (outputs > INT32_MAX || taps > INT32_MAX) return call.bad("W", "is too large");
    EXPRUNE_RETURN_IF_ERROR(call.shape(in->bias, "bias", "[N]", &outputs, 1));
    static const char* const names[] = {"scale", "shift", "limit"};
    const int64_t checks[2] = {in->ends.count - 1, outputs};
    for (size_t i = 0; Staged && i < 3; i++) {
      EXPRUNE_RETURN_IF_ERROR(call.input(kFirst + 3 + i, names[i], ort::kFloat, &in->parameters[i]));
      EXPRUNE_RETURN_IF_ERROR(call.shape(in->parameters[i], names[i], "[S, N]", checks, 2));
    }
    staged.outputs = outputs;
    staged.groups = groups;
    staged.taps = taps;
    staged.chunks = in->ends.count;
    staged.order = Staged ? in->order.ints() : nullptr;
    staged.ends = in->ends.ints();
    staged.head = in->head.floats();
    staged.bias = in->bias.floats();
    staged.first = in->parameters[0].floats();
    staged.second = in->parameters[1].floats();
    staged.third = in->parameters[2].floats();
    return nullptr;
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op};
    StagedInputs in;
    BlockConvCall block_conv = {};
    ConvCall& conv = block_conv.conv;
    const int rank = geometry.rank;
    EXPRUNE_RETURN_IF_ERROR(call.input(kX, "X", ort::kFloat, &in.x));
    if (in.x.rank != 2 + rank) {
      return call.bad("X", "has %d dimensions, expected %d as the attributes say", in.x.rank, 2 + rank);
    }
    int64_t groups = in.x.dims[1];
    if (Staged) {
      if (groups < 2) return call.bad("X", "must have at least two reduction groups");
      EXPRUNE_RETURN_IF_ERROR(read_order(call, per_task, groups, &in));
      EXPRUNE_RETURN_IF_ERROR(read_ends(call, groups, &in));
    } else {
      if (groups < 1) return call.bad("X", "must have at least one channel");
      in.ends.data = &groups;  // one chunk
      in.ends.count = 1;
    }
    EXPRUNE_RETURN_IF_ERROR(read_weights(call, groups, &in, &conv));
    EXPRUNE_RETURN_IF_ERROR(read_block(call, &block_conv.block));
    int64_t y_dims[4];
    const int64_t* kernel = in.head.dims + 2;
    EXPRUNE_RETURN_IF_ERROR(geometry.output_dims(call, in.x, conv.staged.outputs, kernel, y_dims));
    EXPRUNE_RETURN_IF_ERROR(read_finish(call, kFirst + 1, &in.offset, &in.max, y_dims, 2 + rank, &conv.finish));

    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, 2 + rank, &y));
    const int64_t checks = conv.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(checks) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, checks, uncounted.data(), &conv.survivors));
    geometry.fill(in.x.dims, kernel, y_dims, &conv);
    if (rank == 2 && conv.width == 1 && conv.kernel_w == 1 && conv.out_width == 1 && conv.pad_left == 0) {
      turn(&conv);
    }
    conv.x = in.x.floats();
    conv.y = static_cast<float*>(y);
    block_conv.geometry = &remembered;
    Runner runner = {context};
    return runner.result(kernels().block_conv(block_conv, runner.env(*this)), op);
  }

  // A convolution over the height of a column is one over the width of a row.
  static void turn(ConvCall* conv) {
    const ConvCall c = *conv;
    conv->width = c.height;
    conv->out_width = c.out_height;
    conv->kernel_w = c.kernel_h;
    conv->stride_w = c.stride_h;
    conv->dilation_w = c.dilation_h;
    conv->pad_left = c.pad_top;
    conv->height = conv->out_height = conv->kernel_h = conv->stride_h = conv->dilation_h = 1;
    conv->pad_top = 0;
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) { return infer_conv(context, kWeights, 1); }
};

const OrtCustomOp* const* block_conv_ops(size_t* count) {
  static const Op<BlockConv<true>> block("PrefixConvBlock");
  static const Op<BlockConv<false>> exact("ConvRelu");
  static const OrtCustomOp* const ops[] = {&block, &exact};
  *count = 2;
  return ops;
}

}  // namespace exprune
