#include "kernels/cuda/router.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"

namespace ballast {
namespace {

absl::Status Field(const char* name, int64_t value, const std::string& limit) {
  return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, ", has to be ", limit));
}

// The counter of RouteAndGroup.
constexpr size_t kHeaderBytes = 256;

size_t Aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

absl::Status CheckRoute(const RouteTokensArgs& args) {
  if (absl::Status status = CheckRouterRule(args.rule); !status.ok()) return status;
  if (args.num_tokens < 0) return Field("num_tokens", args.num_tokens, "at least 0");
  if (args.hidden_size < 8 || args.hidden_size % 8 != 0) {
    return Field("hidden_size", args.hidden_size, "a positive multiple of 8");
  }
  if (args.num_tasks < 1 || args.num_tasks > 1 << 20) return Field("num_tasks", args.num_tasks, "1 to 1048576");
  return absl::OkStatus();
}

internal::RouterArgs KernelArgs(const RouteTokensArgs& args, void* logits) {
  internal::RouterArgs kernel_args = {};
  kernel_args.rule = args.rule;
  kernel_args.hidden = args.hidden;
  kernel_args.router_weights = args.router_weights;
  kernel_args.bias = args.bias;
  kernel_args.task = args.task;
  kernel_args.logits = static_cast<float*>(logits);
  kernel_args.num_tokens = args.num_tokens;
  kernel_args.hidden_size = args.hidden_size;
  kernel_args.num_tasks = args.num_tasks;
  kernel_args.ids = args.ids;
  kernel_args.weights = args.weights;
  kernel_args.counts = args.counts;
  kernel_args.gate_mass = args.gate_mass;
  kernel_args.row_invariant = args.row_invariant;
  return kernel_args;
}

}  // namespace

absl::Status CheckRouterRule(const CudaRouterRule& rule) {
  if (rule.num_experts < 1 || rule.num_experts > 512) return Field("num_experts", rule.num_experts, "1 to 512");
  const int most = std::min(rule.num_experts, 32);
  if (rule.top_k < 1 || rule.top_k > most) return Field("top_k", rule.top_k, absl::StrCat("1 to ", most));
  if (rule.num_groups == 1) return absl::OkStatus();
  const int e = rule.num_experts;
  if (rule.score != RouterScore::kSigmoid) return Field("num_groups", rule.num_groups, "1 with softmax scores");
  if (e != 64 && e != 128 && e != 256 && e != 512) return Field("num_experts", e, "64, 128, 256 or 512 with groups");
  if (rule.num_groups < 2 || rule.num_groups > 32 || 32 % rule.num_groups != 0) {
    return Field("num_groups", rule.num_groups, "1, 2, 4, 8, 16 or 32");
  }
  if (rule.top_groups < 1 || rule.top_groups > rule.num_groups) {
    return Field("top_groups", rule.top_groups, absl::StrCat("1 to num_groups, ", rule.num_groups));
  }
  const int reachable = e / rule.num_groups * rule.top_groups;
  if (rule.top_k > reachable) return Field("top_k", rule.top_k, absl::StrCat("at most the top groups' ", reachable));
  return absl::OkStatus();
}

size_t RouteTokensWorkspaceBytes(const CudaRouterRule& rule, int max_tokens) {
  const size_t rows = internal::kMaxRouterParts * std::min(max_tokens, internal::kFewTokens);
  return sizeof(float) * rows * rule.num_experts;
}

absl::Status RouteTokens(const RouteTokensArgs& args, void* workspace, cudaStream_t stream) {
  if (absl::Status status = CheckRoute(args); !status.ok()) return status;
  if (args.num_tokens == 0) return absl::OkStatus();
  return CudaStatus(args.num_tokens <= internal::kFewTokens
                        ? internal::LaunchRouteFew(KernelArgs(args, workspace), stream)
                        : internal::LaunchRouteMany(KernelArgs(args, nullptr), {}, stream),
                    "the router kernels");
}

size_t RouteAndGroupWorkspaceBytes(const CudaRouterRule& rule, int max_tokens, int num_groups) {
  const int few_tokens = std::min(max_tokens, internal::kFewTokens);
  const size_t few = Aligned(RouteTokensWorkspaceBytes(rule, few_tokens)) +
                     GroupPairsWorkspaceBytes(few_tokens * rule.top_k, num_groups);
  const size_t many = sizeof(int32_t) * internal::MostRouteBlocks(max_tokens) * num_groups;
  return kHeaderBytes + std::max(few, many);
}

absl::Status RouteAndGroup(const RouteTokensArgs& route, const GroupPairsArgs& group, void* workspace,
                           cudaStream_t stream) {
  if (absl::Status status = CheckRoute(route); !status.ok()) return status;
  if (absl::Status status = CheckGroupPairs(group); !status.ok()) return status;
  if (group.ids != route.ids) return Field("ids", reinterpret_cast<int64_t>(group.ids), "the router's");
  if (group.num_pairs != route.num_tokens * route.rule.top_k) {
    return Field("num_pairs", group.num_pairs, "num_tokens times top_k");
  }
  if (group.num_experts != route.rule.num_experts) return Field("num_experts", group.num_experts, "the rule's");
  auto* const scratch = static_cast<uint8_t*>(workspace) + kHeaderBytes;
  internal::GroupKernelArgs group_args = {group.ids, group.group_of, group.num_pairs, group.num_groups,
                                          nullptr,   group.begin,    group.order,     group.row_of};
  if (route.num_tokens > internal::kFewTokens) {
    group_args.tile_counts = reinterpret_cast<int32_t*>(scratch);
    return CudaStatus(internal::LaunchRouteMany(KernelArgs(route, nullptr), group_args, stream),
                      "the kernels that route and group");
  }
  if (route.num_tokens == 0 || route.num_tokens > internal::kFewRoutedTokens || route.row_invariant) {
    const absl::Status status = RouteTokens(route, scratch, stream);
    void* const counts = scratch + Aligned(RouteTokensWorkspaceBytes(route.rule, route.num_tokens));
    return status.ok() ? GroupPairs(group, counts, stream) : status;
  }
  return CudaStatus(internal::LaunchRouteAndGroupFew(KernelArgs(route, scratch), group_args,
                                                     static_cast<uint32_t*>(workspace), stream),
                    "the kernel that routes and groups");
}

}  // namespace ballast
