#include "controller/group/group_harness.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "controller/service/planning.h"
#include "gtest/gtest.h"
#include "proto/base/check.h"
#include "proto/base/release.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(100);

}  // namespace

GroupHarness::Options GroupHarness::Small() {
  Options options;
  options.group.config = {.name = "g", .size = options.workers, .mode = v1::GROUP_MODE_APPROVE};
  options.group.load = {.window = absl::Minutes(5), .bucket = absl::Seconds(10)};
  options.group.planning.interval = absl::Hours(1000);
  options.group.planning.min_tokens = 1;
  options.group.planning.plan_below = 1;
  // Plans from nothing, so that they take several waves.
  options.group.config.policy = "eplb";
  return options;
}

GroupHarness::Options GroupHarness::HealsAfter(absl::Duration patience) {
  Options options = Small();
  options.group.config.mode = v1::GROUP_MODE_AUTO;
  options.group.planning.heal_after = patience;
  options.group.planning.plan_below = 0;
  // Room for three of each layer's eight experts.
  options.slots = 14;
  return options;
}

std::string GroupHarness::Name(int worker) { return absl::StrCat("w", worker); }

GroupHarness::GroupHarness(Options options) : options_(std::move(options)), workers_(options_.workers) { Restart(); }

void GroupHarness::Restart() {
  crashed_ = false;
  crash_after_.reset();
  jobs_.clear();
  // What was on its way is lost with the process.
  for (FakeWorker& worker : workers_) {
    worker.session = 0;
    worker.to_controller.clear();
    worker.to_worker.clear();
  }
  ++term_;
  absl::StatusOr<std::unique_ptr<Group>> group = Group::Load(options_.group, Term(term_), store_, now_);
  BALLAST_CHECK(group.ok()) << group.status();
  group_ = *std::move(group);
}

void GroupHarness::CrashNow() {
  ++restarts_;
  Restart();
}

// One action: false when the controller died before it.
bool GroupHarness::Act() {
  ++actions_;
  if (!crash_after_.has_value()) return true;
  if ((*crash_after_)-- > 0) return true;
  crashed_ = true;
  return false;
}

void GroupHarness::CheckStored(const std::vector<StoreWrite>& writes) {
  for (const StoreWrite& write : writes) {
    if (write.key == "group/g") {
      store::GroupRecord record;
      ASSERT_TRUE(record.ParseFromString(*write.value));
      EXPECT_GE(record.last_view(), highest_view_);
      EXPECT_GE(record.last_epoch(), highest_epoch_);
      highest_view_ = record.last_view();
      highest_epoch_ = record.last_epoch();
    }
    if (write.key == "placement/g") {
      v1::Placement proto;
      ASSERT_TRUE(proto.ParseFromString(*write.value));
      const auto placement = FromProto(proto);
      ASSERT_TRUE(placement.ok()) << placement.status();
      const std::vector<SlotCapacity> capacity(placement->workers.size(), {options_.slots, options_.staging});
      EXPECT_TRUE(Validate(*placement, capacity).ok()) << Validate(*placement, capacity);
      EXPECT_LE(placement->epoch.value(), highest_epoch_);
    }
  }
}

