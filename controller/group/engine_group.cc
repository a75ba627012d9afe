#include "controller/group/engine_group.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/group/group.h"
#include "controller/planner/drift.h"
#include "controller/planner/memory.h"
#include "controller/rollout/plan_effect.h"
#include "proto/base/status_macros.h"
#include "proto/placement/convert.h"

namespace ballast {
namespace {

constexpr int32_t kMostLayers = 4096;
constexpr int32_t kMostExperts = 65536;
constexpr int64_t kMostCells = int64_t{1} << 26;
constexpr int64_t kMostSlots = int64_t{1} << 24;
constexpr size_t kMostName = 63;
constexpr size_t kMostWorkerName = 253;
// Moves of the engine's own need no room of ours; what the planner orders them through.
constexpr int32_t kStagingSlots = 2;

absl::Status InRange(const char* field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("engine.", field, ": ", value, " is not in ", least, " to ", most));
}

std::string MarksKey(const std::string& name) { return absl::StrCat("marks/engine:", name); }

Topology TopologyOf(const v1::Engine& engine) {
  Topology topology;
  std::map<std::string, int32_t> nodes;
  for (const v1::EngineWorker& worker : engine.workers()) {
    const int32_t node = nodes.emplace(worker.node(), static_cast<int32_t>(nodes.size())).first->second;
    topology.workers.push_back({.name = worker.name(),
                                .node = node,
                                .capacity = {.slots = engine.slots_per_layer() * engine.num_layers() + kStagingSlots,
                                             .staging_slots = kStagingSlots}});
  }
  return topology;
}

}  // namespace

absl::Status Validate(const v1::Engine& engine) {
  const std::string& name = engine.name();
  const bool plain = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::islower(c) != 0 || std::isdigit(c) != 0 || c == '-';
  });
  if (name.empty() || name.size() > kMostName || !plain) {
    return absl::InvalidArgumentError(
        absl::StrCat("engine.name: '", name, "' is not 1 to ", kMostName, " characters of [a-z0-9-]"));
  }
  BALLAST_RETURN_IF_ERROR(InRange("num_layers", engine.num_layers(), 1, kMostLayers));
  BALLAST_RETURN_IF_ERROR(InRange("num_experts", engine.num_experts(), 1, kMostExperts));
  const int64_t cells = static_cast<int64_t>(engine.num_layers()) * engine.num_experts();
  if (cells > kMostCells) {
    return absl::InvalidArgumentError(
        absl::StrCat("engine.num_experts: ", cells, " in all layers, the limit is ", kMostCells));
  }
  BALLAST_RETURN_IF_ERROR(InRange("workers", engine.workers_size(), 1, 1 << 16));
  std::set<std::string> names;
  for (const v1::EngineWorker& worker : engine.workers()) {
    if (worker.name().empty() || worker.name().size() > kMostWorkerName) {
      return absl::InvalidArgumentError(absl::StrCat("engine.workers.name: '", worker.name().substr(0, kMostWorkerName),
                                                     "' is not 1 to ", kMostWorkerName, " characters"));
    }
    if (!names.insert(worker.name()).second) {
      return absl::InvalidArgumentError(absl::StrCat("engine.workers.name: '", worker.name(), "' is given twice"));
    }
  }
  BALLAST_RETURN_IF_ERROR(InRange("slots_per_layer", engine.slots_per_layer(), 1, kMostSlots / engine.num_layers()));
  BALLAST_RETURN_IF_ERROR(InRange("expert_bytes", engine.expert_bytes(), 0, kMaxExpertBytes));
  const int64_t slots = static_cast<int64_t>(engine.slots_per_layer()) * engine.workers_size();
  if (slots < engine.num_experts()) {
    return absl::InvalidArgumentError(absl::StrCat("engine.slots_per_layer: ", engine.slots_per_layer(), " on each of ",
                                                   engine.workers_size(), " workers; a layer has ",
                                                   engine.num_experts(), " experts"));
  }
  return absl::OkStatus();
}

EngineGroup::EngineGroup(const v1::Engine& engine, uint64_t last_epoch, const EngineGroupOptions& options)
    : options_(options),
      load_(absl::StrCat("engine:", engine.name()), engine.num_layers(), engine.num_experts(), options.load),
      counted_prefill_(static_cast<size_t>(engine.num_layers()) * engine.num_experts()),
      counted_decode_(counted_prefill_.size()) {
  *record_.mutable_engine() = engine;
  record_.set_last_epoch(last_epoch);
}

std::string EngineGroup::LoadName() const { return absl::StrCat("engine:", engine().name()); }

