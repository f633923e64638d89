// ConvRelu: a 1-D or 2-D convolution with a ReLU, exact. PrefixConvBlock: the same in stages, decided in
// blocks of one output channel x a run of output positions. DynamicPrefixConvBlock: the same with the channels of each
// stage chosen per image, by their energy. All skip the taps that only see padding.
#include "chunked_conv.h"

namespace exprune {

template <bool Staged, bool ByEnergy = false>
struct BlockConv : ChunkedConv<BlockConv<Staged, ByEnergy>, Staged, ByEnergy> {
  using Base = ChunkedConv<BlockConv<Staged, ByEnergy>, Staged, ByEnergy>;
  static constexpr int kKernelAxis = 2;

  KeptMemory remembered;

  OrtStatus* read_weights(const Call& call, int64_t groups, const StagedInputs& in, ConvSizes* sizes) const {
    const int rank = 2 + Base::geometry.rank;
    if (in.head.rank != rank || in.head.dims[1] < 1) {
      char text[160];
      return call.bad("W", "has shape %s, expected [G, N, *kernel] with N >= 1",
                      shape_text(in.head.dims, in.head.rank, text, sizeof(text)));
    }
    int64_t dims[kMaxRank];
    for (int i = 0; i < rank; i++) dims[i] = in.head.dims[i];
    dims[0] = groups;
    EXPRUNE_RETURN_IF_ERROR(call.shape(in.head, "W", "[G, N, *kernel]", dims, rank));
    int64_t taps = 0;
    if (!product(dims + kKernelAxis, Base::geometry.rank, &taps) || taps < 1) {
      return call.bad("W", "has an empty kernel");
    }
    const int64_t outputs = dims[1];
    if (outputs > INT32_MAX || taps > INT32_MAX) return call.bad("W", "is too large");
    *sizes = {outputs, taps, outputs, "[S, N]"};
    return call.shape(in.bias, "bias", "[N]", &outputs, 1);
  }

  // Positions of a block; an exact convolution's own choice.
  static OrtStatus* read_block(const Call& call, int64_t* block) {
    *block = 64;
    if (!Staged) return nullptr;
    Tensor tensor;
    EXPRUNE_RETURN_IF_ERROR(call.input(Base::kOwn, "block", ort::kInt64, &tensor));
    if (tensor.rank != 1 || tensor.count != 1) return call.bad("block", "must be a vector of one element");
    *block = tensor.ints()[0];
    if (*block < 1 || *block > INT32_MAX) return call.bad("block", "must be at least 1");
    return nullptr;
  }

  OrtStatus* run(const Call& call, OrtKernelContext* context, const StagedInputs& in, ConvCall* conv) {
    BlockConvCall blocks = {};
    EXPRUNE_RETURN_IF_ERROR(read_block(call, &blocks.block));
    if (Base::geometry.rank == 2 && conv->width == 1 && conv->kernel_w == 1 && conv->out_width == 1 &&
        conv->pad_left == 0) {
      turn(conv);
    }
    blocks.conv = *conv;
    blocks.weight_energy = ByEnergy ? in.weight_energy.floats() : nullptr;
    blocks.geometry = &remembered.data;
    Runner runner = {context};
    return runner.result(kernels().block_conv(blocks, runner.env(*this)), Base::op);
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

  static OrtStatus* infer(const OrtShapeInferContext* context) { return infer_conv(context, Base::kWeights, 1); }
};

const OrtCustomOp* const* block_conv_ops(size_t* count) {
  static const Op<BlockConv<true>> block("PrefixConvBlock");
  static const Op<BlockConv<false>> exact("ConvRelu");
  static const Op<BlockConv<true, true>> dynamic("DynamicPrefixConvBlock");
  static const OrtCustomOp* const ops[] = {&block, &exact, &dynamic};
  *count = 3;
  return ops;
}

}  // namespace exprune