void GroupHarness::Perform(Effects effects) {
  for (EffectStep& step : effects.steps) {
    if (crashed_) break;
    if (!step.writes.empty()) {
      if (!Act()) break;
      CheckStored(step.writes);
      ASSERT_TRUE(store_.Apply(step.writes).ok());
    }
    for (auto& send : step.sends) {
      if (!Act()) break;
      if (auto* message = std::get_if<SendMessage>(&send)) {
        const int index = IndexOf(message->session);
        if (index >= 0) workers_[index].to_worker.push_back(std::move(message->message));
      } else {
        auto& close = std::get<CloseSession>(send);
        const int index = IndexOf(close.session);
        if (index < 0) continue;
        FakeWorker& worker = workers_[index];
        worker.last_close = close.status;
        worker.session = 0;
        worker.to_controller.clear();
        worker.to_worker.clear();
        if (close.status.code() == absl::StatusCode::kAborted) {
          // Drops everything but its reports, and says Hello as a new incarnation.
          worker.incarnation = worker.view = worker.epoch = worker.prepared = 0;
          worker.placement = worker.prepared_placement = Placement();
          worker.installing.reset();
        }
      }
    }
  }
  if (crashed_) {
    ++restarts_;
    Restart();
    return;
  }
  if (effects.job.has_value()) jobs_.push_back(*std::move(effects.job));
  for (const MetricUpdate& update : effects.metrics) {
    if (update.name == "ballast_task_tokens_total") task_tokens_[update.labels.at(2)] += update.value;
  }
  for (PlanReply& reply : effects.replies) replies_.insert_or_assign(reply.call, std::move(reply.plan));
}

int GroupHarness::IndexOf(SessionId session) const {
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].session == session && session != 0) return static_cast<int>(i);
  }
  return -1;
}

v1::Hello GroupHarness::MakeHello(int index) const {
  const FakeWorker& worker = workers_[index];
  v1::Hello hello;
  hello.set_worker(Name(index));
  hello.set_incarnation(worker.incarnation);
  hello.set_group("g");
  hello.set_role(v1::GROUP_ROLE_MIXED);
  hello.mutable_model()->set_name("m");
  hello.mutable_model()->set_fingerprint("f00d");
  hello.mutable_model()->set_num_moe_layers(options_.layers);
  hello.mutable_model()->set_num_experts(options_.experts);
  hello.mutable_model()->set_experts_per_token(2);
  hello.mutable_model()->set_expert_bytes(1000);
  hello.set_kernel_fingerprint("k");
  hello.set_combine(v1::COMBINE_MODE_EXACT);
  hello.set_slots(options_.slots);
  hello.set_staging_slots(options_.staging);
  if (index < std::ssize(options_.speeds)) hello.set_speed(options_.speeds[index]);
  hello.set_classifies_tasks(worker.classifies);
  hello.set_data_address("127.0.0.1:1");
  hello.set_serving_address("127.0.0.1:2");
  hello.set_last_term(worker.term);
  hello.set_view(worker.view);
  hello.set_epoch(worker.epoch);
  hello.set_report_stream(worker.report_stream);
  hello.set_prepared_epoch(worker.prepared);
  hello.set_version(Version());
  return hello;
}

void GroupHarness::StartProcess(int index) {
  FakeWorker& worker = workers_[index];
  if (worker.running) return;
  const FakeWorker before = std::exchange(worker, FakeWorker{});
  worker.refuse = before.refuse;
  worker.stall = before.stall;
  worker.classifies = before.classifies;
  worker.view_error = before.view_error;
  worker.view_lost = before.view_lost;
  worker.running = true;
  worker.report_stream = ++last_stream_;
  Reconnect(index);
}

void GroupHarness::KillProcess(int index) {
  if (!workers_[index].running) return;
  // Reports that are not stored die with it.
  for (const v1::LoadReport& report : workers_[index].unstored)
    tokens_reported_ -= report.task_tokens(0).decode_tokens();
  workers_[index].unstored.clear();
  BreakSession(index);
  workers_[index].running = false;
}

void GroupHarness::BreakSession(int index) {
  FakeWorker& worker = workers_[index];
  const SessionId session = std::exchange(worker.session, 0);
  worker.to_controller.clear();
  worker.to_worker.clear();
  if (session == 0) return;
  Effects effects;
  group_->Lost(session, now_, effects);
  Perform(std::move(effects));
}

void GroupHarness::Reconnect(int index) {
  FakeWorker& worker = workers_[index];
  if (!worker.running || worker.session != 0) return;
  worker.session = ++last_session_;
  Effects effects;
  v1::Hello hello = MakeHello(index);
  options_.form(hello);
  group_->Hello(worker.session, hello, now_, effects);
  Perform(std::move(effects));
}

