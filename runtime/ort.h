// Thin helpers over the C ABI: tensors, errors, attributes, shape inference, the op table.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <new>

#include "kernels/registry.h"
#include "ort_abi.h"
#include "pages.h"

namespace exprune {

// ONNX Runtime's function table; set when the library is first registered.
const OrtApi* api();
void set_api(const OrtApi* api);

// An error with printf formatting. ONNX Runtime owns the result.
OrtStatus* error(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

#define EXPRUNE_RETURN_IF_ERROR(expression) \
  do {                                      \
    OrtStatus* status_ = (expression);      \
    if (status_) return status_;            \
  } while (0)

constexpr int kMaxRank = 32;

// A tensor's shape and data; a view, valid during one call.
struct Tensor {
  void* data = nullptr;
  int rank = 0;
  int64_t dims[kMaxRank] = {};
  int64_t count = 0;

  const float* floats() const { return static_cast<const float*>(data); }
  const int64_t* ints() const { return static_cast<const int64_t*>(data); }
  const uint8_t* bytes() const { return static_cast<const uint8_t*>(data); }
};

// "[2, 3]", for messages; returns `text`.
const char* shape_text(const int64_t* dims, int rank, char* text, size_t size);

// Product of dims; false when it overflows.
bool product(const int64_t* dims, int rank, int64_t* result);

// An input that is the same in every call: an initializer of the node's own graph. It fits into a cache line, while
// what ONNX Runtime keeps of a tensor lies in several, none of which is in a cache when a large model comes to the node.
struct ConstantInput {
  void* data;
  int64_t count;
  int64_t dims[4];
  int32_t rank;  // -1: it is not known to be constant
  int32_t type;
};

struct ConstantInputs {
  static constexpr int kMost = 16;
  ConstantInput inputs[kMost];

  ConstantInputs() {
    for (ConstantInput& input : inputs) input.rank = -1;
  }
  void read(const OrtKernelInfo* info, int count);
  bool has(size_t index) const { return inputs[index].rank >= 0; }
};

// One call of one op: reads inputs, makes outputs, and words its errors "Op: input: what is wrong".
struct Call {
  OrtKernelContext* context;
  const char* op;
  const ConstantInputs* constants;

  OrtStatus* input(size_t index, const char* name, int type, Tensor* tensor) const;
  // A null pointer for an output that the node does not ask for.
  OrtStatus* output(size_t index, const int64_t* dims, int rank, void** data) const;
  OrtStatus* bad(const char* input, const char* format, ...) const __attribute__((format(printf, 3, 4)));
  // Checks an exact shape; `meaning` says what the dims are, e.g. "[S, N]".
  OrtStatus* shape(const Tensor& tensor, const char* input, const char* meaning, const int64_t* dims,
                   int rank) const;
  // An int64 tensor of one element, from `least` to `most`.
  OrtStatus* number(size_t index, const char* name, int64_t least, int64_t most, int64_t* value) const;
};

// Attributes of a node at creation.
OrtStatus* attribute_ints(const OrtKernelInfo* info, const char* op, const char* name, int64_t* values,
                          size_t capacity, size_t* count);
OrtStatus* attribute_float(const OrtKernelInfo* info, const char* op, const char* name, float* value);
// An integer that is 0 or 1; `flag` stays what it is when the node does not have it.
OrtStatus* attribute_flag(const OrtKernelInfo* info, const char* op, const char* name, bool* flag);

// A shape during inference: a dim is a number, or unknown (-1) with or without a name.
struct KnownShape {
  int rank = 0;  // 0: unknown
  int64_t dims[kMaxRank] = {};
  const char* names[kMaxRank] = {};

  void unknown(int axis) {
    dims[axis] = -1;
    names[axis] = "";
  }
};

// Shape of input `index`; rank 0 when unknown.
void infer_input(const OrtShapeInferContext* context, size_t index, KnownShape* shape);
// Sets an output's type and shape. Only for outputs that every node has: ONNX Runtime 1.17 to 1.32 do not
// check the index against the outputs that a node really lists.
OrtStatus* infer_output(const OrtShapeInferContext* context, size_t index, int type, KnownShape* shape);
bool infer_attribute_ints(const OrtShapeInferContext* context, const char* name, int64_t* values,
                          size_t capacity, size_t* count);
bool infer_attribute_int(const OrtShapeInferContext* context, const char* name, int64_t* value);

// What a kernel makes when it first needs it and its node keeps, see Kept in kernels/registry.h.
struct KeptMemory {
  std::atomic<void*> data{nullptr};

  KeptMemory() = default;
  ~KeptMemory() { free(data.load()); }
};

// What every kernel object has: the working memory of its node, what it asked of the system, and its constants.
struct KernelBase {
  ScratchPool per_call;
  ScratchPool per_task;
  LargePages pages;
  ConstantInputs constants;
};

// Runs kernels on the session's own threads, and keeps the status when that fails.
struct Runner {
  OrtKernelContext* context;
  OrtStatus* status = nullptr;

  Env env(KernelBase& kernel) { return {this, parallel, &kernel.per_call, &kernel.per_task}; }
  static bool parallel(void* self, size_t tasks, void (*task)(void*, size_t), void* user);
  // The op's result, given the kernel's.
  OrtStatus* result(bool done, const char* op) const;
};

// An entry of the op table. Kernel provides:
//   const char* op                                 set by create
//   OrtStatus* create(const OrtKernelInfo*)        reads and checks the attributes
//   OrtStatus* compute(OrtKernelContext*)
//   static OrtStatus* infer(const OrtShapeInferContext*)
//   static constexpr Signature kSignature
struct Signature {
  int inputs;
  uint32_t int_inputs;  // bit i: input i is int64, otherwise float
  bool int_output;      // the first output is int64, otherwise float; all others are int64
  uint32_t byte_inputs = 0;  // bit i: input i is uint8
  int outputs = 2;           // the last one is survivors, as a rule, which need not be asked for
  uint32_t float_outputs = 0;  // bit i: output i > 0 is float
  bool last_optional = true;
};

template <class Kernel>
struct Op : OrtCustomOp {
  const char* name;

  explicit Op(const char* op_name) : OrtCustomOp(), name(op_name) {
    version = ort::kApiVersion;
    GetName = [](const OrtCustomOp* o) { return static_cast<const Op*>(o)->name; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // CPU
    GetInputTypeCount = [](const OrtCustomOp*) { return static_cast<size_t>(Kernel::kSignature.inputs); };
    GetInputType = [](const OrtCustomOp*, size_t i) {
      if ((Kernel::kSignature.byte_inputs >> i) & 1) return ort::kUint8;
      return (Kernel::kSignature.int_inputs >> i) & 1 ? ort::kInt64 : ort::kFloat;
    };
    GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return Kernel::kSignature.outputs; };
    GetOutputType = [](const OrtCustomOp*, size_t i) {
      if ((Kernel::kSignature.float_outputs >> i) & 1) return ort::kFloat;
      return i > 0 || Kernel::kSignature.int_output ? ort::kInt64 : ort::kFloat;
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return ort::kRequired; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) {
      const bool last = i + 1 == static_cast<size_t>(Kernel::kSignature.outputs);
      return last && Kernel::kSignature.last_optional ? ort::kOptional : ort::kRequired;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
    GetVariadicInputMinArity = GetVariadicInputHomogeneity = GetVariadicOutputMinArity =
        GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    CreateKernelV2 = [](const OrtCustomOp* o, const OrtApi*, const OrtKernelInfo* info, void** out) {
      *out = nullptr;
      void* memory = malloc(sizeof(Kernel));
      if (!memory) return error(ort::kFail, "%s: out of memory", static_cast<const Op*>(o)->name);
      Kernel* kernel = new (memory) Kernel();
      kernel->op = static_cast<const Op*>(o)->name;
      static_assert(Kernel::kSignature.inputs <= ConstantInputs::kMost, "an op has more inputs");
      kernel->constants.read(info, Kernel::kSignature.inputs);
      OrtStatus* status = kernel->create(info);
      if (status) {
        destroy(kernel);
      } else {
        *out = kernel;
      }
      return status;
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return static_cast<Kernel*>(kernel)->compute(context);
    };
    KernelDestroy = destroy;
    InferOutputShapeFn = [](const OrtCustomOp*, OrtShapeInferContext* context) {
      return Kernel::infer(context);
    };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 0x7fffffff; };
  }

  static void destroy(void* kernel) {
    if (!kernel) return;
    static_cast<Kernel*>(kernel)->~Kernel();
    free(kernel);
  }
};

// The ops of each file, in the order of the tests where it has three.
const OrtCustomOp* const* prefix_gemm_ops(size_t* count);
const OrtCustomOp* const* prefix_conv_ops(size_t* count);
const OrtCustomOp* const* prefix_argmax_ops(size_t* count);
const OrtCustomOp* const* sparse_gemm_ops(size_t* count);
const OrtCustomOp* const* quantized_gemm_ops(size_t* count);
const OrtCustomOp* const* quantized_head_ops(size_t* count);
const OrtCustomOp* const* low_rank_ops(size_t* count);
const OrtCustomOp* const* block_conv_ops(size_t* count);
const OrtCustomOp* const* sparse_conv_ops(size_t* count);
const OrtCustomOp* const* panel_conv_ops(size_t* count);
const OrtCustomOp* const* attention_ops(size_t* count);
const OrtCustomOp* const* residual_norm_ops(size_t* count);
const OrtCustomOp* const* token_embedding_ops(size_t* count);

}  // namespace exprune
