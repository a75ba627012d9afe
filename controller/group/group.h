// One group as a state machine: what workers say, operators ask, the planner finds and the clock shows goes in; what to
// store, to send, to plan and to log comes out.
//
// Single-threaded and pure but for its own state: no I/O, no clock, no threads. Whoever owns it performs the Effects of
// a call, step by step, before the next call (see effects.h). Everything that a restart must remember is in the writes
// of some step, so a Group loaded from the store at any point between two actions carries on.
//
// The rules are in membership.h, rollout.h and planning_policy.h; this class keeps their facts and performs their
// steps.
#ifndef BALLAST_CONTROLLER_GROUP_GROUP_H_
#define BALLAST_CONTROLLER_GROUP_GROUP_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/group_service.pb.h"
#include "ballast/v1/plan_service.pb.h"
#include "ballast/v1/worker_session.pb.h"
#include "controller/group/config.h"
#include "controller/group/effects.h"
#include "controller/group/membership.h"
#include "controller/planner/drift.h"
#include "controller/planner/scenario_book.h"
#include "controller/rollout/plan_job.h"
#include "controller/rollout/rollout.h"
#include "controller/store/records.pb.h"
#include "controller/store/store.h"
#include "controller/telemetry/load_window.h"
#include "controller/telemetry/planning_pace.h"
#include "controller/telemetry/report_ledger.h"
#include "controller/telemetry/task_profiles.h"
#include "proto/base/ids.h"
#include "proto/placement/placement.h"

namespace ballast {

class Group {
 public:
  // What the store remembers of the group, or a new one. Nothing is written before the first call below. Leases of all
  // workers start anew at `now`.
  //   FailedPrecondition  the group was formed with another size or role than the configuration says.
  //   DataLoss            a record is damaged.
  //   others              as the store.
  static absl::StatusOr<std::unique_ptr<Group>> Load(const GroupOptions& options, Term term, const Store& store,
                                                     absl::Time now);

  // --- Workers. A session begins with its Hello; its outcome is a Welcome or a CloseSession. What a session says after
  // it was closed is dropped.
  void Hello(SessionId session, const v1::Hello& hello, absl::Time now, Effects& effects);
  // Messages other than Hello.
  void Receive(SessionId session, const v1::ConnectRequest& message, absl::Time now, Effects& effects);
  void Lost(SessionId session, absl::Time now, Effects& effects);

  // --- Time. Call often: leases, deadlines, checkpoints and planning are due to its interval.
  void Tick(absl::Time now, Effects& effects);
  // Whoever calls this group took nothing in for `lasted` until `now` (its store hung, the machine stood still). What
  // workers said meanwhile may be lost, so where that is a good part of a lease the leases of all live workers start
  // anew, as after a restart. Call before what has arrived since is handed in.
  void StoodStill(absl::Duration lasted, absl::Time now, Effects& effects);

  // --- The planner's answer to effects.job.
  void Planned(uint64_t ticket, absl::StatusOr<PlanOutcome> outcome, absl::Time now, Effects& effects);

  // --- Operators. Errors as plan_service.proto and group_service.proto document them.
  // Answers with a PlanReply of `call`, here or after Planned.
  void CreatePlan(uint64_t call, const v1::CreatePlanRequest& request, absl::Time now, Effects& effects);
  // `by` is who asks, for the plan's history: "an operator", "ann".
  absl::StatusOr<v1::Plan> Approve(const std::string& id, const std::string& by, absl::Time now, Effects& effects);
  absl::StatusOr<v1::Plan> Reject(const std::string& id, const std::string& reason, const std::string& by,
                                  absl::Time now, Effects& effects);
  absl::StatusOr<v1::Plan> Rollback(const std::string& reason, const std::string& by, absl::Time now, Effects& effects);
  void SetMode(v1::GroupMode mode, absl::Time now, Effects& effects);
  // One that plans are made by (CheckPolicy of controller/service/planning.h).
  void SetPolicy(const std::string& policy, absl::Time now, Effects& effects);
  void SetPaused(bool paused, absl::Time now, Effects& effects);
  absl::StatusOr<v1::Worker> DrainWorker(const std::string& name, absl::Time now, Effects& effects);
  absl::StatusOr<v1::Worker> UndrainWorker(const std::string& name, absl::Time now, Effects& effects);