bool GroupHarness::DeliverToController(int index) {
  FakeWorker& worker = workers_[index];
  if (worker.session == 0 || worker.to_controller.empty()) return false;
  v1::ConnectRequest message = std::move(worker.to_controller.front());
  worker.to_controller.pop_front();
  options_.form(message);
  Effects effects;
  group_->Receive(worker.session, message, now_, effects);
  Perform(std::move(effects));
  return true;
}

bool GroupHarness::DeliverToWorker(int index) {
  FakeWorker& worker = workers_[index];
  if (worker.session == 0 || worker.to_worker.empty()) return false;
  v1::ConnectResponse message = std::move(worker.to_worker.front());
  worker.to_worker.pop_front();
  options_.form(message);
  Obey(index, message);
  return true;
}

void GroupHarness::CheckTerm(FakeWorker& worker, uint64_t term) {
  EXPECT_GE(term, worker.term);
  worker.term = std::max(worker.term, term);
}

void GroupHarness::Obey(int index, const v1::ConnectResponse& message) {
  FakeWorker& worker = workers_[index];
  v1::ConnectRequest answer;
  switch (message.message_case()) {
    case v1::ConnectResponse::kWelcome: {
      CheckTerm(worker, message.welcome().term());
      EXPECT_GE(message.welcome().incarnation(), worker.incarnation);
      worker.incarnation = message.welcome().incarnation();
      while (!worker.unstored.empty() && worker.unstored.front().sequence() <= message.welcome().reports_stored()) {
        worker.unstored.pop_front();
      }
      for (const v1::LoadReport& report : worker.unstored) {
        *worker.to_controller.emplace_back().mutable_load_report() = report;
      }
      if (worker.leaving) worker.to_controller.emplace_back().mutable_leaving()->set_reason("SIGTERM");
      return;
    }
    case v1::ConnectResponse::kLoadPlacement: {
      CheckTerm(worker, message.load_placement().term());
      const auto placement = FromProto(message.load_placement().placement());
      ASSERT_TRUE(placement.ok());
      worker.placement = *placement;
      answer.mutable_placement_loaded()->set_epoch(placement->epoch.value());
      break;
    }
    case v1::ConnectResponse::kInstallView: {
      const v1::InstallView& install = message.install_view();
      CheckTerm(worker, install.term());
      EXPECT_GE(install.view().view(), worker.view) << Name(index);
      EXPECT_GE(install.placement().epoch(), worker.epoch) << Name(index);
      worker.installing = install;
      worker.install_at = now_ + install_time_;
      if (install_time_ == absl::ZeroDuration()) OnInstall(worker, *std::exchange(worker.installing, std::nullopt));
      return;
    }
    case v1::ConnectResponse::kPrepareWave:
      OnPrepare(index, message.prepare_wave());
      return;
    case v1::ConnectResponse::kCommitWave:
      CheckTerm(worker, message.commit_wave().term());
      if (message.commit_wave().view() != worker.view) return;
      EXPECT_TRUE(worker.prepared == message.commit_wave().epoch() || worker.epoch == message.commit_wave().epoch())
          << Name(index) << " is told to commit epoch " << message.commit_wave().epoch() << " but has prepared "
          << worker.prepared;
      if (!worker.members.members().empty() && worker.members.members(0).worker() == Name(index)) {
        Announce(index, message.commit_wave().epoch());
      }
      return;
    case v1::ConnectResponse::kAbortWave:
      CheckTerm(worker, message.abort_wave().term());
      if (worker.prepared == message.abort_wave().epoch()) worker.prepared = 0;
      return;
    case v1::ConnectResponse::kDrainStatus:
      CheckTerm(worker, message.drain_status().term());
      worker.drain = message.drain_status().state();
      worker.drain_reason = message.drain_status().reason();
      return;
    case v1::ConnectResponse::kHeartbeatAck:
      worker.ack = message.heartbeat_ack();
      return;
    case v1::ConnectResponse::kTaskProfiles:
      worker.profiles = message.task_profiles();
      return;
    case v1::ConnectResponse::kReportsStored:
      EXPECT_EQ(message.reports_stored().report_stream(), worker.report_stream);
      while (!worker.unstored.empty() && worker.unstored.front().sequence() <= message.reports_stored().sequence()) {
        worker.unstored.pop_front();
      }
      return;
    default:
      return;
  }
  worker.to_controller.push_back(std::move(answer));
}

