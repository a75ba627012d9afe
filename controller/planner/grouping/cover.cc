#include "controller/planner/grouping/cover.h"

#if defined(__x86_64__) && !defined(__clang__)
#include <immintrin.h>
#endif

#include <algorithm>

#include "proto/base/check.h"

namespace ballast {
namespace {

constexpr int32_t kBlockBits = 256;
constexpr int32_t kBlockWords = kBlockBits / 64;
using Block = uint64_t __attribute__((vector_size(kBlockBits / 8), may_alias));

// The same code for processors that count bits faster. What comes out are integers, so it is the same everywhere.
// Blocks are passed by address: how they are passed by value depends on the instruction set.
namespace plain {
inline void AddOnes(const Block& b, Block& sum) {
  for (int i = 0; i < kBlockWords; ++i) sum[i] += static_cast<uint64_t>(__builtin_popcountll(b[i]));
}
#include "controller/planner/grouping/cover_block.inc"
}  // namespace plain

#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,popcnt")
namespace avx2 {
// By a table of the bits in half a byte.
inline void AddOnes(const Block& b, Block& sum) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i low = _mm256_set1_epi8(15);
  const auto v = reinterpret_cast<const __m256i&>(b);
  const __m256i bytes = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                                        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
  sum += reinterpret_cast<Block>(_mm256_sad_epu8(bytes, _mm256_setzero_si256()));
}
#include "controller/planner/grouping/cover_block.inc"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512vpopcntdq,popcnt")
namespace avx512 {
inline void AddOnes(const Block& b, Block& sum) {
  sum += reinterpret_cast<Block>(_mm256_popcnt_epi64(reinterpret_cast<const __m256i&>(b)));
}
#include "controller/planner/grouping/cover_block.inc"
}  // namespace avx512
#pragma GCC pop_options

decltype(&plain::CountBlock) FastestCountBlock() {
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq")) return &avx512::CountBlock;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) return &avx2::CountBlock;
  return &plain::CountBlock;
}
#else
decltype(&plain::CountBlock) FastestCountBlock() { return &plain::CountBlock; }
#endif

Block* AsBlocks(void* bits) { return static_cast<Block*>(bits); }
const Block* AsBlocks(const void* bits) { return static_cast<const Block*>(bits); }

// A bit of every token of class 0, whose places are 0, 4, 8, ...
constexpr uint64_t kClassBits = 0x1111111111111111;
static_assert(Assignment::kClasses == 4);

}  // namespace

Assignment Assign(const Packs& packs, int32_t experts) {
  Assignment out;
  out.experts.resize(experts);
  for (size_t w = 0; w < packs.size(); ++w) {
    for (const int32_t e : packs[w]) out.experts[e].workers.push_back(static_cast<int32_t>(w));
  }
  for (Assignment::Expert& expert : out.experts) {
    for (int32_t c = 0; c < Assignment::kClasses && !expert.workers.empty(); ++c) {
      expert.aim[c] = expert.workers[c % expert.workers.size()];
    }
  }
  return out;
}

Cover::Cover(const LayerRoutes& layer, int32_t workers)
    : experts_(layer.experts),
      workers_(workers),
      tasks_(static_cast<int32_t>(layer.tasks.size())),
      tokens_(tasks_),
      pairs_(tasks_),
      count_(static_cast<size_t>(experts_) * tasks_) {
  for (int32_t f = 0; f < tasks_; ++f) {
    const LayerRoutes::Task& task = layer.tasks[f];
    pairs_[f] = task.pairs;
    for (int64_t t = 0; t < task.tokens; ++t) {
      bool any = false;
      for (const int32_t e : task.experts.subspan(t * layer.top_k, layer.top_k)) {
        if (e < 0) continue;
        any = true;
        ++count_[e * tasks_ + f];
      }
      tokens_[f] += any;
    }
  }
  for (int32_t e = 0; e < experts_; ++e) AddList(layer, e);
  AddList(layer, kAll);
}

void Cover::AddList(const LayerRoutes& layer, int32_t of) {
  List& list = lists_.emplace_back();
  list.begin = static_cast<int64_t>(block_task_.size());
  for (int32_t f = 0; f < tasks_; ++f) {
    const auto first = static_cast<int64_t>(block_task_.size());
    int64_t in_class[Assignment::kClasses] = {};
    for (int64_t t = 0; t < layer.tasks[f].tokens; ++t) {
      const auto token = layer.tasks[f].experts.subspan(t * layer.top_k, layer.top_k);
      const bool wanted = of == kAll ? std::any_of(token.begin(), token.end(), [](int32_t e) { return e >= 0; })
                                     : std::find(token.begin(), token.end(), of) != token.end();
      if (!wanted) continue;
      const int64_t c = t % Assignment::kClasses;
      const int64_t place = in_class[c]++ * Assignment::kClasses + c;
      const int64_t block = first + place / kBlockBits;
      if (block == static_cast<int64_t>(block_task_.size())) {
        block_task_.push_back(f);
        bits_.resize(bits_.size() + experts_);
      }
      for (const int32_t e : token) {
        if (e < 0) continue;
        bits_[block * experts_ + e].words[place % kBlockBits / 64] |= uint64_t{1} << place % 64;
      }
    }
  }
  list.end = static_cast<int64_t>(block_task_.size());
}

int64_t Cover::Blocks(int32_t of) const {
  const List& list = of == kAll ? lists_.back() : lists_[of];
  return list.end - list.begin;
}

void Cover::Compile(const Assignment& assignment, Program& program) const {
  program.single_begin.assign(workers_ + 1, 0);
  program.shared.clear();
  int32_t singles = 0;
  for (int32_t e = 0; e < experts_; ++e) {
    const Assignment::Expert& expert = assignment.experts[e];
    if (expert.workers.size() == 1) {
      ++program.single_begin[expert.workers[0] + 1];
      ++singles;
    } else {
      program.shared.push_back({e, 0, static_cast<int32_t>(expert.workers.size())});
    }
  }
  for (int32_t w = 0; w < workers_; ++w) program.single_begin[w + 1] += program.single_begin[w];
  program.single.resize(singles);
  // Fills from the front of each worker's part; the begins, moved on, are put back after.
  for (int32_t e = 0; e < experts_; ++e) {
    const Assignment::Expert& expert = assignment.experts[e];
    if (expert.workers.size() == 1) program.single[program.single_begin[expert.workers[0]]++] = e;
  }
  for (int32_t w = workers_; w > 0; --w) program.single_begin[w] = program.single_begin[w - 1];
  program.single_begin[0] = 0;
  std::sort(program.shared.begin(), program.shared.end(), [](const Program::Shared& a, const Program::Shared& b) {
    return a.end != b.end ? a.end < b.end : a.expert < b.expert;
  });
  program.worker.clear();
  program.aim.clear();
  for (Program::Shared& shared : program.shared) {
    const Assignment::Expert& expert = assignment.experts[shared.expert];
    shared.begin = static_cast<int32_t>(program.worker.size());
    for (const int32_t w : expert.workers) {
      uint64_t aim = 0;
      for (int32_t c = 0; c < Assignment::kClasses; ++c) aim |= expert.aim[c] == w ? kClassBits << c : 0;
      program.worker.push_back(w);
      program.aim.push_back(aim);
    }
    shared.end = static_cast<int32_t>(program.worker.size());
  }
}

// Calls `done` with the task, [workers] visits and [replicas] pairs after each task's blocks.
template <typename Done>
void Cover::Walk(const Program& program, int32_t of, int32_t without, const Done& done) const {
  static const auto count_block = FastestCountBlock();
  const size_t replicas = program.worker.size();
  // [workers] any, [workers] hits, [workers] visits, [replicas] pairs.
  absl::InlinedVector<Bits, 160> scratch(3 * workers_ + replicas);
  Bits* const any = scratch.data();
  Bits* const hit = any + workers_;
  Bits* const visits = hit + workers_;
  Bits* const pairs = visits + workers_;
  const List& list = of == kAll ? lists_.back() : lists_[of];
  for (int64_t b = list.begin; b < list.end; ++b) {
    const Bits* const bits = bits_.data() + b * experts_;
    Bits keep;
    for (int32_t i = 0; i < kBlockWords; ++i) keep.words[i] = without == kNone ? ~uint64_t{0} : ~bits[without].words[i];
    count_block(program, workers_, AsBlocks(bits), AsBlocks(&keep), AsBlocks(any), AsBlocks(hit), AsBlocks(visits),
                AsBlocks(pairs));
    if (b + 1 < list.end && block_task_[b + 1] == block_task_[b]) continue;
    done(block_task_[b], visits, pairs);
    std::fill(visits, pairs + replicas, Bits());
  }
}

void Cover::Evaluate(const Program& program, int32_t of, int32_t without, int64_t sign, std::span<int64_t> visits,
                     std::span<int64_t> pairs) const {
  Walk(program, of, without, [&](int32_t f, const Bits* visited, const Bits* taken) {
    for (int32_t w = 0; w < workers_; ++w) visits[f * workers_ + w] += sign * visited[w].Sum();
    for (const int32_t w : program.worker) pairs[f * workers_ + w] += sign * (taken++)->Sum();
  });
}

std::vector<int64_t> Cover::Flows(const Program& program) const {
  const size_t replicas = program.worker.size();
  std::vector<int64_t> flows(tasks_ * replicas);
  Walk(program, kAll, kNone, [&](int32_t f, const Bits*, const Bits* taken) {
    for (size_t r = 0; r < replicas; ++r) flows[f * replicas + r] += taken[r].Sum();
  });
  return flows;
}

}  // namespace ballast
