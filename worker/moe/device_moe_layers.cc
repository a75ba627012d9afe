// The layers of a step: routing, choice of replicas, dispatch, experts, combination.
#include <array>

#include "kernels/cuda/experts.h"
#include "kernels/cuda/invariant.h"
#include "kernels/cuda/router.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/tokens.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "worker/moe/choice_kernel.h"
#include "worker/moe/device_moe_impl.h"
#include "worker/moe/expand_kernel.h"

namespace ballast {

absl::Status DeviceMoeExecutor::Impl::Record(Mark mark, cudaStream_t stream) {
  return timed ? CudaStatus(cudaEventRecord(events.at[mark], stream), "a layer's events") : absl::OkStatus();
}

absl::Status DeviceMoeExecutor::Impl::Run(int layer, const void* hidden, int num_rows, void* out, cudaStream_t stream) {
  BALLAST_CHECK(layer == next_layer && layer < L()) << "layer " << layer << " after " << next_layer - 1;
  BALLAST_CHECK(num_rows == rows()) << num_rows << " rows of " << rows();
  ++next_layer;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaStreamIsCapturing(stream, &capturing), "a layer"));
  timed = layer == timed_layer && capturing == cudaStreamCaptureStatusNone;
  RouteTokensArgs routing;
  routing.rule = model.rule;
  routing.hidden = hidden;
  routing.router_weights = model.router_weights[layer];
  routing.num_tokens = num_rows;
  routing.hidden_size = H();
  routing.ids = ids.data() + layer * pairs();
  routing.weights = weights.data() + layer * pairs();
  routing.row_invariant = exact();
  BALLAST_RETURN_IF_ERROR(Record(kBegun, stream));
  BALLAST_RETURN_IF_ERROR(alone() ? RunAlone(layer, routing, out, stream) : RunWithPeers(layer, routing, out, stream));
  BALLAST_RETURN_IF_ERROR(Record(kCombined, stream));
  layer_was_timed |= timed;
  return layer + 1 == L() ? FetchStep(stream) : absl::OkStatus();
}

absl::Status DeviceMoeExecutor::Impl::RunAlone(int layer, const RouteTokensArgs& routing, void* out,
                                               cudaStream_t stream) {
  if (rows() == 0) {
    for (const Mark mark : {kRouted, kChosen, kDispatched, kComputed}) BALLAST_RETURN_IF_ERROR(Record(mark, stream));
    return absl::OkStatus();
  }
  Workspace& at = space();
  const int num_pairs = rows() * K();
  GroupPairsArgs group{
      .ids = routing.ids,
      .num_pairs = num_pairs,
      .group_of = at.tables.data() + static_cast<size_t>(layer) * at.table_at.words + at.table_at.group_of,
      .num_experts = E(),
      .num_groups = E(),
      .begin = at.begin.data(),
      .order = at.order.data(),
      .row_of = at.row_of.data()};
  if (complete) {
    BALLAST_RETURN_IF_ERROR(RouteAndGroup(routing, group, route.data(), stream));
    BALLAST_RETURN_IF_ERROR(Record(kRouted, stream));
    BALLAST_RETURN_IF_ERROR(Record(kChosen, stream));
  } else {
    // Rows that need an expert which nobody holds fail as a whole.
    BALLAST_RETURN_IF_ERROR(RouteTokens(routing, route.data(), stream));
    BALLAST_RETURN_IF_ERROR(Record(kRouted, stream));
    BALLAST_RETURN_IF_ERROR(Choose(layer, E(), stream));
    BALLAST_RETURN_IF_ERROR(Record(kChosen, stream));
    group.ids = replicas.data();
    group.group_of = identity.data();
    group.num_experts = E() + 1;
    BALLAST_RETURN_IF_ERROR(GroupPairs(group, at.group.data(), stream));
  }
  BALLAST_RETURN_IF_ERROR(Record(kDispatched, stream));
  const ExpertsStep work{.x = routing.hidden,
                         .order = at.order.data(),
                         .pairs_per_token = K(),
                         .begin = at.begin.data(),
                         .slots = groups->layer(layer),
                         .num_groups = E(),
                         .typical_rows = num_pairs,
                         .out = at.outputs.data()};
  const CombineArgs sum{.rows = at.outputs.data(),
                        .row_of = at.row_of.data(),
                        .ids = routing.ids,
                        .weights = routing.weights,
                        .num_tokens = rows(),
                        .top_k = K(),
                        .hidden_size = H(),
                        .out = out};
  if (exact()) {
    BALLAST_RETURN_IF_ERROR(InvariantExperts(arena, work, at.experts.data(), static_cast<int>(pairs()), stream));
    BALLAST_RETURN_IF_ERROR(Record(kComputed, stream));
    return CombineRows(sum, stream);
  }
  BALLAST_RETURN_IF_ERROR(experts->RunAndCombine(work, sum, at.experts.data(), static_cast<int>(pairs()), E(), stream));
  return Record(kComputed, stream);
}

