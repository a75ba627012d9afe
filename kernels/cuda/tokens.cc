#include "kernels/cuda/tokens.h"

#include "absl/strings/str_cat.h"
#include "kernels/cuda/experts_kernel.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/tokens_kernel.h"

namespace ballast {
namespace {

absl::Status Field(const char* name, int64_t value, const char* limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

}  // namespace

size_t GroupPairsWorkspaceBytes(int num_pairs, int num_groups) {
  const size_t tiles = (num_pairs + internal::kGroupTilePairs - 1) / internal::kGroupTilePairs;
  return sizeof(int32_t) * tiles * num_groups;
}

absl::Status CheckGroupPairs(const GroupPairsArgs& args) {
  if (args.num_pairs < 0) return Field("num_pairs", args.num_pairs, "at least 0");
  if (args.num_experts < 1) return Field("num_experts", args.num_experts, "at least 1");
  if (args.num_groups < 1 || args.num_groups > kMaxGroups) return Field("num_groups", args.num_groups, "1 to 1024");
  return absl::OkStatus();
}

absl::Status GroupPairs(const GroupPairsArgs& args, void* workspace, cudaStream_t stream) {
  if (absl::Status status = CheckGroupPairs(args); !status.ok()) return status;
  const internal::GroupKernelArgs kernel_args = {
      args.ids,   args.group_of, args.num_pairs, args.num_groups, static_cast<int32_t*>(workspace),
      args.begin, args.order,    args.row_of};
  return CudaStatus(internal::LaunchGroupPairs(kernel_args, stream), "the grouping kernels");
}

absl::Status QuantizeRows(const QuantizeRowsArgs& args, cudaStream_t stream) {
  if (args.num_rows < 0) return Field("num_rows", args.num_rows, "at least 0");
  if (args.hidden_size < 16 || args.hidden_size % 16 != 0) {
    return Field("hidden_size", args.hidden_size, "a positive multiple of 16");
  }
  if (args.num_rows == 0) return absl::OkStatus();
  return CudaStatus(
      internal::LaunchQuantize({args.rows, args.num_rows, args.hidden_size, args.out, args.scales}, stream),
      "the quantizing kernel");
}

absl::Status CombineRows(const CombineArgs& args, cudaStream_t stream) {
  if (args.num_tokens < 0) return Field("num_tokens", args.num_tokens, "at least 0");
  if (args.top_k < 1 || args.top_k > kMaxTopK) return Field("top_k", args.top_k, "1 to 32");
  if (args.hidden_size < 8 || args.hidden_size % 8 != 0) {
    return Field("hidden_size", args.hidden_size, "a positive multiple of 8");
  }
  if (args.num_tokens == 0) return absl::OkStatus();
  const internal::CombineKernelArgs kernel_args = {args.rows,       args.row_of, args.ids,         args.weights,
                                                   args.num_tokens, args.top_k,  args.hidden_size, args.out};
  return CudaStatus(internal::LaunchCombine(kernel_args, stream), "the combine kernel");
}

}  // namespace ballast
