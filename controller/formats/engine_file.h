// Plans as other engines' placement files.
#ifndef BALLAST_CONTROLLER_FORMATS_ENGINE_FILE_H_
#define BALLAST_CONTROLLER_FORMATS_ENGINE_FILE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/formats/plan_file.h"

namespace ballast {

// SGLang's --init-expert-location: {"physical_to_logical_map": [[...]]}, a row for every row of the load, slots grouped
// by worker. Rows that the plan does not place (dense layers) get slot mod experts. FailedPrecondition where the plan
// says what the file cannot: weights that differ within an expert, or slots that differ between layers or workers.
absl::StatusOr<std::string> ExportSglang(const PlanFile& plan);

struct EqualizeLoss {
  std::string scenario;
  double before = 0;
  double after = 0;
};
struct Equalized {
  PlanFile plan;
  // One for each of the plan's scenarios.
  std::vector<EqualizeLoss> losses;
};
// What engines can be told: equal weights, as many slots in every layer and on every worker. A plan of equal slots
// keeps its placement; another is made anew with EPLB on as many slots a layer as its replicas fill on average.
// FailedPrecondition where a new placement is needed and the plan has no scenarios, or too few replicas.
absl::StatusOr<Equalized> Equalize(const PlanFile& plan);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_ENGINE_FILE_H_
