// A library with one custom operator, org.example::Twice(x) = 2 x, as a user's model may need one.
#include <string.h>

#include "../../runtime/ort_abi.h"

using namespace exprune::ort;

namespace {

const OrtApi* api;

const char* name(const OrtCustomOp*) { return "Twice"; }
const char* provider(const OrtCustomOp*) { return nullptr; }
int type(const OrtCustomOp*, size_t) { return kFloat; }
size_t one(const OrtCustomOp*) { return 1; }
int required(const OrtCustomOp*, size_t) { return kRequired; }
int memory(const OrtCustomOp*, size_t) { return 0; }
int version_one(const OrtCustomOp*) { return 1; }
int version_any(const OrtCustomOp*) { return 0x7fffffff; }
void* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*) { return const_cast<OrtApi**>(&api); }
OrtStatus* create_v2(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel) {
  *kernel = const_cast<OrtApi**>(&api);
  return nullptr;
}
void destroy(void*) {}

OrtStatus* compute(void*, OrtKernelContext* context) {
  const OrtValue* x = nullptr;
  OrtValue* y = nullptr;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  size_t rank = 0;
  int64_t dims[8];
  OrtStatus* status = KernelContext_GetInput::call(api, context, 0, &x);
  if (!status) status = GetTensorTypeAndShape::call(api, x, &info);
  if (!status) status = GetDimensionsCount::call(api, info, &rank);
  if (!status) status = GetDimensions::call(api, info, dims, rank < 8 ? rank : 8);
  if (info) ReleaseTensorTypeAndShapeInfo::call(api, info);
  if (!status) status = KernelContext_GetOutput::call(api, context, 0, dims, rank, &y);
  void *from = nullptr, *to = nullptr;
  if (!status) status = GetTensorMutableData::call(api, const_cast<OrtValue*>(x), &from);
  if (!status) status = GetTensorMutableData::call(api, y, &to);
  if (status) return status;
  size_t count = 1;
  for (size_t i = 0; i < rank; ++i) count *= static_cast<size_t>(dims[i]);
  for (size_t i = 0; i < count; ++i) static_cast<float*>(to)[i] = 2 * static_cast<float*>(from)[i];
  return nullptr;
}

void compute_v1(void*, OrtKernelContext* context) { compute(nullptr, context); }

OrtCustomOp op;

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  api = base->GetApi(kApiVersion);
  memset(&op, 0, sizeof op);
  op.version = kApiVersion;
  op.CreateKernel = create;
  op.GetName = name;
  op.GetExecutionProviderType = provider;
  op.GetInputType = op.GetOutputType = type;
  op.GetInputTypeCount = op.GetOutputTypeCount = one;
  op.KernelCompute = compute_v1;
  op.KernelDestroy = destroy;
  op.GetInputCharacteristic = op.GetOutputCharacteristic = required;
  op.GetInputMemoryType = memory;
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = version_one;
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = version_one;
  op.CreateKernelV2 = create_v2;
  op.KernelComputeV2 = compute;
  op.GetStartVersion = version_one;
  op.GetEndVersion = version_any;
  static OrtCustomOpDomain* domain = nullptr;  // static, as the operator is: sessions refer to both
  if (!domain) {
    OrtStatus* status = CreateCustomOpDomain::call(api, "org.example", &domain);
    if (!status) status = CustomOpDomain_Add::call(api, domain, &op);
    if (status) return status;
  }
  return AddCustomOpDomain::call(api, options, domain);
}
