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
// Groups of 8 rows that one box of the gate-up map interleaves, a gate and an up group in turn.
inline constexpr int kGateUpGroups = kTileRows / 16;
// Floats of one block's partial sums of a tile.
inline constexpr int kPartialFloats = kTileRows * kTileTokens;

struct ExpertsArgs {
  const void* x;
  const int32_t* order;
  const int32_t* begin;
  const int32_t* slots;
  void* out;
  // Workspace, see CudaExperts.
  void* activations;
  float* partials;
  uint32_t* flags;
  uint32_t* launch;
  int num_groups;
  int pairs_per_token;
  int hidden_size;
  int intermediate_size;
  // Words of `flags` for one launch: tile counters, then 4 for each block.
  int flag_words;
  int tile_flags;
};

// One block for each of `blocks` multiprocessors, all resident at once.
cudaError_t LaunchExperts(const CUtensorMap& gate_up, const CUtensorMap& down, const ExpertsArgs& args, int blocks,
                          cudaStream_t stream);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_EXPERTS_KERNEL_H_
