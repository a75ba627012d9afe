// Runs the groups: one thread that takes what happens in order, hands it to the groups' state machines and performs
// their effects; and one thread that plans.
#ifndef BALLAST_CONTROLLER_SERVICE_RUNTIME_H_
#define BALLAST_CONTROLLER_SERVICE_RUNTIME_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/group_service.pb.h"
#include "controller/group/config.h"
#include "controller/group/effects.h"
#include "controller/group/group.h"
#include "controller/service/gauges.h"
#include "controller/store/store.h"
#include "proto/base/clock.h"
#include "proto/base/ids.h"
#include "proto/base/metrics.h"
#include "proto/base/mutex.h"

namespace ballast {

// The controller's end of one worker's stream. Called by the runtime's thread; never blocks.
class SessionSink {
 public:
  virtual ~SessionSink() = default;
  virtual void Send(v1::ConnectResponse message) = 0;
  // Ends the stream; the last call.
  virtual void Close(absl::Status status) = 0;
};

// Thread-safe. Performing an effect, the runtime writes to the store before it sends, and while the store cannot be
// written it tries again and does nothing else: workers serve on, operators get UNAVAILABLE. A write that is given up
// because the runtime stops is the last thing that it does: nothing that came after it is stored or sent.
//
// A round of the loop takes what has arrived, each at its own time, and then ticks at the time of taking it. So no
// lease runs out while a heartbeat waits; and a round that comes late (a store that hangs, a machine that stands still)
// is told to the groups first, since what workers said meanwhile may be lost.
class Runtime {
 public:
  using Planner = std::function<absl::StatusOr<PlanOutcome>(const PlanJob&)>;
  struct Options {
    std::vector<GroupOptions> groups;
    // Between two looks at leases and deadlines.
    absl::Duration tick = absl::Milliseconds(100);
    // After a write that failed.
    absl::Duration store_retry = absl::Milliseconds(500);
    // Called on the runtime's thread when the store cannot be written any more, and when it can again; must not block.
    std::function<void(bool up)> store_changed = [](bool) {};
    // Called on the planning thread.
    Planner planner;
    // Of ballast_expert_tokens_total: the experts with most tokens a layer that are shown; 0: all.
    int expert_metrics_top = 0;
  };

  // Takes the next term and loads every group. `store`, `clock` and `metrics` (of ControllerMetrics()) must outlive it.
  //   InvalidArgument  two groups have one name.   others  as Group::Load and the store.
  static absl::StatusOr<std::unique_ptr<Runtime>> Start(Options options, Store& store, Clock& clock, Metrics& metrics);
  // As Stop.
  ~Runtime();
  // Closes every session with UNAVAILABLE, answers what waits, ends the threads. Idempotent.
  void Stop() BALLAST_EXCLUDES(mu_);

  Term term() const { return term_; }

  // --- Sessions. Receive's first message must be Hello.
  SessionId Open(std::shared_ptr<SessionSink> sink) BALLAST_EXCLUDES(mu_);
  void Receive(SessionId session, v1::ConnectRequest message) BALLAST_EXCLUDES(mu_);
  void Lost(SessionId session) BALLAST_EXCLUDES(mu_);

  // --- Calls. Runs `work` on the runtime's thread, performs the effects, and returns what it returned. `work` may run
  // after Call has given up, so it must own what it uses.
  //   NotFound          no such group.
  //   Unavailable       the store cannot be written, or the runtime stops; `work` may or may not take effect.
  //   DeadlineExceeded  `deadline` came; as above.
  template <typename T>
  absl::StatusOr<T> Call(const std::string& group, absl::Time deadline,
                         std::function<absl::StatusOr<T>(Group&, absl::Time, Effects&)> work) {
    auto result = std::make_shared<absl::StatusOr<T>>(absl::UnknownError("not run"));
    const absl::Status status =
        Run(group, deadline, [result, work = std::move(work)](Group& g, absl::Time now, Effects& effects) {
          *result = work(g, now, effects);
        });
    if (!status.ok()) return status;
    return std::move(*result);
  }
  // Answers when the planner has.
  absl::StatusOr<v1::GetPlanResponse> CreatePlan(const v1::CreatePlanRequest& request, absl::Time deadline);

