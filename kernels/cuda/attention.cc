#include "kernels/cuda/attention.h"

#include <bit>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"

namespace ballast {
namespace {

// Blocks with which a device is busy: from there on tiles alone are enough.
constexpr int kEnoughBlocks = 264;

absl::Status Field(const char* name, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

// A power of two, so that a captured launch serves contexts that grow.
int Spans(int max_positions) {
  return static_cast<int>(
      std::bit_ceil((static_cast<unsigned>(max_positions) + internal::kSpanPositions - 1) / internal::kSpanPositions));
}

}  // namespace

absl::Status internal::CheckHeads(int num_heads, int num_kv_heads, int head_dim) {
  if (num_kv_heads < 1) return Field("num_kv_heads", num_kv_heads, "at least 1");
  if (num_heads < 1 || num_heads % num_kv_heads != 0) {
    return Field("num_heads", num_heads, absl::StrCat("a positive multiple of num_kv_heads, ", num_kv_heads));
  }
  if (head_dim != 16 && head_dim != 32 && head_dim != 64 && head_dim != 128) {
    return Field("head_dim", head_dim, "16, 32, 64 or 128");
  }
  return absl::OkStatus();
}

size_t AttentionWorkspaceBytes(int rows, int num_heads, int head_dim, int max_positions) {
  return sizeof(float) * rows * num_heads * Spans(max_positions) * (head_dim + 2);
}

absl::Status Attend(const CudaAttentionArgs& args, void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  if (absl::Status status = internal::CheckHeads(args.num_heads, args.num_kv_heads, args.head_dim); !status.ok()) {
    return status;
  }
  if (args.tile_vectors != kFewVectors && args.tile_vectors != kManyVectors) {
    return Field("tile_vectors", args.tile_vectors, absl::StrCat(kFewVectors, " or ", kManyVectors));
  }
  if (args.block_stride % 8 != 0) return Field("block_stride", args.block_stride, "a multiple of 8");
  if (args.rows < 0) return Field("rows", args.rows, "at least 0");
  if (args.num_tiles < 0) return Field("num_tiles", args.num_tiles, "at least 0");
  if (args.rows > 0 && args.max_positions < 1) return Field("max_positions", args.max_positions, "at least 1");
  if (args.rows == 0 || args.num_tiles == 0) return absl::OkStatus();
  internal::AttentionKernelArgs kernel_args = {args, 0, static_cast<float*>(workspace)};
  if (args.num_tiles * args.num_kv_heads < kEnoughBlocks && args.max_positions > internal::kSpanPositions &&
      AttentionWorkspaceBytes(args.rows, args.num_heads, args.head_dim, args.max_positions) <= workspace_bytes) {
    kernel_args.spans = Spans(args.max_positions);
  }
  return CudaStatus(internal::LaunchAttention(kernel_args, stream), "the attention kernels");
}

}  // namespace ballast
