// A kernel that faults. Useful for: what becomes of a process whose GPU has faulted.
#ifndef BALLAST_KERNELS_CUDA_TRAP_H_
#define BALLAST_KERNELS_CUDA_TRAP_H_

#include <cuda_runtime_api.h>

namespace ballast {

cudaError_t LaunchTrap(cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_TRAP_H_
