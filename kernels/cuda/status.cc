#include "kernels/cuda/status.h"

#include "absl/strings/str_cat.h"

namespace ballast {

absl::Status CudaStatus(cudaError_t error, std::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrCat(absl::string_view(what.data(), what.size()), ": ", cudaGetErrorName(error),
                                           ": ", cudaGetErrorString(error));
  switch (error) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
      return absl::InvalidArgumentError(message);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
      return absl::UnavailableError(message);
    case cudaErrorLaunchTimeout:
      return absl::DeadlineExceededError(message);
    default:
      return absl::InternalError(message);
  }
}

bool IsFault(cudaError_t error) {
  switch (error) {
    case cudaErrorAssert:
    case cudaErrorContextIsDestroyed:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorMpsClientTerminated:
    case cudaErrorNvlinkUncorrectable:
      return true;
    default:
      return false;
  }
}

absl::Status DeviceLost() {
  // Neither waits or does anything, and both tell of a fault, as every call does after one.
  for (const cudaError_t error : {cudaStreamQuery(cudaStreamLegacy), cudaFree(nullptr)}) {
    if (IsFault(error)) return CudaStatus(error, "this process has lost the device");
  }
  return absl::OkStatus();
}

}  // namespace ballast
