// Causal grouped-query attention over paged keys and values on a GPU.
#ifndef BALLAST_KERNELS_CUDA_ATTENTION_H_
#define BALLAST_KERNELS_CUDA_ATTENTION_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "absl/status/status.h"
#include "kernels/cuda/attention_kernel.h"

namespace ballast {

// out = softmax(q k / sqrt(d)) v over the positions up to each row's own; rows of prefill and of decode alike. Products
// of bf16 by tensor cores, summed in float32; softmax over 64 positions at a time with a running maximum (Milakov,
// Gimelshein, "Online normalizer calculation for softmax", 2018), its weights rounded to bf16 before they meet values
// (Dao, "FlashAttention-2", 2023). Each span of 256 positions, counted from the sequence's first, has sums of its own,
// which are merged in order.
//
// A row's bits depend on its queries and on the keys and values up to its position alone: not on the tiles, nor on
// whether spans are shared out to blocks, which is done where tiles are few and `workspace` has room for it.
//
// Enqueued on the stream, one or two kernels, may be captured: reads positions from device memory, and of the host's
// arguments the number of tiles and, rounded up to a power of two, of spans decide what is launched.
//
// Roofline: 4 d bytes for each (KV head, position) and sequence, read once for every tile_vectors vectors, over read
// bandwidth; 4 d flops for each (query head, position of it) over the tensor cores' rate by mma.sync, about 60 % of the
// device's. Decode is bound by the first.
//
// Errors: InvalidArgument, naming field, value and limit; what the launch says.
absl::Status Attend(const CudaAttentionArgs& args, void* workspace, size_t workspace_bytes, cudaStream_t stream);

// The workspace with which `rows` rows of up to max_positions positions share out their spans wherever that helps.
size_t AttentionWorkspaceBytes(int rows, int num_heads, int head_dim, int max_positions);

// Elements of one layer's part of a block.
constexpr size_t AttentionBlockElements(int num_kv_heads, int head_dim) {
  return size_t{2} * internal::kCachePositions * num_kv_heads * head_dim;
}

namespace internal {

// InvalidArgument for heads that the kernels do not serve.
absl::Status CheckHeads(int num_heads, int num_kv_heads, int head_dim);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_ATTENTION_H_
