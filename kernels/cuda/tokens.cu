#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/fp8_scale.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tokens_kernel.h"

namespace ballast::internal {
namespace {

constexpr int kGroupThreads = 1024;
constexpr int kGroupWarps = kGroupThreads / 32;
constexpr int kWarpPairs = kGroupTilePairs / kGroupWarps;
constexpr int kQuantizeThreads = 256;
constexpr int kCombineThreads = 128;
constexpr int kCombineColumns = 8;  // of a thread: 16 bytes
constexpr int kCombineRows = 8;     // whose loads are in flight at once

__device__ int GroupOf(const GroupKernelArgs& args, int pair) {
  return pair < args.num_pairs ? args.group_of[args.ids[pair]] : -1;
}

__global__ void __launch_bounds__(kGroupThreads) CountTileKernel(const GroupKernelArgs args) {
  extern __shared__ int32_t counts[];
  for (int g = threadIdx.x; g < args.num_groups; g += kGroupThreads) counts[g] = 0;
  LetNextKernelStart();
  WaitForPreviousKernel();
  __syncthreads();
  for (int i = threadIdx.x; i < kGroupTilePairs; i += kGroupThreads) {
    const int group = GroupOf(args, blockIdx.x * kGroupTilePairs + i);
    if (group >= 0) atomicAdd(&counts[group], 1);
  }
  __syncthreads();
  for (int g = threadIdx.x; g < args.num_groups; g += kGroupThreads) {
    args.tile_counts[blockIdx.x * args.num_groups + g] = counts[g];
  }
}

// Exclusive prefix sums over the threads of the block's first `warps` warps; `total` gets the sum of all.
__device__ int BlockPrefix(int value, int warps, int* warp_sums, int& total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int v = __shfl_up_sync(~0u, sum, distance);
    if (lane >= distance) sum += v;
  }
  if (lane == 31) warp_sums[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < warps; ++w) {
    if (w == warp) before = total;
    total += warp_sums[w];
  }
  return before + sum - value;
}

// Each warp counts its own run of pairs; a group's rows begin where the groups before, the tiles before and the warps
// before end; then each warp hands out its rows in the order of its pairs. A thread has one group (kMaxGroups are
// kGroupThreads).
__global__ void __launch_bounds__(kGroupThreads) GroupTileKernel(const GroupKernelArgs args) {
  extern __shared__ int32_t next_row[];  // [warps][num_groups]
  __shared__ int warp_sums[kGroupWarps];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  // Those that have pairs, and those whose threads have groups.
  const int tile_pairs = min(args.num_pairs - static_cast<int>(blockIdx.x) * kGroupTilePairs, kGroupTilePairs);
  const int pair_warps = (tile_pairs + kWarpPairs - 1) / kWarpPairs, group_warps = (args.num_groups + 31) / 32;
  for (int i = thread; i < pair_warps * args.num_groups; i += kGroupThreads) next_row[i] = 0;
  LetNextKernelStart();
  WaitForPreviousKernel();
  __syncthreads();
  int groups[kWarpPairs / 32];
  const int first_pair = blockIdx.x * kGroupTilePairs + warp * kWarpPairs;
#pragma unroll
  for (int i = 0; i < kWarpPairs / 32; ++i) {
    groups[i] = GroupOf(args, first_pair + i * 32 + lane);
    if (groups[i] >= 0) atomicAdd(&next_row[warp * args.num_groups + groups[i]], 1);
  }
  __syncthreads();
  int own = 0, before_tiles = 0;
  if (thread < args.num_groups) {
    for (int w = 0; w < pair_warps; ++w) own += next_row[w * args.num_groups + thread];
    if (gridDim.x > 1) {
      own = 0;
#pragma unroll 8
      for (int tile = 0; tile < gridDim.x; ++tile) {
        const int count = args.tile_counts[tile * args.num_groups + thread];
        if (tile < blockIdx.x) before_tiles += count;
        own += count;
      }
    }
  }
  int total;
  const int begin = BlockPrefix(own, group_warps, warp_sums, total);
  if (thread < args.num_groups) {
    int row = begin + before_tiles;
    for (int w = 0; w < pair_warps; ++w) {
      int32_t& at = next_row[w * args.num_groups + thread];
      const int count = at;
      at = row;
      row += count;
    }
    if (blockIdx.x == 0) args.begin[thread] = begin;
  }
  if (blockIdx.x == 0 && thread == 0) args.begin[args.num_groups] = total;
  __syncthreads();
  if (warp >= pair_warps) return;
#pragma unroll
  for (int i = 0; i < kWarpPairs / 32; ++i) {
    const int pair = first_pair + i * 32 + lane, group = groups[i];
    const unsigned same = __match_any_sync(~0u, group);
    int row = -1;
    if (group >= 0) row = next_row[warp * args.num_groups + group] + __popc(same & ((1u << lane) - 1));
    __syncwarp();
    if (group >= 0 && lane == __ffs(same) - 1) next_row[warp * args.num_groups + group] += __popc(same);
    __syncwarp();
    if (pair < args.num_pairs) {
      args.row_of[pair] = row;
      if (row >= 0) args.order[row] = pair;
    }
  }
}

// A warp a block of a row, four elements a lane.
__global__ void __launch_bounds__(kQuantizeThreads) QuantizeKernel(const QuantizeKernelArgs args) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int lane = threadIdx.x % 32, blocks = (args.hidden_size + kScaleBlock - 1) / kScaleBlock;
  const int64_t at = (int64_t{blockIdx.x} * kQuantizeThreads + threadIdx.x) / 32;
  if (at >= int64_t{args.num_rows} * blocks) return;
  const int64_t row = at / blocks;
  const int column = static_cast<int>(at % blocks) * kScaleBlock + lane * 4;
  const bool inside = column < args.hidden_size;
  const size_t offset = row * args.hidden_size + column;
  uint2 packed = {};
  if (inside) packed = *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(args.rows) + offset);
  const float2 low = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&packed.x));
  const float2 high = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&packed.y));
  float largest = fmaxf(fmaxf(fabsf(low.x), fabsf(low.y)), fmaxf(fabsf(high.x), fabsf(high.y)));
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
  }
  const float scale = Fp8Scale(largest);
  if (lane == 0) args.scales[at] = scale;
  if (!inside) return;
  const uint32_t a = __nv_cvt_float2_to_fp8x2({low.x / scale, low.y / scale}, __NV_SATFINITE, __NV_E4M3);
  const uint32_t b = __nv_cvt_float2_to_fp8x2({high.x / scale, high.y / scale}, __NV_SATFINITE, __NV_E4M3);
  *reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(args.out) + offset) = a | b << 16;
}

