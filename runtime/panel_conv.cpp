// ConvReluPanel: a 1-D or 2-D convolution with a ReLU, exact, 16 output channels at a time. PrefixConvPanel: the same
// in stages, decided in blocks of 16 output channels x one output position. Both skip the taps that see padding.
#include "conv_geometry.h"
#include "staged.h"

namespace exprune {

template <bool Staged>
struct PanelConv : KernelBase {
  // Inputs by position.
  static constexpr size_t kWeights = Staged ? 3 : 1, kFirst = kWeights + 1, kChannels = 10;
  static constexpr uint32_t kInts = Staged ? (1u << kOrder) | (1u << kEnds) | (1u << kChannels) : 0u;
  static constexpr Signature kSignature = {Staged ? 11 : 5, kInts, false};

  const char* op = nullptr;
  Geometry geometry;

  OrtStatus* create(const OrtKernelInfo* info) { return geometry.read(info, op); }

  // Reads and checks W, bias and the test's parameters.
  OrtStatus* read_weights(const Call& call, int64_t groups, StagedInputs* in, ConvCall* conv) const {
    exprune::Staged& staged = conv->staged;
    EXPRUNE_RETURN_IF_ERROR(call.input(kWeights, "W", ort::kFloat, &in->head));
    EXPRUNE_RETURN_IF_ERROR(call.input(kFirst, "bias", ort::kFloat, &in->bias));
    if (in->bias.rank != 1 || in->bias.count < 1 || in->bias.count > INT32_MAX) {
      return call.bad("bias", "must be a vector of one value per output");
    }
    const int64_t outputs = in->bias.count, panels = (outputs + kPanelChannels - 1) / kPanelChannels;
    const int rank = 3 + geometry.rank;
    int64_t dims[kMaxRank];
    for (int i = 0; i < rank; i++) dims[i] = in->head.rank == rank ? in->head.dims[i] : -1;
    dims[0] = panels;
    dims[rank - 2] = groups;
    dims[rank - 1] = kPanelChannels;
    EXPRUNE_RETURN_IF_ERROR(call.shape(in->head, "W", "[ceil(N / 16), *kernel, G, 16]", dims, rank));
    int64_t taps = 0;
    if (!product(dims + 1, geometry.rank, &taps) || taps < 1) return call.bad("W", "has an empty kernel");
    if (taps > INT32_MAX) return call.bad("W", "is too large");
    const int64_t checks = in->ends.count - 1;
    const int64_t per_output[2] = {checks, outputs}, per_panel[2] = {checks, panels};
    static const char* const names[] = {"scale", "shift", "limit"};
    for (size_t i = 0; Staged && i < 3; i++) {
      EXPRUNE_RETURN_IF_ERROR(call.input(kFirst + 3 + i, names[i], ort::kFloat, &in->parameters[i]));
      EXPRUNE_RETURN_IF_ERROR(call.shape(in->parameters[i], names[i], i == 2 ? "[S, ceil(N / 16)]" : "[S, N]",
                                         i == 2 ? per_panel : per_output, 2));
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
    Tensor channels;
    PanelConvCall panel_conv = {};
    ConvCall& conv = panel_conv.conv;
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
    if (Staged) {
      EXPRUNE_RETURN_IF_ERROR(read_permutation(call, per_task, kChannels, "channels", "[N]", conv.staged.outputs, &channels));
      panel_conv.channels = channels.ints();
    }
    int64_t y_dims[4];
    const int64_t* kernel = in.head.dims + 1;
    EXPRUNE_RETURN_IF_ERROR(geometry.output_dims(call, in.x, conv.staged.outputs, kernel, y_dims));
    EXPRUNE_RETURN_IF_ERROR(read_finish(call, kFirst + 1, &in.offset, &in.max, y_dims, 2 + rank, &conv.finish));

    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, 2 + rank, &y));
    const int64_t checks = conv.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(checks) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, checks, uncounted.data(), &conv.survivors));
    geometry.fill(in.x.dims, kernel, y_dims, &conv);
    conv.x = in.x.floats();
    conv.y = static_cast<float*>(y);
    Runner runner = {context};
    return runner.result(kernels().panel_conv(panel_conv, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    return infer_conv(context, {kWeights, 3, 1, kFirst, 0});
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
