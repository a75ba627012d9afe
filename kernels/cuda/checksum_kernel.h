// What the host's half of the checksum kernel (checksum.cc) tells its device half (checksum.cu).
#ifndef BALLAST_KERNELS_CUDA_CHECKSUM_KERNEL_H_
#define BALLAST_KERNELS_CUDA_CHECKSUM_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ballast::internal {

inline constexpr size_t kChecksumChunk = 16384;
// Bytes of a block of XXH3.
inline constexpr size_t kDigestBlock = 1024;

// Digests of 16 bytes, padded to 256 bytes, and the blocks that they make.
constexpr int DigestSlots(int chunks) { return (chunks + 15) / 16 * 16; }
constexpr int DigestBlocks(int chunks) { return (chunks + 63) / 64; }

struct ChecksumArgs {
  const void* data;
  size_t bytes;
  int chunks;
  // Workspace, zeros between calls: chunks that are done, and what each block of digests adds to the eight sums.
  uint32_t* done;
  uint64_t* added;
  uint64_t* out;
};

cudaError_t LaunchChecksum(const ChecksumArgs& args, int multiprocessors, cudaStream_t stream);

}  // namespace ballast::internal

#endif  // BALLAST_KERNELS_CUDA_CHECKSUM_KERNEL_H_
