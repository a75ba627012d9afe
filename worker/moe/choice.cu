#include <climits>

#include "worker/moe/choice_kernel.h"

namespace ballast {
namespace {

// One block for few pairs, where launches are what takes time: a warp an expert. Else three kernels, a block an expert.
constexpr int kFewPairs = 2048;
constexpr int kThreads = 1024;
constexpr int kRowThreads = 256;
constexpr int kMaxRanks = 32;
constexpr unsigned kAll = ~0u;
// A pair whose expert has several replicas, until one is chosen. No number, and no `none`.
constexpr int32_t kOpen = INT_MIN;

// Threads that choose for one expert together.
template <int kWarps>
class Team;

template <>
class Team<1> {
 public:
  struct Shared {};
  __device__ explicit Team(Shared&) {}
  __device__ int thread() const { return threadIdx.x % 32; }
  static constexpr int kSize = 32;
  __device__ void Sync() { __syncwarp(); }
  // How many threads before this one have the flag; `all`: how many of the team. Every thread calls it.
  __device__ int Rank(bool flag, int& all) {
    const unsigned ballot = __ballot_sync(kAll, flag);
    all = __popc(ballot);
    return __popc(ballot & ((1u << threadIdx.x % 32) - 1));
  }
};

template <int kWarps>
class Team {
 public:
  struct Shared {
    // In turn, so that one barrier a call will do.
    int of_warp[2][kWarps];
  };
  __device__ explicit Team(Shared& shared) : shared_(shared) {}
  __device__ int thread() const { return threadIdx.x; }
  static constexpr int kSize = 32 * kWarps;
  __device__ void Sync() { __syncthreads(); }
  __device__ int Rank(bool flag, int& all) {
    const unsigned ballot = __ballot_sync(kAll, flag);
    const int warp = threadIdx.x / 32;
    int* const of_warp = shared_.of_warp[turn_];
    turn_ ^= 1;
    if (threadIdx.x % 32 == 0) of_warp[warp] = __popc(ballot);
    __syncthreads();
    int before = 0;
    all = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) before = all;
      all += of_warp[w];
    }
    return before + __popc(ballot & ((1u << threadIdx.x % 32) - 1));
  }

 private:
  Shared& shared_;
  int turn_ = 0;
};

// Of one expert, for its team.
struct ExpertShared {
  int quotas[kMaxRanks];
  // Where its pairs begin among those of all experts.
  int offset;
};

// SolveQuotas of proto/placement/quotas.h for an expert with `count` pairs and several replicas; one warp.
__device__ void SolveExpert(const ChoiceArgs& args, const DeviceTableLayout& at, int e, int first, int copies,
                            uint64_t count, int* quotas) {
  const int lane = threadIdx.x % 32;
  uint64_t flow = 0;
  if (args.flows != nullptr && lane < copies) {
    for (int s = 0; s < args.ranks; ++s) flow += args.flows[s * args.flow_stride + first + lane];
  }
  const bool solved = __any_sync(kAll, flow > 0);
  uint64_t upto = 0;
  if (lane < copies) upto = solved ? flow : reinterpret_cast<const uint32_t*>(args.table + at.weight)[first + lane];
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t before = __shfl_up_sync(kAll, upto, step);
    if (lane >= step) upto += before;
  }
  const uint64_t sum = __shfl_sync(kAll, upto, 31);
  const uint32_t phase =
      static_cast<uint32_t>(args.step[kStepRotation]) * 0x9E3779B9u + static_cast<uint32_t>(e) * 0x85EBCA6Bu;
  const uint64_t offset = (phase * sum) >> 32;
  const uint64_t given = (upto * count + offset) / sum;
  const uint64_t before = __shfl_up_sync(kAll, given, 1);
  if (lane < copies) quotas[lane] = static_cast<int>(given - (lane > 0 ? before : 0));
}

// Which rows have failed, what is to be sent, and where pairs without a choice go; notes are 0 before it. `counts`
// [experts] and `pairs_to` [ranks] are the block's own.
__device__ void Rows(const ChoiceArgs& args, const DeviceTableLayout& at, const DeviceNotesLayout& notes, bool count,
                     bool choose, int32_t* counts, int32_t* pairs_to) {
  const int32_t* const begin = args.table + at.begin;
  const int32_t* const number = args.table + at.number;
  const int32_t* const rank_of = args.table + at.rank;
  for (int e = threadIdx.x; e < args.experts; e += blockDim.x) counts[e] = 0;
  for (int r = threadIdx.x; r < args.ranks; r += blockDim.x) pairs_to[r] = 0;
  __syncthreads();
  for (int t = blockIdx.x * blockDim.x + threadIdx.x; t < args.rows; t += gridDim.x * blockDim.x) {
    const int32_t* const ids = args.ids + static_cast<size_t>(t) * args.top_k;
    int32_t* const replicas = args.replicas + static_cast<size_t>(t) * args.top_k;
    bool failed = args.failed[t] >= 0;
    if (count && !failed) {
      int missing = INT_MAX;
      for (int k = 0; k < args.top_k; ++k) {
        if (begin[ids[k]] == begin[ids[k] + 1]) missing = min(missing, ids[k]);
      }
      failed = missing != INT_MAX;
      if (failed) args.failed[t] = args.layer * args.experts + missing;
      for (int k = 0; k < args.top_k && !failed; ++k) atomicAdd(&counts[ids[k]], 1);
    }
    if (!choose) continue;
    uint32_t visited = 0;
    for (int k = 0; k < args.top_k; ++k) {
      const int first = begin[ids[k]];
      int32_t replica = args.none;
      if (!failed && begin[ids[k] + 1] - first == 1) {
        replica = number[first];
        visited |= 1u << rank_of[first];
        atomicAdd(&pairs_to[rank_of[first]], 1);
      } else if (!failed) {
        replica = kOpen;
      }
      replicas[k] = replica;
    }
    args.visited[t] = args.chosen[t] = visited;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < args.experts; e += blockDim.x) {
    if (counts[e] > 0) atomicAdd(&args.notes[notes.counts + e], counts[e]);
  }
  for (int r = threadIdx.x; r < args.ranks; r += blockDim.x) {
    if (pairs_to[r] > 0) atomicAdd(&args.notes[notes.pairs + r], pairs_to[r]);
  }
}

