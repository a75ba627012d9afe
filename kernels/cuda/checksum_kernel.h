// What the host's half of the checksum kernel (checksum.cc) tells its device half (checksum.cu).
#ifndef BALLAST_KERNELS_CUDA_CHECKSUM_KERNEL_H_
#define BALLAST_KERNELS_CUDA_CHECKSUM_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ballast::internal {

inline constexpr size_t kChecksumChunk = 16384;
inline constexpr size_t kDigestAlign = 256;

struct ChecksumArgs {
  const void* data;
  size_t bytes;
  // Workspace: a counter, then the digests.
  uint32_t* done;
  uint64_t* digests;
  uint64_t* out;
};

cudaError_t LaunchChecksum(const ChecksumArgs& args, int chunks, int multiprocessors, cudaStream_t stream);

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_CHECKSUM_KERNEL_H_
