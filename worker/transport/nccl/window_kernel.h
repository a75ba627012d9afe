#ifndef BALLAST_WORKER_TRANSPORT_NCCL_WINDOW_KERNEL_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_WINDOW_KERNEL_H_

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstddef>

namespace ballast::internal {

// Fills `out` [ranks], device memory, with where the window lies in each rank's memory.
cudaError_t LaunchResolveWindow(ncclWindow_t window, int ranks, std::byte** out, cudaStream_t stream);

}  // namespace ballast::internal

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_WINDOW_KERNEL_H_
