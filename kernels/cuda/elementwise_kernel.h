// What the host's half of the decoder's elementwise kernels (elementwise.cc) tells its device half (elementwise.cu).
#ifndef BALLAST_KERNELS_CUDA_ELEMENTWISE_KERNEL_H_
#define BALLAST_KERNELS_CUDA_ELEMENTWISE_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ballast {

// All pointers are device memory, 16-byte aligned but for those to int32_t. H = hidden_size.
struct CudaNormArgs {
  // [.][H], f32, or bf16 (an embedding).
  const void* source = nullptr;
  bool source_bf16 = false;
  // [.][H], added to it, f32 or bf16; nullptr: nothing.
  const void* delta = nullptr;
  bool delta_bf16 = false;
  // [H], added, too; nullptr: nothing.
  const float* bias = nullptr;
  // [rows]: the row of source and delta that a row is made from; nullptr: its own.
  const int32_t* gather = nullptr;
  // [rows][H], out: source + delta + bias. May be `source` where nothing is gathered; nullptr: not wanted.
  float* sum = nullptr;
  // [H]
  const float* weight = nullptr;
  float epsilon = 0;
  int rows = 0;
  // A multiple of 8, at most 8192.
  int hidden_size = 0;
  // [rows][H] bf16, out.
  void* out = nullptr;
};

// Which RMSNorm the queries and keys pass.
enum class CudaHeadNorm {
  kNone,
  // Each head by itself, weights [head_dim] (Qwen3).
  kHead,
  // All heads of the queries, all of the keys, weights [heads * head_dim] (OLMoE).
  kAll,
};

// h = num_heads, g = num_kv_heads, d = head_dim.
struct CudaQkvArgs {
  // [rows][(h + 2 g) d]: queries, keys, values; with `bias`, of as many, added; nullptr: nothing.
  const float* qkv = nullptr;
  const float* bias = nullptr;
  CudaHeadNorm norm = CudaHeadNorm::kNone;
  const float* q_weight = nullptr;
  const float* k_weight = nullptr;
  float epsilon = 0;
  // Everything is clamped to [-clip, clip] after the norms; infinity: nothing is.
  float clip = 0;
  // [positions][d / 2]: RotaryTable's.
  const float* cosine = nullptr;
  const float* sine = nullptr;
  // [rows]
  const int32_t* position = nullptr;
  // [rows]: the block of the cache that the row's position is in.
  const int32_t* block = nullptr;
  // The layer's part of the cache, see CudaAttention; elements from one block to the next.
  void* cache = nullptr;
  size_t block_stride = 0;
  int rows = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  // [rows][h d] bf16, out: the queries.
  void* q = nullptr;
};

namespace internal {

inline constexpr int kMaxNormWidth = 8192;

cudaError_t LaunchNorm(const CudaNormArgs& args, cudaStream_t stream);
cudaError_t LaunchQkv(const CudaQkvArgs& args, cudaStream_t stream);
cudaError_t LaunchSwiGlu(const float* gate_up, int rows, int width, void* out, cudaStream_t stream);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_ELEMENTWISE_KERNEL_H_
