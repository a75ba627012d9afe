// Plan, plan set and topology files: versioned JSON, see docs/schemas/plan.v1.schema.json, plan_set.v1.schema.json and
// topology.v1.schema.json.
#ifndef BALLAST_CONTROLLER_FORMATS_PLAN_FILE_H_
#define BALLAST_CONTROLLER_FORMATS_PLAN_FILE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/formats/plan_prediction.h"
#include "controller/planner/load.h"
#include "controller/planner/plan_set.h"
#include "controller/planner/topology.h"
#include "proto/placement/placement.h"

namespace ballast {

struct PlanFile {
  std::string policy;
  Topology topology;
  // Over topology's workers in order; valid within their capacities.
  Placement placement;
  int64_t expert_bytes = 0;
  // Rows of the load files it was made from, and which of them each layer of the placement is; the other rows are
  // dense.
  int32_t rows = 0;
  std::vector<int32_t> row_of_layer;
  // What it was made for. Possibly none.
  std::vector<Scenario> scenarios;
  // For those scenarios. Absent: no planner of ours made it, or one before files said it.
  std::optional<PlanPrediction> predicted;
};

// A few plans in place of one; the scenarios of a member's plan are those that it serves.
struct PlanSetFile {
  struct Member {
    // Distinct, not empty, without '#'. A plan file is read as a set of one member without a name.
    std::string name;
    PlanFile plan;
  };
  // At least one and at most kMaxPlanSetMembers, of one shape, over one topology, of distinct scenarios.
  std::vector<Member> members;
  // What a member is picked by.
  Split split = Split::kSolved;
  // [members][members]
  std::vector<std::vector<Switch>> switches;
};

constexpr int32_t kMaxPlanSetMembers = 64;

std::string FormatPlan(const PlanFile& plan);
// InvalidArgument names the file, the field, the value and the limit.
absl::StatusOr<PlanFile> ParsePlan(std::string_view bytes, std::string_view name);

std::string FormatPlanSet(const PlanSetFile& set);
// A plan set, or a plan as a set of one. The same errors.
absl::StatusOr<PlanSetFile> ParsePlanSet(std::string_view bytes, std::string_view name);

// Reads PATH, or of a set PATH#MEMBER, that member alone. NotFound names the members that there are.
absl::StatusOr<PlanSetFile> ReadPlanSet(const std::string& path);
// The same where one plan is needed: FailedPrecondition where a set of several has to be asked for one of them.
absl::StatusOr<PlanFile> ReadPlan(const std::string& path);

// Which member the load wants, see PickMember (plan_set.h); `in_force` is an index, -1: none.
absl::StatusOr<Pick> PickMember(const PlanSetFile& set, int32_t in_force, const LoadMatrix& observed,
                                const GateLimits& gate);

// {"format": "ballast.topology/v1", ...}: a Topology by itself.
absl::StatusOr<Topology> ParseTopology(std::string_view bytes, std::string_view name);
absl::StatusOr<Topology> ReadTopology(const std::string& path);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_PLAN_FILE_H_
