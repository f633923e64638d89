// PrefixConvThreshold, PrefixConvStats, PrefixConvBound: a 1-D or 2-D convolution with a ReLU, in stages.
#include "staged.h"
#include "test_traits.h"

namespace exprune {

// A Conv's attributes, one entry per spatial axis; pads are begins and then ends.
struct Geometry {
  int rank = 0;
  int64_t strides[2] = {}, dilations[2] = {}, pads[4] = {};

  // Output size of an axis; false when it overflows or the padded input is smaller than the kernel.
  bool output_size(int axis, int64_t size, int64_t kernel, int64_t* result) const {
    int64_t reach, padded;
    if (__builtin_mul_overflow(dilations[axis], kernel - 1, &reach) ||
        __builtin_add_overflow(size, pads[axis], &padded) ||
        __builtin_add_overflow(padded, pads[rank + axis], &padded)) {
      return false;
    }
    padded -= 1;
    if (reach > padded) return false;
    *result = (padded - reach) / strides[axis] + 1;
    return true;
  }

  // What is wrong with the values, or null.
  const char* fault(size_t strides_count, size_t dilations_count, size_t pads_count) {
    if (strides_count != dilations_count || pads_count != 2 * strides_count || strides_count < 1) {
      return "attributes strides, dilations and pads must have 1, 1 and 2, or 2, 2 and 4 values";
    }
    rank = static_cast<int>(strides_count);
    for (int i = 0; i < rank; i++) {
      if (strides[i] < 1 || strides[i] > INT32_MAX) return "attribute strides must be at least 1";
      if (dilations[i] < 1 || dilations[i] > INT32_MAX) return "attribute dilations must be at least 1";
      if (pads[i] < 0 || pads[rank + i] < 0) return "attribute pads must not be negative";
      if (pads[i] > INT32_MAX || pads[rank + i] > INT32_MAX) return "attribute pads is too large";
    }
    return nullptr;
  }
};

template <int Test>
struct PrefixConv : KernelBase {
  static constexpr TestInputs kTest = kReluTests[Test];
  static constexpr Signature kSignature = {static_cast<int>(kMax) + 1 + kTest.count, kStagedInts, false};

  const char* op = nullptr;
  float z = 0;
  Geometry geometry;

  OrtStatus* create(const OrtKernelInfo* info) {
    size_t strides, dilations, pads;
    EXPRUNE_RETURN_IF_ERROR(attribute_ints(info, op, "strides", geometry.strides, 2, &strides));
    EXPRUNE_RETURN_IF_ERROR(attribute_ints(info, op, "dilations", geometry.dilations, 2, &dilations));
    EXPRUNE_RETURN_IF_ERROR(attribute_ints(info, op, "pads", geometry.pads, 4, &pads));
    const char* fault = geometry.fault(strides, dilations, pads);
    if (fault) return error(ort::kInvalidArgument, "%s: %s", op, fault);
    return read_z<Test>(info, op, &z);
  }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op};
    StagedInputs in;
    ConvCall conv = {};
    const int rank = geometry.rank;
    EXPRUNE_RETURN_IF_ERROR(call.input(kX, "X", ort::kFloat, &in.x));
    if (in.x.rank != 2 + rank) {
      return call.bad("X", "has %d dimensions, expected %d as the attributes say", in.x.rank, 2 + rank);
    }
    EXPRUNE_RETURN_IF_ERROR(read_staged(call, per_task, in.x.dims[1], rank, kTest.names, kTest.count,
                                        kMax + 1, &in, &conv.staged));
    conv.staged.z = z;

