// The group step: one thread that runs steps in lock-step with the other ranks of the view.
//
// Rank 0 of the view leads. It announces step n (view, epoch, shares version, policy version, capacity, where each
// layer's shares come from) when it or anyone has work, or when a placement waits to come into force; every rank runs
// it, with no rows if it has none. A rank that has work asks for a step; while nobody does all threads sleep. See
// wire.h in worker/moe for the messages.
//
// When an exchange fails (a rank lost, a deadline, a malformed message) the open step is discarded, the view is left,
// and the engine waits for the next view, in which the source offers the same rows again. What a rank commits is local:
// a step that ended here and not there is right in both places, for each rank commits its own rows alone.
#ifndef BALLAST_WORKER_STEP_STEP_ENGINE_H_
#define BALLAST_WORKER_STEP_STEP_ENGINE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/ids.h"
#include "proto/placement/placement.h"
#include "worker/decoder/step_input.h"
#include "worker/experts/expert_store.h"
#include "worker/moe/load_counters.h"
#include "worker/moe/moe_step.h"
#include "worker/step/group_view.h"
#include "worker/step/share_chooser.h"
#include "worker/step/step_model.h"
#include "worker/transport/transport.h"

namespace ballast {

// This rank's part of a step. The spans live until Commit or Discard.
struct StepRows {
  // At most `capacity` rows; empty when there is nothing to do.
  StepInput input;
  // One a row.
  std::span<const RowLabel> labels;
  // There will be work after this step whatever it gives. A hint that saves a message; a wrong one costs an empty step.
  bool more_work = false;
};

// A step that has ended. Valid during the call.
struct StepResult {
  ViewId view;
  StepId step;
  PlacementVersion version;
  // [input.logit_rows.size()][vocab_size]
  const float* logits = nullptr;
  // Rows that needed an expert without a live replica, ascending by row; what was computed for them and for later rows
  // of their sequences is void. Their requests end with RowFailure::ToStatus.
  std::span<const RowFailure> failures;
};

// What the scheduler gives the engine. Everything is called on the step thread and should not block.
class StepSource {
 public:
  virtual ~StepSource() = default;

  // Whether Next would give rows. Also the place to take in new requests, cancellations and deadlines: it is called
  // before every step, and after NotifyWork.
  virtual bool HasWork() = 0;
  // Each Next is followed by Commit or Discard. After a Discard it gives the same rows again, or fewer when a request
  // has ended since.
  virtual StepRows Next(int capacity) = 0;
  // The step has ended: commit the sequences' KV, sample, stream.
  virtual void Commit(const StepResult& result) = 0;
  // The step was lost: nothing of it counts, KV is not committed. With InvalidArgument or FailedPrecondition (from the
  // decoder's check of the input) these very rows cannot be run: end their requests.
  virtual void Discard(const absl::Status& reason) = 0;
  // The group has been without a view for StepEngineOptions::view_patience: end every request with `reason`
  // (Unavailable). Called again after each NotifyWork until there is a view.
  virtual void NoView(const absl::Status& reason) = 0;
};

// One committed step, for telemetry.
struct StepRecord {
  ViewId view;
  StepId step;
  PlacementVersion version;
  int rows = 0;
  absl::Duration duration;
  // Valid during the call.
  const MoeStepStats* moe = nullptr;
};

// What the engine tells the rest of the worker. Called on the step thread; must not block. The default does nothing.
class StepEvents {
 public:
  virtual ~StepEvents() = default;
  // `status` OK: steps can run in it. Otherwise why it could not be installed; `unreachable` names ranks when they are
  // the reason.
  virtual void ViewInstalled(ViewId view, const absl::Status& status, std::span<const int> unreachable) {}
  // The view is lost for this worker: the open step was discarded, and no step runs before the next view. `ranks` are
  // those that are lost or late, ascending; none when the reason lies elsewhere.
  virtual void PeerLost(ViewId view, std::span<const int> ranks, const absl::Status& reason) {}
  // This process can run no step any more, whatever view comes: it is to end, so that another one takes its place. What
  // follows of this view is told all the same.
  virtual void ProcessorLost(const absl::Status& reason) {}
  // The first step in this version has ended here, so it has begun everywhere and slots of older epochs are free here.
  virtual void VersionInForce(ViewId view, PlacementVersion version, StepId first_step) {}
  virtual void StepEnded(const StepRecord& record) {}
};

// Makes the mesh of a view.
class TransportFactory {
 public:
  virtual ~TransportFactory() = default;

  // Connects to every other member; blocks until it has, `deadline` comes or Cancel is called. On the step thread. Only
  // called for views of two members or more. `unreachable` gets the ranks that could not be reached, when it fails.
  virtual absl::StatusOr<std::unique_ptr<Transport>> Connect(const GroupView& view, absl::Time deadline,
                                                             std::vector<int>& unreachable) = 0;
  // Any thread: ends the Connect of `view` and of older ones, the current one or a later call, with Cancelled.
  virtual void Cancel(ViewId view) = 0;
};

struct StepEngineOptions {
  // From the announcement of a step, or from asking for one, to its end. After it the ranks waited for count as lost.
  absl::Duration step_timeout = absl::Seconds(5);
  absl::Duration connect_timeout = absl::Seconds(5);
  // How long requests wait, from the end of a view, for one that can be installed before they fail.
  absl::Duration view_patience = absl::Milliseconds(1500);
  // Where traffic shares come from in the steps that this rank leads.
  ShareMode step_shares = ShareMode::kAuto;
  Clock* clock = &Clock::Real();
};

// What the engine stands on; all must outlive it.
struct StepEngineParts {
  // Of one engine at a time.
  StepModel* model = nullptr;
  ExpertStore* experts = nullptr;
  TransportFactory* transports = nullptr;
  StepSource* source = nullptr;
  StepEvents* events = nullptr;
  LoadCounters* counters = nullptr;
  // What a step's logits are written to: room for the source's most rows of them, [rows][vocab_size].
  std::span<float> logits;
};

// Any of the calls below from any thread; the step thread runs until Stop or destruction.
class StepEngine {
 public:
  // Starts the step thread, without a view.
  StepEngine(const StepEngineOptions& options, const StepEngineParts& parts);
  // Stops.
  ~StepEngine();

  // New work for the source to give: wakes the group if it sleeps. Cheap.
  void NotifyWork();

  // Go over to `view` with `placement` in force: the open step is discarded and the same rows are run in the new view.
  // Replicas that this worker lacks are loaded first (on the step thread). A later call overtakes an earlier one. The
  // outcome goes to StepEvents::ViewInstalled.
  //   InvalidArgument     no members, rank out of range, members twice, or this worker is not the member at `rank`
  //   FailedPrecondition  not newer than the newest view asked for
  absl::Status InstallView(GroupView view, Placement placement, uint64_t policy_version = 0);

  // A prepared version (ExpertStore::Prepare) is committed: the leader announces it with the next step, an empty one if
  // nobody has work. On other ranks, and for a version in force already, there is nothing to do.
  //   FailedPrecondition  this rank leads a view and the version is not prepared with every replica verified
  absl::Status CommitVersion(PlacementVersion version);

  // The view in which steps run; 0 when there is none.
  ViewId view() const;
  // The step last ended here, in the current or last view.
  StepId last_step() const;

  // Discards the open step and ends the step thread; the peers notice. Idempotent.
  void Stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_STEP_ENGINE_H_
