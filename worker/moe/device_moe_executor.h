// One MoE layer over the GPUs of a view: what moe_executor.h is for the CPU, on a stream, with nothing left to the host
// between the layers of a step.
//
//   route     kernels/cuda/router.h
//   choose    choice_kernel.h: quotas from shares of the form that the step was announced with, a replica for each
//             pair. Shares of the step before, or of this one, are solved by kernels/cuda/quotas.h
//   dispatch  DeviceExchange, each row at most once to each rank; counts of pairs travel along
//   experts   kernels/cuda/experts.h over the slots in force (DeviceGroups)
//   combine   fast: a weighted sum a row and rank, added up in rank order. exact: each pair's output comes home and is
//             added by ascending expert; the router and the experts run kernels whose bits are a row's own
//             (kernels/cuda/invariant.h), so that a row's bits depend on the row and the weights alone
//
//   count     device_load_counts.h, behind a step that is committed
//
// With one member rows stay where they are: grouping, experts and combination of kernels/cuda.
#ifndef BALLAST_WORKER_MOE_DEVICE_MOE_EXECUTOR_H_
#define BALLAST_WORKER_MOE_DEVICE_MOE_EXECUTOR_H_

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/cuda/router.h"
#include "worker/decoder/device_moe_layer.h"
#include "worker/experts/device_slots.h"
#include "worker/experts/replica_table.h"
#include "worker/moe/load_counters.h"
#include "worker/moe/moe_step.h"
#include "worker/moe/step_shares.h"
#include "worker/step/group_view.h"
#include "worker/transport/transport.h"

namespace ballast {

struct DeviceMoeModel {
  CudaRouterRule rule;
  int hidden_size = 0;
  int intermediate_size = 0;
  // By MoE layer, [E][H] bf16 in device memory; outlive the executor.
  std::vector<const void*> router_weights;
  int num_layers() const { return static_cast<int>(router_weights.size()); }
};

struct DeviceMoeOptions {
  // The most rows that this rank brings to a step. In a view the least of its ranks' counts.
  int capacity = 256;
  CombineMode combine = CombineMode::kFast;
  // The longest that the device waits for a rank in one exchange: bounds how long a dead peer goes unnoticed.
  absl::Duration wait_limit = absl::Seconds(5);
  // The slots' memory where it is of NcclMemory, so that peers may reach it; empty otherwise.
  std::span<std::byte> shared_slots;
  // Where the labels of rows are numbered, so that homes of their tasks are known; null: no task has homes.
  LoadCounters* tasks = nullptr;
};

// Used by the step thread alone, but for Interrupt; with the GPU current that was so at Create.
//
//   executor.Enter(view, &transport, table, deadline);
//   executor.BeginStep(step, stream);
//   status = decoder.Forward(input, executor, logits, stream);    // calls Run for every layer
//   if (status.ok()) status = executor.EndStep(stream);
//   if (status.ok()) executor.CountStep(counters);
class DeviceMoeExecutor final : public DeviceMoeLayer {
 public:
  // `slots` outlive the executor. InvalidArgument names field, value and limit; ResourceExhausted: device memory.
  static absl::StatusOr<std::unique_ptr<DeviceMoeExecutor>> Create(DeviceMoeModel model, const SlotMemory& slots,
                                                                   const DeviceMoeOptions& options);
  ~DeviceMoeExecutor() override;

  // As StepModel (worker/step/step_model.h).
  absl::Status Enter(const GroupView& view, Transport* transport, std::shared_ptr<const ReplicaTable> table,
                     absl::Time deadline, cudaStream_t stream);
  absl::Status Flip(std::shared_ptr<const ReplicaTable> table, cudaStream_t stream);
  void Leave();
  // Any thread: ends the waits for peers of an Enter or a step under way, and of those that come, until Leave.
  void Interrupt();

  // [ranks] where each rank's slots are seen from here, in this view; empty: they are not.
  std::span<const std::byte* const> peer_slots() const;

  absl::Status BeginStep(const MoeStep& step, cudaStream_t stream);
  absl::Status Run(int moe_layer, const void* hidden, int rows, void* out, cudaStream_t stream) override;
  // Errors: as DeviceExchange::Finish.
  absl::Status Await(cudaStream_t stream) override;
  // The same kernels in every step of as many rows, and in every view of one member: where nobody else takes part and
  // no row can fail.
  bool capturable() const override;
  // Waits for the step and takes in what it was. Errors: as DeviceExchange::Finish.
  absl::Status EndStep(cudaStream_t stream);

  // Of the last step.
  int layers_begun() const;
  std::span<const RowFailure> failures() const;
  const MoeStepStats& stats() const;
  std::span<const int> late_peers() const;
  bool shared(int layer) const;
  std::optional<ShareComparison> CompareShares(int layer);
  double SecondsPerPair(int of_rank) const;
  // Enqueued behind the step; waited for only where a row's routes are to be kept. The same `counters` each time;
  // they outlive the executor.
  void CountStep(LoadCounters& counters);

 private:
  struct Impl;
  explicit DeviceMoeExecutor(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_DEVICE_MOE_EXECUTOR_H_
