// The planner behind a group's plan jobs.
#ifndef BALLAST_CONTROLLER_SERVICE_PLANNING_H_
#define BALLAST_CONTROLLER_SERVICE_PLANNING_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/cost_model.h"
#include "controller/planner/gate.h"
#include "controller/rollout/plan_job.h"

namespace ballast {

// Names that RunPlanJob knows, sorted.
std::vector<std::string> PolicyNames();
// InvalidArgument names the known ones.
absl::Status CheckPolicy(std::string_view policy);

// Makes the plan that `job` asks for: the policy's, or the way back to job.target. Pure but for the time it measures;
// any thread.
//   InvalidArgument     no such policy.
//   FailedPrecondition  the workers' slots do not allow it, or experts would be without a replica; the message names
//   the
//                       worker or the expert.
absl::StatusOr<PlanOutcome> RunPlanJob(const PlanJob& job, const GateLimits& limits, const CostModel& cost_model);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_PLANNING_H_
