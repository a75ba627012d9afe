#include "controller/group/group.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "controller/telemetry/planning_policy.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

// A view that worked for this long is no part of a row of failures.
constexpr absl::Duration kViewWorks = absl::Seconds(10);
// Who was put out longer ago than this is put out for as short as the first time.
constexpr absl::Duration kForgiven = absl::Hours(1);
// How often a wait is doubled.
constexpr int kMostDoublings = 5;
// What a group that nobody serves waits for more of its workers after the last one came, in heal_after's: all are
// starting then, and some slowly.
constexpr int kStartPatience = 10;

absl::Status Damaged(const std::string& key) {
  return absl::DataLossError(absl::StrCat("store: record '", key, "' is damaged; restore a backup"));
}

template <typename Message>
absl::StatusOr<bool> Read(const Store& store, const std::string& key, Message& message) {
  BALLAST_ASSIGN_OR_RETURN(const std::optional<std::string> value, store.Get(key));
  if (!value.has_value()) return false;
  if (!message.ParseFromString(*value)) return Damaged(key);
  return true;
}

absl::StatusOr<Placement> ReadPlacement(const Store& store, const std::string& key) {
  v1::Placement proto;
  BALLAST_ASSIGN_OR_RETURN(const bool found, Read(store, key, proto));
  if (!found) return Placement();
  absl::StatusOr<Placement> placement = FromProto(proto);
  if (!placement.ok()) return Damaged(key);
  return placement;
}

}  // namespace