absl::StatusOr<std::unique_ptr<EngineGroup>> EngineGroup::Load(const std::string& name, const Store& store,
                                                               const EngineGroupOptions& options) {
  const std::string key = absl::StrCat(kStorePrefix, name);
  const absl::Status damaged = absl::DataLossError(absl::StrCat("store: record '", key, "' is damaged"));
  BALLAST_ASSIGN_OR_RETURN(const std::optional<std::string> value, store.Get(key));
  store::EngineRecord record;
  if (!value.has_value() || !record.ParseFromString(*value) || !Validate(record.engine()).ok()) return damaged;
  auto group = std::make_unique<EngineGroup>(record.engine(), record.last_epoch(), options);
  group->record_ = record;
  group->record_dirty_ = false;
  if (record.placement().epoch() != 0) {
    absl::StatusOr<Placement> placement = FromProto(record.placement());
    if (!placement.ok() || placement->num_layers != record.engine().num_layers() ||
        placement->num_experts != record.engine().num_experts()) {
      return damaged;
    }
    group->placement_ = *std::move(placement);
  }
  BALLAST_ASSIGN_OR_RETURN(const auto cells, store.List(LoadWindow::StorePrefix(group->LoadName())));
  for (const auto& [cell, tokens] : cells) group->load_.Load(cell, tokens);
  BALLAST_ASSIGN_OR_RETURN(const std::optional<std::string> marks, store.Get(MarksKey(name)));
  if (marks.has_value()) {
    store::ReportMarks stored;
    if (!stored.ParseFromString(*marks)) return damaged;
    group->ledger_.Load(stored);
  }
  return group;
}

absl::StatusOr<std::vector<StoreWrite>> EngineGroup::Forget(const std::string& name, const Store& store) {
  std::vector<StoreWrite> writes = {{absl::StrCat(kStorePrefix, name), std::nullopt}, {MarksKey(name), std::nullopt}};
  BALLAST_ASSIGN_OR_RETURN(const auto cells, store.List(LoadWindow::StorePrefix(absl::StrCat("engine:", name))));
  for (const auto& [cell, tokens] : cells) writes.push_back({cell, std::nullopt});
  return writes;
}

absl::StatusOr<EngineGroup::Counted> EngineGroup::Report(const std::string& reporter, uint64_t report_stream,
                                                         const v1::LoadReport& report, absl::Time now) {
  if (!ledger_.Knows(reporter, report_stream)) {
    return absl::FailedPreconditionError(
        absl::StrCat("report_stream: ", report_stream, " is not the current one of '", reporter, "'; register again"));
  }
  // Decided on a copy: what is refused must not move the marks, or it could not be corrected and sent again.
  ReportLedger decided = ledger_;
  const ReportLedger::Verdict verdict = decided.Accept(reporter, report_stream, report);
  switch (verdict) {
    case ReportLedger::Verdict::kDuplicate:
      return Counted::kDuplicate;
    case ReportLedger::Verdict::kInvalid:
      return absl::InvalidArgumentError(absl::StrCat("report.sequence: ", report.first_sequence(), " to ",
                                                     report.sequence(), "; must be at least 1 and ascend"));
    case ReportLedger::Verdict::kOverlap:
      return absl::InvalidArgumentError(absl::StrCat("report.first_sequence: ", report.first_sequence(),
                                                     " has been counted with another report; up to ", report.sequence(),
                                                     " is more than that"));
    case ReportLedger::Verdict::kAfterGap:
    case ReportLedger::Verdict::kNew:
      break;
  }
  BALLAST_RETURN_IF_ERROR(load_.Add(report, now));
  ledger_ = std::move(decided);
  newest_report_ = std::max(newest_report_, report.has_end() ? std::min(FromProto(report.end()), now) : now);
  for (const v1::LoadCount& count : report.counts()) {
    std::vector<double>& counted = count.phase() == v1::PHASE_PREFILL ? counted_prefill_ : counted_decode_;
    counted[static_cast<size_t>(count.layer()) * engine().num_experts() + count.expert()] +=
        static_cast<double>(count.tokens());
  }
  return verdict == ReportLedger::Verdict::kNew ? Counted::kYes : Counted::kAfterGap;
}

std::vector<StoreWrite> EngineGroup::Unstored() {
  // Newer writes of a key come behind, so that the last one holds.
  for (StoreWrite& write : load_.TakeWrites()) writes_.push_back(std::move(write));
  if (ledger_.dirty()) {
    marks_ = ledger_.Pending();
    writes_.push_back({MarksKey(engine().name()), marks_.SerializeAsString()});
  }
  if (std::exchange(record_dirty_, false)) {
    writes_.push_back({absl::StrCat(kStorePrefix, engine().name()), record_.SerializeAsString()});
  }
  return writes_;
}

void EngineGroup::Stored() {
  writes_.clear();
  ledger_.Stored(marks_);
}

double EngineGroup::WindowBalancedness(absl::Time now) const {
  if (record_.placement().epoch() == 0) return 0;
  return MeanBalancedness(LevelByLayer(placement_, {}, load_.Tokens({}, now)));
}