void GroupHarness::OnInstall(FakeWorker& worker, const v1::InstallView& install) {
  v1::ConnectRequest answer;
  v1::ViewInstalled& installed = *answer.mutable_view_installed();
  installed.set_view(install.view().view());
  AddRanks(install.view(), worker.view_lost, *installed.mutable_peer_ranks());
  if (!worker.view_error.empty() && (worker.view_lost.empty() || installed.peer_ranks_size() > 0)) {
    installed.set_error(worker.view_error);
    worker.to_controller.push_back(std::move(answer));
    return;
  }
  worker.view = install.view().view();
  worker.members = install.view();
  const auto placement = FromProto(install.placement());
  ASSERT_TRUE(placement.ok());
  worker.placement = *placement;
  worker.epoch = placement->epoch.value();
  if (worker.prepared <= worker.epoch) worker.prepared = 0;
  worker.to_controller.push_back(std::move(answer));
}

void GroupHarness::AddRanks(const v1::View& view, const std::set<int>& workers,
                            google::protobuf::RepeatedField<int32_t>& ranks) {
  for (const v1::Member& member : view.members()) {
    if (workers.contains(std::stoi(member.worker().substr(1)))) ranks.Add(member.rank());
  }
}

void GroupHarness::FailViews(int index, std::string error, std::set<int> lost) {
  workers_[index].view_error = std::move(error);
  workers_[index].view_lost = std::move(lost);
}

void GroupHarness::OnPrepare(int index, const v1::PrepareWave& prepare) {
  FakeWorker& worker = workers_[index];
  CheckTerm(worker, prepare.term());
  if (worker.stall || prepare.view() != worker.view) return;
  v1::ConnectRequest answer;
  if (!worker.refuse.empty()) {
    answer.mutable_wave_failed()->set_epoch(prepare.placement().epoch());
    answer.mutable_wave_failed()->set_error(worker.refuse);
    worker.to_controller.push_back(std::move(answer));
    return;
  }
  const auto next = FromProto(prepare.placement());
  ASSERT_TRUE(next.ok());
  EXPECT_GT(next->epoch.value(), worker.epoch);
  // What this worker shall hold it holds already, in the same slot, or is told to bring in, into a slot that is free.
  std::set<std::pair<int, ExpertId>> holds;
  std::set<int> used;
  for (const Replica& replica : worker.placement.replicas) {
    if (worker.placement.workers[replica.worker] != Name(index)) continue;
    holds.insert({replica.slot, replica.expert});
    used.insert(replica.slot);
  }
  for (const v1::Move& move : prepare.moves()) {
    EXPECT_EQ(move.destination(), Name(index));
    EXPECT_FALSE(used.contains(move.slot())) << "slot " << move.slot() << " is in use";
    EXPECT_LT(move.slot(), options_.slots);
    holds.insert({move.slot(), ExpertId{move.layer(), move.expert()}});
  }
  for (const Replica& replica : next->replicas) {
    if (next->workers[replica.worker] != Name(index)) continue;
    EXPECT_TRUE(holds.contains({replica.slot, replica.expert})) << Name(index) << " slot " << replica.slot;
  }
  worker.prepared = next->epoch.value();
  worker.prepared_placement = *next;
  answer.mutable_wave_prepared()->set_epoch(worker.prepared);
  answer.mutable_wave_prepared()->set_bytes_from_peers(1000 * prepare.moves_size());
  worker.to_controller.push_back(std::move(answer));
}

