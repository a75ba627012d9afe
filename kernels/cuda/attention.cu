#include <cuda_bf16.h>

#include "kernels/cuda/attention_kernel.h"
#include "kernels/cuda/launch.h"

namespace ballast::internal {
namespace {

// Positions of a step.
constexpr int kPositions = 64;
constexpr int kStepsOfSpan = kSpanPositions / kPositions;
constexpr int kWarpVectors = 16;
constexpr int kStages = 2;
constexpr float kNone = -__builtin_huge_valf();

__device__ uint32_t SharedAddress(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ void LoadTransposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ void Multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ uint32_t Pack(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Largest score and sum of weights of what has been seen, by powers of two; sums of values go with it. Arithmetic that
// a compiler could contract is spelled out, so that every kernel made of it gives the same bits.
struct Softmax {
  float most = kNone;
  float weight = 0;
};

// Takes a span into the total, and gives what the sums of both are to be multiplied by. One function for both ways of
// going through the spans: the same operations, so the same bits.
__device__ float2 Merge(Softmax& total, const Softmax& span) {
  const float most = fmaxf(total.most, span.most);
  const float2 scale = {exp2f(total.most - most), exp2f(span.most - most)};
  total.weight = __fmaf_rn(span.weight, scale.y, __fmul_rn(total.weight, scale.x));
  total.most = most;
  return scale;
}
__device__ float MergeSum(float total, float span, float2 scale) {
  return __fmaf_rn(span, scale.y, __fmul_rn(total, scale.x));
}

template <int kDim>
struct Layout {
  // Rows of keys and values; the 16 bytes more put eight of them in different banks.
  static constexpr int kRowBytes = kDim * 2 + 16;
  static constexpr int kTileBytes = kPositions * kRowBytes;
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kSums = kDim / 8 * 4;
};

// Grid (tiles, KV heads, spans). A warp has 16 vectors; its lane (g, t) = (lane / 4, lane % 4) has the scores of
// vectors g and g + 8, and of every 8 positions two, 2 t and 2 t + 1.
template <int kDim, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) AttentionKernel(const __grid_constant__ AttentionKernelArgs kernel) {
  using L = Layout<kDim>;
  constexpr int kThreads = kWarps * 32;
  extern __shared__ __align__(128) uint8_t storage[];
  float* const totals = reinterpret_cast<float*>(storage + kStages * L::kStageBytes);  // [kSums][kThreads]
  const CudaAttentionArgs& args = kernel.args;
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const AttentionTile tile = args.tiles[blockIdx.x];
  const AttentionSequence sequence = args.sequences[tile.sequence];
  const int group = args.num_heads / args.num_kv_heads, kv_head = blockIdx.y;
  const int vectors = sequence.num_rows * group;
  // The last position that any vector of the tile sees.
  const int last_vector = min(tile.first + kWarps * kWarpVectors, vectors) - 1;
  const int last_position = sequence.position + last_vector / group;
  int step = kernel.spans > 0 ? blockIdx.z * kStepsOfSpan : 0;
  int end = last_position / kPositions + 1;
  if (kernel.spans > 0) end = min(end, step + kStepsOfSpan);
  if (step >= end) return;
  // What is beyond the sequence's last position is zeros, not what the memory holds.
  const int known = sequence.position + sequence.num_rows;

  const auto* cache = static_cast<const __nv_bfloat16*>(args.cache) + kv_head * (2 * kCachePositions * kDim);
  const int32_t* blocks = args.blocks + sequence.first_block;
  const uint32_t shared = SharedAddress(storage);
  const auto load = [&](int at) {
    if (at < end) {
      constexpr int kChunks = kDim / 8;  // of a row
      const uint32_t stage = shared + at % kStages * L::kStageBytes;
#pragma unroll 4
      for (int i = thread; i < kPositions * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks, position = at * kPositions + row;
        const bool inside = position < known;
        const __nv_bfloat16* key = cache;
        if (inside) {
          key += static_cast<size_t>(blocks[position / kCachePositions]) * args.block_stride +
                 position % kCachePositions * kDim + chunk * 8;
        }
        const __nv_bfloat16* value = key + (inside ? kCachePositions * kDim : 0);
        const uint32_t to = stage + row * L::kRowBytes + chunk * 16;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(key), "r"(inside ? 16 : 0)
                     : "memory");
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to + L::kTileBytes), "l"(value),
                     "r"(inside ? 16 : 0)
                     : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  load(step);

  // The lane's two vectors: their rows and heads, and the last position that each sees; -1 where there is no vector.
  int limit[2], row[2], head[2];
  const uint32_t* q[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int vector = tile.first + warp * kWarpVectors + lane / 4 + i * 8;
    const bool valid = vector < vectors;
    limit[i] = valid ? sequence.position + vector / group : -1;
    row[i] = sequence.first_row + vector / group;
    head[i] = kv_head * group + vector % group;
    q[i] = reinterpret_cast<const uint32_t*>(static_cast<const __nv_bfloat16*>(args.q) +
                                             (static_cast<size_t>(row[i]) * args.num_heads + head[i]) * kDim);
    if (!valid) q[i] = nullptr;
  }
  uint32_t queries[kDim / 16][4];
#pragma unroll
  for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      queries[k][i] = q[i % 2] != nullptr ? q[i % 2][k * 8 + i / 2 * 4 + lane % 4] : 0;
    }
  }
  // To powers of two.
  const float scale = 1.4426950408889634f / sqrtf(static_cast<float>(kDim));

  Softmax total[2];
  if (kernel.spans == 0) {
#pragma unroll
    for (int i = 0; i < L::kSums; ++i) totals[i * kThreads + thread] = 0;
  }
  Softmax span[2];
  float sums[kDim / 8][4] = {};
  for (; step < end; ++step) {
    load(step + 1);
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    const uint32_t keys = shared + step % kStages * L::kStageBytes, values = keys + L::kTileBytes;
    float scores[kPositions / 8][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kPositions / 16; ++n) {
        // Positions 0-7 and 8-15, dimensions 0-7 and 8-15 of each.
        uint32_t b[4];
        LoadMatrices(b, keys + (n * 16 + lane / 16 * 8 + lane % 8) * L::kRowBytes + (k * 2 + lane / 8 % 2) * 16);
        Multiply(scores[n * 2], queries[k], b[0], b[1]);
        Multiply(scores[n * 2 + 1], queries[k], b[2], b[3]);
      }
    }
    float most[2] = {kNone, kNone};
#pragma unroll
    for (int n = 0; n < kPositions / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int position = step * kPositions + n * 8 + lane % 4 * 2 + i % 2;
        scores[n][i] = position <= limit[i / 2] ? __fmul_rn(scores[n][i], scale) : kNone;
        most[i / 2] = fmaxf(most[i / 2], scores[n][i]);
      }
    }
    float shift[2], keep[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 1));
      most[i] = fmaxf(most[i], __shfl_xor_sync(~0u, most[i], 2));
      most[i] = fmaxf(most[i], span[i].most);
      // Nothing seen yet: all weights are 0.
      shift[i] = most[i] == kNone ? 0 : most[i];
      keep[i] = exp2f(span[i].most - shift[i]);
      span[i].most = most[i];
      span[i].weight = __fmul_rn(span[i].weight, keep[i]);
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] *= keep[i / 2];
    }
