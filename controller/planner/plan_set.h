// A few placements in place of one, where one cannot serve every scenario; and which of them an observed load wants.
//
// Pure and deterministic; any thread.
#ifndef BALLAST_CONTROLLER_PLANNER_PLAN_SET_H_
#define BALLAST_CONTROLLER_PLANNER_PLAN_SET_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/planner.h"

namespace ballast {

struct PlanSetOptions {
  // At least 1.
  int32_t most_plans = 1;
  // The balancedness that the worst scenario must have: plans are added as long as it has less.
  double enough = 0.95;
};

// What it takes to go from one member's placement to another's.
struct Switch {
  int64_t moves = 0;
  int64_t bytes = 0;
  int64_t waves = 0;
  double transfer_seconds = 0;
  friend bool operator==(const Switch&, const Switch&) = default;
};

struct PlanSetMember {
  // Indices of the request's scenarios that it is for, ascending.
  std::vector<int32_t> scenarios;
  // Predicted for those scenarios, in order; gain and cost are from the request's placement in force, if any.
  Plan plan;
};

struct PlanSet {
  // Every scenario belongs to one; by their first scenario.
  std::vector<PlanSetMember> members;
  // [members][members]
  std::vector<std::vector<Switch>> switches;
  // The lowest, over the scenarios, balancedness of a scenario on its member.
  double worst = 1;
  // What balancedness is with, here and for PickMember.
  Split split = Split::kSolved;
  // [scenarios] on one plan for all of them, which is what the set is in place of.
  std::vector<LoadScore> single;
};

// The score's balancedness with that split.
double BalancednessOf(const LoadScore& score, Split split);

// One plan where it serves every scenario well enough, or there is one scenario; else the fewest, up to most_plans,
// that do; else those whose worst scenario is best. Scenarios are divided among plans by exchange on their cross-scores
// (k-medoids: a plan for each scenario alone, of which k serve all best), then each part gets a plan of its own.
// Members keep what they can where the plan for all has it; with a move budget each is that many moves from the
// placement in force, or where there is none from the plan for all, so that two of them are at most twice as many
// apart. Balancedness is with shares solved for the scenario where the policy's split is solved, with equal split
// otherwise. Makes up to 1 + scenarios + most_plans^2 plans. The errors of MakePlan, and InvalidArgument for options
// out of range.
absl::StatusOr<PlanSet> MakePlanSet(const PlannerPolicy& policy, const PlanRequest& request,
                                    const PlanSetOptions& options);

struct PickInput {
  // Of one shape, over topology's workers.
  std::span<const Placement> members;
  // [members] what reasons call them.
  std::span<const std::string> names;
  // [members][members], see PlanSet.
  std::span<const std::vector<Switch>> switches;
  const Topology& topology;
  Split split = Split::kSolved;
  // The member in force, -1: none.
  int32_t in_force = -1;
};

struct Pick {
  int32_t member = 0;
  // [members] under the observed load.
  std::vector<double> balancedness;
  // One sentence with the numbers.
  std::string reason;
};

// The member that is best under the observed load. One in force stays unless another is worth its moves by the gate:
// the least gain and the payback within the horizon are the hysteresis. The first of equals.
absl::StatusOr<Pick> PickMember(const PickInput& input, const LoadMatrix& observed, const GateLimits& gate);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_PLAN_SET_H_
