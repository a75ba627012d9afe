// The checksum of an expert's weights in device memory.
#ifndef BALLAST_KERNELS_CUDA_CHECKSUM_H_
#define BALLAST_KERNELS_CUDA_CHECKSUM_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace ballast {

// Bytes of a workspace for ChecksumExpert: zeroed once by the owner, then the kernel's own; 256-byte aligned. The calls
// that share one have to be of one stream, and of one size.
size_t ChecksumExpertWorkspaceBytes(size_t bytes);

// out[0], out[1] (device memory) = `low` and `high` of ComputeExpertChecksum (worker/model/checksum.h) of `bytes` bytes
// at `data`: XXH3-128 of the XXH3-128 of chunks (Collet, xxHash 0.8). `data` is 16-byte aligned; `bytes` a multiple of
// 64 and at least 256, as every expert's. Enqueued on the stream, one kernel, may be captured.
//
// Roofline: reads the bytes once, over read bandwidth; the chain of the digests' own checksum, about 20 ns for each MB,
// follows in one warp.
//
// Errors: InvalidArgument, naming field, value and limit; what the launch says.
absl::Status ChecksumExpert(const void* data, size_t bytes, uint64_t* out, void* workspace, cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_CHECKSUM_H_