// A replica for every open pair of expert e.
template <int kWarps>
__device__ void ChooseExpert(const ChoiceArgs& args, const DeviceTableLayout& at, const DeviceNotesLayout& notes, int e,
                             Team<kWarps>& team, ExpertShared& shared) {
  constexpr int kSize = Team<kWarps>::kSize;
  const int first = args.table[at.begin + e], copies = args.table[at.begin + e + 1] - first;
  const int32_t* const counts = args.notes + notes.counts;
  int left = counts[e];
  if (copies < 2 || left == 0) return;
  const int32_t* const number = args.table + at.number + first;
  const int32_t* const rank_of = args.table + at.rank + first;
  const int thread = team.thread();
  team.Sync();
  if (thread < 32) {
    if (args.quotas != nullptr) {
      if (thread < copies) shared.quotas[thread] = args.quotas[first + thread];
    } else {
      SolveExpert(args, at, e, first, copies, left, shared.quotas);
    }
    int before = 0;
    for (int other = thread; other < e; other += 32) before += counts[other];
    before = __reduce_add_sync(kAll, before);
    if (thread == 0) shared.offset = before;
  }
  team.Sync();
  uint32_t ranks = 0;
  for (int c = 0; c < copies; ++c) ranks |= 1u << rank_of[c];
  int2* const list = args.open + shared.offset;
  const int pairs = args.rows * args.top_k;
  int length = 0;
#pragma unroll 4
  for (int base = 0; base < pairs; base += kSize) {
    const int pair = base + thread;
    const bool mine = pair < pairs && __ldg(args.ids + pair) == e && args.replicas[pair] == kOpen;
    int all;
    const int place = length + team.Rank(mine, all);
    if (mine) list[place] = make_int2(pair, static_cast<int>(args.visited[pair / args.top_k]));
    length += all;
  }
  team.Sync();
  // The open pairs that `want` take replica c, in the order of rows, while its quota lasts. An entry of the list is the
  // same thread's in every sweep; -1: its pair has a replica.
  const auto sweep = [&](int c, auto want) {
    const int quota = shared.quotas[c];
    if (quota == 0 || left == 0) return;
    const uint32_t bit = 1u << rank_of[c];
    int taken = 0;
    for (int base = 0; base < length && taken < quota; base += kSize) {
      const int2 entry = base + thread < length ? list[base + thread] : make_int2(-1, 0);
      const bool wants = entry.x >= 0 && want(entry, bit);
      int all;
      const int place = taken + team.Rank(wants, all);
      if (wants && place < quota) {
        args.replicas[entry.x] = number[c];
        atomicOr(&args.chosen[entry.x / args.top_k], bit);
        list[base + thread].x = -1;
      }
      taken += all;
    }
    taken = min(taken, quota);
    left -= taken;
    team.Sync();
    if (thread == 0 && taken > 0) {
      shared.quotas[c] -= taken;
      atomicAdd(&args.notes[notes.pairs + rank_of[c]], taken);
    }
    team.Sync();
  };
  const uint32_t own = 1u << args.rank;
  for (int c = 0; c < copies; ++c) {
    sweep(c, [&](int2 entry, uint32_t bit) { return (static_cast<uint32_t>(entry.y) & ranks) == bit; });
  }
  for (int c = 0; c < copies; ++c) {
    sweep(c, [&](int2 entry, uint32_t bit) { return (static_cast<uint32_t>(entry.y) & bit) != 0; });
  }
  for (int c = 0; c < copies; ++c) sweep(c, [&](int2, uint32_t bit) { return bit == own; });
  for (int c = 0; c < copies; ++c) sweep(c, [&](int2, uint32_t bit) { return (args.near & bit) != 0; });
  for (int c = 0; c < copies && args.homes != nullptr; ++c) {
    sweep(c, [&](int2 entry, uint32_t bit) { return (args.homes[entry.x / args.top_k] & bit) != 0; });
  }
  for (int c = 0; c < copies; ++c) sweep(c, [](int2, uint32_t) { return true; });
}

