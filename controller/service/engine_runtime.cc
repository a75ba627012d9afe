#include "controller/service/engine_runtime.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/store/records.pb.h"
#include "google/protobuf/util/message_differencer.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr size_t kMostReporterName = 253;
// An EngineRecord of last_epoch alone.
constexpr char kRemovedKey[] = "removed_engines";

absl::Status Stopping() { return absl::UnavailableError("the controller is stopping"); }

}  // namespace

EngineRuntime::EngineRuntime(Options options, Store& store, Clock& clock, Metrics& metrics)
    : options_(std::move(options)), store_(store), clock_(clock), metrics_(metrics) {}

absl::StatusOr<std::unique_ptr<EngineRuntime>> EngineRuntime::Start(Options options, Store& store, Clock& clock,
                                                                    Metrics& metrics) {
  auto runtime = std::unique_ptr<EngineRuntime>(new EngineRuntime(std::move(options), store, clock, metrics));
  BALLAST_ASSIGN_OR_RETURN(const auto records, store.List(EngineGroup::kStorePrefix));
  BALLAST_ASSIGN_OR_RETURN(const std::optional<std::string> removed, store.Get(kRemovedKey));
  {
    MutexLock lock(runtime->mu_);
    if (removed.has_value()) {
      store::EngineRecord record;
      if (!record.ParseFromString(*removed)) {
        return absl::DataLossError(absl::StrCat("store: record '", kRemovedKey, "' is damaged"));
      }
      runtime->removed_epoch_ = record.last_epoch();
    }
    for (const auto& [key, value] : records) {
      const std::string name = key.substr(std::string_view(EngineGroup::kStorePrefix).size());
      BALLAST_ASSIGN_OR_RETURN(std::shared_ptr<EngineGroup> group,
                               EngineGroup::Load(name, store, runtime->options_.group));
      runtime->engines_[name] = {std::move(group), ++runtime->last_generation_};
    }
  }
  runtime->planner_ = std::thread([r = runtime.get()] { r->PlannerLoop(); });
  return runtime;
}

EngineRuntime::~EngineRuntime() { Stop(); }

void EngineRuntime::Stop() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    reported_.NotifyAll();
    planned_.NotifyAll();
  }
  if (planner_.joinable()) planner_.join();
}

absl::StatusOr<std::shared_ptr<EngineGroup>> EngineRuntime::Find(const std::string& engine) const {
  if (engine.empty()) return absl::InvalidArgumentError("engine: is empty");
  const auto found = engines_.find(engine);
  if (found != engines_.end()) return found->second.group;
  return absl::NotFoundError(absl::StrCat("engine: there is no engine '", engine, "'"));
}

absl::Status EngineRuntime::Apply(const std::vector<StoreWrite>& writes) {
  if (writes.empty()) return absl::OkStatus();
  const absl::Status status = store_.Apply(writes);
  if (status.ok()) return status;
  return absl::UnavailableError(absl::StrCat("the store cannot be written: ", std::string(status.message())));
}

absl::Status EngineRuntime::Flush(EngineGroup& group) {
  BALLAST_RETURN_IF_ERROR(Apply(group.Unstored()));
  group.Stored();
  return absl::OkStatus();
}

absl::StatusOr<v1::RegisterEngineResponse> EngineRuntime::Register(const v1::RegisterEngineRequest& request) {
  const v1::Engine& engine = request.engine();
  BALLAST_RETURN_IF_ERROR(Validate(engine));
  if (request.reporter().empty() || request.reporter().size() > kMostReporterName) {
    return absl::InvalidArgumentError(
        absl::StrCat("reporter: ", request.reporter().size(), " characters; must be 1 to ", kMostReporterName));
  }
  if (options_.taken.contains(engine.name())) {
    return absl::FailedPreconditionError(
        absl::StrCat("engine.name: '", engine.name(), "' is a group of Ballast workers"));
  }
  MutexLock lock(mu_);
  if (stopping_) return Stopping();
  const auto found = engines_.find(engine.name());
  std::shared_ptr<EngineGroup> group;
  uint64_t last_epoch = removed_epoch_;
  std::vector<StoreWrite> writes;
  if (found != engines_.end()) {
    google::protobuf::util::MessageDifferencer differencer;
    std::string differences;
    differencer.ReportDifferencesToString(&differences);
    if (differencer.Compare(found->second.group->engine(), engine)) {
      group = found->second.group;
    } else if (request.replace()) {
      last_epoch = found->second.group->last_epoch();
      BALLAST_ASSIGN_OR_RETURN(writes, EngineGroup::Forget(engine.name(), store_));
    } else {
      return absl::FailedPreconditionError(
          absl::StrCat("engine: '", engine.name(), "' is known with another definition; set replace to forget it: ",
                       differences.substr(0, differences.find('\n'))));
    }
  }
  const bool anew = group == nullptr;
  if (anew) group = std::make_shared<EngineGroup>(engine, last_epoch, options_.group);
  group->BeginStream(request.reporter(), request.report_stream());
  // The old definition goes in the batch that brings the new one.
  for (StoreWrite& write : group->Unstored()) writes.push_back(std::move(write));
  BALLAST_RETURN_IF_ERROR(Apply(writes));
  group->Stored();
  if (anew) engines_[engine.name()] = {group, ++last_generation_};
  v1::RegisterEngineResponse response;
  *response.mutable_status() = group->Describe(clock_.Now());
  response.set_reports_stored(group->reports_stored(request.reporter()));
  return response;
}

