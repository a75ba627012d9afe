// Plain float64 references of the kernels on the device, and random inputs, for tests and benchmarks.
#ifndef BALLAST_KERNELS_CUDA_REFERENCE_H_
#define BALLAST_KERNELS_CUDA_REFERENCE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/experts_kernel.h"

namespace ballast {

// values[i] = bf16, uniform in [-scale, scale), a function of (seed, i).
cudaError_t FillUniformBf16(void* values, size_t count, uint64_t seed, float scale, cudaStream_t stream);

// values[i] = e4m3 and float32, of the same distribution; float32 in [low, high).
cudaError_t FillUniformE4m3(void* values, size_t count, uint64_t seed, float scale, cudaStream_t stream);
cudaError_t FillUniformFloat(float* values, size_t count, uint64_t seed, float low, float high, cudaStream_t stream);

// out[n] = sum over k of a[n] b[m], float64: a is [rows][K] bf16, taken at row[r] (nullptr: r); b [columns][K] bf16;
// out [rows][columns].
cudaError_t ReferenceProduct(const void* a, const int32_t* row, int rows, const void* b, int columns, int k,
                             double* out, cudaStream_t stream);

// For rows r of [0, rows): out[r] = the output for x[token[r]] of the expert at weights[r] (slot layout of `form`),
// everything in float64. activations is [rows][I], out [rows][H]; pointers of device memory.
cudaError_t ReferenceExperts(ExpertForm form, const void* x, const int32_t* token, const void* const* weights, int rows,
                             int hidden_size, int intermediate_size, double* activations, double* out,
                             cudaStream_t stream);

// The same for kSwiGluFp8: x is [tokens][H] e4m3 with x_scales, [tokens][ceil(H/128)]. Activations are float64 numbers
// that have been rounded to e4m3 times their scales, as the kernel rounds them.
cudaError_t ReferenceExpertsFp8(const void* x, const float* x_scales, const int32_t* token, const void* const* weights,
                                int rows, int hidden_size, int intermediate_size, double* activations, double* out,
                                cudaStream_t stream);

// Reads `bytes` once and does next to nothing with them: the device's read bandwidth. sink is one uint32_t.
cudaError_t ReadAll(const void* data, size_t bytes, uint32_t* sink, cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_REFERENCE_H_
