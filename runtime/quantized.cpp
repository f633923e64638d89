#include "quantized.h"

namespace exprune {

OrtStatus* read_quantized(const Call& call, LargePages& pages, QuantizedInputs* in, Quantized* layer) {
  EXPRUNE_RETURN_IF_ERROR(call.input(0, "X", ort::kFloat, &in->x));
  EXPRUNE_RETURN_IF_ERROR(call.input(1, "codes", ort::kUint8, &in->codes));
  EXPRUNE_RETURN_IF_ERROR(call.input(2, "scale", ort::kFloat, &in->scale));
  EXPRUNE_RETURN_IF_ERROR(call.input(3, "error", ort::kFloat, &in->error));
  EXPRUNE_RETURN_IF_ERROR(call.input(4, "norm", ort::kFloat, &in->norm));
  EXPRUNE_RETURN_IF_ERROR(call.input(5, "W", ort::kFloat, &in->weight));
  EXPRUNE_RETURN_IF_ERROR(call.input(6, "bias", ort::kFloat, &in->bias));
  if (in->x.rank < 1) return call.bad("X", "must have at least one dimension");
  const int64_t groups = in->x.dims[in->x.rank - 1];
  if (groups < 1 || groups > kMostQuantizedGroups) {
    return call.bad("X", "must have 1 to %lld features and not %lld",
                    static_cast<long long>(kMostQuantizedGroups), static_cast<long long>(groups));
  }
  if (in->weight.rank != 2 || in->weight.dims[0] < 1 || in->weight.dims[0] > INT32_MAX) {
    char text[160];
    return call.bad("W", "has shape %s, expected [N, G] with N >= 1",
                    shape_text(in->weight.dims, in->weight.rank, text, sizeof(text)));
  }
  const int64_t dims[2] = {in->weight.dims[0], groups};
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->weight, "W", "[N, G]", dims, 2));
  const int64_t width = (groups + kCodeGroups - 1) / kCodeGroups * 32;
  layer->bits = in->codes.rank == 2 && in->codes.dims[1] == 6 * width ? 6 : 8;
  const int64_t code_dims[2] = {(dims[0] + kQuantizedBlock - 1) / kQuantizedBlock, layer->bits * width};
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->codes, "codes", "[ceil(N / 16), ceil(G / 16) * 32 * bits]", code_dims, 2));
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->scale, "scale", "[N]", dims, 1));
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->error, "error", "[N]", dims, 1));
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->norm, "norm", "[N]", dims, 1));
  EXPRUNE_RETURN_IF_ERROR(call.shape(in->bias, "bias", "[N]", dims, 1));
  pages.ask_for(in->codes.data, static_cast<size_t>(in->codes.count), in->weight.data,
                static_cast<size_t>(in->weight.count) * sizeof(float));
  layer->outputs = dims[0];
  layer->groups = groups;
  layer->codes = in->codes.bytes();
  layer->scale = in->scale.floats();
  layer->error = in->error.floats();
  layer->norm = in->norm.floats();
  layer->weight = in->weight.floats();
  layer->bias = in->bias.floats();
  return nullptr;
}

}  // namespace exprune