    const int64_t* size = in.x.dims + 2;
    const int64_t* kernel = in.head.dims + 2;
    int64_t y_dims[4] = {in.x.dims[0], conv.staged.outputs, 1, 1};
    int64_t in_pixels, out_pixels, y_count;
    for (int i = 0; i < rank; i++) {
      if (!geometry.output_size(i, size[i], kernel[i], &y_dims[2 + i])) {
        return call.bad("X", "is smaller than the kernel on spatial axis %d, or far too large", i);
      }
    }
    if (!product(size, rank, &in_pixels) || in_pixels > INT32_MAX ||
        !product(y_dims + 2, rank, &out_pixels) || out_pixels > INT32_MAX ||
        !product(y_dims, 2 + rank, &y_count)) {
      return call.bad("X", "is too large, or makes Y too large");
    }
    EXPRUNE_RETURN_IF_ERROR(read_finish(call, kOffset, &in.offset, &in.max, y_dims, 2 + rank, &conv.finish));

    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, y_dims, 2 + rank, &y));
    const int64_t checks = conv.staged.chunks - 1;
    Lease uncounted(per_task, static_cast<size_t>(checks) * sizeof(int64_t));
    EXPRUNE_RETURN_IF_ERROR(survivors_output(call, checks, uncounted.data(), &conv.survivors));
    const bool flat = rank == 1;
    const int w = rank - 1;  // the axis of width
    conv.batch = in.x.dims[0];
    conv.height = flat ? 1 : size[0];
    conv.width = size[w];
    conv.out_height = flat ? 1 : y_dims[2];
    conv.out_width = y_dims[2 + w];
    conv.kernel_h = flat ? 1 : kernel[0];
    conv.kernel_w = kernel[w];
    conv.stride_h = flat ? 1 : geometry.strides[0];
    conv.stride_w = geometry.strides[w];
    conv.dilation_h = flat ? 1 : geometry.dilations[0];
    conv.dilation_w = geometry.dilations[w];
    conv.pad_top = flat ? 0 : geometry.pads[0];
    conv.pad_left = geometry.pads[w];
    conv.x = in.x.floats();
    conv.y = static_cast<float*>(y);
    Runner runner = {context};
    return runner.result(kernels().prefix_conv[Test](conv, runner.env(*this)), op);
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    KnownShape shape, weights;
    Geometry geometry;
    size_t strides, dilations, pads;
    infer_input(context, kX, &shape);
    infer_input(context, kHead, &weights);
    if (!infer_attribute_ints(context, "strides", geometry.strides, 2, &strides) ||
        !infer_attribute_ints(context, "dilations", geometry.dilations, 2, &dilations) ||
        !infer_attribute_ints(context, "pads", geometry.pads, 4, &pads) ||
        geometry.fault(strides, dilations, pads)) {
      return nullptr;  // create() says what is wrong
    }
    const int rank = 2 + geometry.rank;
    KnownShape y;
    y.rank = rank;  // the attributes alone tell the rank, and that already helps the neighbours
    for (int i = 0; i < rank; i++) y.unknown(i);
    if (shape.rank == rank) {
      y.dims[0] = shape.dims[0];
      y.names[0] = shape.names[0];
    }
    if (weights.rank == rank) {
      y.dims[1] = weights.dims[0];
      y.names[1] = weights.names[0];
    }
    for (int i = 0; i < geometry.rank && shape.rank == rank && weights.rank == rank; i++) {
      const int64_t size = shape.dims[2 + i], kernel = weights.dims[2 + i];
      int64_t result;
      if (size >= 0 && kernel >= 1 && geometry.output_size(i, size, kernel, &result)) y.dims[2 + i] = result;
    }
    return infer_output(context, 0, ort::kFloat, &y);
  }
};

const OrtCustomOp* const* prefix_conv_ops(size_t* count) {
  static const Op<PrefixConv<kThreshold>> threshold("PrefixConvThreshold");
  static const Op<PrefixConv<kStats>> stats("PrefixConvStats");
  static const Op<PrefixConv<kBound>> bound("PrefixConvBound");
  static const OrtCustomOp* const ops[] = {&threshold, &stats, &bound};
  *count = 3;
  return ops;
}

}  // namespace exprune