// The leader runs a step in the new epoch; whoever takes part and has prepared it has it in force.
void GroupHarness::Announce(int leader, uint64_t epoch) {
  const v1::View& members = workers_[leader].members;
  for (const v1::Member& member : members.members()) {
    const int index = std::stoi(member.worker().substr(1));
    FakeWorker& worker = workers_[index];
    if (!worker.running || worker.view != members.view() || worker.incarnation != member.incarnation()) continue;
    if (worker.epoch < epoch) {
      if (worker.prepared != epoch) continue;
      worker.epoch = epoch;
      worker.placement = worker.prepared_placement;
      worker.prepared = 0;
    }
    v1::ConnectRequest answer;
    answer.mutable_epoch_in_force()->set_view(worker.view);
    answer.mutable_epoch_in_force()->set_epoch(epoch);
    if (worker.session != 0) worker.to_controller.push_back(std::move(answer));
  }
}

void GroupHarness::SendPeerLost(int index, const std::set<int>& lost) {
  FakeWorker& worker = workers_[index];
  if (worker.session == 0) return;
  v1::PeerLost& peer_lost = *worker.to_controller.emplace_back().mutable_peer_lost();
  peer_lost.set_view(worker.view);
  peer_lost.set_reason("connection closed");
  AddRanks(worker.members, lost, *peer_lost.mutable_ranks());
}

void GroupHarness::SendLeaving(int index) {
  workers_[index].leaving = workers_[index].running;
  if (workers_[index].session == 0) return;
  workers_[index].to_controller.emplace_back().mutable_leaving()->set_reason("SIGTERM");
}

v1::LoadReport GroupHarness::NextReport(FakeWorker& worker) {
  v1::LoadReport report;
  report.set_sequence(worker.next_report++);
  report.set_first_sequence(report.sequence());
  report.mutable_end()->set_seconds(absl::ToUnixSeconds(now_));
  return report;
}

void GroupHarness::Send(FakeWorker& worker, v1::LoadReport report) {
  worker.unstored.push_back(report);
  if (worker.session != 0) *worker.to_controller.emplace_back().mutable_load_report() = std::move(report);
}

std::pair<int32_t, int32_t> GroupHarness::TaskExperts(const std::string& task, int layer) const {
  // With eight experts the pairs of four tasks have none in common, and none is on one of four workers at first.
  const int32_t first = 6 * (task[0] - 'a') + layer;
  return {first % options_.experts, (first + 3) % options_.experts};
}

void GroupHarness::SendTasks(int index, const std::map<std::string, int64_t>& tokens, v1::Phase phase) {
  FakeWorker& worker = workers_[index];
  if (!worker.running) return;
  v1::LoadReport report = NextReport(worker);
  for (const auto& [name, count] : tokens) {
    v1::RouteSample& sample = *report.add_route_samples();
    sample.set_task(report.task_tokens_size());
    sample.set_phase(phase);
    sample.set_tokens(static_cast<int32_t>(std::min<int64_t>(16, count)));
    v1::TaskTokens& task = *report.add_task_tokens();
    task.set_task(name);
    phase == v1::PHASE_DECODE ? task.set_decode_tokens(count) : task.set_prefill_tokens(count);
    for (int32_t t = 0; t < sample.tokens(); ++t) {
      for (int l = 0; l < options_.layers; ++l) {
        const auto [first, second] = TaskExperts(name, l);
        sample.add_experts(first);
        sample.add_experts(second);
      }
    }
    for (int l = 0; l < options_.layers; ++l) {
      const auto [first, second] = TaskExperts(name, l);
      for (const int32_t e : {first, second}) {
        v1::LoadCount& load = *report.add_counts();
        load.set_layer(l);
        load.set_expert(e);
        load.set_phase(phase);
        load.set_task(sample.task());
        load.set_tokens(count);
      }
    }
    tokens_reported_ += count;
  }
  Send(worker, std::move(report));
}

