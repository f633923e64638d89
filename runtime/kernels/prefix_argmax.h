// Staged linear head with an ArgMax: index [M] from X [M, G].
//
// Rows go in groups of as many as the state allows. A stage is two parallel phases over blocks of classes,
// with a short serial step after each: add a chunk's products and find the best lower score of every block;
// then, with the row's best known, drop the classes that it beats. Blocks have a fixed size and are merged
// in order, so results do not depend on threads.
#pragma once

#include "dots.h"
#include "prefix_gemm.h"
#include "registry.h"
#include "simd.h"
#include "tests.h"

namespace exprune {
namespace EXPRUNE_ISA {

constexpr int64_t kHeadClasses = 256;    // classes of a block
constexpr int64_t kHeadRows = 16;        // rows of a task in the first stage, which share the weights
constexpr int64_t kHeadState = 1 << 22;  // elements of state at a time

// A row of the head at a check, as its test sees it.
struct HeadRow {
  const Staged* staged;
  int64_t check;
  const float* x;      // [G], ordered
  const float* sums;   // [N]
  const float* norms;  // [S + 1] (Bound)
  float best;          // highest score of the alive classes
  int64_t leader;      // the first class that has it
};

// e +- h decides: a class goes when its upper end is below the best lower end. The holder of the best
// lower end always stays, even with a negative margin.
template <class Interval>
struct ByInterval {
  static constexpr bool kNorms = Interval::kNorms;
  static inline float score(const HeadRow& row, int64_t j) {
    return Interval::middle(row, j) - Interval::margin(row, j);
  }
  static inline bool prune(const HeadRow& row, int64_t j) {
    const float e = Interval::middle(row, j), h = Interval::margin(row, j);
    return e + h < row.best && e - h < row.best;
  }
};

struct ThresholdInterval {
  static constexpr bool kNorms = false;
  static inline float middle(const HeadRow& row, int64_t j) {
    const int64_t at = row.check * row.staged->outputs + j;
    return row.staged->first[at] * row.sums[j] + row.staged->second[at];
  }
  static inline float margin(const HeadRow& row, int64_t j) {
    return row.staged->third[row.check * row.staged->outputs + j];
  }
};

struct BoundInterval {
  static constexpr bool kNorms = true;
  static inline float middle(const HeadRow& row, int64_t j) { return row.sums[j] + row.staged->bias[j]; }
  static inline float margin(const HeadRow& row, int64_t j) {
    const Staged& p = *row.staged;
    const int64_t at = row.check * p.outputs + j;
    const float rounding = offset_rounding(p.groups) * absolute(p.bias[j]) + kUnderflow;
    const float radius = p.first[at] * row.norms[row.check] + p.second[at] * row.norms[p.chunks - 1] + rounding;
    return sound(radius);
  }
};

// The leader's lead over a class, tested on the exchangeable terms (w_j - w_leader)_i x_i.
struct ByDominance {
  static constexpr bool kNorms = false;
  static inline float score(const HeadRow& row, int64_t j) {
    const Staged& p = *row.staged;
    return row.sums[j] / static_cast<float>(p.ends[row.check]) + p.bias[j] / static_cast<float>(p.groups);
  }
  static inline bool prune(const HeadRow& row, int64_t j) {
    if (j == row.leader) return false;
    const Staged& p = *row.staged;
    const float k = static_cast<float>(p.ends[row.check]);
    const float lead = row.sums[j] - row.sums[row.leader];
    const float mean = lead / k + (p.bias[j] - p.bias[row.leader]) / static_cast<float>(p.groups);
    float squares = 0;
    for (int64_t c = 0; c <= row.check; c++) {
      int64_t stride;
      const int64_t begin = chunk_begin(p, c);
      const float* w = chunk_weights(p, c, 0, &stride);
      squares += squared_terms(w + j * stride, w + row.leader * stride, row.x + begin, p.ends[c] - begin);
    }
    return mean < p.z * square_root(sample_variance(lead, squares, k) / k);
  }

 private:
  static inline float squared_terms(const float* a, const float* b, const float* x, int64_t k) {
    V acc = {};
    int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes) {
      const V term = (load(a + i) - load(b + i)) * load(x + i);
      acc += term * term;
    }
    if (i < k) {
      const V term = (load_first(a + i, k - i) - load_first(b + i, k - i)) * load_first(x + i, k - i);
      acc += term * term;
    }
    return sum(acc);
  }
};

template <class Test>
struct HeadPlan {
  const ArgMaxCall* call;
  int64_t first_row, rows;  // of the group in work
  int64_t blocks;           // blocks of a row
  int64_t chunk;
  // All of the group's rows:
  float* x;         // [rows][G], ordered
  float* norms;     // [rows][C]
  double* squares;  // [C]
  float* sums;      // [rows][N]
  int32_t* list;    // [rows][N], alive classes, ascending
  int64_t* listed;  // [rows]
  float* best;      // [rows][blocks], best score of a block, NaN if one is NaN
  int32_t* leader;  // [rows][blocks], who has it
  int64_t* kept;    // [rows][blocks], how many of a block stay
  HeadRow* row;     // [rows]

