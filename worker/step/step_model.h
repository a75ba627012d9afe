// What the step engine runs: a decoder and its MoE layers over the ranks of a view, on whatever processor.
// Implementations: cpu_step_model.h, device_step_model.h.
#ifndef BALLAST_WORKER_STEP_STEP_MODEL_H_
#define BALLAST_WORKER_STEP_STEP_MODEL_H_

#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "worker/decoder/step_input.h"
#include "worker/experts/replica_table.h"
#include "worker/moe/load_counters.h"
#include "worker/moe/moe_step.h"
#include "worker/moe/step_shares.h"
#include "worker/step/group_view.h"
#include "worker/transport/transport.h"

namespace ballast {

struct StepModelShape {
  int moe_layers = 0;
  int vocab_size = 0;
  // The most rows that this rank takes or brings in a step. The leader announces the least of the view.
  int capacity = 0;
};

// Used by the step thread alone, apart from shape() and Interrupt. A stay in a view goes
//
//   Enter  { [Flip]  Run  [CompareShares]  CountStep }  Leave
class StepModel {
 public:
  virtual ~StepModel() = default;

  virtual const StepModelShape& shape() const = 0;

  // From now on steps run in `view`. `transport` is the view's mesh and outlives the stay; null when the view has one
  // member. May talk to the other members, until `deadline`. After an error: Leave.
  virtual absl::Status Enter(const GroupView& view, Transport* transport, std::shared_ptr<const ReplicaTable> table,
                             absl::Time deadline) = 0;
  // Between two steps: another placement, or other shares. After an error: Leave.
  virtual absl::Status Flip(std::shared_ptr<const ReplicaTable> table) = 0;
  // Forgets the view, if there is one. The transport may be gone already.
  virtual void Leave() = 0;

  // Any thread: an Enter or a Run under way waits for peers no longer than for the transport, which was interrupted.
  // Until Leave.
  virtual void Interrupt() {}

  // After an error: OK, or why this process can never run a step again, in no view (the device is of no use to it any
  // more).
  virtual absl::Status Lost() { return absl::OkStatus(); }

  // Runs a step: writes keys and values at the rows' positions and logits [input.logit_rows.size()][vocab_size], in
  // host memory. The caller commits the sequences when the step has ended.
  //   InvalidArgument, FailedPrecondition   the decoder's check of the input (Decoder::Forward), before anything is
  //   sent what Transport::Wait says; InvalidArgument for a malformed message, naming peer, field, value and limit
  // Where peers had heard of the step (begun), it is lost then, and the view of no use any more: Leave.
  virtual absl::Status Run(const MoeStep& step, const StepInput& input, float* logits) = 0;
  // Peers may know of the rows of the last Run: while they do not, the step may be run with others.
  virtual bool begun() const = 0;

  // Of the last Run, valid until the next.
  virtual std::span<const RowFailure> failures() const = 0;
  virtual const MoeStepStats& stats() const = 0;
  // Ranks that the failed last Run was waiting for, ascending; those that sent a malformed message.
  virtual std::span<const int> late_peers() const = 0;

  // Some expert of the layer has replicas on several ranks, so that share forms differ.
  virtual bool shared(int layer) const = 0;
  // How the forms compare on the last step, which has ended; nothing where its counts are not known. See StepShares.
  virtual std::optional<ShareComparison> CompareShares(int layer) = 0;
  // What a pair takes the rank's experts, as last heard; 0: not known.
  virtual double SecondsPerPair(int of_rank) const = 0;
  // Adds the last step to `counters`; call it once, when the step is committed.
  virtual void CountStep(LoadCounters& counters) = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_STEP_MODEL_H_
