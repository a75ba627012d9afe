// The cell of the Simple Recurrent Unit on a GPU.
#ifndef BALLAST_KERNELS_CUDA_SRU_H_
#define BALLAST_KERNELS_CUDA_SRU_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/cuda/sru_kernel.h"

namespace ballast {

// Lei, Zhang, Wang, Dai and Artzi, "Simple Recurrent Units for Highly Parallelizable Recurrence" (2018). With (u, p, q)
// the gates' products, v and b the weights and biases, c the state:
//   f = sigmoid(p + v_f c + b_f)    r = sigmoid(q + v_r c + b_r)
//   c' = f c + (1 - f) u            h = r g(c') + (1 - r) s
// where g is the identity or tanh and s the highway's part. In float32; h is rounded to bf16. The products, all steps
// at once, are a matrix product that comes before.
//
// Roofline: for each step and unit reads 2 gate_blocks bytes and 2 of x where it is used, writes 2, over memory
// bandwidth; below about 80,000 units (batch times width) bound by the latency of the steps, about 0.2 us each.
//
// Enqueued on the stream, one kernel, may be captured. Errors: InvalidArgument, naming field, value and limit; what the
// launch says.
absl::Status RunSru(const SruArgs& args, cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_SRU_H_
