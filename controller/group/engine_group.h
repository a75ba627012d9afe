// An engine that is not made of Ballast workers: it reports its load, its placements are planned like a group's, and it
// carries them out itself. No view, no rollout: the newest placement is all there is to serve.
//
// Single-threaded and pure but for its own state: no I/O, no clock, no threads. Writes come out to be stored before
// what they say is told to anyone.
#ifndef BALLAST_CONTROLLER_GROUP_ENGINE_GROUP_H_
#define BALLAST_CONTROLLER_GROUP_ENGINE_GROUP_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/telemetry_service.pb.h"
#include "controller/group/config.h"
#include "controller/planner/load.h"
#include "controller/planner/planner.h"
#include "controller/store/records.pb.h"
#include "controller/store/store.h"
#include "controller/telemetry/load_window.h"
#include "controller/telemetry/planning_pace.h"
#include "controller/telemetry/report_ledger.h"
#include "proto/placement/placement.h"

namespace ballast {

struct EngineGroupOptions {
  PlanningRules planning;
  LoadWindow::Options load;
};

// InvalidArgument names the field, the value and the limit.
absl::Status Validate(const v1::Engine& engine);

class EngineGroup {
 public:
  // A new one; `engine` is valid. `last_epoch`: of an engine of the name before it.
  EngineGroup(const v1::Engine& engine, uint64_t last_epoch, const EngineGroupOptions& options);
  // As the store remembers it. DataLoss: the record is damaged.
  static absl::StatusOr<std::unique_ptr<EngineGroup>> Load(const std::string& name, const Store& store,
                                                           const EngineGroupOptions& options);
  // What the store must forget of the engine `name`.
  static absl::StatusOr<std::vector<StoreWrite>> Forget(const std::string& name, const Store& store);
  static constexpr char kStorePrefix[] = "engine/";

  const v1::Engine& engine() const { return record_.engine(); }
  uint64_t last_epoch() const { return record_.last_epoch(); }

  // --- Reports.
  void BeginStream(const std::string& reporter, uint64_t report_stream) {
    ledger_.BeginStream(reporter, report_stream);
  }
  enum class Counted { kYes, kAfterGap, kDuplicate };
  // Counts a report, or changes nothing.
  //   FailedPrecondition  another stream is the reporter's.
  //   InvalidArgument     names the field, the value and the limit.
  absl::StatusOr<Counted> Report(const std::string& reporter, uint64_t report_stream, const v1::LoadReport& report,
                                 absl::Time now);
  // Of the reporter's stream; 0: none.
  uint64_t reports_stored(const std::string& reporter) const { return ledger_.stored(reporter); }

  // --- The store. What is not stored yet; the same again until Stored says that it is.
  std::vector<StoreWrite> Unstored();
  void Stored();

  // --- Planning. What to plan now, if anything; it counts as under way until Planned.
  std::optional<PlanRequest> MaybePlan(absl::Time now);
  // Takes the plan in as the newest where it is worth it; false: it is not, `why` says why.
  bool Planned(const absl::StatusOr<Plan>& plan, absl::Time now, std::string& why);

  // --- Reading.
  v1::EngineStatus Describe(absl::Time now) const;
  // Epoch 0: none.
  const v1::Placement& placement() const { return record_.placement(); }
  // Tokens by [layers][experts] since this process started.
  const std::vector<double>& counted(v1::Phase phase) const {
    return phase == v1::PHASE_PREFILL ? counted_prefill_ : counted_decode_;
  }

 private:
  std::string LoadName() const;
  double WindowBalancedness(absl::Time now) const;

  const EngineGroupOptions options_;
  store::EngineRecord record_;
  // record_'s placement.
  Placement placement_;
  LoadWindow load_;
  ReportLedger ledger_;
  bool record_dirty_ = true;
  std::vector<StoreWrite> writes_;
  store::ReportMarks marks_;
  std::vector<double> counted_prefill_;
  std::vector<double> counted_decode_;
  absl::Time newest_report_ = absl::InfinitePast();
  bool planning_ = false;
  PlanningPace pace_;
  double drift_gain_ = 0;  // what the plan under way is made for
  // Of the plan under way, or the last one.
  std::string plan_reason_;
  std::vector<Scenario> planned_for_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_GROUP_ENGINE_GROUP_H_