  bool undecided(int64_t r) const { return listed[r] > 1; }

  void score_block(int64_t r, int64_t block) const {
    const int64_t begin = block * kHeadClasses, end = min_of(begin + kHeadClasses, listed[r]);
    const int32_t* classes = list + r * call->staged.outputs;
    float top = 0;
    int32_t who = -1;
    for (int64_t i = begin; i < end; i++) {
      const float score = Test::score(row[r], classes[i]);
      if (who < 0 || score > top || score != score) {
        top = score;
        who = classes[i];
      }
      if (score != score) break;
    }
    best[r * blocks + block] = top;
    leader[r * blocks + block] = who;
  }

  // First stage: all classes of a block for several rows.
  static void head_task(void* user, size_t index) {
    const HeadPlan& h = *static_cast<HeadPlan*>(user);
    const Staged& p = h.call->staged;
    const int64_t block = static_cast<int64_t>(index) % h.blocks;
    const int64_t begin = static_cast<int64_t>(index) / h.blocks * kHeadRows;
    const int64_t count = min_of(kHeadRows, h.rows - begin);
    const float* x[kHeadRows];
    int64_t at[kHeadRows];
    for (int64_t r = 0; r < count; r++) x[r] = h.x + (begin + r) * p.groups;
    const int64_t last = min_of((block + 1) * kHeadClasses, p.outputs);
    for (int64_t j = block * kHeadClasses; j < last; j++) {
      for (int64_t r = 0; r < count; r++) {
        at[r] = (begin + r) * p.outputs + j;
        h.sums[at[r]] = 0;
        h.list[at[r]] = static_cast<int32_t>(j);
      }
      add_dots<false>(p.head + j * p.ends[0], x, at, count, p.ends[0],
                      p.head + (j + 1 < last ? j + 1 : j) * p.ends[0], h.sums, nullptr);
    }
    for (int64_t r = 0; r < count; r++) h.score_block(begin + r, block);
  }

  // Later stages: a block of a row's alive classes.
  static void tail_task(void* user, size_t index) {
    const HeadPlan& h = *static_cast<HeadPlan*>(user);
    const Staged& p = h.call->staged;
    const int64_t r = static_cast<int64_t>(index) / h.blocks, block = static_cast<int64_t>(index) % h.blocks;
    const int64_t begin = block * kHeadClasses, end = min_of(begin + kHeadClasses, h.listed[r]);
    if (!h.undecided(r) || begin >= end) return;
    int64_t stride;
    const float* weights = chunk_weights(p, h.chunk, 0, &stride);
    const int64_t start = chunk_begin(p, h.chunk), depth = p.ends[h.chunk] - start;
    const float* x = h.x + r * p.groups + start;
    const int32_t* classes = h.list + r * p.outputs;
    for (int64_t i = begin; i < end; i++) {
      const int64_t j = classes[i];
      add_dots<false>(weights + j * stride, &x, &j, 1, depth,
                      i + 1 < end ? weights + classes[i + 1] * stride : nullptr, h.sums + r * p.outputs,
                      nullptr);
    }
    if (h.chunk + 1 < p.chunks) h.score_block(r, block);
  }

  static void prune_task(void* user, size_t index) {
    const HeadPlan& h = *static_cast<HeadPlan*>(user);
    const int64_t r = static_cast<int64_t>(index) / h.blocks, block = static_cast<int64_t>(index) % h.blocks;
    const int64_t begin = block * kHeadClasses, end = min_of(begin + kHeadClasses, h.listed[r]);
    if (!h.undecided(r) || begin >= end || h.row[r].leader < 0) return;
    int32_t* classes = h.list + r * h.call->staged.outputs;
    int64_t kept = begin;
    for (int64_t i = begin; i < end; i++) {
      const int32_t j = classes[i];
      classes[kept] = j;
      kept += !Test::prune(h.row[r], j);
    }
    h.kept[r * h.blocks + block] = kept - begin;
  }

  // From blocks to rows: the best of all, leader -1 when anything is a NaN.
  void find_leaders() const {
    for (int64_t r = 0; r < rows; r++) {
      if (!undecided(r)) continue;
      HeadRow& to = row[r];
      for (int64_t b = 0; b * kHeadClasses < listed[r]; b++) {
        const float score = best[r * blocks + b];
        if (score != score) {
          to.leader = -1;
          break;
        }
        if (b == 0 || score > to.best) {
          to.best = score;
          to.leader = leader[r * blocks + b];
        }
      }
    }
  }

