// Products whose rows' bits depend on nothing but the row and the weights, for `exact`, on a GPU.
#ifndef BALLAST_KERNELS_CUDA_INVARIANT_H_
#define BALLAST_KERNELS_CUDA_INVARIANT_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/experts.h"

namespace ballast {

// Both are products of bf16 by tensor cores, each output one chain of sums in float32 over the inputs in order,
// whatever the number of rows, their place or the groups: no sum is split. That keeps most of the device waiting when
// rows and outputs are few. Enqueued on the stream, may be captured. Errors: InvalidArgument, naming field, value and
// limit; what the launch says.
//
// Roofline: a group's weights, read once for every 64 rows, over read bandwidth, or 2 flops a (row, weight) over the
// tensor cores' rate by mma.sync, about 60 % of the device's; multiprocessors that have none of the tiles of 64 outputs
// by 64 rows do nothing.

// out[r] = W x[r]: x [rows][inputs] bf16, weights [outputs][inputs] bf16, out [rows][outputs] f32. x and weights
// 16-byte aligned, inputs a multiple of 8.
absl::Status InvariantProduct(const void* x, const void* weights, int rows, int inputs, int outputs, float* out,
                              cudaStream_t stream);

// CudaExperts::Run for slots in the form kSwiGlu. `activations`: [max_rows][I] bf16 of device memory, 16-byte aligned;
// begin[num_groups] is at most max_rows.
absl::Status InvariantExperts(const ExpertArena& arena, const ExpertsStep& step, void* activations, int max_rows,
                              cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_INVARIANT_H_
