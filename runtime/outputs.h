// What the ops of linear layers share at their other end: the shapes of their outputs.
#pragma once

#include "ort.h"

namespace exprune {

// Y of a linear layer: X's shape with `outputs` features. Fills y_dims[x.rank] and the number of rows.
OrtStatus* features_shape(const Call& call, const Tensor& x, int64_t outputs, int64_t* y_dims, int64_t* rows);

// Infers it, as output 0, from input 0; the number of outputs is axis `axis` of input `index`, which has `rank`
// dimensions.
OrtStatus* infer_features(const OrtShapeInferContext* context, size_t index, int rank, int axis);

// ArgMax's attributes; those that a node leaves out have ArgMax's defaults.
struct ArgMaxAttributes {
  bool keepdims = true;
  bool select_last = false;

  OrtStatus* read(const OrtKernelInfo* info, const char* op);
};

// The index output of a head, and the number of rows.
OrtStatus* index_output(const Call& call, const Tensor& x, bool keepdims, int64_t* rows, int64_t** index);
OrtStatus* infer_index(const OrtShapeInferContext* context);

// The survivors output [1] at `index`, or `fallback` where the node does not ask for it.
OrtStatus* one_survivors(const Call& call, size_t index, int64_t* fallback, int64_t** survivors);

}  // namespace exprune
