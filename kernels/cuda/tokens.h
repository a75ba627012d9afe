// Moving tokens around the experts on a GPU: grouping (token, choice) pairs by replica, rounding tokens
// to fp8, and combining their outputs.
#ifndef BALLAST_KERNELS_CUDA_TOKENS_H_
#define BALLAST_KERNELS_CUDA_TOKENS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"

namespace ballast {

// Choices a token can have.
inline constexpr int kMaxTopK = 32;

// All pointers are device memory.
struct GroupPairsArgs {
  // [num_pairs] experts, flat [T][k]; every id in [0, num_experts).
  const int32_t* ids = nullptr;
  int num_pairs = 0;
  // [num_experts]: the expert's group here, in [0, num_groups); -1: it has none here, and its pairs get no row.
  const int32_t* group_of = nullptr;
  int num_experts = 0;
  // At most kMaxGroups.
  int num_groups = 0;
  // [num_groups + 1], out: group g has rows begin[g] .. begin[g + 1] - 1.
  int32_t* begin = nullptr;
  // [num_pairs], out: the pairs of the rows, ascending within a group. Rows from begin[num_groups] on are not written.
  int32_t* order = nullptr;
  // [num_pairs], out: each pair's row, -1 where it has none.
  int32_t* row_of = nullptr;
};

// Bytes of workspace of GroupPairs.
size_t GroupPairsWorkspaceBytes(int num_pairs, int num_groups);

// InvalidArgument for sizes that GroupPairs does not serve; names field, value and limit.
absl::Status CheckGroupPairs(const GroupPairsArgs& args);

// Groups pairs by replica: a stable counting sort without a host's help. Enqueued on the stream, may be captured; one
// or two kernels. Roofline: reads the ids twice and writes 8 bytes a pair; bound by latency, about 3 us a kernel, to
// 100,000 pairs. Errors: InvalidArgument, naming field, value and limit; what the launch says.
absl::Status GroupPairs(const GroupPairsArgs& args, void* workspace, cudaStream_t stream);

// All pointers are device memory.
struct QuantizeRowsArgs {
  // [rows][H] bf16, 16-byte aligned.
  const void* rows = nullptr;
  int num_rows = 0;
  // H, a multiple of 16.
  int hidden_size = 0;
  // Out: [rows][H] e4m3, 16-byte aligned; [rows][ceil(H/128)].
  void* out = nullptr;
  float* scales = nullptr;
};

// Rows in fp8 for experts of kSwiGluFp8: each 128 elements of a row (the last ones may be fewer) have a scale, their
// largest magnitude over 448 (at least 1e-30; 1 where all are 0), and are divided by it and rounded to nearest, ties to
// even. Enqueued on the stream, may be captured. Roofline: reads 2 bytes and writes 1 an element, at memory bandwidth.
// Errors: as GroupPairs.
absl::Status QuantizeRows(const QuantizeRowsArgs& args, cudaStream_t stream);

struct CombineArgs {
  // [rows][H] bf16.
  const void* rows = nullptr;
  // [T][k]: each pair's row, -1: none (its output is added elsewhere).
  const int32_t* row_of = nullptr;
  // [T][k] experts, distinct within a token, and their weights.
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  int num_tokens = 0;
  int top_k = 0;
  // H, a multiple of 8.
  int hidden_size = 0;
  // [T][H] bf16, out.
  void* out = nullptr;
};

// out[t] = sum of weight * row over the token's choices, by ascending expert, fused multiply-adds in float32 from 0,
// rounded once: a token's bits depend on its rows and weights alone. Roofline: reads k rows and writes one for each
// token, at memory bandwidth (L2's in decode). Errors: as GroupPairs.
absl::Status CombineRows(const CombineArgs& args, cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_KERNELS_CUDA_TOKENS_H_
