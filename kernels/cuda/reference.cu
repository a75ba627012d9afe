#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/fp8_scale.h"
#include "kernels/cuda/reference.h"

namespace ballast {
namespace {

constexpr int kThreads = 256;

// In [-1, 1).
__device__ float Uniform(uint64_t seed, size_t i) {
  // splitmix64
  uint64_t z = seed * 0x2545f4914f6cdd1dull + (i + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * 0x1p-23f - 1;
}

__device__ void Put(__nv_bfloat16& to, float v) { to = __float2bfloat16(v); }
__device__ void Put(__nv_fp8_e4m3& to, float v) { to = __nv_fp8_e4m3(v); }
__device__ void Put(float& to, float v) { to = v; }

template <typename T>
__global__ void FillKernel(T* values, size_t count, uint64_t seed, float scale, float middle) {
  const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    Put(values[i], middle + scale * Uniform(seed, i));
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

// Element i of row r of e4m3 [rows][k], times its scale: of row scale_row of scales [][ceil(k/128)].
__device__ double Element(const void* rows, const float* scales, int64_t r, int k, int i, int64_t scale_row) {
  const int blocks = (k + kScaleBlock - 1) / kScaleBlock;
  const float v = static_cast<float>(static_cast<const __nv_fp8_e4m3*>(rows)[r * k + i]);
  return static_cast<double>(v) * scales[scale_row * blocks + i / kScaleBlock];
}

// An expert's matrices and scales in its slot.
struct Fp8Slot {
  __device__ Fp8Slot(const void* slot, int h, int n) : bytes(static_cast<const uint8_t*>(slot)), h(h), n(n) {
    scales = reinterpret_cast<const float*>(bytes + 3ll * h * n);
  }
  __device__ int64_t ScaleRows(int rows) const { return (rows + kScaleBlock - 1) / kScaleBlock; }
  __device__ double GateUp(bool up, int row, int i) const {
    return Element(bytes, scales, (up ? n : 0) + row, h, i, (up ? ScaleRows(n) : 0) + row / kScaleBlock);
  }
  __device__ double Down(int row, int i) const {
    return Element(bytes + 2ll * h * n, scales + 2 * ScaleRows(n) * ScaleRows(h), row, n, i, row / kScaleBlock);
  }

  const uint8_t* bytes;
  const float* scales;
  int h, n;
};

__device__ double WarpSum(double sum) {
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}

__global__ void Fp8ActivationKernel(const void* x, const float* x_scales, const int32_t* token,
                                    const void* const* weights, int h, int n, double* activations) {
  const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, r = blockIdx.y;
  if (row >= n) return;
  const Fp8Slot slot(weights[r], h, n);
  double gate = 0, up = 0;
  for (int i = threadIdx.x % 32; i < h; i += 32) {
    const double v = Element(x, x_scales, token[r], h, i, token[r]);
    gate += v * slot.GateUp(false, row, i);
    up += v * slot.GateUp(true, row, i);
  }
  gate = WarpSum(gate);
  up = WarpSum(up);
  if (threadIdx.x % 32 == 0) activations[static_cast<size_t>(r) * n + row] = gate / (1 + exp(-gate)) * up;
}

// A thread a block of a row.
__global__ void Fp8RoundKernel(double* activations, int n) {
  const int first = (blockIdx.x * blockDim.x + threadIdx.x) * kScaleBlock, end = min(first + kScaleBlock, n);
  double* row = activations + static_cast<size_t>(blockIdx.y) * n;
  double largest = 0;
  for (int i = first; i < end; ++i) largest = fmax(largest, fabs(row[i]));
  const float scale = internal::Fp8Scale(static_cast<float>(largest));
  for (int i = first; i < end; ++i) {
    row[i] = static_cast<double>(static_cast<float>(__nv_fp8_e4m3(row[i] / scale))) * scale;
  }
}

__global__ void Fp8DownKernel(const double* activations, const void* const* weights, int h, int n, double* out) {
  const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, r = blockIdx.y;
  if (row >= h) return;
  const Fp8Slot slot(weights[r], h, n);
  double sum = 0;
  for (int i = threadIdx.x % 32; i < n; i += 32) sum += activations[static_cast<size_t>(r) * n + i] * slot.Down(row, i);
  sum = WarpSum(sum);
  if (threadIdx.x % 32 == 0) out[static_cast<size_t>(r) * h + row] = sum;
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
  FillKernel<<<1056, kThreads, 0, stream>>>(static_cast<__nv_bfloat16*>(values), count, seed, scale, 0);
  return cudaGetLastError();
}

cudaError_t FillUniformE4m3(void* values, size_t count, uint64_t seed, float scale, cudaStream_t stream) {
  FillKernel<<<1056, kThreads, 0, stream>>>(static_cast<__nv_fp8_e4m3*>(values), count, seed, scale, 0);
  return cudaGetLastError();
}

cudaError_t FillUniformFloat(float* values, size_t count, uint64_t seed, float low, float high, cudaStream_t stream) {
  FillKernel<<<8, kThreads, 0, stream>>>(values, count, seed, (high - low) / 2, (high + low) / 2);
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

cudaError_t ReferenceExpertsFp8(const void* x, const float* x_scales, const int32_t* token, const void* const* weights,
                                int rows, int hidden_size, int intermediate_size, double* activations, double* out,
                                cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  Fp8ActivationKernel<<<WarpGrid(intermediate_size, rows), kThreads, 0, stream>>>(
      x, x_scales, token, weights, hidden_size, intermediate_size, activations);
  const int blocks = (intermediate_size + kScaleBlock - 1) / kScaleBlock;
  Fp8RoundKernel<<<dim3((blocks + kThreads - 1) / kThreads, rows), kThreads, 0, stream>>>(activations,
                                                                                          intermediate_size);
  Fp8DownKernel<<<WarpGrid(hidden_size, rows), kThreads, 0, stream>>>(activations, weights, hidden_size,
                                                                      intermediate_size, out);
  return cudaGetLastError();
}

cudaError_t ReadAll(const void* data, size_t bytes, uint32_t* sink, cudaStream_t stream) {
  ReadKernel<<<132 * 4, 512, 0, stream>>>(static_cast<const uint4*>(data), bytes / 16, sink);
  return cudaGetLastError();
}

}  // namespace ballast
