#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/fp8_scale.h"
#include "kernels/cuda/grouping.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/tokens_kernel.h"

namespace ballast::internal {
namespace {

constexpr int kGroupThreads = 1024;
constexpr int kGroupWarps = kGroupThreads / 32;
// Parts of the tiles that a group's counts are summed by.
constexpr int kMostSlices = 32;
constexpr int kMultiprocessors = 132;
constexpr int kQuantizeThreads = 256;
constexpr int kCombineThreads = 128;
constexpr int kCombineColumns = 8;  // of a thread: 16 bytes
constexpr int kCombineRows = 8;     // whose loads are in flight at once

__device__ int GroupOf(const GroupKernelArgs& args, int pair) {
  return pair < args.num_pairs ? args.group_of[args.ids[pair]] : -1;
}

// The groups of a tile's pairs to `groups`, and how many of each a run has to `table`, which it first clears.
__device__ void CountTile(const GroupKernelArgs& args, int first_pair, int pairs, int run_pairs, int* groups,
                          int* table) {
  for (int i = threadIdx.x; i < Runs(pairs, run_pairs) * args.num_groups; i += kGroupThreads) table[i] = 0;
  LetNextKernelStart();
  WaitForPreviousKernel();
  if (threadIdx.x < pairs) groups[threadIdx.x] = GroupOf(args, first_pair + threadIdx.x);
  __syncthreads();
  CountRuns(groups, pairs, run_pairs, args.num_groups, table);
  __syncthreads();
}

__device__ int TilePairs(const GroupKernelArgs& args) {
  return min(args.num_pairs - static_cast<int>(blockIdx.x) * kGroupTilePairs, kGroupTilePairs);
}

// Counts of each tile's groups, and the pairs' ranks in their tiles, where their rows will be.
__global__ void __launch_bounds__(kGroupThreads) RankTileKernel(const GroupKernelArgs args) {
  extern __shared__ int32_t table[];
  __shared__ int groups[kGroupTilePairs];
  const int first_pair = blockIdx.x * kGroupTilePairs, pairs = TilePairs(args);
  const int run_pairs = RunPairs(pairs, kGroupWarps), runs = Runs(pairs, run_pairs);
  CountTile(args, first_pair, pairs, run_pairs, groups, table);
  if (threadIdx.x < args.num_groups) {
    args.tile_counts[blockIdx.x * args.num_groups + threadIdx.x] =
        BeginRuns(table, threadIdx.x, runs, args.num_groups, 0);
  }
  __syncthreads();
  RankRuns(groups, pairs, run_pairs, args.num_groups, table,
           [&](int pair, int rank) { args.row_of[first_pair + pair] = rank; });
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

// The beginning of group threadIdx.x, which has `count` rows, by all threads (kMaxGroups are kGroupThreads).
__device__ int BeginGroup(const GroupKernelArgs& args, int count, int* warp_sums) {
  int total;
  const int begin = BlockPrefix(count, (args.num_groups + 31) / 32, warp_sums, total);
  if (blockIdx.x == 0 && threadIdx.x < args.num_groups) args.begin[threadIdx.x] = begin;
  if (blockIdx.x == 0 && threadIdx.x == 0) args.begin[args.num_groups] = total;
  return begin;
}

__device__ void Place(const GroupKernelArgs& args, int pair, int row) {
  args.row_of[pair] = row;
  if (row >= 0) args.order[row] = pair;
}

// All pairs, where one tile has them.
__global__ void __launch_bounds__(kGroupThreads) GroupTileKernel(const GroupKernelArgs args) {
  extern __shared__ int32_t table[];
  __shared__ int groups[kGroupTilePairs];
  __shared__ int warp_sums[kGroupWarps];
  const int pairs = args.num_pairs, run_pairs = RunPairs(pairs, kGroupWarps), runs = Runs(pairs, run_pairs);
  CountTile(args, 0, pairs, run_pairs, groups, table);
  int count = 0;
  for (int run = 0; run < runs && threadIdx.x < args.num_groups; ++run) {
    count += table[run * args.num_groups + threadIdx.x];
  }
  const int begin = BeginGroup(args, count, warp_sums);
  if (threadIdx.x < args.num_groups) BeginRuns(table, threadIdx.x, runs, args.num_groups, begin);
  __syncthreads();
  RankRuns(groups, pairs, run_pairs, args.num_groups, table, [&](int pair, int row) { Place(args, pair, row); });
}

// Rows from ranks: a group's rows of a tile begin where the groups before and its tiles before end. A block has
// neighbouring tiles, and sums the counts of all: threads of one group each every few tiles.
__global__ void __launch_bounds__(kGroupThreads) PlaceKernel(const GroupKernelArgs args, int tile_pairs, int tiles) {
  __shared__ int sums[2][kGroupThreads];
  __shared__ int next_row[kGroupThreads];
  __shared__ int warp_sums[kGroupWarps];
  const int thread = threadIdx.x, groups = args.num_groups;
  const int slices = min(kGroupThreads / groups, kMostSlices), slice = thread / groups, group = thread % groups;
  const int first = static_cast<int64_t>(tiles) * blockIdx.x / gridDim.x;
  const int end = static_cast<int64_t>(tiles) * (blockIdx.x + 1) / gridDim.x;
  const auto load = [&](int tile, int i, int& own_group, int& rank) {
    const int pair = tile * tile_pairs + i;
    own_group = i < tile_pairs ? GroupOf(args, pair) : -1;
    rank = own_group >= 0 ? args.row_of[pair] : 0;
  };
  LetNextKernelStart();
  WaitForPreviousKernel();
  // On their way together with the counts.
  int ahead_group, ahead_rank;
  load(first, thread, ahead_group, ahead_rank);
  int count = 0, before = 0;
  if (slice < slices) {
#pragma unroll 16
    for (int tile = slice; tile < tiles; tile += slices) {
      const int own = args.tile_counts[tile * groups + group];
      count += own;
      if (tile < first) before += own;
    }
  }
  sums[0][thread] = count;
  sums[1][thread] = before;
  __syncthreads();
  if (thread < groups) {
    for (int s = 1; s < slices; ++s) {
      count += sums[0][s * groups + thread];
      before += sums[1][s * groups + thread];
    }
  } else {
    count = 0;
  }
  const int begin = BeginGroup(args, count, warp_sums);
  if (thread < groups) next_row[thread] = begin + before;
  __syncthreads();
  for (int tile = first; tile < end; ++tile) {
    for (int i = thread; i < tile_pairs && tile * tile_pairs + i < args.num_pairs; i += kGroupThreads) {
      int own_group = ahead_group, rank = ahead_rank;
      if (tile > first || i > thread) load(tile, i, own_group, rank);
      Place(args, tile * tile_pairs + i, own_group >= 0 ? next_row[own_group] + rank : -1);
    }
    if (tile + 1 == end) break;
    __syncthreads();
    if (thread < groups) next_row[thread] += args.tile_counts[tile * groups + thread];
    __syncthreads();
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
    // Every place gets a row, also where a caller's choices name one expert twice.
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
  constexpr size_t kMostShared = sizeof(int32_t) * kGroupWarps * kGroupThreads;
  auto* const kernel = tiles > 1 ? RankTileKernel : GroupTileKernel;
  cudaError_t error = AllowSharedMemory(kernel, kMostShared);
  if (error == cudaSuccess) {
    error = Launch(kernel, {dim3(tiles > 0 ? tiles : 1), kGroupThreads, shared}, stream, args);
  }
  return error == cudaSuccess && tiles > 1 ? LaunchPlacePairs(args, kGroupTilePairs, tiles, stream) : error;
}

cudaError_t LaunchPlacePairs(const GroupKernelArgs& args, int tile_pairs, int tiles, cudaStream_t stream) {
  // As many tiles for each block.
  const int block_tiles = (tiles + kMultiprocessors - 1) / kMultiprocessors;
  return Launch(PlaceKernel, {dim3((tiles + block_tiles - 1) / block_tiles), kGroupThreads}, stream, args, tile_pairs,
                tiles);
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
