// Ranks of a tile's pairs among those of their group, by one block: its warps have runs of pairs, one behind the other,
// and count their groups; a group's ranks of a run begin where the runs' before end.
#ifndef BALLAST_KERNELS_CUDA_GROUPING_H_
#define BALLAST_KERNELS_CUDA_GROUPING_H_

#include <cstdint>

namespace ballast::internal {

// Pairs of a run: rounds of a warp.
__device__ inline int RunPairs(int pairs, int warps) {
  const int rounds = (pairs + 32 * warps - 1) / (32 * warps);
  return rounds > 0 ? rounds * 32 : 32;
}
__device__ inline int Runs(int pairs, int run_pairs) { return (pairs + run_pairs - 1) / run_pairs; }

// `groups` are the pairs', -1: none. `table`, [runs][num_groups], is 0 before. All in shared memory.
__device__ inline void CountRuns(const int* groups, int pairs, int run_pairs, int num_groups, int* table) {
  const int run = threadIdx.x / 32, end = min((run + 1) * run_pairs, pairs);
  for (int i = run * run_pairs + threadIdx.x % 32; i < end; i += 32) {
    if (groups[i] >= 0) atomicAdd(&table[run * num_groups + groups[i]], 1);
  }
}

// A group's counts become the ranks that the runs begin with, from `rank` on; returns where they end.
__device__ inline int BeginRuns(int* table, int group, int runs, int num_groups, int rank) {
  for (int run = 0; run < runs; ++run) {
    int& at = table[run * num_groups + group];
    const int count = at;
    at = rank;
    rank += count;
  }
  return rank;
}

// emit(pair, rank) for each pair, in rounds of 32; rank -1: it has no group.
template <class Emit>
__device__ inline void RankRuns(const int* groups, int pairs, int run_pairs, int num_groups, int* table, Emit emit) {
  const int lane = threadIdx.x % 32, run = threadIdx.x / 32, end = min((run + 1) * run_pairs, pairs);
  for (int base = run * run_pairs; base < end; base += 32) {
    const int pair = base + lane, group = pair < end ? groups[pair] : -1;
    const unsigned same = __match_any_sync(~0u, group);
    int* const next = table + run * num_groups + group;
    const int rank = group >= 0 ? *next + __popc(same & ((1u << lane) - 1)) : -1;
    __syncwarp();
    if (group >= 0 && lane == __ffs(same) - 1) *next += __popc(same);
    __syncwarp();
    if (pair < end) emit(pair, rank);
  }
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_GROUPING_H_