absl::Status DeviceMoeExecutor::Impl::TellCounts(int layer, cudaStream_t stream) {
  Workspace& at = space();
  BALLAST_RETURN_IF_ERROR(Record(kCountsBegun, stream));
  counts_were_timed |= timed;
  BALLAST_RETURN_IF_ERROR(count_exchange->Dispatch({.x = nothing.data(),
                                                    .num_tokens = nothing.data(),
                                                    .replicas = nothing.data(),
                                                    .weights = reinterpret_cast<const float*>(nothing.data()),
                                                    .notes = at.notes.data() + at.notes_at.counts},
                                                   stream));
  const size_t words = static_cast<size_t>(view.size()) * E();
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(at.counts.data() + layer * words, count_exchange->received_notes(),
                                                     sizeof(int32_t) * words, cudaMemcpyDeviceToDevice, stream),
                                     "counts"));
  // No row was sent, so that no pair has one; and no token is written.
  BALLAST_RETURN_IF_ERROR(count_exchange->Combine(
      {.outputs = nothing.data(), .row_of = identity.data() + E(), .out = nothing.data() + 8}, stream));
  return Record(kCountsEnded, stream);
}

absl::Status DeviceMoeExecutor::Impl::Choose(int layer, int32_t none, cudaStream_t stream) {
  Workspace& at = space();
  ChoiceArgs args{.rows = rows(),
                  .top_k = K(),
                  .experts = E(),
                  .ranks = view.size(),
                  .rank = view.rank,
                  .layer = layer,
                  .ids = ids.data() + layer * pairs(),
                  .table = at.tables.data() + static_cast<size_t>(layer) * at.table_at.words,
                  .step = step_words.data(),
                  .none = none,
                  .near = near,
                  .homes = row_homes.empty() ? nullptr : homes.data(),
                  .failed = failed_at.data(),
                  .notes = at.notes.data(),
                  .replicas = replicas.data(),
                  .visited = visited.data(),
                  .chosen = chosen.data(),
                  .open = open.data()};
  const ShareForm form = Form(layer);
  if (!alone()) ++stats.layers_by_form[static_cast<int>(form)];
  if (form == ShareForm::kCurrent) {
    BALLAST_RETURN_IF_ERROR(CudaStatus(LaunchCount(args, stream), "counting pairs"));
    BALLAST_RETURN_IF_ERROR(TellCounts(layer, stream));
  }
  if (form != ShareForm::kFixed) {
    const Solver& solver = *solvers[layer];
    const int stride = shares.table(layer).num_replicas();
    BALLAST_RETURN_IF_ERROR(
        solver.quotas.Run({.table = solver.table.data(),
                           .counts = at.counts.data() + static_cast<size_t>(layer) * view.size() * E(),
                           .sources = view.size(),
                           .quotas = at.flows.data()},
                          stream));
    if (form == ShareForm::kCurrent) {
      args.quotas = at.flows.data() + static_cast<size_t>(view.rank) * stride;
    } else {
      args.flows = at.flows.data();
      args.flow_stride = stride;
    }
  }
  return CudaStatus(LaunchChoose(args, /*counted=*/form == ShareForm::kCurrent, stream), "choosing replicas");
}

