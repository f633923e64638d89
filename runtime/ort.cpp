#include "ort.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <atomic>

namespace exprune {

static std::atomic<const OrtApi*> g_api{nullptr};

const OrtApi* api() { return g_api.load(std::memory_order_acquire); }
void set_api(const OrtApi* a) { g_api.store(a, std::memory_order_release); }

OrtStatus* error(int code, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return ort::CreateStatus::call(api(), code, text);
}

// For calls whose failure only means "not there".
static bool ok(OrtStatus* status) {
  if (status) ort::ReleaseStatus::call(api(), status);
  return !status;
}

const char* shape_text(const int64_t* dims, int rank, char* text, size_t size) {
  size_t used = static_cast<size_t>(snprintf(text, size, "["));
  for (int i = 0; i < rank && used < size; i++) {
    used += static_cast<size_t>(
        snprintf(text + used, size - used, i ? ", %lld" : "%lld", static_cast<long long>(dims[i])));
  }
  if (used < size) snprintf(text + used, size - used, "]");
  return text;
}

bool product(const int64_t* dims, int rank, int64_t* result) {
  int64_t total = 1;
  bool empty = false;
  for (int i = 0; i < rank; i++) {
    if (dims[i] < 0) return false;
    empty = empty || dims[i] == 0;
  }
  for (int i = 0; i < rank && !empty; i++) {
    if (__builtin_mul_overflow(total, dims[i], &total)) return false;
  }
  *result = empty ? 0 : total;
  return true;
}

// A tensor's type and shape; of more than `most` dims only their number.
static OrtStatus* describe(const OrtValue* value, size_t most, int* element, size_t* rank, int64_t* dims) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  EXPRUNE_RETURN_IF_ERROR(ort::GetTensorTypeAndShape::call(api(), value, &info));
  OrtStatus* status = ort::GetTensorElementType::call(api(), info, element);
  if (!status) status = ort::GetDimensionsCount::call(api(), info, rank);
  if (!status && *rank <= most) status = ort::GetDimensions::call(api(), info, dims, *rank);
  ort::ReleaseTensorTypeAndShapeInfo::call(api(), info);
  return status;
}

void ConstantInputs::read(const OrtKernelInfo* info, int count) {
  constexpr size_t kMostDims = sizeof(ConstantInput::dims) / sizeof(int64_t);
  for (int i = 0; i < count; i++) {
    int constant = 0;
    const OrtValue* value = nullptr;
    if (!ok(ort::KernelInfoGetConstantInput_tensor::call(api(), info, static_cast<size_t>(i), &constant, &value))) {
      continue;
    }
    if (!constant || !value) continue;
    ConstantInput input;
    int element = 0;
    size_t rank = 0;
    if (!ok(describe(value, kMostDims, &element, &rank, input.dims)) || rank > kMostDims) continue;
    input.rank = static_cast<int32_t>(rank);
    input.type = element;
    if (!product(input.dims, input.rank, &input.count)) continue;
    if (!ok(ort::GetTensorMutableData::call(api(), const_cast<OrtValue*>(value), &input.data))) continue;
    inputs[i] = input;
  }
}

OrtStatus* Call::input(size_t index, const char* name, int type, Tensor* tensor) const {
  if (constants->has(index)) {
    const ConstantInput& input = constants->inputs[index];
    if (input.type != type) return bad(name, "has the wrong element type");
    tensor->data = input.data;
    tensor->rank = input.rank;
    tensor->count = input.count;
    memcpy(tensor->dims, input.dims, sizeof(input.dims));
    return nullptr;
  }
  const OrtValue* value = nullptr;
  EXPRUNE_RETURN_IF_ERROR(ort::KernelContext_GetInput::call(api(), context, index, &value));
  if (!value) return bad(name, "is missing");
  int element = 0;
  size_t rank = 0;
  EXPRUNE_RETURN_IF_ERROR(describe(value, kMaxRank, &element, &rank, tensor->dims));
  if (element != type) return bad(name, "has the wrong element type");
  if (rank > kMaxRank) return bad(name, "has %zu dimensions, at most %d are supported", rank, kMaxRank);
  tensor->rank = static_cast<int>(rank);
  if (!product(tensor->dims, tensor->rank, &tensor->count)) return bad(name, "is too large");
  return ort::GetTensorMutableData::call(api(), const_cast<OrtValue*>(value), &tensor->data);
}

