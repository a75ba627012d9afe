#include "worker/decoder/device_local_moe.h"

#include <cstddef>
#include <numeric>
#include <vector>

#include "kernels/cuda/invariant.h"
#include "kernels/cuda/router.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/tokens.h"
#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<std::unique_ptr<DeviceLocalMoe>> DeviceLocalMoe::Create(const Checkpoint& checkpoint,
                                                                       const DeviceDecoder& decoder) {
  std::unique_ptr<DeviceLocalMoe> moe(new DeviceLocalMoe(decoder));
  const ModelConfig& config = checkpoint.config();
  const CudaRouterRule rule = decoder.router_rule();
  BALLAST_RETURN_IF_ERROR(CheckRouterRule(rule));
  const int slots = config.num_moe_layers() * config.num_experts;
  const size_t bytes = checkpoint.expert_bytes(), stride = (bytes + 255) / 256 * 256;
  BALLAST_ASSIGN_OR_RETURN(moe->weights_, AllocateDevice(stride * slots, "the experts"));
  std::vector<std::byte> expert(bytes);
  auto* to = static_cast<std::byte*>(moe->weights_.get());
  for (int slot = 0; slot < slots; ++slot, to += stride) {
    BALLAST_RETURN_IF_ERROR(checkpoint.ReadExpert({slot / config.num_experts, slot % config.num_experts}, expert));
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpy(to, expert.data(), bytes, cudaMemcpyHostToDevice), "an expert"));
  }
  moe->arena_ = {.slots = moe->weights_.get(),
                 .slot_stride = stride,
                 .num_slots = slots,
                 .hidden_size = config.hidden_size,
                 .intermediate_size = config.expert_intermediate_size};
  moe->max_pairs_ = decoder.max_rows() * rule.top_k;
  const size_t pairs = moe->max_pairs_;
  size_t workspace = pairs * config.expert_intermediate_size * sizeof(uint16_t);
  if (!decoder.exact()) {
    BALLAST_ASSIGN_OR_RETURN(moe->experts_, CudaExperts::Create(moe->arena_));
    workspace = moe->experts_->WorkspaceBytes(moe->max_pairs_, config.num_experts);
  }
  const size_t route_workspace = RouteAndGroupWorkspaceBytes(rule, decoder.max_rows(), config.num_experts);
  struct Part {
    DeviceMemory& memory;
    size_t bytes;
  };
  for (const Part& part : {Part{moe->numbers_, slots * sizeof(int32_t)},
                           {moe->ids_, pairs * sizeof(int32_t)},
                           {moe->route_weights_, pairs * sizeof(float)},
                           {moe->begin_, (config.num_experts + 1) * sizeof(int32_t)},
                           {moe->order_, pairs * sizeof(int32_t)},
                           {moe->row_of_, pairs * sizeof(int32_t)},
                           {moe->outputs_, pairs * config.hidden_size * sizeof(uint16_t)},
                           {moe->route_workspace_, route_workspace},
                           {moe->workspace_, workspace}}) {
    BALLAST_ASSIGN_OR_RETURN(part.memory, AllocateDevice(part.bytes, "a MoE layer"));
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemset(part.memory.get(), 0, part.bytes), "a MoE layer's memory"));
  }
  std::vector<int32_t> numbers(slots);
  std::iota(numbers.begin(), numbers.end(), 0);
  BALLAST_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(moe->numbers_.get(), numbers.data(), slots * sizeof(int32_t), cudaMemcpyHostToDevice), "slots"));
  // Memory is set on the default stream, which the caller's need not wait for.
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaDeviceSynchronize(), "the experts"));
  return moe;
}

absl::Status DeviceLocalMoe::Run(int moe_layer, const void* hidden, int rows, void* out, cudaStream_t stream) {
  if (rows == 0) return absl::OkStatus();
  const ModelConfig& config = decoder_.config();
  const auto ints = [](const DeviceMemory& memory) { return static_cast<int32_t*>(memory.get()); };
  RouteTokensArgs route;
  route.rule = decoder_.router_rule();
  route.hidden = hidden;
  route.router_weights = decoder_.router_weights(moe_layer);
  route.num_tokens = rows;
  route.hidden_size = config.hidden_size;
  route.ids = ints(ids_);
  route.weights = static_cast<float*>(route_weights_.get());
  route.row_invariant = decoder_.exact();
  const int pairs = rows * route.rule.top_k;
  BALLAST_RETURN_IF_ERROR(RouteAndGroup(route,
                                        {.ids = route.ids,
                                         .num_pairs = pairs,
                                         .group_of = ints(numbers_),
                                         .num_experts = config.num_experts,
                                         .num_groups = config.num_experts,
                                         .begin = ints(begin_),
                                         .order = ints(order_),
                                         .row_of = ints(row_of_)},
                                        route_workspace_.get(), stream));
  const ExpertsStep step = {.x = hidden,
                            .order = ints(order_),
                            .pairs_per_token = route.rule.top_k,
                            .begin = ints(begin_),
                            .slots = ints(numbers_) + moe_layer * config.num_experts,
                            .num_groups = config.num_experts,
                            .typical_rows = pairs,
                            .out = outputs_.get()};
  const CombineArgs combine = {.rows = outputs_.get(),
                               .row_of = ints(row_of_),
                               .ids = route.ids,
                               .weights = route.weights,
                               .num_tokens = rows,
                               .top_k = route.rule.top_k,
                               .hidden_size = config.hidden_size,
                               .out = out};
  if (experts_.has_value()) {
    return experts_->RunAndCombine(step, combine, workspace_.get(), max_pairs_, config.num_experts, stream);
  }
  BALLAST_RETURN_IF_ERROR(InvariantExperts(arena_, step, workspace_.get(), pairs, stream));
  return CombineRows(combine, stream);
}

}  // namespace ballast
