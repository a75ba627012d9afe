// A group with workers that behave, in one thread, for tests: messages, sessions, crashes and time move by hand.
#ifndef BALLAST_CONTROLLER_GROUP_GROUP_HARNESS_H_
#define BALLAST_CONTROLLER_GROUP_GROUP_HARNESS_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "controller/group/group.h"
#include "controller/store/store.h"
#include "proto/placement/placement.h"

namespace ballast {

// Useful for: scripts of what workers and operators do, with a crash of the controller between any two actions. Checks
// as it goes (gtest failures): terms, views and epochs only grow, everywhere; a wave's replicas are all there when it
// is committed; a placement in force is sound; every report counts once.
class GroupHarness {
 public:
  struct Options {
    int workers = 4;
    int layers = 4;
    int experts = 8;
    // Few enough that a plan takes more than one wave.
    int slots = 10;
    int staging = 2;
    // By worker, as in Hello; those beyond the list leave it out.
    std::vector<uint32_t> speeds;
    // Applied to each message of a worker's session, as programs of another release say and hear it.
    std::function<void(google::protobuf::Message&)> form = [](google::protobuf::Message&) {};
    GroupOptions group;
  };
  explicit GroupHarness(Options options);

  static Options Small();
  // The same in auto, and no plan but around workers gone for `patience`; three of the four have room for everything.
  static Options HealsAfter(absl::Duration patience);
  static std::string Name(int worker);

  // --- The controller.
  Group& group() { return *group_; }
  absl::Time now() const { return now_; }
  // Dies after this many more actions (a batch written, a message sent), and comes back at once with what is stored.
  void CrashAfter(int actions) { crash_after_ = actions; }
  bool crash_pending() const { return crash_after_.has_value(); }
  void CrashNow();
  int actions() const { return actions_; }
  int restarts() const { return restarts_; }
  // Plans that were worked out.
  int plan_jobs() const { return plan_jobs_; }
  std::map<std::string, std::string, std::less<>> stored() const { return store_.contents(); }
  // Runs an operator's call and performs its effects.
  template <typename F>
  auto Operate(F call) {
    Effects effects;
    auto result = call(*group_, effects);
    Perform(std::move(effects));
    return result;
  }
  // The newest plan that CreatePlan or the planning loop made; nothing when none was.
  std::optional<v1::Plan> NewestPlan() const;
  // Asks for a plan and returns the answer.
  absl::StatusOr<v1::GetPlanResponse> CreatePlan(bool dry_run = false);

  // --- Workers.
  void StartProcess(int worker);
  void KillProcess(int worker);
  void BreakSession(int worker);
  void Reconnect(int worker);
  bool running(int worker) const { return workers_[worker].running; }
  bool connected(int worker) const { return workers_[worker].session != 0; }
  // A worker that answers PrepareWave with WaveFailed, or with nothing.
  void RefuseWaves(int worker, std::string error) { workers_[worker].refuse = std::move(error); }
  void StallWaves(int worker, bool stall) { workers_[worker].stall = stall; }
  void SendPeerLost(int worker, const std::set<int>& lost);
  // A worker that answers InstallView with an error: by itself, or because of those of `lost` that are in the view.
  // Empty: no more. It keeps to it when its process starts again.
  void FailViews(int worker, std::string error, std::set<int> lost = {});
  // So long every worker takes to build a view's connections.
  void SetInstallTime(absl::Duration time) { install_time_ = time; }
  // Says so again with each new session.
  void SendLeaving(int worker);
  // As it was told last.
  v1::DrainState worker_drain(int worker) const { return workers_[worker].drain; }
  const std::string& worker_drain_reason(int worker) const { return workers_[worker].drain_reason; }
  // A load report with `tokens` for each layer, skewed to the low experts, or to those from `hottest` on.
  void SendReport(int worker, int64_t tokens, int hottest = 0);
  // A load report of these tasks' tokens, at most 16 of each as whole routes. In each layer a task's tokens choose the
  // same two experts, TaskExperts: a pair of their own for each of the tasks "a" to "d".
  void SendTasks(int worker, const std::map<std::string, int64_t>& tokens, v1::Phase phase = v1::PHASE_DECODE);
  std::pair<int32_t, int32_t> TaskExperts(const std::string& task, int layer) const;
  int64_t tokens_reported() const { return tokens_reported_; }
  // By task, as this controller and those before it have added to ballast_task_tokens_total.
  const std::map<std::string, double>& task_tokens() const { return task_tokens_; }
  // What its heartbeats say, and the newest answer to one.
  void SetRequests(int worker, int running) { workers_[worker].requests = running; }
  const v1::HeartbeatAck& worker_ack(int worker) const { return workers_[worker].ack; }
  // From its next session on it asks for task profiles; and those that its process was sent last.
  void SetClassifies(int worker) { workers_[worker].classifies = true; }
  const v1::TaskProfiles& worker_profiles(int worker) const { return workers_[worker].profiles; }
  uint64_t worker_epoch(int worker) const { return workers_[worker].epoch; }
  const Placement& worker_placement(int worker) const { return workers_[worker].placement; }
  uint64_t worker_view(int worker) const { return workers_[worker].view; }
  absl::Status last_close(int worker) const { return workers_[worker].last_close; }

