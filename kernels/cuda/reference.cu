#include <cuda_bf16.h>

#include "kernels/cuda/reference.h"

namespace ballast {
namespace {

constexpr int kThreads = 256;

__global__ void FillKernel(__nv_bfloat16* values, size_t count, uint64_t seed, float scale) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    // splitmix64
    uint64_t z = seed * 0x2545f4914f6cdd1dull + (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    z ^= z >> 31;
    values[i] = __float2bfloat16(scale * (static_cast<float>(z >> 40) * 0x1p-23f - 1));
  }
}

__device__ double WarpDot(const __nv_bfloat16* a, const __nv_bfloat16* b, int k) {
  double sum = 0;
  for (int i = threadIdx.x % 32; i < k; i += 32) {
    sum += static_cast<double>(__bfloat162float(a[i])) * static_cast<double>(__bfloat162float(b[i]));
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}

__device__ double WarpDot(const double* a, const __nv_bfloat16* b, int k) {
  double sum = 0;
  for (int i = threadIdx.x % 32; i < k; i += 32) sum += a[i] * static_cast<double>(__bfloat162float(b[i]));
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}

// A warp an output; grid (columns, rows).
__global__ void ProductKernel(const __nv_bfloat16* a, const int32_t* row, const __nv_bfloat16* b, int columns, int k,
                              double* out) {
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) / 32, r = blockIdx.y;
  if (column >= columns) return;
  const double v =
      WarpDot(a + static_cast<size_t>(row != nullptr ? row[r] : r) * k, b + static_cast<size_t>(column) * k, k);
  if (threadIdx.x % 32 == 0) out[static_cast<size_t>(r) * columns + column] = v;
}

__global__ void ActivationKernel(bool gated, const __nv_bfloat16* x, const int32_t* token, const void* const* weights,
                                 int h, int n, double* activations) {
  const int i = (blockIdx.x * blockDim.x + threadIdx.x) / 32, r = blockIdx.y;
  if (i >= n) return;
  const auto* w = static_cast<const __nv_bfloat16*>(weights[r]);
  const __nv_bfloat16* row = x + static_cast<size_t>(token[r]) * h;
  // Without gates, up.
  const double first = WarpDot(row, w + static_cast<size_t>(i) * h, h);
  const double second = gated ? WarpDot(row, w + static_cast<size_t>(n + i) * h, h) : 0;
  if (threadIdx.x % 32 == 0) {
    activations[static_cast<size_t>(r) * n + i] = gated ? first / (1 + exp(-first)) * second : fmax(first, 0.0);
  }
}

__global__ void DownKernel(bool gated, const double* activations, const void* const* weights, int h, int n,
                           double* out) {
  const int d = (blockIdx.x * blockDim.x + threadIdx.x) / 32, r = blockIdx.y;
  if (d >= h) return;
  const auto* w = static_cast<const __nv_bfloat16*>(weights[r]) + static_cast<size_t>(gated ? 2 : 1) * n * h;
  const double v = WarpDot(activations + static_cast<size_t>(r) * n, w + static_cast<size_t>(d) * n, n);
  if (threadIdx.x % 32 == 0) out[static_cast<size_t>(r) * h + d] = v;
}

__global__ void __launch_bounds__(512) ReadKernel(const uint4* data, size_t count, uint32_t* sink) {
  constexpr int kUnroll = 8;
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  uint32_t mixed = 0;
  for (; i + (kUnroll - 1) * stride < count; i += kUnroll * stride) {
    uint4 v[kUnroll];
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) v[j] = __ldcs(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < kUnroll; ++j) mixed ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < count; i += stride) mixed ^= data[i].x;
  if (mixed == 0x12345678) *sink = mixed;
}

dim3 WarpGrid(int columns, int rows) { return dim3((columns + kThreads / 32 - 1) / (kThreads / 32), rows); }

}  // namespace

cudaError_t FillUniformBf16(void* values, size_t count, uint64_t seed, float scale, cudaStream_t stream) {
  FillKernel<<<1056, kThreads, 0, stream>>>(static_cast<__nv_bfloat16*>(values), count, seed, scale);
  return cudaGetLastError();
}

cudaError_t ReferenceProduct(const void* a, const int32_t* row, int rows, const void* b, int columns, int k,
                             double* out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  ProductKernel<<<WarpGrid(columns, rows), kThreads, 0, stream>>>(
      static_cast<const __nv_bfloat16*>(a), row, static_cast<const __nv_bfloat16*>(b), columns, k, out);
  return cudaGetLastError();
}

cudaError_t ReferenceExperts(ExpertForm form, const void* x, const int32_t* token, const void* const* weights, int rows,
                             int hidden_size, int intermediate_size, double* activations, double* out,
                             cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const bool gated = form == ExpertForm::kSwiGlu;
  ActivationKernel<<<WarpGrid(intermediate_size, rows), kThreads, 0, stream>>>(
      gated, static_cast<const __nv_bfloat16*>(x), token, weights, hidden_size, intermediate_size, activations);
  DownKernel<<<WarpGrid(hidden_size, rows), kThreads, 0, stream>>>(gated, activations, weights, hidden_size,
                                                                   intermediate_size, out);
  return cudaGetLastError();
}

cudaError_t ReadAll(const void* data, size_t bytes, uint32_t* sink, cudaStream_t stream) {
  ReadKernel<<<132 * 4, 512, 0, stream>>>(static_cast<const uint4*>(data), bytes / 16, sink);
  return cudaGetLastError();
}

}  // namespace ballast