  // --- Reading.
  v1::Group Describe(absl::Time now) const;
  // Sorted by (rank, name), workers outside the view last.
  std::vector<v1::Worker> Workers(absl::Time now) const;
  // Epoch 0: not formed.
  const Placement& placement() const { return placement_; }
  // Absent: not formed.
  std::optional<v1::GetLoadResponse> Load(const LoadWindow::Selection& selection, absl::Time now) const;
  // Newest first.
  std::vector<v1::Plan> Plans() const;
  // Plan and layers; moves and placement are in the store.
  std::optional<v1::GetPlanResponse> Plan(const std::string& id) const;
  const std::string& name() const { return options_.config.name; }
  const store::GroupRecord& record() const { return record_; }
  // Tokens by [layers][experts] since this process started.
  const std::vector<double>& counted(v1::Phase phase) const {
    return phase == v1::PHASE_PREFILL ? counted_prefill_ : counted_decode_;
  }
  // Counts of another generation began at 0: the group was formed anew.
  uint64_t counted_generation() const { return counted_generation_; }
  // What a plan is made for: the window by phase, and loads remembered from before. The group is formed.
  std::vector<PlanScenario> PlanScenarios(absl::Time now) const;
  // What the window's tokens chose, tasks weighted by the recent mix. No tasks: nothing is known.
  Routes SampledRoutes() const;
  const std::string& policy() const { return record_.policy().empty() ? options_.config.policy : record_.policy(); }
  // How far the recent mix of tasks is from the one that the placement is grouped for. The group is formed.
  MixDrift DetectMixDrift() const;
  // Of the newest load report that was counted; infinite past: none.
  // Never later than it was counted, whatever its worker's clock says.
  absl::Time newest_report() const { return newest_report_; }

 private:
  struct Worker {
    uint64_t incarnation = 0;
    bool alive = false;
    SessionId session = 0;
    // Never goes back: a message that waited is older than a lease that began anew.
    absl::Time lease_deadline;
    absl::Time last_heard;
    v1::Hello hello;
    bool accused = false;
    // Views in a row that failed because of it, before the one in force.
    int failed_views = 0;
    bool leaving = false;
    // Its last heartbeat, after it said that it leaves, told of no request.
    bool idle = false;
    // Of leaving or cordoned: who asked first has the lower number.
    uint64_t drain_order = 0;
    // Why the others cannot take what it holds; empty: they can, or it was not tried in this view.
    std::string no_room;
    // What it was told last in this session.
    std::optional<v1::DrainState> told_drain = v1::DRAIN_STATE_UNSPECIFIED;
    // Version of the task profiles that it has from this session; 0: none.
    uint64_t told_profiles = 0;
    uint64_t loaded_epoch = 0;
    std::string load_error;
    // View that it has installed, and the epoch that the newest InstallView sent to it carried.
    uint64_t view_installed = 0;
    uint64_t sent_epoch = 0;
    uint64_t epoch_in_force = 0;
    uint64_t prepared_epoch = 0;
    v1::MoveProgress progress;
    v1::Heartbeat heartbeat;
  };
  // Why a plan is being made.
  struct Job {
    enum class Purpose { kAuto, kCall, kRollback, kHeal, kDrain };
    Purpose purpose = Purpose::kAuto;
    uint64_t call = 0;
    bool dry_run = false;
    // What drift promised it.
    double drift_gain = 0;
    uint64_t base_epoch = 0;
    std::string policy;
    std::string plan;
    std::string reason;
    // Of kDrain: whom it is for.
    std::vector<std::string> going;
  };
  // One call's way through the group: what it adds goes into `step` until EndStep.
  struct Turn {
    Effects& effects;
    absl::Time now;
    EffectStep step;
  };

  Group(const GroupOptions& options, Term term) : options_(options), term_(term) {}
  absl::Status LoadFrom(const Store& store, absl::Time now);

