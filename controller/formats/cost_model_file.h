// Cost model files: versioned JSON, see docs/schemas/cost_model.v1.schema.json.
#ifndef BALLAST_CONTROLLER_FORMATS_COST_MODEL_FILE_H_
#define BALLAST_CONTROLLER_FORMATS_COST_MODEL_FILE_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "controller/planner/cost_model.h"

namespace ballast {

// {"format": "ballast.cost_model/v1", ...} with every field.
std::string FormatCostModel(const CostModel& model);

// Fields that are absent keep CostModel's defaults. InvalidArgument names the file, the field, the value and the limit.
absl::StatusOr<CostModel> ParseCostModel(std::string_view bytes, std::string_view name);
// The same from a file; NotFound where there is none.
absl::StatusOr<CostModel> ReadCostModel(const std::string& path);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_COST_MODEL_FILE_H_
