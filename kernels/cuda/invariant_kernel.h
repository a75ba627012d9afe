// What the host's half of the row-invariant products (invariant.cc) tells its device half (invariant.cu).
#ifndef BALLAST_KERNELS_CUDA_INVARIANT_KERNEL_H_
#define BALLAST_KERNELS_CUDA_INVARIANT_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ballast::internal {

// Rows, and outputs, of a tile.
inline constexpr int kInvariantTile = 64;

struct InvariantArgs {
  // Row r of a group is x[order[r] / pairs_per_token]; order nullptr: x[r].
  const void* x;
  const int32_t* order;
  int pairs_per_token;
  // Group i has rows begin[i] .. begin[i + 1] - 1 and the weights at weights + slots[i] * stride bytes; begin nullptr:
  // one group of `rows` rows, and no slots.
  const int32_t* begin;
  const int32_t* slots;
  int num_groups;
  int rows;
  const void* weights;
  size_t stride;
  int inputs;
  // With `gated`, of gate and of up each: the weights are [2][outputs][inputs], and out is silu(gate) * up.
  int outputs;
  bool gated;
  // [rows][outputs], f32 where out_f32, else bf16.
  void* out;
  bool out_f32;
};

// `tiles`: as many tiles of rows as there can be.
cudaError_t LaunchInvariant(const InvariantArgs& args, int tiles, cudaStream_t stream);

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_INVARIANT_KERNEL_H_