__global__ void __launch_bounds__(kCombineThreads) CombineKernel(const CombineKernelArgs args) {
  __shared__ int rows[32];
  __shared__ float weights[32];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int token = blockIdx.x, thread = threadIdx.x;
  if (thread < 32) {
    const int at = token * args.top_k + thread;
    const bool valid = thread < args.top_k;
    const int id = valid ? args.ids[at] : 0x7fffffff;
    int rank = 0;
    // Of logits that are no numbers one expert may be chosen twice: all the same every place gets a row.
    for (int j = 0; j < args.top_k; ++j) {
      const int other = __shfl_sync(~0u, id, j);
      rank += other < id || (other == id && j < thread);
    }
    if (valid) {
      rows[rank] = args.row_of[at];
      weights[rank] = args.weights[at];
    }
  }
  __syncthreads();
  const int column = (blockIdx.y * kCombineThreads + thread) * kCombineColumns;
  if (column >= args.hidden_size) return;
  float sums[kCombineColumns] = {};
  const auto* source = static_cast<const uint4*>(args.rows) + column / kCombineColumns;
  const int row_chunks = args.hidden_size / kCombineColumns;
  for (int base = 0; base < args.top_k; base += kCombineRows) {
    // All loads first.
    uint4 v[kCombineRows];
#pragma unroll
    for (int j = 0; j < kCombineRows; ++j) {
      const int row = base + j < args.top_k ? rows[base + j] : -1;
      v[j] = row < 0 ? uint4{} : __ldcg(source + static_cast<size_t>(row) * row_chunks);
    }
#pragma unroll
    for (int j = 0; j < kCombineRows; ++j) {
      if (base + j >= args.top_k || rows[base + j] < 0) continue;
      const auto* pairs = reinterpret_cast<const __nv_bfloat162*>(&v[j]);
#pragma unroll
      for (int i = 0; i < kCombineColumns / 2; ++i) {
        const float2 f = __bfloat1622float2(pairs[i]);
        sums[2 * i] = fmaf(weights[base + j], f.x, sums[2 * i]);
        sums[2 * i + 1] = fmaf(weights[base + j], f.y, sums[2 * i + 1]);
      }
    }
  }
  uint4 out;
  auto* packed = reinterpret_cast<__nv_bfloat162*>(&out);
#pragma unroll
  for (int i = 0; i < kCombineColumns / 2; ++i) packed[i] = __floats2bfloat162_rn(sums[2 * i], sums[2 * i + 1]);
  *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.out) + static_cast<size_t>(token) * args.hidden_size +
                            column) = out;
}

}  // namespace

cudaError_t LaunchGroupPairs(const GroupKernelArgs& args, cudaStream_t stream) {
  const int tiles = (args.num_pairs + kGroupTilePairs - 1) / kGroupTilePairs;
  const size_t shared = sizeof(int32_t) * kGroupWarps * args.num_groups;
  // 1024 groups. Every time: it is kept by device.
  const cudaError_t allowed = AllowSharedMemory(GroupTileKernel, sizeof(int32_t) * kGroupWarps * kGroupThreads);
  if (allowed != cudaSuccess) return allowed;
  if (tiles > 1) {
    const cudaError_t error =
        Launch(CountTileKernel, {dim3(tiles), kGroupThreads, sizeof(int32_t) * args.num_groups}, stream, args);
    if (error != cudaSuccess) return error;
  }
  return Launch(GroupTileKernel, {dim3(tiles > 0 ? tiles : 1), kGroupThreads, shared}, stream, args);
}

cudaError_t LaunchQuantize(const QuantizeKernelArgs& args, cudaStream_t stream) {
  const int64_t warps = int64_t{args.num_rows} * ((args.hidden_size + kScaleBlock - 1) / kScaleBlock);
  const int64_t blocks = (warps * 32 + kQuantizeThreads - 1) / kQuantizeThreads;
  return Launch(QuantizeKernel, {dim3(static_cast<unsigned>(blocks)), kQuantizeThreads}, stream, args);
}

cudaError_t LaunchCombine(const CombineKernelArgs& args, cudaStream_t stream) {
  const int columns = kCombineThreads * kCombineColumns;
  return Launch(CombineKernel, {dim3(args.num_tokens, (args.hidden_size + columns - 1) / columns), kCombineThreads},
                stream, args);
}

}  // namespace ballast::internal