  // --- Moving on. One message of a worker's session is delivered, in its order; false: there is none.
  bool DeliverToController(int worker);
  bool DeliverToWorker(int worker);
  // Delivers until nothing is on its way; unconnected processes reconnect first.
  void Run();
  // Time passes in steps of a tick: heartbeats, ticks and Run.
  void Advance(absl::Duration by);
  // One tick without anything else.
  void Tick(absl::Duration by);
  void Heartbeats();

  // Starts every process and forms the group.
  void FormGroup();
  // Loads the window so that a plan pays.
  void LoadWindowSkewed();

 private:
  struct FakeWorker {
    bool running = false;
    SessionId session = 0;
    // What the process has.
    uint64_t incarnation = 0;
    uint64_t term = 0;
    uint64_t view = 0;
    uint64_t epoch = 0;
    uint64_t prepared = 0;
    Placement placement;
    Placement prepared_placement;
    v1::View members;
    uint64_t report_stream = 0;
    uint64_t next_report = 1;
    std::deque<v1::LoadReport> unstored;
    std::string refuse;
    bool stall = false;
    std::string view_error;
    std::set<int> view_lost;
    // Done at `install_at`.
    std::optional<v1::InstallView> installing;
    absl::Time install_at;
    int requests = 0;
    bool leaving = false;
    v1::DrainState drain = v1::DRAIN_STATE_UNSPECIFIED;
    std::string drain_reason;
    v1::HeartbeatAck ack;
    v1::TaskProfiles profiles;
    bool classifies = false;
    absl::Status last_close;
    std::deque<v1::ConnectRequest> to_controller;
    std::deque<v1::ConnectResponse> to_worker;
  };

  v1::LoadReport NextReport(FakeWorker& worker);
  void Send(FakeWorker& worker, v1::LoadReport report);
  void Perform(Effects effects);
  bool Act();
  void Restart();
  void CheckStored(const std::vector<StoreWrite>& writes);
  void Obey(int index, const v1::ConnectResponse& message);
  void OnInstall(FakeWorker& worker, const v1::InstallView& install);
  static void AddRanks(const v1::View& view, const std::set<int>& workers,
                       google::protobuf::RepeatedField<int32_t>& ranks);
  void OnPrepare(int index, const v1::PrepareWave& prepare);
  void Announce(int leader, uint64_t epoch);
  void CheckTerm(FakeWorker& worker, uint64_t term);
  v1::Hello MakeHello(int index) const;
  int IndexOf(SessionId session) const;

  const Options options_;
  MemoryStore store_;
  std::unique_ptr<Group> group_;
  uint64_t term_ = 0;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
  std::vector<FakeWorker> workers_;
  SessionId last_session_ = 0;
  uint64_t last_stream_ = 0;
  int actions_ = 0;
  int restarts_ = 0;
  int plan_jobs_ = 0;
  std::optional<int> crash_after_;
  bool crashed_ = false;
  std::deque<PlanJob> jobs_;
  std::map<uint64_t, absl::StatusOr<v1::GetPlanResponse>> replies_;
  uint64_t last_call_ = 0;
  uint64_t highest_view_ = 0;
  uint64_t highest_epoch_ = 0;
  int64_t tokens_reported_ = 0;
  std::map<std::string, double> task_tokens_;
  absl::Duration install_time_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_GROUP_GROUP_HARNESS_H_
