// What the host's half of the quota kernel (quotas.cc) tells its device half (quotas.cu).
#ifndef BALLAST_KERNELS_CUDA_QUOTAS_KERNEL_H_
#define BALLAST_KERNELS_CUDA_QUOTAS_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ballast::internal {

// A replica on a rank, and another of its expert on rank `other`: tokens can move from one to the other.
constexpr int32_t PackEdge(int32_t give, int32_t take, int32_t other) { return give << 17 | take << 5 | other; }
constexpr int32_t EdgeGive(int32_t edge) { return edge >> 17; }
constexpr int32_t EdgeTake(int32_t edge) { return edge >> 5 & 0xfff; }
constexpr int32_t EdgeOther(int32_t edge) { return edge & 31; }

// Where the parts of a table begin, in words of 32 bits; [ranks] and the like are their lengths.
struct QuotaTableLayout {
  int begin;          // [experts + 1], an expert's replicas
  int rank;           // [replicas]
  int speed;          // [ranks]
  int singles;        // [num_singles] replicas that are their expert's only one, ascending
  int single_expert;  // [num_singles], their experts
  int rank_singles;   // [ranks + 1] into rank_single_expert
  int rank_single_expert;
  int shared;         // [num_shared] experts with two replicas or more, by level
  int levels;         // [num_levels + 1] into shared
  int rank_replicas;  // [ranks + 1] into rank_replica and its expert's ranks
  int rank_replica;   // replicas of shared experts
  int replica_ranks;  // a bit for each rank that has the replica's expert
  int rank_edges;     // [ranks + 1] into edges
  int edges;          // PackEdge, a rank's by replica, then by the other replica
  int words;
};

struct QuotaKernelArgs {
  const int32_t* table;
  QuotaTableLayout at;
  int experts, replicas, ranks, sources;
  int num_singles, num_shared, num_levels;
  // The largest speed.
  int unit;
  const int32_t* counts;
  int32_t* quotas;
  int64_t* bound;
};

cudaError_t LaunchQuotas(const QuotaKernelArgs& args, cudaStream_t stream);

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_QUOTAS_KERNEL_H_
