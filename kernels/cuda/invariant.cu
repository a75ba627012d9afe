#include <cuda_bf16.h>

#include "kernels/cuda/columns.h"
#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/invariant_kernel.h"
#include "kernels/cuda/launch.h"

namespace ballast::internal {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = kInvariantTile;
constexpr int kTileK = 64;
constexpr int kRowBytes = kTileK * 2;
constexpr int kTileBytes = kTile * kRowBytes;
constexpr int kStages = 4;
constexpr int kSharedBytes = kStages * 2 * kTileBytes;
// 16-byte parts of a tile that a thread loads.
constexpr int kParts = kTile * 8 / kThreads;

__device__ uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Address of 16 bytes of a row of 128, swizzled so that 8 rows' are in different banks.
__device__ uint32_t Chunk(uint32_t tile, int row, int chunk) {
  return tile + row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

__device__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ void Copy(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}

struct Tile {
  int group;
  int first;
  // 0: there is no such tile.
  int rows;
};

// The groups' tiles one group after another; run by one warp, its result by lane 0.
__device__ Tile FindTile(const InvariantArgs& args, int index) {
  const int lane = threadIdx.x % 32, share = (args.num_groups + 31) / 32;
  const auto tiles_of = [&](int group) {
    return group < args.num_groups ? (args.begin[group + 1] - args.begin[group] + kTile - 1) / kTile : 0;
  };
  int own = 0;
  for (int i = 0; i < share; ++i) own += tiles_of(lane * share + i);
  int before = own;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int v = __shfl_up_sync(~0u, before, distance);
    if (lane >= distance) before += v;
  }
  before -= own;
  Tile tile = {0, 0, 0};
  if (index >= before && index < before + own) {
    int group = lane * share;
    for (int left = index - before;; ++group) {
      const int tiles = tiles_of(group);
      if (left < tiles) {
        tile = {group, args.begin[group] + left * kTile, 0};
        tile.rows = min(kTile, args.begin[group + 1] - tile.first);
        break;
      }
      left -= tiles;
    }
  }
  const int from = __ffs(__ballot_sync(~0u, tile.rows > 0));
  if (from == 0) return tile;
  return {__shfl_sync(~0u, tile.group, from - 1), __shfl_sync(~0u, tile.first, from - 1),
          __shfl_sync(~0u, tile.rows, from - 1)};
}

// Grid (tiles of outputs, tiles of rows). A warp has 16 rows and all of a tile's outputs; of gated ones half are gates,
// half ups, both of an activation in one thread.
__global__ void __launch_bounds__(kThreads) InvariantKernel(const __grid_constant__ InvariantArgs args) {
  extern __shared__ __align__(128) uint8_t storage[];
  __shared__ Tile found;
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  Tile tile = {0, static_cast<int>(blockIdx.y) * kTile, min(kTile, args.rows - static_cast<int>(blockIdx.y) * kTile)};
  if (args.begin != nullptr) {
    if (warp == 0) {
      const Tile v = FindTile(args, blockIdx.y);
      if (lane == 0) found = v;
    }
    __syncthreads();
    tile = found;
    if (tile.rows == 0) return;
  }
  const auto* weights = static_cast<const uint8_t*>(args.weights);
  if (args.slots != nullptr) weights += static_cast<size_t>(args.slots[tile.group]) * args.stride;
  const int tile_outputs = args.gated ? kTile / 2 : kTile;
  const int first_output = blockIdx.x * tile_outputs;
  const size_t bytes = size_t{2} * args.inputs;

  // The thread's parts: of rows thread / 8 + 16 i, always the same part of each.
  const uint8_t *x[kParts], *w[kParts];
  const int part = thread % 8;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int row = i * (kThreads / 8) + thread / 8;
    x[i] = w[i] = nullptr;
    if (row < tile.rows) {
      const int at = tile.first + row;
      x[i] = static_cast<const uint8_t*>(args.x) +
             (args.order != nullptr ? args.order[at] / args.pairs_per_token : at) * bytes;
    }
    const int output = first_output + row % tile_outputs;
    if (output < args.outputs)
      w[i] = weights + (row / tile_outputs * static_cast<size_t>(args.outputs) + output) * bytes;
  }
  const uint32_t shared = SharedAddress(storage);
  const int steps = (args.inputs + kTileK - 1) / kTileK;
  const auto load = [&](int step) {
    if (step < steps) {
      const uint32_t rows = shared + step % kStages * 2 * kTileBytes, outputs = rows + kTileBytes;
      const int column = step * kTileK + part * 8;
      const bool inside = column < args.inputs;
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        const int row = i * (kThreads / 8) + thread / 8;
        const bool has_x = inside && x[i] != nullptr, has_w = inside && w[i] != nullptr;
        Copy(Chunk(rows, row, part), has_x ? x[i] + column * 2 : static_cast<const uint8_t*>(args.x), has_x);
        Copy(Chunk(outputs, row, part), has_w ? w[i] + column * 2 : weights, has_w);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  float sums[kTile / 8][4] = {};
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) load(i);
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();
    load(step + kStages - 1);
    const uint32_t rows = shared + step % kStages * 2 * kTileBytes, outputs = rows + kTileBytes;
#pragma unroll
    for (int k = 0; k < kTileK / 16; ++k) {
      uint32_t a[4];
      LoadMatrices(a, Chunk(rows, warp * 16 + lane % 16, k * 2 + lane / 16));
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        LoadMatrices(b, Chunk(outputs, n * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
        MultiplyTile(sums[n * 2], a[0], a[1], a[2], a[3], b[0], b[1]);
        MultiplyTile(sums[n * 2 + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
      }
    }
  }
  static_assert(kWarps * 16 == kTile);
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n) {
    if (args.gated && n >= kTile / 16) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp * 16 + lane / 4 + i / 2 * 8, output = first_output + n * 8 + lane % 4 * 2 + i % 2;
      if (row >= tile.rows || output >= args.outputs) continue;
      const size_t at = static_cast<size_t>(tile.first + row) * args.outputs + output;
      const float up = sums[(n + kTile / 16) % (kTile / 8)][i];
      const float v = args.gated ? Silu(sums[n][i]) * up : sums[n][i];
      if (args.out_f32) {
        static_cast<float*>(args.out)[at] = v;
      } else {
        static_cast<__nv_bfloat16*>(args.out)[at] = __float2bfloat16(v);
      }
    }
  }
}

}  // namespace

cudaError_t LaunchInvariant(const InvariantArgs& args, int tiles, cudaStream_t stream) {
  const cudaError_t allowed = AllowSharedMemory(InvariantKernel, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const int outputs = args.gated ? kTile / 2 : kTile;
  return Launch(InvariantKernel, {dim3((args.outputs + outputs - 1) / outputs, tiles), kThreads, kSharedBytes}, stream,
                args);
}

}  // namespace ballast::internal
