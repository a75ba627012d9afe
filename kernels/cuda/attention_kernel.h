// What the host's half of the attention kernels (attention.cc) tells its device half (attention.cu).
#ifndef BALLAST_KERNELS_CUDA_ATTENTION_KERNEL_H_
#define BALLAST_KERNELS_CUDA_ATTENTION_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ballast {

// One sequence's rows of a step: rows [first_row, first_row + num_rows) are at consecutive positions from `position`.
struct AttentionSequence {
  int32_t first_row;
  int32_t num_rows;
  int32_t position;
  // blocks[first_block + i] has the sequence's positions [16 i, 16 i + 16).
  int32_t first_block;
};

// A piece of work: query vectors from `first` on of a sequence. Vector v of a KV head is query head v % (h / g) of its
// h / g heads, of the sequence's row v / (h / g).
struct AttentionTile {
  int32_t sequence;
  int32_t first;
};

// h = num_heads, g = num_kv_heads, d = head_dim. All pointers are device memory, q, cache and out 16-byte aligned.
struct CudaAttentionArgs {
  // [rows][h d] bf16.
  const void* q = nullptr;
  // A layer's part of block b begins at cache + b * block_stride, in elements (bf16, a multiple of 8): for each KV
  // head, the keys [16 positions][d], then the values [16 positions][d].
  const void* cache = nullptr;
  size_t block_stride = 0;
  const AttentionSequence* sequences = nullptr;
  const int32_t* blocks = nullptr;
  // Together every vector of every sequence, `tile_vectors` (or what is left) each.
  const AttentionTile* tiles = nullptr;
  int num_tiles = 0;
  // kFewVectors or kManyVectors.
  int tile_vectors = 0;
  int rows = 0;
  // At least each row's position + 1.
  int max_positions = 0;
  int num_heads = 0;
  // Divides num_heads.
  int num_kv_heads = 0;
  // 16, 32, 64 or 128.
  int head_dim = 0;
  // [rows][h d] bf16, out.
  void* out = nullptr;
};

// Where no sequence has more than so many vectors a KV head, tiles of the first are faster.
inline constexpr int kFewVectors = 16;
inline constexpr int kManyVectors = 64;

namespace internal {

// Positions of a block of the cache: kKvBlockPositions of kernels/attention.h.
inline constexpr int kCachePositions = 16;
// Positions whose sums are made apart from those of others, then merged in order.
inline constexpr int kSpanPositions = 256;

struct AttentionKernelArgs {
  CudaAttentionArgs args;
  // 0: a block has all spans of its tile. Else a block has one, and leaves it in `partials`, room for so many of each
  // (row, head): d sums, the largest score, the sum of weights.
  int spans;
  float* partials;
};
cudaError_t LaunchAttention(const AttentionKernelArgs& args, cudaStream_t stream);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_ATTENTION_KERNEL_H_
