// The worker's side of WorkerSession: what to do about each message, loss and local event. See worker_session.proto for
// the contract.
//
//   disconnected --Connect--> greeting --Welcome--> in session --stream ends--> disconnected ...
//
// Rules:
//   * A command of a lower term than the highest seen, or of another group, is not obeyed and not answered.
//   * What this process has in force (view, epoch, prepared epoch) outlives the stream: Hello says it, and results that
//     may have been lost with a stream are said again on the next one. Sending twice counts once.
//   * Declared dead (ABORTED): everything is dropped, the next Hello asks for a new incarnation.
//   * No acknowledged heartbeat for a lease: the stream is given up and made anew. The worker serves on meanwhile.
#ifndef BALLAST_WORKER_SESSION_SESSION_CORE_H_
#define BALLAST_WORKER_SESSION_SESSION_CORE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ballast/v1/worker_session.pb.h"
#include "proto/base/ids.h"
#include "proto/placement/placement.h"

namespace ballast {

struct SessionOptions {
  // Waits between attempts: doubled from the first to the second while the controller cannot be reached. Never more
  // than an eighth of the lease, once it is known: a controller that restarts counts it anew and must be found in time.
  absl::Duration min_backoff = absl::Milliseconds(100);
  absl::Duration max_backoff = absl::Seconds(1);
  // An operator must act first: after FAILED_PRECONDITION, a controller of a version too far off, or, once there was a
  // session, INVALID_ARGUMENT and PERMISSION_DENIED.
  absl::Duration refused_backoff = absl::Seconds(10);
  // An attempt without Welcome ends after this.
  absl::Duration greeting_timeout = absl::Seconds(5);
};

// What a heartbeat says.
struct WorkerStats {
  uint64_t step = 0;
  int requests_running = 0;
  int requests_waiting = 0;
  double kv_cache_used_ratio = 0;
};

// --- What the core asks for, to be done in the order given.

// Open a stream and send this first; the stream before is gone.
struct OpenStream {
  v1::Hello hello;
};
// End the stream at once; no OnClosed follows.
struct CloseStream {
  std::string reason;
};
struct SendMessage {
  v1::ConnectRequest message;
};
// Load this worker's slots, then OnPlacementLoaded.
struct LoadReplicas {
  Placement placement;
};
// Join the view, then OnViewInstalled. A view that is still being installed is given up for it.
struct JoinView {
  v1::View view;
  Placement placement;
};
// Stop taking part in any view: this incarnation is dead.
struct LeaveView {
  std::string reason;
};
// Bring the moves' replicas in, then OnWavePrepared or OnWaveFailed.
struct PrepareMoves {
  std::string plan;
  ViewId view;
  Placement placement;
  std::vector<v1::Move> moves;
  absl::Time deadline;
  int64_t max_bytes_per_second = 0;
};
// The prepared epoch is committed.
struct CommitEpoch {
  Epoch epoch;
};
// Forget the epoch, prepared or being prepared.
struct AbortEpoch {
  Epoch epoch;
  std::string reason;
};
// Reports of this process up to `sequence` are stored.
struct ForgetReports {
  uint64_t sequence = 0;
};
// How busy the other members of the view are; only while the placement has homes of tasks.
struct NotePeerLoads {
  v1::HeartbeatAck ack;
};
// What prompts of each task choose; only for a worker whose Hello asks for it.
struct NoteTaskProfiles {
  v1::TaskProfiles profiles;
};
// How far this worker's drain is; UNSPECIFIED: it is not to go.
struct NoteDrain {
  v1::DrainState state = v1::DRAIN_STATE_UNSPECIFIED;
  std::string reason;
};
// A session began: send the reports that are not stored, and report every `interval`.
struct ReportEvery {
  absl::Duration interval;
};
// The controller refuses this process, which was never in a session: end it.
struct GiveUp {
  absl::Status status;
};

using SessionAction =
    std::variant<OpenStream, CloseStream, SendMessage, LoadReplicas, JoinView, LeaveView, PrepareMoves, CommitEpoch,
                 AbortEpoch, ForgetReports, NotePeerLoads, NoteTaskProfiles, NoteDrain, ReportEvery, GiveUp>;
using SessionActions = std::vector<SessionAction>;

// Pure: no clock, no stream. Used by one thread.
class SessionCore {
 public:
  // `hello` holds what does not change: names, model, fingerprints, slots, addresses, report_stream, version.
  SessionCore(v1::Hello hello, const SessionOptions& options) : hello_(std::move(hello)), options_(options) {}

