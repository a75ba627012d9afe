// Owned device memory.
#ifndef BALLAST_KERNELS_CUDA_MEMORY_H_
#define BALLAST_KERNELS_CUDA_MEMORY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"

namespace ballast {

struct DeviceFree {
  void operator()(void* p) const { cudaFree(p); }
};

// Memory of the GPU that was current, 256-byte aligned.
using DeviceMemory = std::unique_ptr<void, DeviceFree>;

// Not cleared. `what` names it in errors: ResourceExhausted, and what CudaStatus has.
inline absl::StatusOr<DeviceMemory> AllocateDevice(size_t bytes, const char* what) {
  void* p = nullptr;
  const absl::Status status =
      CudaStatus(cudaMalloc(&p, bytes > 0 ? bytes : 1), absl::StrCat(bytes, " bytes of device memory for ", what));
  if (!status.ok()) return status;
  return DeviceMemory(p);
}

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_MEMORY_H_