std::optional<PlanRequest> EngineGroup::MaybePlan(absl::Time now) {
  load_.Expire(now);
  // The load's level costs a pass over it: only when nothing else speaks against a plan.
  if (planning_ || !pace_.Due(now, options_.planning.interval)) return std::nullopt;
  if (load_.total_tokens() == 0 || load_.total_tokens() < options_.planning.min_tokens) return std::nullopt;
  PlanRequest request;
  for (const auto& [name, phase] : {std::pair("prefill", v1::PHASE_PREFILL), std::pair("decode", v1::PHASE_DECODE)}) {
    LoadMatrix load(engine().num_layers(), engine().num_experts());
    load.tokens = load_.Tokens({.phase = phase}, now);
    const bool any = std::any_of(load.tokens.begin(), load.tokens.end(), [](double t) { return t > 0; });
    if (any) request.scenarios.push_back({.name = name, .load = std::move(load)});
  }
  if (request.scenarios.empty()) return std::nullopt;
  request.topology = TopologyOf(engine());
  if (record_.placement().epoch() == 0) {
    plan_reason_ = "the first load";
  } else {
    std::vector<SettledScenario> settled;
    for (const store::SettledRecord& known : record_.settled()) settled.push_back({known.scenario(), known.excess()});
    pace_.Looked(now, options_.planning.interval);
    PlanningFacts facts{
        .group_complete = true,
        .view_works = true,
        .window_tokens = load_.total_tokens(),
        .drift = DetectDrift(placement_, request.topology, request.scenarios, settled,
                             {.min_gain = options_.planning.hysteresis, .dispersion = options_.planning.dispersion})};
    pace_.Tell(facts);
    drift_gain_ = facts.drift.gain;
    const PlanningDecision decision = DecidePlanning(facts,
                                                     {.interval = options_.planning.interval,
                                                      .min_tokens = options_.planning.min_tokens,
                                                      .plan_below = options_.planning.plan_below,
                                                      .hysteresis = options_.planning.hysteresis},
                                                     now);
    if (decision.kind != PlanningDecision::Kind::kPlan) return std::nullopt;
    plan_reason_ = decision.reason;
    request.current = placement_;
  }
  request.slots_per_layer = engine().slots_per_layer();
  request.expert_bytes = engine().expert_bytes();
  planning_ = true;
  pace_.Planned(now);
  planned_for_ = request.scenarios;
  return request;
}

bool EngineGroup::Planned(const absl::StatusOr<Plan>& plan, absl::Time now, std::string& why) {
  planning_ = false;
  const bool first = record_.placement().epoch() == 0;
  const auto fruitless = [&](std::string reason) {
    why = std::move(reason);
    pace_.Fruitless(drift_gain_);
    return false;
  };
  if (!plan.ok()) return fruitless(std::string(plan.status().message()));
  if (!first && !plan->gate.worth) return fruitless(plan->gate.reason);
  if (!first && plan->placement.replicas == placement_.replicas) {
    return fruitless("there is nothing better than the placement there is");
  }
  pace_.Fruitful();
  placement_ = plan->placement;
  placement_.epoch = Epoch(record_.last_epoch() + 1);
  placement_.shares_version = SharesVersion(1);
  for (Replica& replica : placement_.replicas) replica.weight = 1;
  record_.set_last_epoch(placement_.epoch.value());
  *record_.mutable_placement() = ToProto(placement_);
  record_.set_reason(plan_reason_);
  record_.clear_settled();
  for (const SettledScenario& left : Settle(placement_, TopologyOf(engine()), planned_for_, ShareMode::kFixed)) {
    store::SettledRecord& settled = *record_.add_settled();
    settled.set_scenario(left.name);
    settled.set_excess(left.excess);
  }
  *record_.mutable_planned() = ToProto(now);
  double worst = 1;
  for (const LoadScore& score : plan->predicted) worst = std::min(worst, score.balancedness_equal_split);
  record_.set_predicted_balancedness(worst);
  BusiestTokens busiest;
  for (const LoadScore& score : plan->current) busiest.before += score.busiest_equal_split;
  for (const LoadScore& score : plan->predicted) {
    busiest.after += score.busiest_equal_split;
    busiest.bound += score.busiest_bound;
  }
  *record_.mutable_effect() = MakePlanEffect(*plan, busiest, options_.planning.cost_model);
  record_dirty_ = true;
  why = record_.reason();
  return true;
}

v1::EngineStatus EngineGroup::Describe(absl::Time now) const {
  v1::EngineStatus status;
  *status.mutable_engine() = engine();
  status.set_epoch(record_.placement().epoch());
  status.set_reason(record_.reason());
  if (record_.has_planned()) *status.mutable_planned() = record_.planned();
  status.set_predicted_balancedness(record_.predicted_balancedness());
  if (record_.has_effect()) *status.mutable_effect() = record_.effect();
  status.set_balancedness(WindowBalancedness(now));
  status.set_window_tokens(load_.total_tokens());
  if (newest_report_ != absl::InfinitePast()) *status.mutable_last_report() = ToProto(newest_report_);
  status.set_policy("cost-aware");
  return status;
}

}  // namespace ballast