  void merge(int64_t* survivors) const {
    for (int64_t r = 0; r < rows; r++) {
      if (!undecided(r)) continue;
      if (row[r].leader >= 0) {
        int32_t* classes = list + r * call->staged.outputs;
        int64_t used = 0;
        for (int64_t b = 0; b * kHeadClasses < listed[r]; b++) {
          const int64_t count = kept[r * blocks + b];
          memmove(classes + used, classes + b * kHeadClasses, static_cast<size_t>(count) * sizeof(int32_t));
          used += count;
        }
        listed[r] = used;
      }
      if (undecided(r)) *survivors += listed[r];
    }
  }

  // argmax over the alive classes; ties as asked. As in the dense layer, a NaN is above nothing, but nothing is
  // above one in first place.
  int64_t index_of(int64_t r) const {
    const Staged& p = call->staged;
    const int32_t* classes = list + r * p.outputs;
    if (!undecided(r)) return classes[0];
    const float* s = sums + r * p.outputs;
    int64_t who = -1;
    float top = 0;
    for (int64_t i = 0; i < listed[r]; i++) {
      const int64_t j = classes[i];
      const float value = s[j] + p.bias[j];
      if (value != value) {
        if (j == 0) return 0;
      } else if (who < 0 || value > top || (call->select_last && value == top)) {
        top = value;
        who = j;
      }
    }
    return who < 0 ? 0 : who;
  }

  int64_t most_blocks() const {
    int64_t most = 0;
    for (int64_t r = 0; r < rows; r++) {
      if (undecided(r)) most = max_of(most, blocks_of(listed[r], kHeadClasses));
    }
    return most;
  }

  bool run(const Env& env, int64_t* survivors) {
    const Staged& p = call->staged;
    for (int64_t r = 0; r < rows; r++) {
      gather_row(call->x + (first_row + r) * p.groups, p.order, p.ends, p.chunks, x + r * p.groups,
                 Test::kNorms ? squares : nullptr);
      if (Test::kNorms) suffix_norms(squares, p.chunks - 1, norms + r * p.chunks, 1);
      listed[r] = p.outputs;
      row[r] = {&p, 0, x + r * p.groups, sums + r * p.outputs, norms + r * p.chunks, 0.0f, -1};
    }
    blocks = blocks_of(p.outputs, kHeadClasses);
    for (chunk = 0; chunk < p.chunks; chunk++) {
      if (chunk > 0) {
        blocks = most_blocks();
        if (blocks == 0) break;
      }
      for (int64_t r = 0; r < rows; r++) row[r].check = chunk;
      const int64_t tasks = (chunk ? rows : blocks_of(rows, kHeadRows)) * blocks;
      const auto task = chunk ? tail_task : head_task;
      if (!env.parallel(env.context, static_cast<size_t>(tasks), task, this)) return false;
      if (chunk + 1 == p.chunks) break;
      find_leaders();
      if (!env.parallel(env.context, static_cast<size_t>(rows * blocks), prune_task, this)) return false;
      merge(survivors + chunk);
    }
    for (int64_t r = 0; r < rows; r++) call->index[first_row + r] = index_of(r);
    return true;
  }
};

template <class Test>
static bool prefix_argmax(const ArgMaxCall& call, const Env& env) {
  const Staged& p = call.staged;
  for (int64_t s = 0; s + 1 < p.chunks; s++) call.survivors[s] = 0;
  const int64_t group = max_of(1, min_of(call.rows, kHeadState / p.outputs));
  const int64_t blocks = blocks_of(p.outputs, kHeadClasses);
  HeadPlan<Test> plan;
  plan.call = &call;
  const auto layout = [&](char* base) {
    Carver carver(base);
    plan.x = carver.take<float>(group * p.groups);
    plan.norms = carver.take<float>(group * p.chunks);
    plan.squares = carver.take<double>(p.chunks);
    plan.sums = carver.take<float>(group * p.outputs);
    plan.list = carver.take<int32_t>(group * p.outputs);
    plan.listed = carver.take<int64_t>(group);
    plan.best = carver.take<float>(group * blocks);
    plan.leader = carver.take<int32_t>(group * blocks);
    plan.kept = carver.take<int64_t>(group * blocks);
    plan.row = carver.take<HeadRow>(group);
    return carver.used();
  };
  CarvedLease scratch(*env.per_call, layout);
  if (!scratch.data()) return false;
  for (int64_t r = 0; r < call.rows; r += group) {
    plan.first_row = r;
    plan.rows = min_of(group, call.rows - r);
    if (!plan.run(env, call.survivors)) return false;
  }
  return true;
}

}  // namespace EXPRUNE_ISA
}  // namespace exprune