google::protobuf::Timestamp ToProto(absl::Time time) {
  google::protobuf::Timestamp proto;
  const int64_t nanos = absl::ToUnixNanos(time);
  int64_t seconds = nanos / 1'000'000'000;
  if (nanos % 1'000'000'000 < 0) --seconds;
  proto.set_seconds(seconds);
  proto.set_nanos(static_cast<int32_t>(nanos - seconds * 1'000'000'000));
  return proto;
}

absl::Time FromProto(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration proto;
  const int64_t nanos = absl::ToInt64Nanoseconds(duration);
  proto.set_seconds(nanos / 1'000'000'000);
  proto.set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  return proto;
}

absl::StatusOr<std::unique_ptr<Group>> Group::Load(const GroupOptions& options, Term term, const Store& store,
                                                   absl::Time now) {
  auto group = std::unique_ptr<Group>(new Group(options, term));
  BALLAST_RETURN_IF_ERROR(group->LoadFrom(store, now));
  return group;
}

absl::Status Group::LoadFrom(const Store& store, absl::Time now) {
  const GroupConfig& config = options_.config;
  next_checkpoint_ = now + options_.timing.checkpoint;
  BALLAST_ASSIGN_OR_RETURN(const bool found, Read(store, absl::StrCat("group/", config.name), record_));
  BALLAST_ASSIGN_OR_RETURN(placement_, ReadPlacement(store, absl::StrCat("placement/", config.name)));
  BALLAST_ASSIGN_OR_RETURN(previous_, ReadPlacement(store, absl::StrCat("previous/", config.name)));
  if (formed() && record_.last_view() != 0) {
    if (record_.size() != config.size) {
      return absl::FailedPreconditionError(absl::StrCat("group ", config.name, ": size: ", config.size,
                                                        ", but it was formed with ", record_.size(), " workers"));
    }
    if (record_.role() != config.role) {
      return absl::FailedPreconditionError(absl::StrCat("group ", config.name,
                                                        ": role: ", v1::GroupRole_Name(config.role),
                                                        ", but it was formed as ", v1::GroupRole_Name(record_.role())));
    }
  }
  if (!found) record_.set_mode(config.mode);
  record_.set_name(config.name);
  record_.set_size(config.size);
  record_.set_role(config.role);
  record_dirty_ = !found;
  words_.resize(record_.members_size());

  for (const auto& [name, stored] : record_.workers()) {
    Worker& worker = workers_[name];
    worker.incarnation = stored.incarnation();
    worker.alive = stored.alive();
    worker.hello = stored.hello();
    worker.last_heard = now;
    worker.lease_deadline = now + options_.timing.lease;
  }

  BALLAST_ASSIGN_OR_RETURN(const auto plans, store.List("plan/"));
  for (const auto& [key, value] : plans) {
    store::PlanRecord plan;
    if (!plan.ParseFromString(value)) return Damaged(key);
    if (plan.plan().group() == config.name) plans_[plan.plan().id()] = std::move(plan);
  }
  // Stores of releases that wrote on behind a write they had given up: a plan that is not under way holds up no other.
  const auto active = [this] { return ActivePlan() != nullptr && IsActive(ActivePlan()->plan().state()); };
  if (!record_.active_plan().empty() && !active()) {
    record_.set_active_plan(record_.next_plan());
    record_.clear_next_plan();
    if (!active()) record_.clear_active_plan();
    record_dirty_ = true;
  }
  for (const auto& [id, plan] : plans_) {
    if (IsFinished(plan.plan().state())) continue;
    BALLAST_ASSIGN_OR_RETURN(const auto waves, store.List(absl::StrCat("wave/", id, "/")));
    for (const auto& [key, value] : waves) {
      store::WaveRecord wave;
      if (!wave.ParseFromString(value) || !FromProto(wave.placement()).ok()) return Damaged(key);
      waves_[id].push_back(std::move(wave));
    }
    if (plan.waves_known() && static_cast<int>(waves_[id].size()) != plan.plan().waves_total()) {
      return Damaged(absl::StrCat("wave/", id));
    }
  }
  if (const store::PlanRecord* plan = ActivePlan();
      plan != nullptr && plan->plan().state() == v1::PLAN_STATE_COMMITTING) {
    force_by_ = now + options_.timing.force_deadline;
  }

  store::ReportMarks marks;
  BALLAST_RETURN_IF_ERROR(Read(store, absl::StrCat("marks/", config.name), marks).status());
  ledger_.Load(marks);
  if (formed()) {
    MakeLoadWindow(record_.model());
    BALLAST_ASSIGN_OR_RETURN(const auto cells, store.List(LoadWindow::StorePrefix(config.name)));
    for (const auto& [key, value] : cells) load_->Load(key, value);
    BALLAST_RETURN_IF_ERROR(LoadBook(store));
    BALLAST_ASSIGN_OR_RETURN(const auto profiles, store.List(TaskProfiles::StorePrefix(config.name)));
    for (const auto& [key, value] : profiles) profiles_->Load(key, value);
  }
  return absl::OkStatus();
}

std::string Group::BookKey(const std::string& scenario, int64_t number) const {
  return absl::StrCat("book/", name(), "/", scenario, "/", number);
}

absl::Status Group::LoadBook(const Store& store) {
  const std::string prefix = absl::StrCat("book/", name(), "/");
  BALLAST_ASSIGN_OR_RETURN(const auto records, store.List(prefix));
  std::vector<ScenarioBook::Remembered> remembered;
  for (const auto& [key, value] : records) {
    store::BookRecord record;
    LoadMatrix load(placement_.num_layers, placement_.num_experts);
    const size_t slash = key.rfind('/');
    int64_t number = 0;
    if (slash < prefix.size() || !absl::SimpleAtoi(key.substr(slash + 1), &number) || number < 0 ||
        !record.ParseFromString(value)) {
      return Damaged(key);
    }
    // Of another model, as the window's cells.
    if (record.tokens_size() != static_cast<int>(load.tokens.size())) continue;
    std::copy(record.tokens().begin(), record.tokens().end(), load.tokens.begin());
    remembered.push_back({key.substr(prefix.size(), slash - prefix.size()), number, std::move(load)});
  }
  book_->Restore(std::move(remembered));
  return absl::OkStatus();
}

void Group::MakeLoadWindow(const v1::ModelIdentity& model) {
  book_.emplace(ScenarioBook::Options{});
  remembered_.clear();
  load_ = std::make_unique<LoadWindow>(name(), placement_.num_layers, placement_.num_experts, options_.load,
                                       model.experts_per_token());
  profiles_.emplace(name(), placement_.num_layers, placement_.num_experts, TaskProfiles::Options{});
  for (auto& [name, worker] : workers_) worker.told_profiles = 0;
  const size_t experts = static_cast<size_t>(placement_.num_layers) * placement_.num_experts;
  counted_prefill_.assign(experts, 0);
  counted_decode_.assign(experts, 0);
  ++counted_generation_;
}

void Group::Say(Turn& turn, Severity severity, std::string text) {
  turn.effects.events.push_back({turn.now, severity, std::move(text)});
  turn.effects.changed = true;
}

void Group::Send(Turn& turn, const Worker& worker, v1::ConnectResponse message) {
  if (worker.session != 0) turn.step.sends.emplace_back(SendMessage{worker.session, std::move(message)});
}

void Group::EndStep(Turn& turn) {
  std::vector<StoreWrite>& writes = turn.step.writes;
  if (std::exchange(record_dirty_, false)) {
    record_.clear_workers();
    for (const auto& [name, worker] : workers_) {
      store::WorkerRecord& stored = (*record_.mutable_workers())[name];
      stored.set_incarnation(worker.incarnation);
      stored.set_alive(worker.alive);
      *stored.mutable_hello() = worker.hello;
    }
    writes.push_back({absl::StrCat("group/", name()), record_.SerializeAsString()});
    turn.effects.changed = true;
  }
  if (std::exchange(placement_dirty_, false)) {
    writes.push_back({absl::StrCat("placement/", name()), ToProto(placement_).SerializeAsString()});
  }
  if (std::exchange(previous_dirty_, false)) {
    writes.push_back({absl::StrCat("previous/", name()), ToProto(previous_).SerializeAsString()});
  }
  for (const std::string& id : std::exchange(plans_dirty_, {})) {
    if (const auto plan = plans_.find(id); plan != plans_.end()) {
      writes.push_back({absl::StrCat("plan/", id), plan->second.SerializeAsString()});
      turn.effects.changed = true;
    }
  }
  if (!writes.empty() || !turn.step.sends.empty()) turn.effects.steps.push_back(std::move(turn.step));
  turn.step = {};
}

void Group::Settle(Turn& turn) {
  EndStep(turn);
  NoteTimes(turn.now);
  while (true) {
    const MembershipStep membership = DecideMembership(Facts(turn.now), turn.now);
    if (membership.kind != MembershipStep::Kind::kNothing) {
      switch (membership.kind) {
        case MembershipStep::Kind::kPutOut:
          KeepOut(turn, membership);
          DeclareDead(turn, membership);
          break;
        case MembershipStep::Kind::kDeclareDead:
          DeclareDead(turn, membership);
          break;
        case MembershipStep::Kind::kForm:
          Form(turn, membership);
          break;
        default:
          IssueView(turn, membership);
          break;
      }
      EndStep(turn);
      continue;
    }
    if (ActivePlan() == nullptr) break;
    const RolloutDecision rollout = DecideRollout(RolloutState(), turn.now);
    if (rollout.step == RolloutStep::kNothing) break;
    PerformRollout(turn, rollout);
    EndStep(turn);
  }
  TellDrains(turn);
  TellProfiles(turn);
  SweepProposals(turn);
  EndStep(turn);
}

void Group::Tick(absl::Time now, Effects& effects) {
  Turn turn{effects, now, {}};
  Settle(turn);
  if (load_ != nullptr) load_->Expire(now);
  if (now >= next_checkpoint_) Checkpoint(turn);
  MaybePlan(turn);
  EndStep(turn);
}

void Group::StoodStill(absl::Duration lasted, absl::Time now, Effects& effects) {
  if (lasted <= options_.timing.lease / 2) return;
  bool any = false;
  for (auto& [name, worker] : workers_) {
    if (!worker.alive) continue;
    worker.lease_deadline = std::max(worker.lease_deadline, now + options_.timing.lease);
    any = true;
  }
  if (!any) return;
  // What others should have said by now they could not.
  for (absl::Time* due : {&force_by_, &reissue_at_, &waiting_since_, &incomplete_since_}) *due += lasted;
  Turn turn{effects, now, {}};
  Say(turn, Severity::kWarning,
      absl::StrCat("the controller stood still for ", absl::FormatDuration(absl::Trunc(lasted, absl::Milliseconds(1))),
                   ": leases start anew"));
}

void Group::Checkpoint(Turn& turn) {
  next_checkpoint_ = turn.now + options_.timing.checkpoint;
  if (load_ == nullptr || (!load_->dirty() && !ledger_.dirty())) return;
  turn.step.writes = load_->TakeWrites();
  // With the marks: what is in the book is never counted again, and what is not yet will be.
  if (load_->total_tokens() >= options_.planning.min_tokens) Remember();
  for (const ScenarioBook::Remembered& changed : book_->TakeChanges()) {
    StoreWrite& write = turn.step.writes.emplace_back(StoreWrite{BookKey(changed.name, changed.number), std::nullopt});
    if (!changed.load.has_value()) continue;
    store::BookRecord record;
    record.mutable_tokens()->Assign(changed.load->tokens.begin(), changed.load->tokens.end());
    write.value = record.SerializeAsString();
  }
  for (StoreWrite& write : profiles_->TakeWrites()) turn.step.writes.push_back(std::move(write));
  const store::ReportMarks marks = ledger_.Pending();
  turn.step.writes.push_back({absl::StrCat("marks/", name()), marks.SerializeAsString()});
  for (const ReportLedger::Ack& ack : ledger_.Stored(marks)) {
    const auto worker = workers_.find(ack.worker);
    if (worker == workers_.end()) continue;
    v1::ConnectResponse message;
    message.mutable_reports_stored()->set_report_stream(ack.report_stream);
    message.mutable_reports_stored()->set_sequence(ack.sequence);
    Send(turn, worker->second, std::move(message));
  }
  EndStep(turn);
}

void Group::Remember() {
  const auto add = [&](v1::Phase phase, const char* name) {
    const std::vector<double>& counted = this->counted(phase);
    std::vector<double>& before = remembered_[phase];
    before.resize(counted.size());
    LoadMatrix fresh(placement_.num_layers, placement_.num_experts);
    bool any = false;
    for (size_t i = 0; i < counted.size(); ++i) {
      fresh.tokens[i] = counted[i] - before[i];
      any |= fresh.tokens[i] > 0;
    }
    if (any) book_->Add(name, fresh);
    before = counted;
  };
  add(v1::PHASE_PREFILL, "prefill");
  add(v1::PHASE_DECODE, "decode");
}

std::vector<PlanScenario> Group::PlanScenarios(absl::Time now) const {
  std::vector<PlanScenario> scenarios;
  for (const v1::Phase phase : {v1::PHASE_PREFILL, v1::PHASE_DECODE}) {
    std::vector<double> tokens = load_->Tokens({.phase = phase}, now);
    if (std::all_of(tokens.begin(), tokens.end(), [](double t) { return t == 0; })) continue;
    scenarios.push_back({phase == v1::PHASE_PREFILL ? "prefill" : "decode", std::move(tokens)});
  }
  for (Scenario& scenario : book_->Scenarios()) {
    const bool in_window =
        std::any_of(scenarios.begin(), scenarios.end(), [&](const PlanScenario& s) { return s.name == scenario.name; });
    if (!in_window) scenarios.push_back({std::move(scenario.name), std::move(scenario.load.tokens), true});
  }
  return scenarios;
}

size_t Group::MixBuckets() const {
  return std::max<size_t>(
      1, static_cast<size_t>(std::ceil(absl::FDivDuration(options_.planning.mix_window, options_.load.bucket))));
}

Routes Group::SampledRoutes() const {
  return load_->SampledRoutes(MixOf(load_->TasksByBucket(), MixBuckets()), options_.planning.max_route_tokens);
}

MixDrift Group::DetectMixDrift() const {
  TaskMix settled;
  for (const store::MixRecord& part : record_.settled_mix()) settled[part.task()] = part.ratio();
  return ballast::DetectMixDrift(settled, load_->TasksByBucket(),
                                 {.recent = MixBuckets(), .min_distance = options_.planning.mix_drift});
}

DriftReport Group::Drift(absl::Time now) const {
  Topology topology;
  for (const std::string& worker : placement_.workers) {
    if (Serves(worker)) topology.workers.push_back({.name = worker, .speed = SpeedOf(worker)});
  }
  std::vector<Scenario> scenarios;
  for (PlanScenario& scenario : PlanScenarios(now)) {
    LoadMatrix load(placement_.num_layers, placement_.num_experts);
    load.tokens = std::move(scenario.tokens);
    scenarios.push_back({std::move(scenario.name), 1, std::move(load)});
  }
  std::vector<SettledScenario> settled;
  for (const store::SettledRecord& known : record_.settled()) settled.push_back({known.scenario(), known.excess()});
  return DetectDrift(placement_, topology, scenarios, settled,
                     {.min_gain = options_.planning.hysteresis, .dispersion = options_.planning.dispersion});
}

void Group::MaybePlan(Turn& turn) {
  if (!formed() || MaybeDrain(turn)) return;
  const bool complete = GroupComplete(placement_);
  // Where nobody serves all are on their way, and what they hold is not rebuilt on those that come first.
  const bool waits = record_.members_size() == 0;
  incomplete_since_ = complete || waits ? absl::InfiniteFuture() : std::min(incomplete_since_, turn.now);
  // The load's level costs a pass over it: now and then, when nothing else speaks against a plan.
  if (complete && !pace_.Due(turn.now, options_.planning.interval)) return;
  PlanningFacts facts{.group_complete = complete,
                      .incomplete_since = incomplete_since_,
                      .view_works = record_.members_size() > 0 && ViewInstalledEverywhere(),
                      .paused = record_.paused(),
                      .rollout_active = ActivePlan() != nullptr,
                      .planning = !jobs_.empty(),
                      .last_healed = last_healed_,
                      .window_tokens = load_->total_tokens()};
  pace_.Tell(facts);
  if (complete && facts.view_works && facts.window_tokens >= options_.planning.min_tokens) {
    pace_.Looked(turn.now, options_.planning.interval);
    Remember();
    facts.drift = Drift(turn.now);
    if (PlansFromRoutes(policy()) && load_->total_routes() > 0) facts.mix = DetectMixDrift();
  }
  for (const auto& [id, plan] : plans_) {
    if (plan.plan().state() != v1::PLAN_STATE_PROPOSED) continue;
    // In auto nobody is waited for: a proposal left from another mode gives way to a plan from the load of now. And one
    // that needs a worker which is gone gives way to one that does not.
    if (record_.mode() != v1::GROUP_MODE_AUTO && (complete || plan.heal())) facts.proposal_open = true;
  }
  if (record_.has_hold_off_until()) facts.hold_off_until = FromProto(record_.hold_off_until());
  const PlanningDecision decision = DecidePlanning(facts,
                                                   {.interval = options_.planning.interval,
                                                    .min_tokens = options_.planning.min_tokens,
                                                    .plan_below = options_.planning.plan_below,
                                                    .hysteresis = options_.planning.hysteresis,
                                                    .heal_after = options_.planning.heal_after},
                                                   turn.now);
  switch (decision.kind) {
    case PlanningDecision::Kind::kNothing:
      return;
    case PlanningDecision::Kind::kPlan:
      if (AnyDrains()) return;
      pace_.Planned(turn.now);
      return StartJob(turn,
                      Job{.purpose = Job::Purpose::kAuto,
                          .drift_gain = std::max(facts.drift.gain, facts.mix.drifted ? facts.mix.beyond : 0),
                          .policy = policy(),
                          .reason = decision.reason},
                      std::nullopt);
    case PlanningDecision::Kind::kHeal:
      last_healed_ = turn.now;
      return StartJob(turn, Job{.purpose = Job::Purpose::kHeal, .policy = "failure", .reason = decision.reason},
                      std::nullopt);
  }
}

bool Group::InView(const std::string& name, uint64_t incarnation) const {
  return std::any_of(record_.members().begin(), record_.members().end(), [&](const v1::Member& member) {
    return member.worker() == name && member.incarnation() == incarnation;
  });
}

std::vector<std::string> Group::ViewWorkers() const {
  std::vector<std::string> names;
  for (const v1::Member& member : record_.members()) names.push_back(member.worker());
  return names;
}

bool Group::Serves(const std::string& name) const {
  const auto worker = workers_.find(name);
  if (worker == workers_.end() || !worker->second.alive || !InView(name, worker->second.incarnation)) return false;
  const v1::DrainState drain = DrainOf(name, worker->second);
  return drain == v1::DRAIN_STATE_UNSPECIFIED || drain == v1::DRAIN_STATE_STUCK;
}

uint32_t Group::SpeedOf(const std::string& name) const {
  const auto worker = workers_.find(name);
  return worker == workers_.end() ? 1 : std::max<uint32_t>(1, worker->second.hello.speed());
}

std::vector<uint32_t> Group::PlacementSpeeds() const {
  std::vector<uint32_t> speeds;
  for (const std::string& worker : placement_.workers) speeds.push_back(SpeedOf(worker));
  return speeds;
}

bool Group::AllServe(const std::vector<std::string>& workers) const {
  return formed() &&
         std::all_of(workers.begin(), workers.end(), [this](const std::string& name) { return Serves(name); });
}

bool Group::ViewInstalledEverywhere() const {
  return std::all_of(record_.members().begin(), record_.members().end(), [this](const v1::Member& member) {
    return workers_.at(member.worker()).view_installed == record_.last_view();
  });
}

std::vector<bool> Group::BlamedNow() const {
  if (reissue_at_ == absl::InfiniteFuture()) return std::vector<bool>(words_.size());
  std::vector<MemberWord> words = words_;
  for (size_t rank = 0; rank < words.size(); ++rank) {
    const std::string& name = record_.members(static_cast<int>(rank)).worker();
    words[rank].installed = workers_.at(name).view_installed == record_.last_view();
  }
  return Blamed(words);
}

void Group::NoteTimes(absl::Time now) {
  const bool has_view = record_.members_size() > 0;
  installed_at_ = has_view && ViewInstalledEverywhere() ? std::min(installed_at_, now) : absl::InfiniteFuture();
  // Before the first view the group forms anew without whoever is gone.
  int here = 0, loaded = 0;
  for (const auto& [name, worker] : workers_) {
    if (!worker.alive || worker.session == 0 || worker.leaving) continue;
    ++here;
    if (worker.loaded_epoch == placement_.epoch.value()) ++loaded;
  }
  const bool waiting = !has_view && record_.last_view() != 0 && loaded > 0;
  // Whoever comes says that more may.
  const int arrived = waiting ? here + loaded : 0;
  if (arrived > arrived_) waiting_since_ = now;
  if (!waiting) waiting_since_ = absl::InfiniteFuture();
  arrived_ = arrived;
}

MembershipFacts Group::Facts(absl::Time now) const {
  MembershipFacts facts{.size = options_.config.size,
                        .formed = formed(),
                        .placed = placement_.workers,
                        .holders = Holders(placement_),
                        .had_view = record_.last_view() != 0,
                        .has_view = record_.members_size() > 0,
                        .reissue_at = std::min(reissue_at_, force_by_),
                        .start_at = waiting_since_ + kStartPatience * options_.planning.heal_after};
  const std::vector<std::string> in_view = ViewWorkers();
  const std::vector<bool> blamed = BlamedNow();
  for (const auto& [name, worker] : workers_) {
    const auto rank = std::find(in_view.begin(), in_view.end(), name) - in_view.begin();
    const bool member = InView(name, worker.incarnation);
    const auto kept_out = kept_out_.find(name);
    const v1::DrainState drain = DrainOf(name, worker);
    facts.workers.push_back({.name = name,
                             .alive = worker.alive,
                             .connected = worker.session != 0,
                             .lease_deadline = worker.lease_deadline,
                             .accused = worker.accused,
                             .leaving = worker.leaving,
                             .drained = worker.idle && drain != v1::DRAIN_STATE_MOVING,
                             .member = member,
                             .stale_member = !member && rank != std::ssize(in_view),
                             .loaded = worker.loaded_epoch == placement_.epoch.value(),
                             .load_failed = !worker.load_error.empty(),
                             .failed_views = member && blamed[rank] ? worker.failed_views + 1 : 0,
                             .kept_out = kept_out != kept_out_.end() && now < kept_out->second.until});
  }
  return facts;
}

void Group::DeclareDead(Turn& turn, const MembershipStep& step) {
  for (const std::string& name : step.workers) {
    Worker& worker = workers_.at(name);
    Say(turn, Severity::kWarning,
        absl::StrCat("worker ", name, " incarnation ", worker.incarnation, " is dead: ", step.reason));
    if (worker.session != 0) {
      turn.step.sends.emplace_back(
          CloseSession{worker.session, absl::AbortedError(absl::StrCat("incarnation ", worker.incarnation, " of ", name,
                                                                       " was declared dead: ", step.reason))});
    }
    worker.session = 0;
    worker.alive = false;
    record_dirty_ = true;
    // A candidate that never served leaves nothing behind.
    const bool placed =
        std::find(placement_.workers.begin(), placement_.workers.end(), name) != placement_.workers.end();
    if (!placed && !InView(name, worker.incarnation)) workers_.erase(name);
  }
}

void Group::KeepOut(Turn& turn, const MembershipStep& step) {
  for (const std::string& name : step.workers) {
    KeptOut& out = kept_out_[name];
    if (turn.now > out.until + kForgiven) out.times = 0;
    const absl::Duration wait = options_.timing.keep_out * (1 << std::min(out.times, kMostDoublings + 1));
    ++out.times;
    out.until = turn.now + wait;
    Say(turn, Severity::kError,
        absl::StrCat("worker ", name, " is put out and may come back in ", absl::FormatDuration(wait), ": ",
                     step.reason));
  }
}

void Group::Form(Turn& turn, const MembershipStep& step) {
  const v1::Hello& first = workers_.at(step.workers.front()).hello;
  std::vector<SlotCapacity> capacity;
  for (const std::string& name : step.workers) {
    const v1::Hello& hello = workers_.at(name).hello;
    capacity.push_back({hello.slots(), hello.staging_slots()});
  }
  absl::StatusOr<Placement> placement =
      ContiguousPlacement(first.model().num_moe_layers(), first.model().num_experts(), step.workers, capacity);
  BALLAST_CHECK(placement.ok()) << "Hello checks capacities: " << placement.status();
  record_.set_last_epoch(record_.last_epoch() + 1);
  placement->epoch = Epoch(record_.last_epoch());
  placement->shares_version = SharesVersion(placement_.shares_version.value() + 1);
  placement_ = *std::move(placement);
  *record_.mutable_model() = first.model();
  record_.set_combine(first.combine());
  record_dirty_ = placement_dirty_ = true;
  MakeLoadWindow(record_.model());
  Say(turn, Severity::kInfo,
      absl::StrCat("forming with ", absl::StrJoin(step.workers, ", "), ": placement epoch ", placement_.epoch.value()));
  for (const std::string& name : step.workers) SendLoadPlacement(turn, name, workers_.at(name));
  // Workers of a placement that has been given up.
  std::erase_if(workers_, [&](const auto& entry) {
    return !entry.second.alive &&
           std::find(step.workers.begin(), step.workers.end(), entry.first) == step.workers.end();
  });
}

void Group::IssueView(Turn& turn, const MembershipStep& step) {
  const std::vector<std::string> before = ViewWorkers();
  const bool same = before == step.workers;
  const std::vector<bool> blamed = BlamedNow();
  for (size_t rank = 0; rank < before.size(); ++rank) {
    Worker& worker = workers_.at(before[rank]);
    if (worker.incarnation != record_.members(static_cast<int>(rank)).incarnation()) continue;
    if (blamed[rank]) {
      ++worker.failed_views;
    } else if (installed_at_ != absl::InfiniteFuture()) {
      worker.failed_views = 0;
    }
  }
  record_.set_last_view(record_.last_view() + 1);
  record_.clear_members();
  for (const std::string& name : step.workers) {
    const Worker& worker = workers_.at(name);
    v1::Member& member = *record_.add_members();
    member.set_worker(name);
    member.set_incarnation(worker.incarnation);
    member.set_rank(record_.members_size() - 1);
    member.set_data_address(worker.hello.data_address());
    member.set_serving_address(worker.hello.serving_address());
    member.set_node(worker.hello.node());
    member.set_speed(SpeedOf(name));
  }
  record_dirty_ = true;
  reissues_ = same ? reissues_ + 1 : 0;
  reissue_at_ = absl::InfiniteFuture();
  if (force_by_ != absl::InfiniteFuture()) {
    force_views_ = same ? force_views_ + 1 : 0;
    force_by_ = turn.now + options_.timing.force_deadline * (1 << std::min(force_views_, kMostDoublings));
  }
  words_.assign(record_.members_size(), {});
  installed_at_ = absl::InfiniteFuture();
  for (auto& [name, worker] : workers_) worker.accused = false;
  // Others may have room.
  TryDrainsAnew();
  Say(turn, Severity::kInfo,
      absl::StrCat("view ", record_.last_view(), " of ", record_.members_size(), " workers: ", step.reason));
  const v1::ConnectResponse message = InstallViewMessage();
  for (const std::string& name : step.workers) {
    Worker& worker = workers_.at(name);
    worker.sent_epoch = placement_.epoch.value();
    Send(turn, worker, message);
  }
}

v1::ConnectResponse Group::InstallViewMessage() const {
  v1::ConnectResponse message;
  v1::InstallView& install = *message.mutable_install_view();
  install.set_term(term_.value());
  install.set_group(name());
  install.mutable_view()->set_view(record_.last_view());
  *install.mutable_view()->mutable_members() = record_.members();
  *install.mutable_placement() = ToProto(placement_);
  return message;
}

void Group::OnPeersLost(Turn& turn, const std::string& name, uint64_t view,
                        const google::protobuf::RepeatedField<int32_t>& ranks, const std::string& reason) {
  if (view != record_.last_view()) return;
  MemberWord word{.failed = true};
  std::vector<std::string> lost;
  for (const int32_t rank : ranks) {
    if (rank < 0 || rank >= record_.members_size()) continue;
    const std::string& peer = record_.members(rank).worker();
    if (peer == name) continue;
    Worker& worker = workers_.at(peer);
    if (InView(peer, worker.incarnation)) worker.accused = true;
    lost.push_back(peer);
    word.lost.insert(rank);
  }
  for (const v1::Member& member : record_.members()) {
    if (member.worker() == name && InView(name, workers_.at(name).incarnation)) words_[member.rank()] = word;
  }
  Say(turn, Severity::kWarning,
      absl::StrCat("worker ", name, lost.empty() ? " fails by itself" : " lost ", absl::StrJoin(lost, ", "),
                   " in view ", view, ": ", reason));
  if (reissue_at_ != absl::InfiniteFuture()) return;
  if (turn.now > installed_at_ + kViewWorks) {
    reissues_ = 0;
    for (auto& [other, worker] : workers_) worker.failed_views = 0;
  }
  reissue_at_ = turn.now + options_.timing.view_retry * (1 << std::min(reissues_, kMostDoublings));
}

}  // namespace ballast
