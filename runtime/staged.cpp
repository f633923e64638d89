#include "staged.h"

#include <string.h>

namespace exprune {

OrtStatus* read_permutation(const Call& call, ScratchPool& scratch, size_t index, const char* name,
                            const char* meaning, int64_t count, Tensor* tensor) {
  EXPRUNE_RETURN_IF_ERROR(call.input(index, name, ort::kInt64, tensor));
  EXPRUNE_RETURN_IF_ERROR(call.shape(*tensor, name, meaning, &count, 1));
  Lease lease(scratch, static_cast<size_t>(count));
  char* seen = lease.data();
  if (!seen) return error(ort::kFail, "%s: out of memory", call.op);
  memset(seen, 0, static_cast<size_t>(count));
  for (int64_t i = 0; i < count; i++) {
    const int64_t value = tensor->ints()[i];
    if (value < 0 || value >= count || seen[value]) {
      return call.bad(name, "is no permutation of 0 to %lld: %lld at position %lld",
                      static_cast<long long>(count - 1), static_cast<long long>(value),
                      static_cast<long long>(i));
    }
    seen[value] = 1;
  }
  return nullptr;
}

OrtStatus* read_order(const Call& call, ScratchPool& scratch, int64_t groups, StagedInputs* in) {
  return read_permutation(call, scratch, kOrder, "order", "[G]", groups, &in->order);
}

OrtStatus* read_ends(const Call& call, int64_t groups, StagedInputs* in) {
  EXPRUNE_RETURN_IF_ERROR(call.input(kEnds, "ends", ort::kInt64, &in->ends));
  const Tensor& ends = in->ends;
  if (ends.rank != 1 || ends.count < 2) return call.bad("ends", "must be a vector of at least two chunks");
  int64_t last = 0;
  for (int64_t c = 0; c < ends.count; c++) {
    if (ends.ints()[c] <= last) return call.bad("ends", "must be positive and strictly increasing");
    last = ends.ints()[c];
  }
  if (last != groups) {
    return call.bad("ends", "must end at %lld, the groups of X, and not at %lld",
                    static_cast<long long>(groups), static_cast<long long>(last));
  }
  return nullptr;
}

OrtStatus* read_staged(const Call& call, ScratchPool& scratch, int64_t groups, int kernel_rank,
                       const char* const* parameters, int parameter_count, size_t parameter_start,
                       StagedInputs* in, Staged* staged) {
  if (groups < 2) return call.bad("X", "must have at least two reduction groups");
  EXPRUNE_RETURN_IF_ERROR(read_order(call, scratch, groups, in));
  EXPRUNE_RETURN_IF_ERROR(read_ends(call, groups, in));

  EXPRUNE_RETURN_IF_ERROR(call.input(kHead, "W_head", ort::kFloat, &in->head));
  EXPRUNE_RETURN_IF_ERROR(call.input(kTail, "W_tail", ort::kFloat, &in->tail));
  EXPRUNE_RETURN_IF_ERROR(call.input(kBias, "bias", ort::kFloat, &in->bias));
  const char* meaning = kernel_rank ? "[N, groups of the chunk, *kernel]" : "[N, groups of the chunk]";
  if (in->head.rank != 2 + kernel_rank || in->head.dims[0] < 1) {
    char text[160];
    return call.bad("W_head", "has shape %s, expected %s with N >= 1",
                    shape_text(in->head.dims, in->head.rank, text, sizeof(text)), meaning);
  }
  int64_t dims[kMaxRank];
  memcpy(dims, in->head.dims, sizeof(dims));
  dims[1] = in->ends.ints()[0];
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->head, "W_head", meaning, dims, 2 + kernel_rank));
  dims[1] = groups - in->ends.ints()[0];
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->tail, "W_tail", meaning, dims, 2 + kernel_rank));
  int64_t taps = 0;
  if (!product(dims + 2, kernel_rank, &taps) || taps < 1) return call.bad("W_head", "has an empty kernel");
  const int64_t outputs = dims[0];
  if (outputs > INT32_MAX) return call.bad("W_head", "has too many outputs");
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->bias, "bias", "[N]", &outputs, 1));

  const int64_t checks[2] = {in->ends.count - 1, outputs};
  for (int i = 0; i < parameter_count; i++) {
    Tensor* tensor = &in->parameters[i];
    EXPRUNE_RETURN_IF_ERROR(
        call.input(parameter_start + static_cast<size_t>(i), parameters[i], ort::kFloat, tensor));
    EXPRUNE_RETURN_IF_ERROR(call.shape(*tensor, parameters[i], "[S, N]", checks, 2));
  }

  staged->outputs = outputs;
  staged->groups = groups;
  staged->taps = taps;
  staged->chunks = in->ends.count;
  staged->order = in->order.ints();
  staged->ends = in->ends.ints();
  staged->head = in->head.floats();
  staged->tail = in->tail.floats();
  staged->bias = in->bias.floats();
  staged->first = in->parameters[0].floats();
  staged->second = in->parameters[1].floats();
  staged->third = in->parameters[2].floats();
  return nullptr;
}

OrtStatus* read_finish(const Call& call, size_t start, Tensor* offset, Tensor* max, const int64_t* y_dims,
                       int y_rank, Finish* finish) {
  EXPRUNE_RETURN_IF_ERROR(call.input(start, "offset", ort::kFloat, offset));
  EXPRUNE_RETURN_IF_ERROR(call.input(start + 1, "max", ort::kFloat, max));
  if (max->count != 1) return call.bad("max", "must have one element");
  if (!(max->floats()[0] >= 0)) return call.bad("max", "must be a number that is not negative");
  finish->offset_full = offset->count != 1;
  if (finish->offset_full) {
    EXPRUNE_RETURN_IF_ERROR(call.shape(*offset, "offset", "one element or the shape of Y", y_dims, y_rank));
  }
  finish->offset = offset->floats();
  finish->max = max->floats()[0];
  return nullptr;
}

OrtStatus* survivors_output(const Call& call, int64_t checks, char* fallback, int64_t** survivors) {
  void* data = nullptr;
  EXPRUNE_RETURN_IF_ERROR(call.output(1, &checks, 1, &data));
  if (!data) data = fallback;
  if (!data) return error(ort::kFail, "%s: out of memory", call.op);
  *survivors = static_cast<int64_t*>(data);
  return nullptr;
}

}  // namespace exprune