  // group.cc
  void EndStep(Turn& turn);
  // Performs what the rules say until they say nothing more.
  void Settle(Turn& turn);
  void Say(Turn& turn, Severity severity, std::string text);
  void Send(Turn& turn, const Worker& worker, v1::ConnectResponse message);
  void Checkpoint(Turn& turn);
  void MaybePlan(Turn& turn);
  // Takes into book_ what was counted since the last call.
  void Remember();
  std::string BookKey(const std::string& scenario, int64_t number) const;
  absl::Status LoadBook(const Store& store);
  MembershipFacts Facts(absl::Time now) const;
  // Of the view in force; nobody while it has not failed.
  std::vector<bool> BlamedNow() const;
  // Since when what is waited for is so.
  void NoteTimes(absl::Time now);
  void DeclareDead(Turn& turn, const MembershipStep& step);
  void KeepOut(Turn& turn, const MembershipStep& step);
  void Form(Turn& turn, const MembershipStep& step);
  void IssueView(Turn& turn, const MembershipStep& step);
  v1::ConnectResponse InstallViewMessage() const;
  bool formed() const { return placement_.epoch.value() != 0; }
  bool InView(const std::string& name, uint64_t incarnation) const;
  // Every worker that holds replicas of `placement` serves in the view in force and is not to go.
  bool GroupComplete(const Placement& placement) const { return AllServe(Holders(placement)); }
  bool AllServe(const std::vector<std::string>& workers) const;
  // Is alive in the view and not being emptied, so that rollouts may count on it. A worker that is to go and keeps what
  // it holds counts until it goes.
  bool Serves(const std::string& name) const;
  // Relative, at least 1; of the placement's workers, in order.
  uint32_t SpeedOf(const std::string& worker) const;
  std::vector<uint32_t> PlacementSpeeds() const;
  DriftReport Drift(absl::Time now) const;
  size_t MixBuckets() const;
  bool ViewInstalledEverywhere() const;
  std::vector<std::string> ViewWorkers() const;
  void MakeLoadWindow(const v1::ModelIdentity& model);

  // group_sessions.cc
  absl::Status CheckHello(const v1::Hello& hello) const;
  absl::Status CheckModel(const v1::Hello& hello) const;
  absl::Status CheckCapacity(const v1::Hello& hello) const;
  void Reconcile(Turn& turn, const std::string& name, Worker& worker);
  void OnHeartbeat(Turn& turn, Worker& worker, const v1::Heartbeat& heartbeat);
  void OnPlacementLoaded(Turn& turn, const std::string& name, Worker& worker, const v1::PlacementLoaded& loaded);
  void OnViewInstalled(Turn& turn, const std::string& name, Worker& worker, const v1::ViewInstalled& installed);
  void OnPeersLost(Turn& turn, const std::string& name, uint64_t view,
                   const google::protobuf::RepeatedField<int32_t>& ranks, const std::string& reason);
  void OnReport(Turn& turn, const std::string& name, const Worker& worker, const v1::LoadReport& report);
  // Tells workers that want them of new task profiles.
  void TellProfiles(Turn& turn);
  // What the counter of tasks' tokens, whose series stay for good, shows `task` as.
  std::string CountedAs(const std::string& task);
  void OnProgress(Turn& turn, Worker& worker, const v1::MoveProgress& progress);
  void OnPrepared(Turn& turn, Worker& worker, const v1::WavePrepared& prepared);
  void OnFailed(Turn& turn, const std::string& name, const v1::WaveFailed& failed);
  // `worker` is in no view.
  void SendLoadPlacement(Turn& turn, const std::string& name, Worker& worker);
  Worker* Find(SessionId session, std::string* name);

  // group_drain.cc
  v1::DrainState DrainOf(const std::string& name, const Worker& worker) const;
  bool Cordoned(const std::string& name) const;
  int32_t SlotsUsed(const std::string& name) const;
  // Workers whose replicas are being brought elsewhere, in the order in which they asked.
  std::vector<std::string> Going() const;
  // Some worker is to go, so plans and rollouts for the load wait.
  bool AnyDrains() const;
  // Plans for workers that are to go. True: replicas are being brought elsewhere, and nothing else is planned.
  bool MaybeDrain(Turn& turn);
  void OnDrainPlanned(Turn& turn, const Job& job, const absl::StatusOr<PlanOutcome>& outcome);
  void GiveUpDrain(Turn& turn, const std::string& name, const std::string& reason);
  // What stood in the way may stand there no more.
  void TryDrainsAnew();
  // Says to workers that are to go, or were, how far they are.
  void TellDrains(Turn& turn);
  v1::DrainStatus DrainStatusOf(const std::string& name, const Worker& worker) const;
  absl::StatusOr<v1::Worker> Cordon(const std::string& name, bool cordoned, absl::Time now, Effects& effects);

  // group_rollout.cc
  store::PlanRecord* ActivePlan();
  const store::PlanRecord* ActivePlan() const;
  // The active plan's wave is PREPARING or PREPARED.
  bool Preparing() const;
  RolloutFacts RolloutState() const;
  void PerformRollout(Turn& turn, const RolloutDecision& decision);
  Placement WavePlacement(const store::PlanRecord& plan) const;
  v1::ConnectResponse PrepareWaveMessage(const store::PlanRecord& plan, const std::string& worker) const;
  v1::ConnectResponse CommitWaveMessage() const;
  v1::ConnectResponse AbortWaveMessage(uint64_t epoch, std::string reason) const;
  void BeginWave(Turn& turn, store::PlanRecord& plan);
  void Commit(Turn& turn, store::PlanRecord& plan);
  void WaveDone(Turn& turn, store::PlanRecord& plan);
  void Abort(Turn& turn, store::PlanRecord& plan, const RolloutDecision& decision);
  void Finish(Turn& turn, store::PlanRecord& plan, v1::PlanState state, const std::string& reason);
  void SetState(Turn& turn, store::PlanRecord& plan, v1::PlanState state, const std::string& text);
  void WorkOut(Turn& turn, store::PlanRecord& plan);
  void RetireProposals(Turn& turn, const std::string& except);
  void SweepProposals(Turn& turn);

