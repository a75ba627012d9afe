// What the host's half of the grouped expert kernel (experts.cc) tells its device half (experts.cu).
#ifndef BALLAST_KERNELS_CUDA_EXPERTS_KERNEL_H_
#define BALLAST_KERNELS_CUDA_EXPERTS_KERNEL_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace ballast {

// Replicas of one layer on one GPU.
inline constexpr int kMaxGroups = 1024;

namespace internal {

// A tile of work: weight rows x tokens, in steps of k.
inline constexpr int kTileRows = 256;
inline constexpr int kTileTokens = 128;
inline constexpr int kTileK = 64;
// A box of weights has half of a tile's rows: of gate and up, groups of 8 rows in turn.
inline constexpr int kBoxRows = kTileRows / 2;
inline constexpr int kBoxGroups = kBoxRows / 16;
// Bytes of one block's partial sums of a tile, with tags.
inline constexpr int kPartialBytes = kTileRows * kTileTokens * 8;

struct ExpertsArgs {
  const void* x;
  const int32_t* order;
  const int32_t* begin;
  const int32_t* slots;
  void* out;
  // Workspace, see CudaExperts.
  void* activations;
  void* partials;
  uint32_t* flags;
  uint32_t* launch;
  int num_groups;
  int pairs_per_token;
  int hidden_size;
  int intermediate_size;
  // Words of `flags` for one launch.
  int flag_words;
};

// Blocks that work on a tile together, each on its part of the tokens, and share the weights' way from L2.
inline constexpr int kPair = 2;

// The number of blocks of the kernel with pairs, or without, that the device runs at once.
cudaError_t ExpertsBlocks(bool pairs, int* blocks);
cudaError_t LaunchExperts(const CUtensorMap& gate_up, const CUtensorMap& down, const ExpertsArgs& args, bool pairs,
                          int blocks, cudaStream_t stream);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_EXPERTS_KERNEL_H_