OrtStatus* Call::output(size_t index, const int64_t* dims, int rank, void** data) const {
  *data = nullptr;
  size_t outputs = 0;
  EXPRUNE_RETURN_IF_ERROR(ort::KernelContext_GetOutputCount::call(api(), context, &outputs));
  // Only the survivors may be left out, and their place is after a node's other outputs.
  if (index >= outputs) return index > 0 ? nullptr : error(ort::kInvalidArgument, "%s: has no output", op);
  OrtValue* value = nullptr;
  EXPRUNE_RETURN_IF_ERROR(
      ort::KernelContext_GetOutput::call(api(), context, index, dims, static_cast<size_t>(rank), &value));
  if (!value) return nullptr;
  return ort::GetTensorMutableData::call(api(), value, data);
}

OrtStatus* Call::bad(const char* name, const char* format, ...) const {
  char text[384];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return error(ort::kInvalidArgument, "%s: %s %s", op, name, text);
}

OrtStatus* Call::shape(const Tensor& tensor, const char* name, const char* meaning, const int64_t* dims,
                       int rank) const {
  bool same = tensor.rank == rank;
  for (int i = 0; same && i < rank; i++) same = tensor.dims[i] == dims[i];
  if (same) return nullptr;
  char got[160], want[160];
  return bad(name, "has shape %s, expected %s = %s", shape_text(tensor.dims, tensor.rank, got, sizeof(got)),
             meaning, shape_text(dims, rank, want, sizeof(want)));
}

OrtStatus* Call::number(size_t index, const char* name, int64_t least, int64_t most, int64_t* value) const {
  Tensor tensor;
  EXPRUNE_RETURN_IF_ERROR(input(index, name, ort::kInt64, &tensor));
  if (tensor.count != 1) return bad(name, "must have one element");
  *value = tensor.ints()[0];
  if (*value >= least && *value <= most) return nullptr;
  return bad(name, "is %lld, expected %lld to %lld", static_cast<long long>(*value), static_cast<long long>(least),
             static_cast<long long>(most));
}

OrtStatus* attribute_ints(const OrtKernelInfo* info, const char* op, const char* name, int64_t* values,
                          size_t capacity, size_t* count) {
  *count = 0;
  if (!ok(ort::KernelInfoGetAttributeArray_int64::call(api(), info, name, nullptr, count))) {
    return error(ort::kInvalidArgument, "%s: attribute %s is missing", op, name);
  }
  if (*count > capacity) {
    return error(ort::kInvalidArgument, "%s: attribute %s has %zu values, at most %zu are supported", op,
                 name, *count, capacity);
  }
  return ort::KernelInfoGetAttributeArray_int64::call(api(), info, name, values, count);
}

OrtStatus* attribute_float(const OrtKernelInfo* info, const char* op, const char* name, float* value) {
  if (ok(ort::KernelInfoGetAttribute_float::call(api(), info, name, value))) return nullptr;
  return error(ort::kInvalidArgument, "%s: attribute %s is missing, or is not a float", op, name);
}

// Whether a node has an attribute that is not an integer: ONNX Runtime tells no difference between an attribute
// that is missing and one of another type.
static bool has_other_type(const OrtKernelInfo* info, const char* name) {
  float number;
  size_t size = 0;
  if (ok(ort::KernelInfoGetAttribute_float::call(api(), info, name, &number))) return true;
  if (ok(ort::KernelInfoGetAttribute_string::call(api(), info, name, nullptr, &size))) return true;
  if (ok(ort::KernelInfoGetAttributeArray_int64::call(api(), info, name, nullptr, &size)) && size > 0) return true;
  return ok(ort::KernelInfoGetAttributeArray_float::call(api(), info, name, nullptr, &size)) && size > 0;
}

OrtStatus* attribute_flag(const OrtKernelInfo* info, const char* op, const char* name, bool* flag) {
  int64_t value = 0;
  if (!ok(ort::KernelInfoGetAttribute_int64::call(api(), info, name, &value))) {
    if (!has_other_type(info, name)) return nullptr;
    return error(ort::kInvalidArgument, "%s: attribute %s must be an integer", op, name);
  }
  if (value != 0 && value != 1) {
    return error(ort::kInvalidArgument, "%s: attribute %s must be 0 or 1", op, name);
  }
  *flag = value == 1;
  return nullptr;
}

void infer_input(const OrtShapeInferContext* context, size_t index, KnownShape* shape) {
  shape->rank = 0;
  OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by the context
  size_t rank = 0;
  if (!ok(ort::ShapeInferContext_GetInputTypeShape::call(api(), context, index, &info)) || !info) return;
  if (!ok(ort::GetDimensionsCount::call(api(), info, &rank)) || rank > kMaxRank) return;
  if (!ok(ort::GetDimensions::call(api(), info, shape->dims, rank))) return;
  if (!ok(ort::GetSymbolicDimensions::call(api(), info, shape->names, rank))) return;
  shape->rank = static_cast<int>(rank);
}

