// What a decoder does to rows between its products, on a GPU: embedding, residual and norm; queries, keys and values.
#ifndef BALLAST_KERNELS_CUDA_ELEMENTWISE_H_
#define BALLAST_KERNELS_CUDA_ELEMENTWISE_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/elementwise_kernel.h"

namespace ballast {

// All of these are enqueued on the stream, one kernel each, and may be captured. Arithmetic is in float32, results in
// bf16 are rounded once, and a row's bits depend on the row alone. Errors: InvalidArgument, naming field, value and
// limit; what the launch says.

// sum = source + delta + bias; out = sum / sqrt(mean(sum^2) + epsilon) * weight (RMSNorm). With source an embedding and
// gather the tokens it begins a step; with gather the rows whose logits are wanted it ends one.
//
// Roofline: reads 4 H (2 H of bf16) for each of source and delta, writes 4 H of sum and 2 H, for each row, at the
// memory's speed (L2's in decode); below about 500 rows bound by latency, about 3 us.
absl::Status NormRows(const CudaNormArgs& args, cudaStream_t stream);

// Norms, clamps and turns queries and keys (rotary positions, RotaryTable's pairs), rounds them to bf16, and stores
// keys and values at the rows' positions of the cache.
//
// Roofline: reads 4 (h + 2 g) d and writes 2 of it for each row, at the memory's speed; below about 500 rows bound by
// latency, about 3 us.
absl::Status StoreQkv(const CudaQkvArgs& args, cudaStream_t stream);

// out[r][i] = silu(gate_up[r][i]) * gate_up[r][width + i], bf16, of a dense layer; width a multiple of 8.
// Roofline: reads 8 and writes 2 bytes an output, at the memory's speed.
absl::Status SwiGluRows(const float* gate_up, int rows, int width, void* out, cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_ELEMENTWISE_H_
