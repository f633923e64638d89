// What the ops ask of the kernels: plain structs, one function pointer per kernel, one table per
// instruction set. Kernels know nothing of ONNX Runtime; ops know nothing of instruction sets.
//
// Letters: N outputs, G reduction groups, T taps of a group, C chunks, S = C-1 checks, M rows.
// All arguments have been checked by the op; kernels check nothing. A kernel returns false when it
// could not get scratch memory or the parallel loop failed, and its outputs are then undefined.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "../scratch.h"

namespace exprune {

enum TestKind { kThreshold = 0, kStats = 1, kBound = 2, kTestKinds = 3 };

// What the sound bounds (the Bound tests, and the quantised estimate) add to a reach for rounding; proved in
// exprune_cli/planning/bound.py.
//
// Times |bias| + |offset|: what the sums of the dense layer and of ours lose on them, in any order of summation
// over so many terms, is at most 8 u + gamma_(terms + 4), u = 2^-24. Infinite where gamma's formula ends.
inline constexpr float kOffsetRounding = 8 * 5.9604645e-8f, kTermRounding = 8e-8f;
inline constexpr int64_t kMostTerms = 1 << 22;
// For numbers so small that products lose more than a share of themselves, or are flushed to zero.
inline constexpr float kUnderflow = 1e-30f;
// The rounding of the bound's own arithmetic.
inline constexpr float kReachRounding = 1e-5f;
// A reach holds 2 gamma ||w|| ||x|| and 8 u (|bias| + |offset|). From this size on the sums of the layer, in some
// order, may leave the range of float: the reach counts as infinite, and nothing is decided.
inline constexpr float kMostReach = 5e31f;

// Where a kernel's work runs, and its working memory.
struct Env {
  void* context;
  // Runs task(user, i) for i in [0, tasks), possibly at the same time; false when that failed.
  bool (*parallel)(void* context, size_t tasks, void (*task)(void*, size_t), void* user);
  ScratchPool* per_call;
  ScratchPool* per_task;
};

// The staged reduction that all prefix kernels share.
struct Staged {
  int64_t outputs;       // N
  int64_t groups;        // G
  int64_t taps;          // T
  int64_t chunks;        // C >= 2
  const int64_t* order;  // [G], a permutation: position p of the reduction reads group order[p]
  const int64_t* ends;   // [C], cumulative groups; ends[C-1] == G
  const float* head;     // [N, ends[0], T]
  const float* tail;     // [N, G - ends[0], T]
  const float* bias;     // [N]
  // The test's parameters, each [S, N]. Threshold: scale, limit (ArgMax: scale, shift, margin);
  // Bound: radius, slack; Stats: none.
  const float* first;
  const float* second;
  const float* third;
  float z;  // Stats only
};

// Memory that a kernel makes when it first needs it, and that the node then keeps, from malloc(); null before that.
using Kept = std::atomic<void*>*;

// Y = alive ? min(max(P + bias + offset, 0), max) : 0
struct Finish {
  const float* offset;  // one element, or Y's shape if offset_full
  bool offset_full;
  float max;
};

struct GemmCall {
  Staged staged;
  Finish finish;
  int64_t rows;        // M
  const float* x;      // [M, G]
  float* y;            // [M, N]
  int64_t* survivors;  // [S]
};

// 1-D convolutions come as 2-D ones of height 1.
struct ConvCall {
  Staged staged;
  Finish finish;
  int64_t batch;
  int64_t height, width;          // of X; height * width < 2^31
  int64_t out_height, out_width;  // of Y; their product < 2^31
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t dilation_h, dilation_w;
  int64_t pad_top, pad_left;
  const float* x;      // [batch, G, height, width]
  float* y;            // [batch, N, out_height, out_width]
  int64_t* survivors;  // [S]
};

// A convolution in blocks of one output channel x `block` output positions of an image, row by row. In
// `staged`: head holds all weights [G, N, T] in the order of the reduction, tail is null, order may be null
// (0 to G-1), and there may be one chunk only, which is then an exact convolution. first, second and third
// are scale, shift and limit. With weight_energy every image has an order of its own: by falling sum of the squares
// of a group in the image times weight_energy, equal ones by index; head is then in the order of X's groups.
struct BlockConvCall {
  ConvCall conv;
  int64_t block;
  const float* weight_energy;  // [G], or null
  Kept geometry;  // what the kernel remembers of a shape
};

// A convolution in blocks of one panel of output channels x one output position. In `staged`: head holds all
// weights [ceil(N / 16), T, G, 16] in the order of the reduction, tail is null, order may be null (0 to G-1), and
// there may be one chunk only, which is then an exact convolution. first and second are scale and shift [S, N], third
// is limit [S, ceil(N / 16)].
constexpr int64_t kPanelChannels = 16;

struct PanelConvCall {
  ConvCall conv;
  const int64_t* channels;  // [N], a permutation: lane i of panel p is output channels[16 p + i]; null: in order
};

struct ArgMaxCall {
  Staged staged;
  int64_t rows;
  bool select_last;
  const float* x;      // [M, G]
  int64_t* index;      // [M]
  int64_t* survivors;  // [S]
};

struct SparseGemmCall {
  int64_t rows, depth, columns;  // M, K, N
  const float* x;                // [M, K]
  const float* w;                // [K, N]
  const float* bias;             // [N]
  float* y;                      // [M, N]
  int64_t* survivors;            // [1], how many x are not 0
  Kept panels;                   // of W; null where W may be another one in the next call
};

// Weights in full and as codes: w[n][g] = scale[n] * (code - zero) + (what `error` bounds).
//
// Codes stand in blocks of 16 outputs and 16 groups, both padded with zeros: a block is four vectors of 64
// codes, vector i holding groups 4 i to 4 i + 3 of output 0, then of output 1, and so on. 8-bit codes (zero is
// 128) are bytes. Of 6-bit codes (zero is 32) the first three vectors are the low bits of 192 bytes, and code j
// of the fourth is in the high bits of bytes j, 64 + j and 128 + j, the first ones lowest.
constexpr int64_t kQuantizedBlock = 16, kCodeGroups = 16;

struct Quantized {
  int64_t outputs;       // N
  int64_t groups;        // G, at most kMostQuantizedGroups
  int bits;              // 6 or 8
  const uint8_t* codes;  // [ceil(N / 16), ceil(G / 16) * 32 * bits]
  const float* scale;    // [N]
  const float* error;    // [N], times ||x|| it bounds what the codes and float sums add to the estimate
  const float* norm;     // [N], times ||x - x^|| it bounds what X's own codes add
  const float* weight;   // [N, G]
  const float* bias;     // [N]
};

// So that sums of 255 * 127 stay below 2^31.
constexpr int64_t kMostQuantizedGroups = 65536;
constexpr int64_t kMostK = 64;

// Weights in full, and an estimate of the outputs of low rank: U (V x) + shift, give or take `reach`. What it leaves
// open is estimated again, with `more` numbers more, where there are any: a cascade.
struct LowRank {
  int64_t outputs;      // N
  int64_t groups;       // G
  int64_t rank;         // r
  int64_t more;         // 0: one estimate only
  const float* down;    // V, [r + more, G]
  const float* up;      // U, [N, r]
  const float* shift;   // [N]
  const float* reach;   // [N]; for a ReLU its negative is the limit below which an output is 0
  const float* weight;  // [N, G]
  const float* bias;    // [N]
  const float* up_more;     // [N, more]
  const float* shift_more;  // [N], added to the first shift; of a head only
  const float* reach_more;  // [N], of the second estimate
  int64_t* open;            // counts what the first estimate leaves open; several threads add to it
};

// A Gemm with a ReLU of which some outputs are shown to be 0, and the others are computed.
template <class Layer>
struct EstimatedGemmCall {
  Layer layer;
  Finish finish;
  int64_t rows;        // M
  const float* x;      // [M, G]
  float* y;            // [M, N]
  int64_t* survivors;  // [1]
  Kept panels;         // of the weights; null where these may be others in the next call
};

// A head of which some classes are shown not to be among the k best, and the others are computed.
template <class Layer>
struct EstimatedTopKCall {
  Layer layer;
  int64_t rows;
  int64_t k;           // 1 to kMostK, at most N
  bool select_last;    // of equal scores the last one wins; only for k = 1
  const float* x;      // [M, G]
  float* values;       // [M, k], descending; null if not wanted
  int64_t* index;      // [M, k]
  int64_t* survivors;  // [1]
};

using QuantizedGemmCall = EstimatedGemmCall<Quantized>;
using QuantizedTopKCall = EstimatedTopKCall<Quantized>;
using LowRankGemmCall = EstimatedGemmCall<LowRank>;  // survivors [1], in a cascade [2]
using LowRankTopKCall = EstimatedTopKCall<LowRank>;

// Attention of `length` new positions over `past` earlier ones and themselves; key and value are all of them.
struct AttentionCall {
  int64_t batch, length, heads, size, past;
  const float* x;           // [batch, length, 3, heads, size]: queries, keys, values, before their bias
  const float* bias;        // [3, heads, size]
  const float* past_key;    // [batch, heads, past, size]
  const float* past_value;  // the same
  float scale;              // of the scores
  float* y;                 // [batch, length, heads, size]
  float* key;               // [batch, heads, past + length, size]
  float* value;             // the same
};

// normed = LayerNormalization(sum), sum = x + (y + bias), over rows of `width`.
struct ResidualNormCall {
  int64_t rows, width;
  const float* x;      // [rows, width]
  const float* y;      // [rows, width]
  const float* bias;   // [width]
  const float* scale;  // [width]
  const float* shift;  // [width]
  float epsilon;
  float* normed;  // [rows, width]
  float* sum;     // [rows, width]
};

struct Kernels {
  const char* name;
  bool (*prefix_gemm[kTestKinds])(const GemmCall&, const Env&);
  bool (*prefix_conv[kTestKinds])(const ConvCall&, const Env&);
  bool (*prefix_argmax[kTestKinds])(const ArgMaxCall&, const Env&);
  bool (*sparse_gemm)(const SparseGemmCall&, const Env&);
  bool (*quantized_gemm)(const QuantizedGemmCall&, const Env&);
  bool (*quantized_top_k)(const QuantizedTopKCall&, const Env&);
  bool (*low_rank_gemm)(const LowRankGemmCall&, const Env&);
  bool (*low_rank_top_k)(const LowRankTopKCall&, const Env&);
  bool (*block_conv)(const BlockConvCall&, const Env&);
  // head holds all weights [G, T, N] in the order of the reduction, tail is null; survivors is [S + C]: after
  // those of each check the multiply-accumulates of each chunk, zeros of X left out.
  bool (*sparse_conv)(const ConvCall&, const Env&);
  bool (*panel_conv)(const PanelConvCall&, const Env&);
  bool (*attention)(const AttentionCall&, const Env&);
  bool (*residual_norm)(const ResidualNormCall&, const Env&);
};

// The table in use, chosen when the library is loaded: the best that the processor has, or what the
// environment variable EXPRUNE_ISA names (avx512vnni, avx512, avx2, portable, scalar). A named one that the processor
// lacks falls back to the best one below it; an unknown name is ignored.
const Kernels& kernels();

}  // namespace exprune
