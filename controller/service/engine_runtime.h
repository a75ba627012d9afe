// Runs the engines that are not made of Ballast workers: calls change them one at a time, everything is stored before
// it is told, and one thread plans.
#ifndef BALLAST_CONTROLLER_SERVICE_ENGINE_RUNTIME_H_
#define BALLAST_CONTROLLER_SERVICE_ENGINE_RUNTIME_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/telemetry_service.pb.h"
#include "controller/group/engine_group.h"
#include "controller/planner/planner.h"
#include "controller/store/store.h"
#include "proto/base/clock.h"
#include "proto/base/metrics.h"
#include "proto/base/mutex.h"

namespace ballast {

// Thread-safe. Errors as telemetry_service.proto documents them; Unavailable where the store cannot be written, with
// nothing lost: the same call again goes on.
class EngineRuntime {
 public:
  using Planner = std::function<absl::StatusOr<Plan>(const PlanRequest&)>;
  struct Options {
    EngineGroupOptions group;
    // Names of the groups of Ballast workers.
    std::set<std::string> taken;
    // Between two looks at whether a plan is due, where no report asks for one.
    absl::Duration tick = absl::Seconds(1);
    // Called on the planning thread.
    Planner planner;
  };

  // Takes up every engine that the store remembers. `store`, `clock` and `metrics` (of ControllerMetrics()) must
  // outlive it.
  static absl::StatusOr<std::unique_ptr<EngineRuntime>> Start(Options options, Store& store, Clock& clock,
                                                              Metrics& metrics);
  // As Stop.
  ~EngineRuntime();
  // Answers what waits, ends the thread. Idempotent.
  void Stop() BALLAST_EXCLUDES(mu_);

  absl::StatusOr<v1::RegisterEngineResponse> Register(const v1::RegisterEngineRequest& request) BALLAST_EXCLUDES(mu_);
  absl::StatusOr<v1::ReportLoadResponse> Report(const v1::ReportLoadRequest& request) BALLAST_EXCLUDES(mu_);
  // Waits until `deadline` for a placement above after_epoch.
  absl::StatusOr<v1::GetEnginePlacementResponse> Placement(const std::string& engine, uint64_t after_epoch,
                                                           absl::Time deadline) BALLAST_EXCLUDES(mu_);
  absl::StatusOr<v1::EngineStatus> Describe(const std::string& engine) BALLAST_EXCLUDES(mu_);
  absl::Status Remove(const std::string& engine) BALLAST_EXCLUDES(mu_);
  // Sorted.
  std::vector<std::string> names() const BALLAST_EXCLUDES(mu_);

  // Tokens counted by this process, [layers][experts]. Those of another generation began at 0: what is counted was
  // formed anew, defined anew, or removed and registered again.
  struct Counts {
    uint64_t generation = 0;
    int32_t layers = 0;
    int32_t experts = 0;
    std::vector<double> prefill;
    std::vector<double> decode;
  };
  absl::StatusOr<Counts> Counted(const std::string& engine) const BALLAST_EXCLUDES(mu_);

 private:
  struct Known {
    // Shared with a plan under way.
    std::shared_ptr<EngineGroup> group;
    // Of its counts.
    uint64_t generation = 0;
  };

  EngineRuntime(Options options, Store& store, Clock& clock, Metrics& metrics);
  absl::StatusOr<std::shared_ptr<EngineGroup>> Find(const std::string& engine) const BALLAST_REQUIRES(mu_);
  absl::Status Apply(const std::vector<StoreWrite>& writes) BALLAST_REQUIRES(mu_);
  absl::Status Flush(EngineGroup& group) BALLAST_REQUIRES(mu_);
  void PlannerLoop() BALLAST_EXCLUDES(mu_);

  const Options options_;
  Store& store_;
  Clock& clock_;
  Metrics& metrics_;

  mutable Mutex mu_;
  CondVar reported_;
  CondVar planned_;
  std::map<std::string, Known> engines_ BALLAST_GUARDED_BY(mu_);
  uint64_t last_generation_ BALLAST_GUARDED_BY(mu_) = 0;
  // The highest epoch of an engine that was removed: those of a name that comes back go on above it.
  uint64_t removed_epoch_ BALLAST_GUARDED_BY(mu_) = 0;
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;

  std::thread planner_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_ENGINE_RUNTIME_H_
