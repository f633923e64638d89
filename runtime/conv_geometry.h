// What the convolution ops share: their attributes, the sizes that follow from them, shape inference.
#pragma once

#include "ort.h"

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

  // Reads and checks the attributes.
  OrtStatus* read(const OrtKernelInfo* info, const char* op) {
    size_t strides_count, dilations_count, pads_count;
    EXPRUNE_RETURN_IF_ERROR(attribute_ints(info, op, "strides", strides, 2, &strides_count));
    EXPRUNE_RETURN_IF_ERROR(attribute_ints(info, op, "dilations", dilations, 2, &dilations_count));
    EXPRUNE_RETURN_IF_ERROR(attribute_ints(info, op, "pads", pads, 4, &pads_count));
    const char* what = fault(strides_count, dilations_count, pads_count);
    return what ? error(ort::kInvalidArgument, "%s: %s", op, what) : nullptr;
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

  // Y's dims for X with as many dims as the attributes say, N outputs and a kernel of these sizes.
  OrtStatus* output_dims(const Call& call, const Tensor& x, int64_t outputs, const int64_t* kernel,
                         int64_t* y_dims) const {
    const int64_t* size = x.dims + 2;
    int64_t in_pixels, out_pixels, y_count;
    y_dims[0] = x.dims[0];
    y_dims[1] = outputs;
    for (int i = 0; i < rank; i++) {
      if (!output_size(i, size[i], kernel[i], &y_dims[2 + i])) {
        return call.bad("X", "is smaller than the kernel on spatial axis %d, or far too large", i);
      }
    }
    if (!product(size, rank, &in_pixels) || in_pixels > INT32_MAX ||
        !product(y_dims + 2, rank, &out_pixels) || out_pixels > INT32_MAX ||
        !product(y_dims, 2 + rank, &y_count)) {
      return call.bad("X", "is too large, or makes Y too large");
    }
    return nullptr;
  }

  // The sizes of a call; a 1-D convolution becomes a 2-D one of height 1.
  void fill(const int64_t* x_dims, const int64_t* kernel, const int64_t* y_dims, ConvCall* conv) const {
    const bool flat = rank == 1;
    const int w = rank - 1;  // the axis of width
    conv->batch = x_dims[0];
    conv->height = flat ? 1 : x_dims[2];
    conv->width = x_dims[2 + w];
    conv->out_height = flat ? 1 : y_dims[2];
    conv->out_width = y_dims[2 + w];
    conv->kernel_h = flat ? 1 : kernel[0];
    conv->kernel_w = kernel[w];
    conv->stride_h = flat ? 1 : strides[0];
    conv->stride_w = strides[w];
    conv->dilation_h = flat ? 1 : dilations[0];
    conv->dilation_w = dilations[w];
    conv->pad_top = flat ? 0 : pads[0];
    conv->pad_left = pads[w];
  }
};

// Where a convolution's weights tell the number of outputs and the kernel's sizes.
struct ConvWeights {
  size_t index;          // the input
  int axes;              // axes besides the kernel's
  int kernel_axis;       // the kernel's first
  size_t outputs_index;  // the input that has the outputs, on this axis: the weights, or a vector
  int outputs_axis;      // -1: the last
};

// Shape inference of Y from X, the attributes and the weights.
static inline OrtStatus* infer_conv(const OrtShapeInferContext* context, const ConvWeights& where) {
  KnownShape shape, weights, outputs;
  Geometry geometry;
  size_t strides, dilations, pads;
  infer_input(context, 0, &shape);
  infer_input(context, where.index, &weights);
  infer_input(context, where.outputs_index, &outputs);
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
  if (outputs.rank == (where.outputs_index == where.index ? where.axes + geometry.rank : 1)) {
    const int axis = where.outputs_axis < 0 ? outputs.rank - 1 : where.outputs_axis;
    y.dims[1] = outputs.dims[axis];
    y.names[1] = outputs.names[axis];
  }
  const bool known = shape.rank == rank && weights.rank == where.axes + geometry.rank;
  for (int i = 0; i < geometry.rank && known; i++) {
    const int64_t size = shape.dims[2 + i], kernel = weights.dims[where.kernel_axis + i];
    int64_t result;
    if (size >= 0 && kernel >= 1 && geometry.output_size(i, size, kernel, &result)) y.dims[2 + i] = result;
  }
  return infer_output(context, 0, ort::kFloat, &y);
}

// The same for weights with an axis each for outputs (-1: the last) and groups, besides the kernel's.
static inline OrtStatus* infer_conv(const OrtShapeInferContext* context, size_t weights, int outputs_axis,
                                    int kernel_axis = 2) {
  return infer_conv(context, {weights, 2, kernel_axis, weights, outputs_axis});
}

}  // namespace exprune