absl::Status DeviceMoeExecutor::Impl::RunWithPeers(int layer, const RouteTokensArgs& routing, void* out,
                                                   cudaStream_t stream) {
  Workspace& at = space();
  if (rows() > 0) BALLAST_RETURN_IF_ERROR(RouteTokens(routing, route.data(), stream));
  BALLAST_RETURN_IF_ERROR(Record(kRouted, stream));
  BALLAST_RETURN_IF_ERROR(Choose(layer, -1, stream));
  BALLAST_RETURN_IF_ERROR(Record(kChosen, stream));
  DispatchArgs dispatch{.x = routing.hidden,
                        .num_tokens = step_words.data() + kStepRows,
                        .replicas = replicas.data(),
                        .weights = routing.weights,
                        .notes = at.notes.data()};
  if (exact()) {
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(LaunchExpandRows(routing.hidden, rows(), K(), H(), at.pair_rows.data(), stream), "rows by pair"));
    dispatch.x = at.pair_rows.data();
    dispatch.num_tokens = step_words.data() + kStepPairs;
    dispatch.weights = at.ones.data();
  }
  BALLAST_RETURN_IF_ERROR(exchange->Dispatch(dispatch, stream));
  const size_t notes = static_cast<size_t>(at.notes_at.words) * view.size();
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(at.kept.data() + layer * notes, exchange->received_notes(),
                                                     sizeof(int32_t) * notes, cudaMemcpyDeviceToDevice, stream),
                                     "a layer's notes"));
  if (CountsKept(layer) && Form(layer) != ShareForm::kCurrent) {
    const size_t width = sizeof(int32_t) * E();
    BALLAST_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy2DAsync(at.counts.data() + static_cast<size_t>(layer) * view.size() * E(), width,
                          exchange->received_notes() + at.notes_at.counts, sizeof(int32_t) * at.notes_at.words, width,
                          view.size(), cudaMemcpyDeviceToDevice, stream),
        "a layer's counts"));
  }
  const int num_pairs = static_cast<int>(group_pairs()) * view.size();
  BALLAST_RETURN_IF_ERROR(GroupPairs({.ids = exchange->received_groups(),
                                      .num_pairs = num_pairs,
                                      .group_of = identity.data(),
                                      .num_experts = E() + 1,
                                      .num_groups = E(),
                                      .begin = at.begin.data(),
                                      .order = at.order.data(),
                                      .row_of = at.row_of.data()},
                                     at.group.data(), stream));
  BALLAST_RETURN_IF_ERROR(Record(kDispatched, stream));
  const ExpertsStep work{.x = exchange->received_rows(),
                         .order = at.order.data(),
                         .pairs_per_token = exact() ? 1 : K(),
                         .begin = at.begin.data(),
                         .slots = groups->layer(layer),
                         .num_groups = E(),
                         .typical_rows = std::max(rows(), 1) * K(),
                         .out = at.outputs.data()};
  if (!exact()) {
    BALLAST_RETURN_IF_ERROR(experts->Run(work, at.experts.data(), num_pairs, E(), stream));
    BALLAST_RETURN_IF_ERROR(Record(kComputed, stream));
    return exchange->Combine({.outputs = at.outputs.data(), .row_of = at.row_of.data(), .out = out}, stream);
  }
  BALLAST_RETURN_IF_ERROR(InvariantExperts(arena, work, at.experts.data(), num_pairs, stream));
  BALLAST_RETURN_IF_ERROR(Record(kComputed, stream));
  // A pair's sum is its output, unchanged; they are added here, by ascending expert.
  BALLAST_RETURN_IF_ERROR(exchange->Combine(
      {.outputs = at.outputs.data(), .row_of = at.row_of.data(), .out = at.pair_outputs.data()}, stream));
  if (rows() == 0) return absl::OkStatus();
  return CombineRows({.rows = at.pair_outputs.data(),
                      .row_of = at.pair_numbers.data(),
                      .ids = routing.ids,
                      .weights = routing.weights,
                      .num_tokens = rows(),
                      .top_k = K(),
                      .hidden_size = H(),
                      .out = out},
                     stream);
}

}  // namespace ballast
