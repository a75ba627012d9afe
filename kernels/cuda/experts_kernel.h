// What the host's half of the grouped expert kernel (experts.cc) tells its device half (experts.cu).
#ifndef BALLAST_KERNELS_CUDA_EXPERTS_KERNEL_H_
#define BALLAST_KERNELS_CUDA_EXPERTS_KERNEL_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ballast {

// Replicas of one layer on one GPU.
inline constexpr int kMaxGroups = 1024;

// An expert's weights in its slot and what it computes. H = hidden size, I = intermediate size; bf16 but for
// kSwiGluFp8.
enum class ExpertForm {
  // [gate I x H][up I x H][down H x I], as the CPU's kernels have it: down(silu(gate x) * (up x)).
  kSwiGlu,
  // [up I x H][down H x I]: down(relu(up x)) (Switch).
  kRelu,
  // kSwiGlu in fp8 (e4m3) with a scale for each block of 128 x 128 (DeepSeek-V3): [gate I x H][up I x H][down H x I],
  // one byte an element, then float32 scales, [gate ceil(I/128) x ceil(H/128)][up, likewise]
  // [down ceil(H/128) x ceil(I/128)]. A weight is its element times its block's scale. Tokens come as QuantizeRows
  // gives them.
  kSwiGluFp8,
};

// Elements of fp8 in a row of a token or an activation that share a scale; rows and columns of weights that do.
inline constexpr int kScaleBlock = 128;

namespace internal {

// A tile of work: weight rows x tokens, in steps of k. Steps of few rows a group have narrow tiles.
inline constexpr int kTileRows = 256;
inline constexpr int kNarrowTokens = 48;
inline constexpr int kWideTokens = 144;
inline constexpr int kTileK = 64;
// A box of weights has half of a tile's rows: of gate and up, groups of 8 rows in turn.
inline constexpr int kTileBoxes = 2;
inline constexpr int kBoxRows = kTileRows / kTileBoxes;
inline constexpr int kBoxGroups = kBoxRows / 16;
// Bytes of one block's partial sums of a tile, with tags.
inline constexpr int kPartialBytes = kTileRows * kWideTokens * 8;
// Bytes of a part of a narrow tile, without tags, and how many there is room for, for each block.
inline constexpr int kPartBytes = kTileRows * kNarrowTokens * 4;
inline constexpr int kPartsOfBlock = 2 * kPartialBytes / kPartBytes;

struct ExpertsArgs {
  const void* x;
  // In fp8, [tokens][ceil(H/128)].
  const float* x_scales;
  const int32_t* order;
  const int32_t* begin;
  const int32_t* slots;
  void* out;
  // The first slot's scales of weights, in fp8, and the bytes from slot to slot.
  const uint8_t* weight_scales;
  size_t slot_stride;
  // [tokens], where a token has one choice: rows of `out` are its outputs times these, zeros where row_of, [tokens], is
  // -1. nullptr: rows of `out` are the experts' outputs.
  const float* weights;
  const int32_t* row_of;
  int num_tokens;
  // Workspace, see CudaExperts.
  void* activations;
  // In fp8, [max_rows][ceil(I/128)].
  float* activation_scales;
  void* partials;
  uint32_t* flags;
  uint32_t* launch;
  int num_groups;
  int pairs_per_token;
  int hidden_size;
  int intermediate_size;
  // kSwiGlu and kSwiGluFp8, or kRelu.
  bool gated;
  // Words of `flags` for one launch: of token tiles; with those of cut tiles, one a block, and the queue's.
  int token_flag_words;
  int flag_words;
};

// The kernel's forms: narrow tiles, drawn from a queue; narrow ones in equal runs, as all others; wide ones; wide ones
// for pairs of blocks that work on a tile together, each on its part of the tokens, and share the weights' way from L2;
// the same with the tokens as the rows of the product, 64 at a time. In fp8: tokens as rows in tiles of 64, and for
// pairs of blocks.
enum class ExpertsKernelForm { kNarrow, kNarrowRuns, kWide, kPair, kTokenRows, kFp8Narrow, kFp8Pair };
inline constexpr int kExpertsKernelForms = 7;

// The number of blocks of the kernel that the device runs at once.
cudaError_t ExpertsBlocks(ExpertsKernelForm form, int* blocks);
// Out: the combined rows, see CombineArgs.
struct FewArgs {
  const void* arena;
  size_t slot_stride;
  const void* x;
  const int32_t* order;
  const int32_t* begin;
  const int32_t* slots;
  // [pairs]
  const float* weights;
  void* activations;
  void* out;
  int num_groups;
  // Groups that can have rows.
  int max_active;
  int num_tokens;
  int pairs_per_token;
  int hidden_size;
  int intermediate_size;
  bool gated;
};

// Tokens of one step of the kernels for few: DownKernel has sums of all of them in shared memory.
inline constexpr int kMaxFewTokens = 128;
// Whether they are fast for so many tokens of that size.
bool FewExpertsFit(int num_tokens, int hidden_size, int multiprocessors);
cudaError_t LaunchFewExperts(const FewArgs& args, int multiprocessors, cudaStream_t stream);

#ifdef __CUDACC__
__device__ inline float Silu(float v) { return __fdividef(v, 1.0f + __expf(-v)); }
__device__ inline float Relu(float v) { return v < 0 ? 0 : v; }
#endif

cudaError_t LaunchExperts(const CUtensorMap& gate_up, const CUtensorMap& down, const ExpertsArgs& args,
                          ExpertsKernelForm form, int blocks, cudaStream_t stream);

}  // namespace internal
}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_EXPERTS_KERNEL_H_
