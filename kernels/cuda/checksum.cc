#include "kernels/cuda/checksum.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/checksum_kernel.h"
#include "kernels/cuda/status.h"

namespace ballast {
namespace {

constexpr size_t kHeaderBytes = 256;

int Chunks(size_t bytes) { return static_cast<int>(std::max<size_t>(1, bytes / internal::kChecksumChunk)); }

absl::Status Field(const char* name, uint64_t value, const char* limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

}  // namespace

size_t ChecksumExpertWorkspaceBytes(size_t bytes) {
  return kHeaderBytes + sizeof(uint64_t) * 8 * internal::DigestBlocks(Chunks(bytes));
}

absl::Status ChecksumExpert(const void* data, size_t bytes, uint64_t* out, void* workspace, cudaStream_t stream) {
  if (bytes < 256 || bytes % 64 != 0) return Field("bytes", bytes, "a multiple of 64 and at least 256");
  if (bytes > size_t{1} << 40) return Field("bytes", bytes, "at most 2^40");
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    return Field("data", reinterpret_cast<uintptr_t>(data), "an address on 16 bytes");
  }
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return CudaStatus(error, "the device's multiprocessors");
  auto* words = static_cast<uint8_t*>(workspace);
  const internal::ChecksumArgs args = {
      data, bytes, Chunks(bytes), reinterpret_cast<uint32_t*>(words), reinterpret_cast<uint64_t*>(words + kHeaderBytes),
      out};
  return CudaStatus(internal::LaunchChecksum(args, multiprocessors, stream), "the checksum kernel");
}

}  // namespace ballast
