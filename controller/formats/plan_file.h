// Plan and topology files: versioned JSON, see docs/schemas/plan.v1.schema.json and topology.v1.schema.json.
#ifndef BALLAST_CONTROLLER_FORMATS_PLAN_FILE_H_
#define BALLAST_CONTROLLER_FORMATS_PLAN_FILE_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/planner/load.h"
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
};

std::string FormatPlan(const PlanFile& plan);
// InvalidArgument names the file, the field, the value and the limit.
absl::StatusOr<PlanFile> ParsePlan(std::string_view bytes, std::string_view name);
absl::StatusOr<PlanFile> ReadPlan(const std::string& path);

// {"format": "ballast.topology/v1", ...}: a Topology by itself.
absl::StatusOr<Topology> ParseTopology(std::string_view bytes, std::string_view name);
absl::StatusOr<Topology> ReadTopology(const std::string& path);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_PLAN_FILE_H_
