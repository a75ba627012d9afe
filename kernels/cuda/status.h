// The CUDA runtime's errors as absl::Status.
#ifndef BALLAST_KERNELS_CUDA_STATUS_H_
#define BALLAST_KERNELS_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include <string_view>

#include "absl/status/status.h"

namespace ballast {

// OK, or "`what`: the runtime's name and text" with these codes:
//   ResourceExhausted   out of device memory
//   InvalidArgument     the call's arguments
//   Unavailable         no device, or no driver that serves this runtime
//   DeadlineExceeded    the kernel was ended by a time limit
//   Internal            anything else. After a fault in a kernel (illegal address and the like) the process can use the
//                       device no more
absl::Status CudaStatus(cudaError_t error, std::string_view what);

// An error that every later call of the process repeats.
bool IsFault(cudaError_t error);

// OK, or why the current device is of no use to this process any more: a kernel has faulted, or the device itself. To
// be asked after an error, from the thread that it came to; waits for nothing.
absl::Status DeviceLost();

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_STATUS_H_