  // Timers: attempts, heartbeats, silence. Call at the start and whenever next_tick() has come.
  SessionActions OnTick(absl::Time now, const WorkerStats& stats);
  absl::Time next_tick() const { return next_tick_; }

  SessionActions OnMessage(const v1::ConnectResponse& message, absl::Time now);
  // The stream ended by itself.
  SessionActions OnClosed(const absl::Status& status, absl::Time now);

  // Results of actions, and what happens in the worker. Each is sent now or with the next session.
  SessionActions OnPlacementLoaded(Epoch epoch, const absl::Status& status);
  SessionActions OnViewInstalled(ViewId view, Epoch epoch, const absl::Status& status,
                                 const std::vector<int32_t>& peer_ranks);
  SessionActions OnPeersLost(ViewId view, const std::vector<int32_t>& ranks, std::string_view reason);
  SessionActions OnMoveProgress(const v1::MoveProgress& progress);
  SessionActions OnWavePrepared(const v1::WavePrepared& prepared);
  SessionActions OnWaveFailed(Epoch epoch, std::string_view error);
  SessionActions OnEpochInForce(ViewId view, Epoch epoch, StepId step);
  SessionActions OnReport(v1::LoadReport report);
  SessionActions OnLeaving(std::string_view reason);

  bool in_session() const { return state_ == State::kInSession; }
  Term term() const { return term_; }
  uint64_t incarnation() const { return hello_.incarnation(); }
  ViewId view() const { return ViewId(hello_.view()); }
  Epoch epoch() const { return Epoch(hello_.epoch()); }

 private:
  enum class State { kDisconnected, kGreeting, kInSession, kStopped };
  // Results that a new session must hear again, by kind.
  enum class Kept { kPlacementLoaded, kViewInstalled, kEpochInForce, kPeerLost, kWave, kLeaving };

  SessionActions OnWelcome(const v1::Welcome& welcome, absl::Time now);
  SessionActions OnInstallView(const v1::InstallView& command);
  SessionActions OnPrepareWave(const v1::PrepareWave& command);
  // Whether a command may be obeyed; logs why not.
  bool Obey(uint64_t term, const std::string& group, std::string_view command);
  SessionActions SendNow(v1::ConnectRequest message) const;
  SessionActions Keep(Kept kind, v1::ConnectRequest message);
  void Retry(absl::Time now, absl::Duration after);
  void Schedule(absl::Time at) { next_tick_ = at; }
  absl::Duration NextBackoff();

  // Hello of the next attempt; view, epoch, prepared_epoch, incarnation and last_term are the process's state.
  v1::Hello hello_;
  SessionOptions options_;
  State state_ = State::kDisconnected;
  Term term_;
  int failed_attempts_ = 0;
  absl::Time next_tick_ = absl::InfinitePast();

  absl::Duration heartbeat_interval_;
  // Infinite until the first Welcome.
  absl::Duration lease_ = absl::InfiniteDuration();
  uint64_t heartbeats_ = 0;
  absl::Time greeting_deadline_ = absl::InfiniteFuture();
  absl::Time last_acknowledged_;
  // The view being installed, and its placement's epoch.
  ViewId joining_;
  // The wave being prepared.
  Epoch preparing_;
  std::map<Kept, v1::ConnectRequest> kept_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_SESSION_SESSION_CORE_H_
