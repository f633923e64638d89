#include "outputs.h"

#include <string.h>

namespace exprune {

OrtStatus* features_shape(const Call& call, const Tensor& x, int64_t outputs, int64_t* y_dims, int64_t* rows) {
  const int last = x.rank - 1;
  int64_t count;
  memcpy(y_dims, x.dims, static_cast<size_t>(last) * sizeof(int64_t));
  y_dims[last] = outputs;
  if (!product(y_dims, x.rank, &count) || !product(x.dims, last, rows)) {
    return call.bad("X", "makes Y too large");
  }
  return nullptr;
}

OrtStatus* infer_features(const OrtShapeInferContext* context, size_t index, int rank, int axis) {
  KnownShape shape, given;
  infer_input(context, 0, &shape);
  infer_input(context, index, &given);
  if (shape.rank < 1) return nullptr;
  shape.unknown(shape.rank - 1);
  if (given.rank == rank) {
    shape.dims[shape.rank - 1] = given.dims[axis];
    shape.names[shape.rank - 1] = given.names[axis];
  }
  return infer_output(context, 0, ort::kFloat, &shape);
}

OrtStatus* ArgMaxAttributes::read(const OrtKernelInfo* info, const char* op) {
  EXPRUNE_RETURN_IF_ERROR(attribute_flag(info, op, "keepdims", &keepdims));
  return attribute_flag(info, op, "select_last_index", &select_last);
}

OrtStatus* index_output(const Call& call, const Tensor& x, bool keepdims, int64_t* rows, int64_t** index) {
  const int last = x.rank - 1;
  int64_t dims[kMaxRank];
  memcpy(dims, x.dims, static_cast<size_t>(last) * sizeof(int64_t));
  dims[last] = 1;
  if (!product(dims, last, rows)) return call.bad("X", "is too large");
  void* data = nullptr;
  EXPRUNE_RETURN_IF_ERROR(call.output(0, dims, keepdims ? x.rank : last, &data));
  *index = static_cast<int64_t*>(data);
  return nullptr;
}

OrtStatus* infer_index(const OrtShapeInferContext* context) {
  KnownShape shape;
  infer_input(context, 0, &shape);
  if (shape.rank < 1) return nullptr;
  int64_t keep = 1;
  infer_attribute_int(context, "keepdims", &keep);
  if (keep) {
    shape.dims[shape.rank - 1] = 1;
  } else {
    shape.rank--;
  }
  return infer_output(context, 0, ort::kInt64, &shape);
}

OrtStatus* one_survivors(const Call& call, size_t index, int64_t* fallback, int64_t** survivors) {
  const int64_t one = 1;
  void* data = nullptr;
  EXPRUNE_RETURN_IF_ERROR(call.output(index, &one, 1, &data));
  *survivors = data ? static_cast<int64_t*>(data) : fallback;
  return nullptr;
}

}  // namespace exprune