  // Sorted.
  std::vector<std::string> group_names() const;
  const Store& store() const { return store_; }
  Clock& clock() const { return clock_; }

  // --- Watching. The group's state once it is newer than `seen` (0: now), with the events since; nothing when
  // `deadline` comes first. Give the version of one answer as `seen` of the next call.
  struct Watched {
    uint64_t version = 0;
    v1::Group group;
    // Oldest first, at most 100.
    std::vector<v1::Event> events;
  };
  //   NotFound  no such group.   Unavailable  the runtime stops.
  absl::StatusOr<std::optional<Watched>> Watch(const std::string& group, uint64_t seen, absl::Time deadline)
      BALLAST_EXCLUDES(mu_);

 private:
  struct Event {
    absl::Time at;
    std::function<void(absl::Time)> run;
    // That it is a message of; 0: of none.
    SessionId session = 0;
  };
  // A caller that waits; shared with the loop.
  struct Waiter {
    bool done = false;
    absl::Status status;
  };
  struct Session {
    std::shared_ptr<SessionSink> sink;
    // Of its Hello.
    Group* group = nullptr;
  };
  struct Board {
    uint64_t version = 0;
    v1::Group group;
    // With the version that each arrived in.
    std::deque<std::pair<uint64_t, v1::Event>> events;
  };

  Runtime(Options options, Store& store, Clock& clock, Metrics& metrics);
  void Post(std::function<void(absl::Time)> run, SessionId session = 0) BALLAST_EXCLUDES(mu_);
  absl::Status Run(const std::string& group, absl::Time deadline,
                   std::function<void(Group&, absl::Time, Effects&)> work) BALLAST_EXCLUDES(mu_);
  absl::Status Await(Waiter& waiter, absl::Time deadline) BALLAST_EXCLUDES(mu_);
  void Done(Waiter& waiter, absl::Status status) BALLAST_EXCLUDES(mu_);

  // On the loop's thread alone.
  void Loop();
  // What has arrived until `now`, and a tick where one is due; less once a write was given up.
  void Round(std::deque<Event> events, absl::Time now);
  void PlannerLoop();
  void OnMessage(SessionId id, const v1::ConnectRequest& message, absl::Time now);
  // False: the runtime stops before all is done.
  bool Perform(Group& group, Effects effects);
  bool Write(const std::vector<StoreWrite>& writes);
  void Publish(Group& group, absl::Time now);
  void TickAll(absl::Time now);

  const Options options_;
  Store& store_;
  Clock& clock_;
  Metrics& metrics_;
  Term term_;
  // Fixed after Start; the groups belong to the loop's thread.
  std::map<std::string, std::unique_ptr<Group>> groups_;
  // That have said Hello.
  std::map<SessionId, Session> sessions_;
  std::map<std::string, std::vector<v1::Event>> unpublished_;
  std::map<std::string, bool> changed_;
  std::map<std::string, std::unique_ptr<Gauges>> gauges_;
  struct PendingPlan {
    std::shared_ptr<Waiter> waiter;
    std::shared_ptr<absl::StatusOr<v1::GetPlanResponse>> result;
  };
  std::map<uint64_t, PendingPlan> pending_plans_;
  uint64_t last_call_ = 0;
  absl::Time next_tick_;
  absl::Time next_gauges_;
  // A write was given up. The groups are ahead of the store for good: nothing more of theirs may be stored.
  bool gave_up_ = false;

  mutable Mutex mu_;
  CondVar work_;
  CondVar answered_;
  CondVar published_;
  CondVar jobs_changed_;
  std::deque<Event> queue_ BALLAST_GUARDED_BY(mu_);
  // Sessions whose first message the loop has not come to. One that is lost before was never there.
  std::map<SessionId, std::shared_ptr<SessionSink>> opened_ BALLAST_GUARDED_BY(mu_);
  std::deque<PlanJob> jobs_ BALLAST_GUARDED_BY(mu_);
  std::map<std::string, Board> boards_ BALLAST_GUARDED_BY(mu_);
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;
  bool store_up_ BALLAST_GUARDED_BY(mu_) = true;
  SessionId last_session_ BALLAST_GUARDED_BY(mu_) = 0;

  std::thread loop_;
  std::thread planner_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_RUNTIME_H_