void GroupHarness::SendReport(int index, int64_t tokens, int hottest) {
  FakeWorker& worker = workers_[index];
  if (!worker.running) return;
  v1::LoadReport report = NextReport(worker);
  v1::TaskTokens& task = *report.add_task_tokens();
  task.set_task("t");
  task.set_decode_tokens(tokens);
  for (int l = 0; l < options_.layers; ++l) {
    for (int e = 0; e < options_.experts; ++e) {
      v1::LoadCount& count = *report.add_counts();
      count.set_layer(l);
      count.set_expert(e);
      count.set_phase(v1::PHASE_DECODE);
      count.set_tokens(tokens / ((e + l + options_.experts - hottest) % options_.experts + 1));
    }
  }
  tokens_reported_ += tokens;
  Send(worker, std::move(report));
}

void GroupHarness::Heartbeats() {
  for (FakeWorker& worker : workers_) {
    if (worker.session == 0) continue;
    v1::Heartbeat& heartbeat = *worker.to_controller.emplace_back().mutable_heartbeat();
    heartbeat.set_number(1);
    heartbeat.set_requests_running(worker.requests);
  }
}

void GroupHarness::Run() {
  for (size_t i = 0; i < workers_.size(); ++i) Reconnect(static_cast<int>(i));
  for (FakeWorker& worker : workers_) {
    if (!worker.installing.has_value() || now_ < worker.install_at) continue;
    const std::optional<v1::InstallView> install = std::exchange(worker.installing, std::nullopt);
    if (worker.session != 0) OnInstall(worker, *install);
  }
  bool moved = true;
  while (moved) {
    moved = false;
    for (size_t i = 0; i < workers_.size(); ++i) {
      const int index = static_cast<int>(i);
      moved |= DeliverToController(index);
      moved |= DeliverToWorker(index);
    }
    if (!jobs_.empty()) {
      moved = true;
      const PlanJob job = std::move(jobs_.front());
      jobs_.pop_front();
      Effects effects;
      ++plan_jobs_;
      group_->Planned(job.ticket, RunPlanJob(job, GateLimits{}, CostModel{}), now_, effects);
      Perform(std::move(effects));
    }
  }
}

void GroupHarness::Tick(absl::Duration by) {
  now_ += by;
  Effects effects;
  group_->Tick(now_, effects);
  Perform(std::move(effects));
}

void GroupHarness::Advance(absl::Duration by) {
  for (const absl::Time end = now_ + by; now_ < end;) {
    Heartbeats();
    Run();
    Tick(std::min(kTick, end - now_));
    Run();
  }
}

void GroupHarness::FormGroup() {
  for (int i = 0; i < options_.workers; ++i) StartProcess(i);
  Advance(absl::Seconds(1));
}

void GroupHarness::LoadWindowSkewed() {
  for (int i = 0; i < options_.workers; ++i) SendReport(i, 10'000);
  Run();
}

absl::StatusOr<v1::GetPlanResponse> GroupHarness::CreatePlan(bool dry_run) {
  const uint64_t call = ++last_call_;
  v1::CreatePlanRequest request;
  request.set_group("g");
  request.set_dry_run(dry_run);
  Effects effects;
  group_->CreatePlan(call, request, now_, effects);
  Perform(std::move(effects));
  // The planner alone: what the plan starts has not begun when this returns.
  if (!jobs_.empty()) {
    const PlanJob job = std::move(jobs_.front());
    jobs_.pop_front();
    Effects planned;
    ++plan_jobs_;
    group_->Planned(job.ticket, RunPlanJob(job, GateLimits{}, CostModel{}), now_, planned);
    Perform(std::move(planned));
  }
  const auto reply = replies_.find(call);
  return reply == replies_.end() ? absl::UnavailableError("the controller died") : reply->second;
}

std::optional<v1::Plan> GroupHarness::NewestPlan() const {
  const std::vector<v1::Plan> plans = group_->Plans();
  return plans.empty() ? std::nullopt : std::optional<v1::Plan>(plans.front());
}

}  // namespace ballast