  // group_operations.cc
  absl::Status CanPlan(absl::Time now) const;
  void StartJob(Turn& turn, Job job, std::optional<Placement> target);
  store::PlanRecord& AddPlan(Turn& turn, const PlanOutcome& outcome, const Job& job, v1::PlanState state);
  store::PlanRecord& NewPlan(Turn& turn, v1::PlanState state, const std::string& policy, const std::string& reason);
  void AddWaves(Turn& turn, store::PlanRecord& plan, const PlanOutcome& outcome);
  void OnRollbackPlanned(Turn& turn, const Job& job, const absl::StatusOr<PlanOutcome>& outcome);
  void PrunePlans(Turn& turn);
  v1::Plan Shown(const store::PlanRecord& plan) const;
  double WindowBalancedness(absl::Time now) const;

  const GroupOptions options_;
  const Term term_;

  // Stored; the flags say what EndStep must write.
  store::GroupRecord record_;
  bool record_dirty_ = false;
  Placement placement_;
  bool placement_dirty_ = false;
  // Before the last rollout; epoch 0: none.
  Placement previous_;
  bool previous_dirty_ = false;
  std::map<std::string, store::PlanRecord> plans_;
  std::set<std::string> plans_dirty_;

  // By name. Incarnation, life and hello are stored, the rest is told again by reconnecting workers. Whom an operator
  // drained is in record_.
  std::map<std::string, Worker> workers_;
  // Of plans that are not finished.
  std::map<std::string, std::vector<store::WaveRecord>> waves_;

  std::unique_ptr<LoadWindow> load_;
  // Of reports that came while some worker wanted them. Beside load_, and stored with it.
  std::optional<TaskProfiles> profiles_;
  ReportLedger ledger_;
  std::vector<double> counted_prefill_;
  std::vector<double> counted_decode_;
  uint64_t counted_generation_ = 0;
  absl::Time newest_report_ = absl::InfinitePast();
  std::set<std::string> counted_tasks_;
  absl::Time next_checkpoint_;

  // Of the view in force: what its members have said, by rank, and since when every one of them has installed it.
  std::vector<MemberWord> words_;
  absl::Time installed_at_ = absl::InfiniteFuture();
  absl::Time reissue_at_ = absl::InfiniteFuture();
  int reissues_ = 0;
  // When the committed wave should have been in force, and the views with the same members that should have brought it.
  absl::Time force_by_ = absl::InfiniteFuture();
  int force_views_ = 0;
  // By name, of who was put out.
  struct KeptOut {
    int times = 0;
    absl::Time until = absl::InfinitePast();
  };
  std::map<std::string, KeptOut> kept_out_;
  // While some worker could serve and no view has members: when the last one came or had loaded, and how many steps of
  // that kind were seen.
  absl::Time waiting_since_ = absl::InfiniteFuture();
  int arrived_ = 0;
  // Of the wave under way.
  std::string wave_failure_;

  uint64_t last_drain_order_ = 0;
  absl::Time last_drain_planned_ = absl::InfinitePast();
  // Rollouts of drains in a row that failed with nothing moved, and why the last one did.
  int drain_failures_ = 0;
  std::string drain_failure_;

  uint64_t last_ticket_ = 0;
  std::map<uint64_t, Job> jobs_;
  PlanningPace pace_;
  // Since when a worker that holds replicas does not serve; and the last plan around such workers.
  absl::Time incomplete_since_ = absl::InfiniteFuture();
  absl::Time last_healed_ = absl::InfinitePast();
  std::string last_no_plan_reason_;
  // Loads of phases that are over; of what this process has counted as much as remembered_ says. Beside load_, and
  // stored with it.
  std::optional<ScenarioBook> book_;
  std::map<v1::Phase, std::vector<double>> remembered_;
};

// Times as the protos have them.
google::protobuf::Timestamp ToProto(absl::Time time);
absl::Time FromProto(const google::protobuf::Timestamp& time);
google::protobuf::Duration ToProto(absl::Duration duration);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_GROUP_GROUP_H_
