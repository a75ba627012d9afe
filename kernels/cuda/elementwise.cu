#include <cuda_bf16.h>

#include "kernels/cuda/attention_kernel.h"
#include "kernels/cuda/elementwise_kernel.h"
#include "kernels/cuda/launch.h"

namespace ballast::internal {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
// Neighbouring elements of a thread: 16 bytes of f32.
constexpr int kColumns = 4;
constexpr int kMaxVectors = kMaxNormWidth / (kThreads * kColumns);

// The same bits in every lane.
__device__ float WarpSum(float v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(~0u, v, distance);
  return v;
}

// The same bits in every thread; `sums` is shared memory of kWarps floats, free before and used after.
__device__ float BlockSum(float v, float* sums) {
  v = WarpSum(v);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w];
  return total;
}

__device__ void Add(float4& to, float4 v) {
  to.x += v.x;
  to.y += v.y;
  to.z += v.z;
  to.w += v.w;
}

__device__ float4 Load4(const void* rows, bool bf16, size_t at) {
  if (!bf16) return *reinterpret_cast<const float4*>(static_cast<const float*>(rows) + at);
  const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(rows) + at);
  const float2 a = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v.x));
  const float2 b = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v.y));
  return {a.x, a.y, b.x, b.y};
}

__device__ void Store4(void* out, size_t at, float4 v) {
  uint2 packed;
  *reinterpret_cast<__nv_bfloat162*>(&packed.x) = __floats2bfloat162_rn(v.x, v.y);
  *reinterpret_cast<__nv_bfloat162*>(&packed.y) = __floats2bfloat162_rn(v.z, v.w);
  *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(out) + at) = packed;
}

__global__ void __launch_bounds__(kThreads) NormKernel(const __grid_constant__ CudaNormArgs args) {
  __shared__ float sums[kWarps];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const size_t row = blockIdx.x, width = args.hidden_size;
  const size_t from = (args.gather != nullptr ? args.gather[row] : row) * width;
  float4 v[kMaxVectors];
  float squares = 0;
#pragma unroll
  for (int i = 0; i < kMaxVectors; ++i) {
    const int column = (i * kThreads + threadIdx.x) * kColumns;
    if (column >= args.hidden_size) break;
    v[i] = Load4(args.source, args.source_bf16, from + column);
    if (args.delta != nullptr) Add(v[i], Load4(args.delta, args.delta_bf16, from + column));
    if (args.bias != nullptr) Add(v[i], Load4(args.bias, false, column));
    if (args.sum != nullptr) *reinterpret_cast<float4*>(args.sum + row * width + column) = v[i];
    squares = fmaf(v[i].x, v[i].x, squares);
    squares = fmaf(v[i].y, v[i].y, squares);
    squares = fmaf(v[i].z, v[i].z, squares);
    squares = fmaf(v[i].w, v[i].w, squares);
  }
  const float scale = 1 / sqrtf(BlockSum(squares, sums) / static_cast<float>(args.hidden_size) + args.epsilon);
#pragma unroll
  for (int i = 0; i < kMaxVectors; ++i) {
    const int column = (i * kThreads + threadIdx.x) * kColumns;
    if (column >= args.hidden_size) break;
    const float4 w = Load4(args.weight, false, column);
    Store4(args.out, row * width + column,
           {v[i].x * scale * w.x, v[i].y * scale * w.y, v[i].z * scale * w.z, v[i].w * scale * w.w});
  }
}

// Sum of squares of all heads of the queries or keys.
__device__ float SquaresOf(const float* x, const float* bias, int width) {
  float squares = 0;
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const float v = x[i] + (bias != nullptr ? bias[i] : 0);
    squares = fmaf(v, v, squares);
  }
  return squares;
}

