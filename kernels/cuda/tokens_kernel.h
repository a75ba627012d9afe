// What the host's half of the token kernels (tokens.cc) tells its device half (tokens.cu).
#ifndef BALLAST_KERNELS_CUDA_TOKENS_KERNEL_H_
#define BALLAST_KERNELS_CUDA_TOKENS_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace ballast {

namespace internal {

// Pairs of one tile of GroupPairs.
inline constexpr int kGroupTilePairs = 1024;

struct GroupKernelArgs {
  const int32_t* ids;
  const int32_t* group_of;
  int num_pairs;
  int num_groups;
  // [tiles][num_groups]; unused with one tile.
  int32_t* tile_counts;
  int32_t* begin;
  int32_t* order;
  int32_t* row_of;
};
cudaError_t LaunchGroupPairs(const GroupKernelArgs& args, cudaStream_t stream);
// The last of its kernels: `tile_counts` has the tiles' counts, `row_of` the pairs' ranks in their tiles (whatever they
// are for pairs without a group).
cudaError_t LaunchPlacePairs(const GroupKernelArgs& args, int tile_pairs, int tiles, cudaStream_t stream);

struct QuantizeKernelArgs {
  const void* rows;
  int num_rows;
  int hidden_size;
  void* out;
  float* scales;
};
cudaError_t LaunchQuantize(const QuantizeKernelArgs& args, cudaStream_t stream);

struct CombineKernelArgs {
  const void* rows;
  const int32_t* row_of;
  const int32_t* ids;
  const float* weights;
  int num_tokens;
  int top_k;
  int hidden_size;
  void* out;
};
cudaError_t LaunchCombine(const CombineKernelArgs& args, cudaStream_t stream);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_TOKENS_KERNEL_H_