absl::StatusOr<v1::ReportLoadResponse> EngineRuntime::Report(const v1::ReportLoadRequest& request) {
  MutexLock lock(mu_);
  if (stopping_) return Stopping();
  BALLAST_ASSIGN_OR_RETURN(const std::shared_ptr<EngineGroup> group, Find(request.engine()));
  const auto count = [this](const char* result) {
    metrics_.Counter("ballast_telemetry_reports_total", {result}).Add(1);
  };
  const auto counted = group->Report(request.reporter(), request.report_stream(), request.report(), clock_.Now());
  if (!counted.ok()) {
    count("invalid");
    return counted.status();
  }
  switch (*counted) {
    case EngineGroup::Counted::kYes:
      count("counted");
      break;
    case EngineGroup::Counted::kAfterGap:
      count("after_gap");
      Log(Severity::kWarning,
          absl::StrCat("reports of ", request.reporter(), " are missing before ", request.report().sequence()),
          {{"engine", request.engine()}});
      break;
    case EngineGroup::Counted::kDuplicate:
      count("duplicate");
      break;
  }
  BALLAST_RETURN_IF_ERROR(Flush(*group));
  reported_.NotifyAll();
  v1::ReportLoadResponse response;
  response.set_reports_stored(group->reports_stored(request.reporter()));
  return response;
}

absl::StatusOr<v1::GetEnginePlacementResponse> EngineRuntime::Placement(const std::string& engine, uint64_t after_epoch,
                                                                        absl::Time deadline) {
  MutexLock lock(mu_);
  while (true) {
    if (stopping_) return Stopping();
    // Each time anew: the engine may have been removed or defined anew meanwhile.
    BALLAST_ASSIGN_OR_RETURN(const std::shared_ptr<EngineGroup> group, Find(engine));
    const bool newer = group->placement().epoch() > after_epoch;
    if (!newer && clock_.Now() < deadline) {
      clock_.WaitUntil(planned_, mu_, deadline);
      continue;
    }
    BALLAST_RETURN_IF_ERROR(Flush(*group));
    v1::GetEnginePlacementResponse response;
    *response.mutable_status() = group->Describe(clock_.Now());
    if (newer) *response.mutable_placement() = group->placement();
    return response;
  }
}

absl::StatusOr<v1::EngineStatus> EngineRuntime::Describe(const std::string& engine) {
  MutexLock lock(mu_);
  BALLAST_ASSIGN_OR_RETURN(const std::shared_ptr<EngineGroup> group, Find(engine));
  BALLAST_RETURN_IF_ERROR(Flush(*group));
  return group->Describe(clock_.Now());
}

absl::Status EngineRuntime::Remove(const std::string& engine) {
  if (engine.empty()) return absl::InvalidArgumentError("engine: is empty");
  MutexLock lock(mu_);
  const auto found = engines_.find(engine);
  if (found == engines_.end()) return absl::OkStatus();
  BALLAST_ASSIGN_OR_RETURN(std::vector<StoreWrite> writes, EngineGroup::Forget(engine, store_));
  store::EngineRecord removed;
  removed.set_last_epoch(std::max(removed_epoch_, found->second.group->last_epoch()));
  writes.push_back({kRemovedKey, removed.SerializeAsString()});
  BALLAST_RETURN_IF_ERROR(Apply(writes));
  removed_epoch_ = removed.last_epoch();
  engines_.erase(found);
  planned_.NotifyAll();
  return absl::OkStatus();
}

std::vector<std::string> EngineRuntime::names() const {
  MutexLock lock(mu_);
  std::vector<std::string> names;
  for (const auto& [name, known] : engines_) names.push_back(name);
  return names;
}

absl::StatusOr<EngineRuntime::Counts> EngineRuntime::Counted(const std::string& engine) const {
  MutexLock lock(mu_);
  if (stopping_) return Stopping();
  BALLAST_ASSIGN_OR_RETURN(const std::shared_ptr<EngineGroup> group, Find(engine));
  return Counts{.generation = engines_.at(engine).generation,
                .layers = group->engine().num_layers(),
                .experts = group->engine().num_experts(),
                .prefill = group->counted(v1::PHASE_PREFILL),
                .decode = group->counted(v1::PHASE_DECODE)};
}

void EngineRuntime::PlannerLoop() {
  while (true) {
    std::shared_ptr<EngineGroup> group;
    std::optional<PlanRequest> request;
    {
      MutexLock lock(mu_);
      while (!request.has_value()) {
        if (stopping_) return;
        for (const auto& [name, candidate] : engines_) {
          request = candidate.group->MaybePlan(clock_.Now());
          group = candidate.group;
          if (request.has_value()) break;
        }
        if (!request.has_value()) clock_.WaitUntil(reported_, mu_, clock_.Now() + options_.tick);
      }
    }
    const absl::StatusOr<Plan> plan = options_.planner(*request);
    MutexLock lock(mu_);
    const std::string& name = group->engine().name();
    const auto still = engines_.find(name);
    if (still == engines_.end() || still->second.group != group) continue;
    std::string why;
    const bool taken = group->Planned(plan, clock_.Now(), why);
    Log(plan.ok() ? Severity::kInfo : Severity::kError,
        taken ? absl::StrCat("a new placement, epoch ", group->placement().epoch(), ": ", why)
              : absl::StrCat("no new placement: ", why),
        {{"engine", name}});
    if (!taken) continue;
    metrics_.Gauge("ballast_placement_epoch", {group->engine().model(), name})
        .Set(static_cast<double>(group->placement().epoch()));
    // A store that is down now is tried again before the placement is told to anyone.
    if (const absl::Status status = Flush(*group); !status.ok()) {
      Log(Severity::kError, std::string(status.message()), {{"engine", name}});
    }
    planned_.NotifyAll();
  }
}

}  // namespace ballast
