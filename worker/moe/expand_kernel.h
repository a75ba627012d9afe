// Copies of rows, on a GPU.
#ifndef BALLAST_WORKER_MOE_EXPAND_KERNEL_H_
#define BALLAST_WORKER_MOE_EXPAND_KERNEL_H_

#include <cuda_runtime_api.h>

namespace ballast {

// out[i] = rows[i / copies]: `num_rows` rows of `hidden_size` bf16, a multiple of 8, 16-byte aligned, each `copies`
// times. Enqueued, may be captured.
cudaError_t LaunchExpandRows(const void* rows, int num_rows, int copies, int hidden_size, void* out,
                             cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_EXPAND_KERNEL_H_
