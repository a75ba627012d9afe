#include "kernels/cuda/status.h"

#include <gtest/gtest.h>

#include "kernels/cuda/trap.h"

namespace ballast {
namespace {

TEST(CudaStatusTest, FaultsAreWhatNoLaterCallIsRidOf) {
  for (const cudaError_t error : {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorECCUncorrectable,
                                  cudaErrorHardwareStackError, cudaErrorAssert, cudaErrorMisalignedAddress}) {
    EXPECT_TRUE(IsFault(error)) << cudaGetErrorName(error);
  }
  for (const cudaError_t error : {cudaSuccess, cudaErrorNotReady, cudaErrorMemoryAllocation, cudaErrorInvalidValue,
                                  cudaErrorInvalidConfiguration, cudaErrorNoDevice, cudaErrorPeerAccessUnsupported}) {
    EXPECT_FALSE(IsFault(error)) << cudaGetErrorName(error);
  }
}

// The only one that needs a GPU, and the last one: the process has no use of it any more.
TEST(DeviceLostTest, AfterAFaultAlone) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 1) GTEST_SKIP() << "no GPU";
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  EXPECT_EQ(DeviceLost(), absl::OkStatus());
  // A call's own error is none of the device's.
  void* memory = nullptr;
  EXPECT_NE(cudaMalloc(&memory, size_t{1} << 60), cudaSuccess);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);  // else the launch below would give it
  EXPECT_EQ(DeviceLost(), absl::OkStatus());
  ASSERT_EQ(LaunchTrap(stream), cudaSuccess);
  EXPECT_NE(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(DeviceLost().code(), absl::StatusCode::kInternal) << DeviceLost();
  // It stays so.
  EXPECT_FALSE(DeviceLost().ok());
}

}  // namespace
}  // namespace ballast