#pragma unroll
    for (int k = 0; k < kPositions / 16; ++k) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Row i % 2, positions 8 (i / 2) and on: the scores' layout is that of a product's left side.
        const float low = exp2f(scores[2 * k + i / 2][i % 2 * 2] - shift[i % 2]);
        const float high = exp2f(scores[2 * k + i / 2][i % 2 * 2 + 1] - shift[i % 2]);
        a[i] = Pack(low, high);
        const float2 rounded = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&a[i]));
        span[i % 2].weight = __fadd_rn(span[i % 2].weight, __fadd_rn(rounded.x, rounded.y));
      }
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        // Positions 0-7 and 8-15 of dimensions 0-7, then of 8-15.
        uint32_t b[4];
        LoadTransposed(b, values + (k * 16 + lane % 16) * L::kRowBytes + (n * 2 + lane / 16) * 16);
        Multiply(sums[n * 2], a, b[0], b[1]);
        Multiply(sums[n * 2 + 1], a, b[2], b[3]);
      }
    }
    __syncthreads();
    if (step + 1 < end && (step + 1) % kStepsOfSpan != 0) continue;

      // The span's end.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      span[i].weight += __shfl_xor_sync(~0u, span[i].weight, 1);
      span[i].weight += __shfl_xor_sync(~0u, span[i].weight, 2);
    }
    if (kernel.spans > 0) break;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (span[i].most == kNone) continue;
      const float2 by = Merge(total[i], span[i]);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& sum = totals[(n * 4 + i * 2 + j) * kThreads + thread];
          sum = MergeSum(sum, sums[n][i * 2 + j], by);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) span[i] = {};
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = 0;
    }
  }