// Grid (rows, heads of queries, keys and values by kWarps): a warp a head. Lane i has the pairs i, i + 32, ... of the
// head's halves.
__global__ void __launch_bounds__(kThreads) QkvKernel(const __grid_constant__ CudaQkvArgs args) {
  constexpr int kMaxPairs = 2;  // of a lane: heads of up to 128
  __shared__ float sums[2][kWarps];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int lane = threadIdx.x % 32, half = args.head_dim / 2;
  const int q_width = args.num_heads * args.head_dim, kv_width = args.num_kv_heads * args.head_dim;
  const size_t row = blockIdx.x;
  const float* qkv = args.qkv + row * (q_width + 2 * kv_width);
  float all[2] = {};
  if (args.norm == CudaHeadNorm::kAll) {
    all[0] = BlockSum(SquaresOf(qkv, args.bias, q_width), sums[0]);
    all[1] =
        BlockSum(SquaresOf(qkv + q_width, args.bias != nullptr ? args.bias + q_width : nullptr, kv_width), sums[1]);
  }
  const int head = blockIdx.y * kWarps + threadIdx.x / 32;
  if (head >= args.num_heads + 2 * args.num_kv_heads) return;
  const bool is_q = head < args.num_heads, is_v = head >= args.num_heads + args.num_kv_heads;
  const int own = is_q ? head : (head - args.num_heads) % args.num_kv_heads;
  const int at = head * args.head_dim;
  float low[kMaxPairs] = {}, high[kMaxPairs] = {}, squares = 0;
#pragma unroll
  for (int i = 0; i < kMaxPairs; ++i) {
    const int j = i * 32 + lane;
    if (j >= half) break;
    low[i] = qkv[at + j] + (args.bias != nullptr ? args.bias[at + j] : 0);
    high[i] = qkv[at + half + j] + (args.bias != nullptr ? args.bias[at + half + j] : 0);
    squares = fmaf(low[i], low[i], squares);
    squares = fmaf(high[i], high[i], squares);
  }
  if (args.norm != CudaHeadNorm::kNone && !is_v) {
    const bool by_head = args.norm == CudaHeadNorm::kHead;
    const float sum = by_head ? WarpSum(squares) : all[is_q ? 0 : 1];
    const int width = by_head ? args.head_dim : is_q ? q_width : kv_width;
    const float scale = 1 / sqrtf(sum / static_cast<float>(width) + args.epsilon);
    const float* weight = (is_q ? args.q_weight : args.k_weight) + (by_head ? 0 : own * args.head_dim);
#pragma unroll
    for (int i = 0; i < kMaxPairs; ++i) {
      const int j = i * 32 + lane;
      if (j >= half) break;
      low[i] *= scale * weight[j];
      high[i] *= scale * weight[half + j];
    }
  }
  const int position = args.position[row];
  auto* out = static_cast<__nv_bfloat16*>(args.q) + row * q_width + at;
  if (!is_q) {
    // Of each KV head, a block has the keys of its positions, then the values.
    out = static_cast<__nv_bfloat16*>(args.cache) + static_cast<size_t>(args.block[row]) * args.block_stride +
          ((own * 2 + is_v) * kCachePositions + position % kCachePositions) * args.head_dim;
  }
#pragma unroll
  for (int i = 0; i < kMaxPairs; ++i) {
    const int j = i * 32 + lane;
    if (j >= half) break;
    float a = fminf(fmaxf(low[i], -args.clip), args.clip), b = fminf(fmaxf(high[i], -args.clip), args.clip);
    if (!is_v) {
      const size_t angle = static_cast<size_t>(position) * half + j;
      const float cosine = args.cosine[angle], sine = args.sine[angle];
      const float turned = a * cosine - b * sine;
      b = b * cosine + a * sine;
      a = turned;
    }
    out[j] = __float2bfloat16(a);
    out[half + j] = __float2bfloat16(b);
  }
}

__global__ void __launch_bounds__(kThreads) SwiGluKernel(const float* gate_up, int rows, int width, void* out) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const size_t vectors = static_cast<size_t>(rows) * width / kColumns;
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= vectors) return;
  const size_t row = i * kColumns / width, column = i * kColumns % width;
  const float4 gate = Load4(gate_up, false, row * 2 * width + column);
  const float4 up = Load4(gate_up, false, row * 2 * width + width + column);
  const auto silu = [](float v) { return v / (1 + __expf(-v)); };
  Store4(out, i * kColumns, {silu(gate.x) * up.x, silu(gate.y) * up.y, silu(gate.z) * up.z, silu(gate.w) * up.w});
}

}  // namespace

cudaError_t LaunchNorm(const CudaNormArgs& args, cudaStream_t stream) {
  return Launch(NormKernel, {dim3(args.rows), kThreads}, stream, args);
}

cudaError_t LaunchQkv(const CudaQkvArgs& args, cudaStream_t stream) {
  const int heads = args.num_heads + 2 * args.num_kv_heads;
  return Launch(QkvKernel, {dim3(args.rows, (heads + kWarps - 1) / kWarps), kThreads}, stream, args);
}

cudaError_t LaunchSwiGlu(const float* gate_up, int rows, int width, void* out, cudaStream_t stream) {
  const size_t vectors = static_cast<size_t>(rows) * width / kColumns;
  return Launch(SwiGluKernel, {dim3(static_cast<unsigned>((vectors + kThreads - 1) / kThreads)), kThreads}, stream,
                gate_up, rows, width, out);
}

}  // namespace ballast::internal