OrtStatus* infer_output(const OrtShapeInferContext* context, size_t index, int type, KnownShape* shape) {
  // An unknown dim must have a name, and dims of one name count as equal: so every one gets a new name.
  static std::atomic<unsigned> serial{0};
  char fresh[kMaxRank][32];
  for (int i = 0; i < shape->rank; i++) {
    if (shape->dims[i] >= 0) {
      shape->names[i] = "";
    } else if (!shape->names[i] || !shape->names[i][0]) {
      snprintf(fresh[i], sizeof(fresh[i]), "exprune_dim_%u", serial.fetch_add(1, std::memory_order_relaxed));
      shape->names[i] = fresh[i];
    }
  }
  const size_t rank = static_cast<size_t>(shape->rank);
  OrtTensorTypeAndShapeInfo* info = nullptr;
  EXPRUNE_RETURN_IF_ERROR(ort::CreateTensorTypeAndShapeInfo::call(api(), &info));
  OrtStatus* status = ort::SetTensorElementType::call(api(), info, type);
  if (!status) status = ort::SetDimensions::call(api(), info, shape->dims, rank);
  if (!status) status = ort::SetSymbolicDimensions::call(api(), info, shape->names, rank);
  if (!status) status = ort::ShapeInferContext_SetOutputTypeShape::call(api(), context, index, info);
  ort::ReleaseTensorTypeAndShapeInfo::call(api(), info);
  return status;
}

bool infer_attribute_ints(const OrtShapeInferContext* context, const char* name, int64_t* values,
                          size_t capacity, size_t* count) {
  const OrtOpAttr* attribute = nullptr;
  size_t bytes = 0;
  if (!ok(ort::ShapeInferContext_GetAttribute::call(api(), context, name, &attribute)) || !attribute ||
      !ok(ort::ReadOpAttr::call(api(), attribute, ort::kAttrInts, values, capacity * sizeof(int64_t),
                                &bytes))) {
    return false;
  }
  *count = bytes / sizeof(int64_t);
  return *count <= capacity;
}

bool infer_attribute_int(const OrtShapeInferContext* context, const char* name, int64_t* value) {
  const OrtOpAttr* attribute = nullptr;
  size_t bytes = 0;
  return ok(ort::ShapeInferContext_GetAttribute::call(api(), context, name, &attribute)) && attribute &&
         ok(ort::ReadOpAttr::call(api(), attribute, ort::kAttrInt, value, sizeof(int64_t), &bytes));
}

#if defined(__SANITIZE_THREAD__)
// ONNX Runtime is not built for the thread sanitizer. This tells it what ParallelFor promises: what the caller
// wrote before is seen by the tasks, and what they wrote is seen by the caller after.
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);

struct OrderedTask {
  void (*task)(void*, size_t);
  void* user;
  char begin, end;  // addresses that stand for the two moments

  static void run(void* self, size_t index) {
    OrderedTask& ordered = *static_cast<OrderedTask*>(self);
    __tsan_acquire(&ordered.begin);
    ordered.task(ordered.user, index);
    __tsan_release(&ordered.end);
  }
};

static OrtStatus* parallel_for(OrtKernelContext* context, void (*task)(void*, size_t), size_t tasks, size_t batches,
                               void* user) {
  OrderedTask ordered = {task, user, 0, 0};
  __tsan_release(&ordered.begin);
  OrtStatus* status =
      ort::KernelContext_ParallelFor::call(api(), context, OrderedTask::run, tasks, batches, &ordered);
  __tsan_acquire(&ordered.end);
  return status;
}
#else
static OrtStatus* parallel_for(OrtKernelContext* context, void (*task)(void*, size_t), size_t tasks, size_t batches,
                               void* user) {
  return ort::KernelContext_ParallelFor::call(api(), context, task, tasks, batches, user);
}
#endif

bool Runner::parallel(void* self, size_t tasks, void (*task)(void*, size_t), void* user) {
  Runner& runner = *static_cast<Runner*>(self);
  if (tasks == 0) return true;
  if (tasks == 1) {
    task(user, 0);
    return true;
  }
  // As many batches as tasks, up to a limit, so that threads that finish early take more.
  const size_t batches = tasks < 64 ? tasks : 64;
  runner.status = parallel_for(runner.context, task, tasks, batches, user);
  return !runner.status;
}

OrtStatus* Runner::result(bool done, const char* op) const {
  if (status) return status;
  return done ? nullptr : error(ort::kFail, "%s: not enough memory for inputs of these shapes", op);
}

}  // namespace exprune