#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (limit[i] < 0) continue;
    const size_t vector = static_cast<size_t>(row[i]) * args.num_heads + head[i];
    if (kernel.spans > 0) {
      float* out = kernel.partials + (vector * kernel.spans + blockIdx.z) * (kDim + 2);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<float2*>(out + n * 8 + lane % 4 * 2) = {sums[n][i * 2], sums[n][i * 2 + 1]};
      }
      if (lane % 4 == 0) *reinterpret_cast<float2*>(out + kDim) = {span[i].most, span[i].weight};
    } else {
      auto* out = static_cast<__nv_bfloat16*>(args.out) + vector * kDim;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const float low = totals[(n * 4 + i * 2) * kThreads + thread] / total[i].weight;
        const float high = totals[(n * 4 + i * 2 + 1) * kThreads + thread] / total[i].weight;
        *reinterpret_cast<uint32_t*>(out + n * 8 + lane % 4 * 2) = Pack(low, high);
      }
    }
  }
}

// Grid (tiles, vectors of a tile, KV heads): merges the spans of one vector; a thread a dimension.
template <int kDim>
__global__ void __launch_bounds__(kDim) MergeKernel(const __grid_constant__ AttentionKernelArgs kernel) {
  const CudaAttentionArgs& args = kernel.args;
  LetNextKernelStart();
  WaitForPreviousKernel();
  const AttentionTile tile = args.tiles[blockIdx.x];
  const AttentionSequence sequence = args.sequences[tile.sequence];
  const int group = args.num_heads / args.num_kv_heads, at = tile.first + blockIdx.y;
  if (at >= sequence.num_rows * group) return;
  const int row = sequence.first_row + at / group, head = blockIdx.z * group + at % group;
  const int spans = (sequence.position + at / group) / kSpanPositions + 1;
  const size_t vector = static_cast<size_t>(row) * args.num_heads + head;
  const float* partials = kernel.partials + vector * kernel.spans * (kDim + 2);
  Softmax total;
  float sum = 0;
  for (int i = 0; i < spans; ++i, partials += kDim + 2) {
    const float2 scale = Merge(total, {partials[kDim], partials[kDim + 1]});
    sum = MergeSum(sum, partials[threadIdx.x], scale);
  }
  static_cast<__nv_bfloat16*>(args.out)[vector * kDim + threadIdx.x] = __float2bfloat16(sum / total.weight);
}

template <int kDim, int kWarps>
cudaError_t LaunchTiles(const AttentionKernelArgs& kernel, cudaStream_t stream) {
  using L = Layout<kDim>;
  constexpr size_t kSharedBytes = kStages * L::kStageBytes + sizeof(float) * L::kSums * kWarps * 32;
  const cudaError_t allowed = AllowSharedMemory(AttentionKernel<kDim, kWarps>, kSharedBytes);
  if (allowed != cudaSuccess) return allowed;
  const CudaAttentionArgs& args = kernel.args;
  const dim3 grid(args.num_tiles, args.num_kv_heads, kernel.spans > 0 ? kernel.spans : 1);
  const cudaError_t error = Launch(AttentionKernel<kDim, kWarps>, {grid, kWarps * 32, kSharedBytes}, stream, kernel);
  if (error != cudaSuccess || kernel.spans == 0) return error;
  return Launch(MergeKernel<kDim>, {dim3(args.num_tiles, kWarps * kWarpVectors, args.num_kv_heads), kDim}, stream,
                kernel);
}

template <int kDim>
cudaError_t LaunchDim(const AttentionKernelArgs& kernel, cudaStream_t stream) {
  return kernel.args.tile_vectors == kFewVectors ? LaunchTiles<kDim, kFewVectors / kWarpVectors>(kernel, stream)
                                                 : LaunchTiles<kDim, kManyVectors / kWarpVectors>(kernel, stream);
}

}  // namespace

cudaError_t LaunchAttention(const AttentionKernelArgs& kernel, cudaStream_t stream) {
  switch (kernel.args.head_dim) {
    case 16:
      return LaunchDim<16>(kernel, stream);
    case 32:
      return LaunchDim<32>(kernel, stream);
    case 64:
      return LaunchDim<64>(kernel, stream);
    default:
      return LaunchDim<128>(kernel, stream);
  }
}

}  // namespace ballast::internal
