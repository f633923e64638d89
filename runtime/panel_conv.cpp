// ConvReluPanel: a 1-D or 2-D convolution with a ReLU, exact, 16 output channels at a time. PrefixConvPanel: the same
// in stages, decided in blocks of 16 output channels x one output position. Both skip the taps that see padding.
#include "chunked_conv.h"

namespace exprune {

template <bool Staged>
struct PanelConv : ChunkedConv<PanelConv<Staged>, Staged> {
  using Base = ChunkedConv<PanelConv<Staged>, Staged>;
  static constexpr int kKernelAxis = 1;

  OrtStatus* read_weights(const Call& call, int64_t groups, const StagedInputs& in, ConvSizes* sizes) const {
    if (in.bias.rank != 1 || in.bias.count < 1 || in.bias.count > INT32_MAX) {
      return call.bad("bias", "must be a vector of one value per output");
    }
    const int64_t outputs = in.bias.count, panels = (outputs + kPanelChannels - 1) / kPanelChannels;
    const int rank = 3 + Base::geometry.rank;
    int64_t dims[kMaxRank];
    for (int i = 0; i < rank; i++) dims[i] = in.head.rank == rank ? in.head.dims[i] : -1;
    dims[0] = panels;
    dims[rank - 2] = groups;
    dims[rank - 1] = kPanelChannels;
    EXPRUNE_RETURN_IF_ERROR(call.shape(in.head, "W", "[ceil(N / 16), *kernel, G, 16]", dims, rank));
    int64_t taps = 0;
    if (!product(dims + 1, Base::geometry.rank, &taps) || taps < 1) return call.bad("W", "has an empty kernel");
    if (taps > INT32_MAX) return call.bad("W", "is too large");
    *sizes = {outputs, taps, panels, "[S, ceil(N / 16)]"};
    return nullptr;
  }

  OrtStatus* run(const Call& call, OrtKernelContext* context, const StagedInputs&, ConvCall* conv) {
    PanelConvCall panels = {};
    if (Staged) {
      Tensor channels;
      EXPRUNE_RETURN_IF_ERROR(read_permutation(call, Base::per_task, Base::kOwn, "channels", "[N]",
                                               conv->staged.outputs, &channels));
      panels.channels = channels.ints();
    }
    panels.conv = *conv;
    Runner runner = {context};
    return runner.result(kernels().panel_conv(panels, runner.env(*this)), Base::op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    return infer_conv(context, {Base::kWeights, 3, kKernelAxis, Base::kFirst, 0});
  }
};

const OrtCustomOp* const* panel_conv_ops(size_t* count) {
  static const Op<PanelConv<true>> panel("PrefixConvPanel");
  static const Op<PanelConv<false>> exact("ConvReluPanel");
  static const OrtCustomOp* const ops[] = {&panel, &exact};
  *count = 2;
  return ops;
}

}  // namespace exprune
