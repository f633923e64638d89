// The library's two entry points.
#include <pthread.h>
#include <stdio.h>

#include "ort.h"

#ifndef EXPRUNE_VERSION
#define EXPRUNE_VERSION "unknown"
#endif

#define EXPRUNE_EXPORT extern "C" __attribute__((visibility("default")))

namespace exprune {

// Made once, then shared by all sessions, and never released: sessions may outlive every owner we could name.
static OrtCustomOpDomain* g_staged = nullptr;
static OrtCustomOpDomain* g_fused = nullptr;
static pthread_mutex_t g_mutex = PTHREAD_MUTEX_INITIALIZER;

using List = const OrtCustomOp* const* (*)(size_t*);
constexpr List kStagedOps[] = {prefix_gemm_ops,    prefix_conv_ops,    prefix_argmax_ops, sparse_gemm_ops,
                               quantized_gemm_ops, quantized_head_ops, low_rank_ops,      block_conv_ops,
                               sparse_conv_ops,    panel_conv_ops};
constexpr List kFusedOps[] = {attention_ops, residual_norm_ops, token_embedding_ops};

template <size_t Lists>
static OrtStatus* make_domain(const char* name, const List (&lists)[Lists], OrtCustomOpDomain** made) {
  if (*made) return nullptr;
  OrtCustomOpDomain* domain = nullptr;
  EXPRUNE_RETURN_IF_ERROR(ort::CreateCustomOpDomain::call(api(), name, &domain));
  for (List list : lists) {
    size_t count = 0;
    const OrtCustomOp* const* ops = list(&count);
    for (size_t i = 0; i < count; i++) {
      OrtStatus* status = ort::CustomOpDomain_Add::call(api(), domain, ops[i]);
      if (status) {
        ort::ReleaseCustomOpDomain::call(api(), domain);
        return status;
      }
    }
  }
  *made = domain;
  return nullptr;
}

static OrtStatus* make_domains() {
  EXPRUNE_RETURN_IF_ERROR(make_domain("com.exprune", kStagedOps, &g_staged));
  return make_domain("com.exprune.fused", kFusedOps, &g_fused);
}

}  // namespace exprune

// Adds the domains com.exprune and com.exprune.fused to a session's options; called by ONNX Runtime.
EXPRUNE_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace exprune;
  const OrtApi* found = base->GetApi(ort::kApiVersion);
  if (!found) {
    const OrtApi* oldest = base->GetApi(1);
    if (!oldest) return nullptr;
    char text[160];
    snprintf(text, sizeof(text), "exprune's kernels need ONNX Runtime 1.17 or newer, this is %s",
             base->GetVersionString());
    return ort::CreateStatus::call(oldest, ort::kFail, text);
  }
  pthread_mutex_lock(&g_mutex);
  set_api(found);
  OrtStatus* status = make_domains();
  pthread_mutex_unlock(&g_mutex);
  if (status) return status;
  EXPRUNE_RETURN_IF_ERROR(ort::AddCustomOpDomain::call(api(), options, g_staged));
  return ort::AddCustomOpDomain::call(api(), options, g_fused);
}

static char g_info[64];
__attribute__((constructor)) static void make_info() {
  snprintf(g_info, sizeof(g_info), "exprune %s isa=%s", EXPRUNE_VERSION, exprune::kernels().name);
}

// "exprune 0.1.0 isa=avx512vnni"
EXPRUNE_EXPORT const char* exprune_runtime_info() { return g_info; }
