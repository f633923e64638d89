// The slice of ONNX Runtime's C ABI that these custom ops use, declared by hand.
//
// The ONNX Runtime wheel ships no C headers, and the ABI is append-only: a function keeps its slot in the
// table for ever. So the table is an array of pointers here, and every function used is declared with its
// slot and its signature, as of API version 17 (ONNX Runtime 1.17, the oldest that is supported). Slots are
// positions in `struct OrtApi` of onnxruntime_c_api.h, counted from 0; types and enumerators keep the values
// of that header. Nothing here may be added from an API version above kApiVersion.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

// Opaque to a custom-op library.
struct OrtStatus;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;
struct OrtOpAttr;

// The function table; 278 slots at API version 17.
struct OrtApi {
  void* slot[278];
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null where the runtime is older than `version`
  const char* (*GetVersionString)();
};

// What a custom op implements. ONNX Runtime reads only the fields that `version` says exist.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);  // 16
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);                                        // 16
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);                    // 17
  int (*GetStartVersion)(const OrtCustomOp*);                                                     // 17
  int (*GetEndVersion)(const OrtCustomOp*);                                                       // 17
};

}  // extern "C"

namespace exprune {
namespace ort {

constexpr uint32_t kApiVersion = 17;

// enum OrtErrorCode
constexpr int kFail = 1;
constexpr int kInvalidArgument = 2;
// enum ONNXTensorElementDataType
constexpr int kFloat = 1;
constexpr int kUint8 = 2;
constexpr int kInt64 = 7;
// enum OrtCustomOpInputOutputCharacteristic
constexpr int kRequired = 0;
constexpr int kOptional = 1;
// enum OrtOpAttrType
constexpr int kAttrInt = 1;
constexpr int kAttrInts = 2;

template <int Slot, class R, class... A>
struct Fn {
  static R call(const OrtApi* api, A... a) { return reinterpret_cast<R (*)(A...)>(api->slot[Slot])(a...); }
};

using CreateStatus = Fn<0, OrtStatus*, int, const char*>;
using CreateCustomOpDomain = Fn<26, OrtStatus*, const char*, OrtCustomOpDomain**>;
using CustomOpDomain_Add = Fn<27, OrtStatus*, OrtCustomOpDomain*, const OrtCustomOp*>;
using AddCustomOpDomain = Fn<28, OrtStatus*, OrtSessionOptions*, OrtCustomOpDomain*>;
using GetTensorMutableData = Fn<51, OrtStatus*, OrtValue*, void**>;
using CreateTensorTypeAndShapeInfo = Fn<57, OrtStatus*, OrtTensorTypeAndShapeInfo**>;
using SetTensorElementType = Fn<58, OrtStatus*, OrtTensorTypeAndShapeInfo*, int>;
using SetDimensions = Fn<59, OrtStatus*, OrtTensorTypeAndShapeInfo*, const int64_t*, size_t>;
using GetTensorElementType = Fn<60, OrtStatus*, const OrtTensorTypeAndShapeInfo*, int*>;
using GetDimensionsCount = Fn<61, OrtStatus*, const OrtTensorTypeAndShapeInfo*, size_t*>;
using GetDimensions = Fn<62, OrtStatus*, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t>;
using GetSymbolicDimensions = Fn<63, OrtStatus*, const OrtTensorTypeAndShapeInfo*, const char**, size_t>;
using GetTensorTypeAndShape = Fn<65, OrtStatus*, const OrtValue*, OrtTensorTypeAndShapeInfo**>;
using KernelInfoGetAttribute_float = Fn<85, OrtStatus*, const OrtKernelInfo*, const char*, float*>;
using KernelInfoGetAttribute_int64 = Fn<86, OrtStatus*, const OrtKernelInfo*, const char*, int64_t*>;
using KernelInfoGetAttribute_string = Fn<87, OrtStatus*, const OrtKernelInfo*, const char*, char*, size_t*>;
using KernelContext_GetOutputCount = Fn<89, OrtStatus*, const OrtKernelContext*, size_t*>;
using KernelContext_GetInput = Fn<90, OrtStatus*, const OrtKernelContext*, size_t, const OrtValue**>;
using KernelContext_GetOutput =
    Fn<91, OrtStatus*, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**>;
using ReleaseStatus = Fn<93, void, OrtStatus*>;
using ReleaseTensorTypeAndShapeInfo = Fn<99, void, OrtTensorTypeAndShapeInfo*>;
using ReleaseCustomOpDomain = Fn<101, void, OrtCustomOpDomain*>;
using KernelInfoGetAttributeArray_float = Fn<162, OrtStatus*, const OrtKernelInfo*, const char*, float*, size_t*>;
using KernelInfoGetAttributeArray_int64 =
    Fn<163, OrtStatus*, const OrtKernelInfo*, const char*, int64_t*, size_t*>;
using KernelInfoGetConstantInput_tensor =
    Fn<249, OrtStatus*, const OrtKernelInfo*, size_t, int*, const OrtValue**>;
using ShapeInferContext_GetInputTypeShape =
    Fn<268, OrtStatus*, const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**>;
using ShapeInferContext_GetAttribute =
    Fn<269, OrtStatus*, const OrtShapeInferContext*, const char*, const OrtOpAttr**>;
using ShapeInferContext_SetOutputTypeShape =
    Fn<270, OrtStatus*, const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*>;
using SetSymbolicDimensions = Fn<271, OrtStatus*, OrtTensorTypeAndShapeInfo*, const char**, size_t>;
using ReadOpAttr = Fn<272, OrtStatus*, const OrtOpAttr*, int, void*, size_t, size_t*>;
using KernelContext_ParallelFor =
    Fn<274, OrtStatus*, const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*>;

}  // namespace ort
}  // namespace exprune
