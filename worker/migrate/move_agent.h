// The worker's half of a rollout: brings a wave's replicas into free slots while serving goes on.
#ifndef BALLAST_WORKER_MIGRATE_MOVE_AGENT_H_
#define BALLAST_WORKER_MIGRATE_MOVE_AGENT_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/worker_session.pb.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "worker/experts/expert_store.h"

namespace ballast {

// Copies replicas from peers. Pull is one thread's, Cancel any thread's.
class ReplicaPuller {
 public:
  virtual ~ReplicaPuller() = default;
  // Fills `out`, one replica long, from the worker at `address` (its data address), at no more than
  // `max_bytes_per_second` (0: no limit). Blocks until done, `deadline`, or Cancel. What was filled after an error is
  // undefined.
  virtual absl::Status Pull(const std::string& address, ExpertId expert, std::span<std::byte> out,
                            int64_t max_bytes_per_second, absl::Time deadline) = 0;
  // Ends the Pull under way, if there is one, with Cancelled.
  virtual void Cancel() = 0;
};

// One wave's part for this worker.
struct MoveJob {
  // Of the wave's epoch.
  Placement placement;
  std::vector<v1::Move> moves;
  // Data addresses of the view's other members, by name.
  std::map<std::string, std::string> peers;
  absl::Time deadline;
  int64_t max_bytes_per_second = 0;
};

// Called on the agent's thread.
class MoveListener {
 public:
  virtual ~MoveListener() = default;
  virtual void OnMoveProgress(const v1::MoveProgress& progress) = 0;
  // Every replica of the wave is verified.
  virtual void OnWavePrepared(const v1::WavePrepared& prepared) = 0;
  // The epoch is forgotten. `error` names layer, expert, source and reason. Not called for an aborted wave.
  virtual void OnWaveFailed(Epoch epoch, const std::string& error) = 0;
};

// Does one job, on the calling thread: sets the slots aside, pulls each replica from the move's source, or reads it
// from the checkpoint when there is none or the peer fails, and has each verified. `progress` is called after each
// replica; `cancelled` is asked between them. Leaves the placement prepared, or aborted after an error.
//   Cancelled          `cancelled`, or the store's own cancellation
//   DeadlineExceeded   the wave's deadline passed; says how far it came
//   others             what the store or the checkpoint says, with layer and expert
absl::StatusOr<v1::WavePrepared> DoMoves(const MoveJob& job, ExpertStore& store, ReplicaPuller& puller, Clock& clock,
                                         const std::function<bool()>& cancelled,
                                         const std::function<void(const v1::MoveProgress&)>& progress);

// Does jobs one after another, on a thread of its own that sleeps in between. Thread-safe.
class MoveAgent {
 public:
  // All must outlive it.
  MoveAgent(ExpertStore& store, ReplicaPuller& puller, MoveListener& listener, Clock& clock);
  // Cancels what is under way; nothing is called on `listener` afterwards.
  ~MoveAgent();
  MoveAgent(const MoveAgent&) = delete;
  MoveAgent& operator=(const MoveAgent&) = delete;

  void Start(MoveJob job) BALLAST_EXCLUDES(mu_);
  // Forgets `epoch`, whether its job waits, runs or is done; does not block.
  void Abort(Epoch epoch) BALLAST_EXCLUDES(mu_);
  // Abort of everything: the worker leaves its view.
  void AbortAll() BALLAST_EXCLUDES(mu_);

 private:
  void Loop() BALLAST_EXCLUDES(mu_);

  ExpertStore& store_;
  ReplicaPuller& puller_;
  MoveListener& listener_;
  Clock& clock_;

  Mutex mu_;
  CondVar changed_;
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;
  std::deque<MoveJob> jobs_ BALLAST_GUARDED_BY(mu_);
  // Of the job under way.
  std::optional<Epoch> running_ BALLAST_GUARDED_BY(mu_);
  bool cancelled_ BALLAST_GUARDED_BY(mu_) = false;

  // Last: it uses everything above.
  std::thread thread_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MIGRATE_MOVE_AGENT_H_
