// What the grouped expert kernel (experts.cu) does differently in fp8 (e4m3) with scales of blocks: sums of one block
// of k go through the scales into float32 sums of the tile (the tensor cores add fp8 products with fewer bits than
// float32 has; DeepSeek-V3 technical report, 3.3.2), and activations are rounded to fp8 with scales of their own.
#ifndef BALLAST_KERNELS_CUDA_EXPERTS_FP8_H_
#define BALLAST_KERNELS_CUDA_EXPERTS_FP8_H_

#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/experts_schedule.h"
#include "kernels/cuda/fp8_scale.h"
#include "kernels/cuda/hopper.h"

namespace ballast::internal {

// The scales of a box of weights, by block of k.
__device__ inline const float* WeightScalesOf(const ExpertsArgs& args, const Work& work, int box) {
  static_assert(kBoxRows == kScaleBlock);
  const auto* slot = reinterpret_cast<const float*>(args.weight_scales + args.slots[work.group] * args.slot_stride);
  const int h = DivideUp(args.hidden_size, kScaleBlock), i = DivideUp(args.intermediate_size, kScaleBlock);
  if (work.phase == 0) return slot + (box * i + work.row_tile) * h;
  // The second box of the last tile may have no rows.
  return slot + (2 * h + min(work.row_tile * kTileBoxes + box, h - 1)) * i;
}

// One k step for the tile's tokens and the warpgroup's box of weights; lets the stage go.
template <class F>
__device__ __forceinline__ void MultiplyScaled(typename F::Sums& sums, Shared<F>& shared, int stage, int box,
                                               float weight_scale) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const uint64_t a = OperandDescriptor(shared.tokens[stage]);
  const uint64_t b = OperandDescriptor(shared.weights[stage] + box * kBoxBytes);
  float products[kBoxRows / 2];
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < kRowBytes / 32; ++i) WgmmaFp8<kBoxRows>::Run(products, a + 2 * i, b + 2 * i, i > 0);
  WgmmaCommit();
  const float low = shared.scales[stage][row] * weight_scale, high = shared.scales[stage][row + 8] * weight_scale;
  WgmmaWait<0>();
  PinRegisters(products);
  // All lanes have read the scales.
  __syncwarp();
  if (lane == 0) ReleaseStage<F>(shared, stage);
#pragma unroll
  for (int j = 0; j < kBoxRows / 8; ++j) {
    float* sum = &sums[0][4 * j];
    sum[0] = fmaf(products[4 * j], low, sum[0]);
    sum[1] = fmaf(products[4 * j + 1], low, sum[1]);
    sum[2] = fmaf(products[4 * j + 2], high, sum[2]);
    sum[3] = fmaf(products[4 * j + 3], high, sum[3]);
  }
}

// Activations of the tile's tokens: 128 columns, of which each token's part has one scale. The first warpgroup has sums
// of gates and the second of ups, in the same places: each takes half of the tokens (8 of a warp's 16) and gives the
// other its sums of the others.
template <class F>
__device__ __forceinline__ void StoreQuantized(const typename F::Sums& sums, Shared<F>& shared, const ExpertsArgs& args,
                                               const Work& work, int half) {
  const int thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const int first_row = warp * 16 + 8 * half, first_column = work.row_tile * kScaleBlock;
  const int width = args.intermediate_size, blocks = DivideUp(width, kScaleBlock);
  constexpr int kBoth = 2 * 128;
  // Until the tile before has been taken.
  NamedBarrier(3, kBoth);
#pragma unroll
  for (int j = 0; j < kBoxRows / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      shared.exchange[half][j * 2 + i][thread] = half == 0 ? sums[0][j * 4 + 2 + i] : sums[0][j * 4 + i];
    }
  }
  NamedBarrier(3, kBoth);
  float activations[kBoxRows / 4];
  float largest = 0;
#pragma unroll
  for (int j = 0; j < kBoxRows / 8; ++j) {
    // Rows are multiples of 16 elements: eight are all inside or none.
    const bool inside = first_column + j * 8 < width;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float other = shared.exchange[1 - half][j * 2 + i][thread];
      const float gate = half == 0 ? sums[0][j * 4 + i] : other, up = half == 0 ? other : sums[0][j * 4 + 2 + i];
      activations[j * 2 + i] = inside ? Silu(gate) * up : 0;
      largest = fmaxf(largest, fabsf(activations[j * 2 + i]));
    }
  }
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
  const float scale = Fp8Scale(largest), inverse = 1 / scale;
  uint8_t* const buffer = shared.warp_rows[half * 4 + warp];
#pragma unroll
  for (int j = 0; j < kBoxRows / 8; ++j) {
    *reinterpret_cast<__nv_fp8x2_storage_t*>(buffer + lane / 4 * kWarpStoreBytes + j * 8 + lane % 4 * 2) =
        __nv_cvt_float2_to_fp8x2({activations[2 * j] * inverse, activations[2 * j + 1] * inverse}, __NV_SATFINITE,
                                 __NV_E4M3);
  }
  if (lane % 4 == 0 && first_row + lane / 4 < work.width) {
    args.activation_scales[static_cast<size_t>(work.first + first_row + lane / 4) * blocks + work.row_tile] = scale;
  }
  __syncwarp();
  const int column = first_column + lane % 8 * 16;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = i * 4 + lane / 8;
    if (first_row + row < work.width && column < width) {
      *reinterpret_cast<uint4*>(static_cast<uint8_t*>(args.activations) +
                                static_cast<size_t>(work.first + first_row + row) * width + column) =
          *reinterpret_cast<const uint4*>(buffer + row * kWarpStoreBytes + lane % 8 * 16);
    }
  }
  __syncwarp();
}

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_EXPERTS_FP8_H_
