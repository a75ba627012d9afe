// One MoE layer over the ranks of a view: route, choose replicas, dispatch, run experts, combine.
//
//   route     the model's rule on this rank's rows
//   share     quotas from shares of the form that the step was announced with (share_form.h), a replica for every
//             (row, expert) pair. Forms move pairs between replicas, which changes no answer
//   dispatch  each row goes at most once to each rank, with the list of its pairs there
//   experts   this rank's replicas over its own rows while the others' are under way, then over the others'
//   combine   exact: every pair's output comes home and is added by ascending expert id, so that the bits depend on the
//             row alone. fast: one weighted partial sum a row and rank, added in rank order
//
// The messages are those of wire.h. Every rank exchanges its messages with every other one in every layer, rows or not.
#ifndef BALLAST_WORKER_MOE_MOE_EXECUTOR_H_
#define BALLAST_WORKER_MOE_MOE_EXECUTOR_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/experts.h"
#include "kernels/router.h"
#include "proto/base/clock.h"
#include "worker/decoder/moe_layer.h"
#include "worker/experts/replica_table.h"
#include "worker/moe/load_counters.h"
#include "worker/moe/moe_step.h"
#include "worker/moe/step_shares.h"
#include "worker/step/group_view.h"
#include "worker/transport/transport.h"

namespace ballast {

// The MoE layers of a model.
struct MoeModel {
  RouterRule rule;
  int hidden_size = 0;
  int intermediate_size = 0;
  Activation activation = Activation::kSwiGlu;
  // By MoE layer, [E][H] bf16; must outlive the executor.
  std::vector<const uint16_t*> router_weights;
  int num_layers() const { return static_cast<int>(router_weights.size()); }
};

struct MoeExecutorOptions {
  CombineMode combine = CombineMode::kFast;
  // The most rows that any rank of the group brings to a step; receive buffers hold the worst case for it.
  int capacity = 256;
  Clock* clock = &Clock::Real();
  // Where the labels of rows are numbered, so that homes of their tasks are known; null: no task has homes.
  LoadCounters* tasks = nullptr;
};

// Used by the step thread alone. In steady state (views and placements unchanged) nothing is allocated.
//
//   executor.Enter(view, &transport, table);
//   executor.BeginStep(step);
//   status = decoder.Forward(input, executor, logits);    // calls Run for every layer
//   if (status.ok()) executor.CountStep(counters);
class MoeExecutor final : public MoeLayer {
 public:
  // What one layer of one step did on this rank, before the combine's result is used; valid during the call.
  struct Trace {
    int moe_layer;
    int rows;
    std::span<const float> router_logits;  // [rows][E]
    std::span<const int32_t> experts;      // [rows][k]
    std::span<const float> weights;        // [rows][k]
    std::span<const float> output;         // [rows][H]
  };

  // InvalidArgument names field, value and limit. `pool` must outlive the executor.
  static absl::StatusOr<std::unique_ptr<MoeExecutor>> Create(MoeModel model, const MoeExecutorOptions& options,
                                                             ThreadPool& pool);
  ~MoeExecutor() override;

  // From now on steps run in `view`. `transport` is the view's mesh and outlives the stay (Leave); null when the view
  // has one member.
  void Enter(const GroupView& view, Transport* transport, std::shared_ptr<const ReplicaTable> table);
  // Between two steps: another placement, or other shares.
  void Flip(std::shared_ptr<const ReplicaTable> table);
  // Forgets view and transport; the latter may be destroyed.
  void Leave();

  void BeginStep(const MoeStep& step);
  // Errors: what Transport::Wait says; InvalidArgument names the peer, field, value and limit of a malformed message.
  // The step is lost then, and the view is of no use any more: Leave.
  absl::Status Run(int moe_layer, const float* hidden, int rows, float* out) override;

  // Layers of the current step that were begun: while there is none, the peers know nothing of this rank's rows and the
  // step may begin again with others.
  int layers_begun() const;
  // Of the last step, valid until the next begins.
  std::span<const RowFailure> failures() const;
  const MoeStepStats& stats() const;
  // Peers that the failed wait of the last step was waiting for, ascending; peers that sent a malformed message.
  std::span<const int> late_peers() const;
  // Some expert of the layer has replicas on several ranks, so that forms differ.
  bool shared(int layer) const;
  // How the forms compare on the last step, which has ended; nothing where its counts are not known. See StepShares.
  std::optional<ShareComparison> CompareShares(int layer);
  // What a pair takes the rank's experts, as last heard; 0: not known.
  double SecondsPerPair(int of_rank) const;
  // Adds the last step to `counters`; call it once, when the step is committed.
  void CountStep(LoadCounters& counters) const;

  // Called at the end of each layer; empty: not called.
  void set_trace(std::function<void(const Trace&)> trace);

 private:
  struct Impl;
  explicit MoeExecutor(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_MOE_EXECUTOR_H_
