// TokenEmbedding: rows of a table by token, plus the row of another one that the cache's length says.
#include "outputs.h"

namespace exprune {

struct TokenEmbedding : KernelBase {
  // token and axis are int64.
  static constexpr Signature kSignature = {5, 0x11, false, 0, 1, 0, false};

  const char* op = nullptr;

  OrtStatus* create(const OrtKernelInfo*) { return nullptr; }

  OrtStatus* compute(OrtKernelContext* context) {
    const Call call = {context, op, &constants};
    Tensor token, table, positions, past;
    EXPRUNE_RETURN_IF_ERROR(call.input(0, "token", ort::kInt64, &token));
    EXPRUNE_RETURN_IF_ERROR(call.input(1, "table", ort::kFloat, &table));
    EXPRUNE_RETURN_IF_ERROR(call.input(2, "positions", ort::kFloat, &positions));
    EXPRUNE_RETURN_IF_ERROR(call.input(3, "past", ort::kFloat, &past));
    if (token.rank != 2) return call.bad("token", "must be [batch, length]");
    if (table.rank != 2) return call.bad("table", "must be [tokens, C]");
    const int64_t tokens = table.dims[0], width = table.dims[1];
    if (positions.rank != 2) return call.bad("positions", "must be [positions, C]");
    const int64_t all[2] = {positions.dims[0], width};
    EXPRUNE_RETURN_IF_ERROR(call.shape(positions, "positions", "[positions, C]", all, 2));
    int64_t axis = 0;
    EXPRUNE_RETURN_IF_ERROR(call.number(4, "axis", 0, past.rank - 1, &axis));
    const int64_t place = past.dims[axis];
    int64_t dims[3] = {token.dims[0], token.dims[1], width};
    if (place >= positions.dims[0]) {  // as a Slice beyond the end: of nothing, which only one position adds to
      if (dims[1] > 1) return call.bad("positions", "has no row %lld", static_cast<long long>(place));
      dims[1] = 0;
    }
    void* y = nullptr;
    EXPRUNE_RETURN_IF_ERROR(call.output(0, dims, 3, &y));
    if (dims[0] * dims[1] == 0) return nullptr;
    const float* row = positions.floats() + place * width;
    float* to = static_cast<float*>(y);
    for (int64_t i = 0; i < token.count; i++, to += width) {
      int64_t index = token.ints()[i];
      if (index < 0) index += tokens;
      if (index < 0 || index >= tokens) {
        return call.bad("token", "is %lld, expected one of %lld", static_cast<long long>(token.ints()[i]),
                        static_cast<long long>(tokens));
      }
      const float* from = table.floats() + index * width;
      for (int64_t j = 0; j < width; j++) to[j] = from[j] + row[j];
    }
    return nullptr;
  }

  static OrtStatus* infer(const OrtShapeInferContext* context) {
    KnownShape shape, table;
    infer_input(context, 0, &shape);
    infer_input(context, 1, &table);
    if (shape.rank != 2 || table.rank != 2) return nullptr;
    shape.unknown(1);
    shape.rank = 3;
    shape.dims[2] = table.dims[1];
    shape.names[2] = table.names[1];
    return infer_output(context, 0, ort::kFloat, &shape);
  }
};

const OrtCustomOp* const* token_embedding_ops(size_t* count) {
  static const Op<TokenEmbedding> op("TokenEmbedding");
  static const OrtCustomOp* const ops[] = {&op};
  *count = 1;
  return ops;
}

}  // namespace exprune