// How many rows go where, and what else is told. `rows_to` [ranks] is the block's own.
__device__ void Tally(const ChoiceArgs& args, const DeviceNotesLayout& notes, int32_t* rows_to) {
  for (int r = threadIdx.x; r < args.ranks; r += blockDim.x) rows_to[r] = 0;
  __syncthreads();
  for (int base = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * 32; base < args.rows; base += gridDim.x * blockDim.x) {
    const int row = base + static_cast<int>(threadIdx.x % 32);
    const uint32_t chosen = row < args.rows ? args.chosen[row] : 0;
    for (int r = 0; r < args.ranks; ++r) {
      const int rows = __popc(__ballot_sync(kAll, (chosen >> r & 1) != 0));
      if (threadIdx.x % 32 == 0 && rows > 0) atomicAdd(&rows_to[r], rows);
    }
  }
  __syncthreads();
  for (int r = threadIdx.x; r < args.ranks; r += blockDim.x) {
    if (rows_to[r] > 0) atomicAdd(&args.notes[notes.rows + r], rows_to[r]);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    args.notes[notes.flags] = args.step[kStepFlags];
    args.notes[notes.nanoseconds_per_pair] = args.step[kStepPerPair];
    args.notes[notes.exchange_nanoseconds] = args.step[kStepExchange];
  }
}

// [experts] counts, [ranks] pairs or rows
extern __shared__ int32_t block_words[];

__global__ void __launch_bounds__(kThreads) LoneKernel(const ChoiceArgs args, const DeviceTableLayout at,
                                                       const DeviceNotesLayout notes, bool count, bool choose) {
  __shared__ ExpertShared of_expert[kThreads / 32];
  for (int i = (count ? notes.counts : notes.pairs) + threadIdx.x; i < (choose ? notes.flags : notes.pairs);
       i += kThreads) {
    args.notes[i] = 0;
  }
  __syncthreads();
  Rows(args, at, notes, count, choose, block_words, block_words + args.experts);
  if (!choose) return;
  __syncthreads();
  Team<1>::Shared none;
  Team<1> team(none);
  for (int e = threadIdx.x / 32; e < args.experts; e += kThreads / 32) {
    ChooseExpert(args, at, notes, e, team, of_expert[threadIdx.x / 32]);
  }
  __syncthreads();
  Tally(args, notes, block_words);
}

__global__ void __launch_bounds__(kRowThreads) RowsKernel(const ChoiceArgs args, const DeviceTableLayout at,
                                                          const DeviceNotesLayout notes, bool count, bool choose) {
  Rows(args, at, notes, count, choose, block_words, block_words + args.experts);
}

__global__ void __launch_bounds__(kThreads)
    ExpertsKernel(const ChoiceArgs args, const DeviceTableLayout at, const DeviceNotesLayout notes) {
  __shared__ ExpertShared of_expert;
  __shared__ Team<kThreads / 32>::Shared of_team;
  Team<kThreads / 32> team(of_team);
  ChooseExpert(args, at, notes, static_cast<int>(blockIdx.x), team, of_expert);
}

__global__ void __launch_bounds__(kRowThreads) TallyKernel(const ChoiceArgs args, const DeviceNotesLayout notes) {
  Tally(args, notes, block_words);
}

cudaError_t LaunchChoice(const ChoiceArgs& args, bool count, bool choose, cudaStream_t stream) {
  const DeviceTableLayout at = LayOutDeviceTable(args.experts, args.ranks);
  const DeviceNotesLayout notes = LayOutDeviceNotes(args.experts, args.ranks);
  const size_t shared = sizeof(int32_t) * (args.experts + args.ranks);
  if (args.rows * args.top_k <= kFewPairs) {
    LoneKernel<<<1, kThreads, shared, stream>>>(args, at, notes, count, choose);
    return cudaGetLastError();
  }
  // Counts, pairs and rows lie in this order.
  const int from = count ? notes.counts : notes.pairs, to = choose ? notes.flags : notes.pairs;
  if (const cudaError_t error = cudaMemsetAsync(args.notes + from, 0, sizeof(int32_t) * (to - from), stream);
      error != cudaSuccess) {
    return error;
  }
  const int blocks = (args.rows + kRowThreads - 1) / kRowThreads;
  RowsKernel<<<blocks, kRowThreads, shared, stream>>>(args, at, notes, count, choose);
  if (choose) {
    ExpertsKernel<<<args.experts, kThreads, 0, stream>>>(args, at, notes);
    TallyKernel<<<blocks, kRowThreads, sizeof(int32_t) * args.ranks, stream>>>(args, notes);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchCount(const ChoiceArgs& args, cudaStream_t stream) { return LaunchChoice(args, true, false, stream); }
cudaError_t LaunchChoose(const ChoiceArgs& args, bool counted, cudaStream_t stream) {
  return LaunchChoice(args, !counted, true, stream);
}

}  // namespace ballast
