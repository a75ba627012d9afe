#include <climits>

#include "worker/moe/choice_kernel.h"

namespace ballast {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = ~0u;
// A pair whose expert has several replicas, until one is chosen. No number, and no `none`.
constexpr int32_t kOpen = INT_MIN;

// SolveQuotas of proto/placement/quotas.h for one expert with pairs and several replicas.
__device__ void SolveExpert(const ChoiceArgs& args, const DeviceTableLayout& at, int e, int first, int last,
                            uint64_t count, int32_t* quotas) {
  const auto* const weights = reinterpret_cast<const uint32_t*>(args.table + at.weight);
  const auto flow = [&](int r) {
    uint64_t sum = 0;
    for (int s = 0; s < args.ranks; ++s) sum += args.flows[s * args.flow_stride + r];
    return sum;
  };
  bool solved = false;
  if (args.flows != nullptr) {
    for (int r = first; r < last; ++r) solved |= flow(r) > 0;
  }
  const auto weight_of = [&](int r) { return solved ? flow(r) : static_cast<uint64_t>(weights[r]); };
  uint64_t sum = 0;
  for (int r = first; r < last; ++r) sum += weight_of(r);
  const uint32_t phase =
      static_cast<uint32_t>(args.step[kStepRotation]) * 0x9E3779B9u + static_cast<uint32_t>(e) * 0x85EBCA6Bu;
  const uint64_t offset = (phase * sum) >> 32;
  uint64_t weight = 0, given = 0;
  for (int r = first; r < last; ++r) {
    weight += weight_of(r);
    const uint64_t upto = (weight * count + offset) / sum;
    quotas[r] = static_cast<int32_t>(upto - given);
    given = upto;
  }
}

__device__ void Count(const ChoiceArgs& args, const DeviceTableLayout& at, int32_t* counts) {
  const int32_t* const begin = args.table + at.begin;
  for (int e = threadIdx.x; e < args.experts; e += kThreads) counts[e] = 0;
  __syncthreads();
  for (int t = threadIdx.x; t < args.rows; t += kThreads) {
    const int32_t* const ids = args.ids + static_cast<size_t>(t) * args.top_k;
    bool failed = args.failed[t] >= 0;
    if (!failed) {
      int missing = INT_MAX;
      for (int k = 0; k < args.top_k; ++k) {
        if (begin[ids[k]] == begin[ids[k] + 1]) missing = min(missing, ids[k]);
      }
      failed = missing != INT_MAX;
      if (failed) args.failed[t] = args.layer * args.experts + missing;
    }
    for (int k = 0; k < args.top_k && !failed; ++k) atomicAdd(&counts[ids[k]], 1);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < args.experts; e += kThreads) args.notes[e] = counts[e];
}

__global__ void __launch_bounds__(kThreads) ChoiceKernel(const ChoiceArgs args, const DeviceTableLayout at,
                                                         const DeviceNotesLayout notes, bool count, bool choose) {
  // [experts] counts, [ranks] pairs, [ranks] rows, [replicas] quotas
  extern __shared__ int32_t shared[];
  int32_t* const counts = shared;
  int32_t* const pairs_to = counts + args.experts;
  int32_t* const rows_to = pairs_to + args.ranks;
  int32_t* const quotas = rows_to + args.ranks;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (count) {
    Count(args, at, counts);
  } else {
    for (int e = threadIdx.x; e < args.experts; e += kThreads) counts[e] = args.notes[notes.counts + e];
  }
  if (!choose) return;
  for (int r = threadIdx.x; r < args.ranks; r += kThreads) pairs_to[r] = rows_to[r] = 0;
  __syncthreads();

  const int32_t* const begin = args.table + at.begin;
  const int32_t* const number = args.table + at.number;
  const int32_t* const rank_of = args.table + at.rank;
  for (int e = threadIdx.x; e < args.experts; e += kThreads) {
    const int first = begin[e], last = begin[e + 1];
    if (args.quotas != nullptr) {
      for (int r = first; r < last; ++r) quotas[r] = args.quotas[r];
    } else if (last - first > 1 && counts[e] > 0) {
      SolveExpert(args, at, e, first, last, counts[e], quotas);
    }
  }
  // No choice: one replica.
  for (int t = threadIdx.x; t < args.rows; t += kThreads) {
    uint32_t visited = 0;
    const bool failed = args.failed[t] >= 0;
    for (int k = 0; k < args.top_k; ++k) {
      const size_t pair = static_cast<size_t>(t) * args.top_k + k;
      const int e = args.ids[pair], first = begin[e];
      int32_t replica = args.none;
      if (!failed && begin[e + 1] - first == 1) {
        replica = number[first];
        visited |= 1u << rank_of[first];
        atomicAdd(&pairs_to[rank_of[first]], 1);
      } else if (!failed) {
        replica = kOpen;
      }
      args.replicas[pair] = replica;
    }
    args.visited[t] = args.chosen[t] = visited;
  }
  __syncthreads();
  // A warp an expert, so that its quotas are one warp's; a lane a replica.
  const int pairs = args.rows * args.top_k;
  for (int e = warp; e < args.experts; e += kWarps) {
    const int first = begin[e], copies = begin[e + 1] - first;
    int open = counts[e];
    if (copies < 2) continue;
    const int rank = lane < copies ? rank_of[first + lane] : -1;
    for (int sweep = 0; sweep < 3 && open > 0; ++sweep) {
      for (int base = 0; base < pairs && open > 0; base += 32) {
        const int pair = base + lane;
        const bool mine = pair < pairs && args.ids[pair] == e && args.replicas[pair] == kOpen;
        for (unsigned left = __ballot_sync(kAll, mine); left != 0; left &= left - 1) {
          const int p = base + __ffs(left) - 1;
          int quota = lane < copies ? quotas[first + lane] : 0;
          if (sweep == 0 && lane < copies && (args.visited[p / args.top_k] >> rank & 1) == 0) quota = 0;
          if (sweep == 1 && rank != args.rank) quota = 0;
          // The most quota, the first of several.
          const unsigned most = __reduce_max_sync(kAll, static_cast<unsigned>(quota));
          if (most == 0) continue;
          const int taker = __ffs(__ballot_sync(kAll, static_cast<unsigned>(quota) == most)) - 1;
          if (lane == taker) {
            --quotas[first + lane];
            args.replicas[p] = number[first + lane];
            atomicAdd(&pairs_to[rank], 1);
            atomicOr(&args.chosen[p / args.top_k], 1u << rank);
          }
          --open;
          __syncwarp();
        }
      }
    }
  }
  __syncthreads();
  for (int t = threadIdx.x; t < args.rows; t += kThreads) {
    for (uint32_t left = args.chosen[t]; left != 0; left &= left - 1) atomicAdd(&rows_to[__ffs(left) - 1], 1);
  }
  __syncthreads();
  for (int r = threadIdx.x; r < args.ranks; r += kThreads) {
    args.notes[notes.pairs + r] = pairs_to[r];
    args.notes[notes.rows + r] = rows_to[r];
  }
  if (threadIdx.x == 0) {
    args.notes[notes.flags] = args.step[kStepFlags];
    args.notes[notes.nanoseconds_per_pair] = args.step[kStepPerPair];
    args.notes[notes.exchange_nanoseconds] = args.step[kStepExchange];
  }
}

cudaError_t LaunchChoice(const ChoiceArgs& args, bool count, bool choose, cudaStream_t stream) {
  const size_t shared =
      sizeof(int32_t) * (args.experts + 2 * args.ranks + static_cast<size_t>(args.experts) * args.ranks);
  if (shared > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(ChoiceKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  ChoiceKernel<<<1, kThreads, shared, stream>>>(args, LayOutDeviceTable(args.experts, args.ranks),
                                                LayOutDeviceNotes(args.experts, args.ranks), count, choose);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchCount(const ChoiceArgs& args, cudaStream_t stream) { return LaunchChoice(args, true, false, stream); }
cudaError_t LaunchChoose(const ChoiceArgs& args, bool counted, cudaStream_t stream) {
  return LaunchChoice(args, !counted, true, stream);
}

}  // namespace ballast
