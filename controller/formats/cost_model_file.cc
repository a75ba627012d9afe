#include "controller/formats/cost_model_file.h"

#include "absl/strings/str_cat.h"
#include "controller/formats/load_file.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr char kFormat[] = "ballast.cost_model/v1";

struct Field {
  const char* name;
  double CostModel::*value;
};
constexpr Field kFields[] = {
    {"microseconds_per_token", &CostModel::microseconds_per_token},
    {"microseconds_per_expert", &CostModel::microseconds_per_expert},
    {"microseconds_per_layer", &CostModel::microseconds_per_layer},
    {"microseconds_per_copy_node", &CostModel::microseconds_per_copy_node},
    {"microseconds_per_copy_cross_node", &CostModel::microseconds_per_copy_cross_node},
    {"microseconds_per_step", &CostModel::microseconds_per_step},
};

absl::StatusOr<CostModel> FromJson(const nlohmann::json& json) {
  BALLAST_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(json, "cost model"));
  BALLAST_ASSIGN_OR_RETURN(const std::string format, fields.String("format"));
  if (format != kFormat) return WrongValue("format", format, kFormat);
  CostModel model;
  for (const Field& field : kFields) {
    BALLAST_ASSIGN_OR_RETURN(model.*field.value,
                             fields.Double(field.name, 0, kMaxCostMicroseconds, model.*field.value));
  }
  for (const auto& [key, value] : json.items()) {
    bool known = key == "format";
    for (const Field& field : kFields) known |= key == field.name;
    if (!known) return absl::InvalidArgumentError(absl::StrCat("unknown key ", Quote(key)));
  }
  BALLAST_RETURN_IF_ERROR(Validate(model));
  return model;
}

}  // namespace

std::string FormatCostModel(const CostModel& model) {
  nlohmann::ordered_json json = {{"format", kFormat}};
  for (const Field& field : kFields) json[field.name] = model.*field.value;
  return absl::StrCat(json.dump(1), "\n");
}

absl::StatusOr<CostModel> ParseCostModel(std::string_view bytes, std::string_view name) {
  auto json = ParseJson(bytes);
  absl::StatusOr<CostModel> model = json.ok() ? FromJson(*json) : absl::StatusOr<CostModel>(json.status());
  if (model.ok()) return model;
  return absl::Status(model.status().code(), absl::StrCat(std::string(name), ": ", model.status().message()));
}

absl::StatusOr<CostModel> ReadCostModel(const std::string& path) {
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path));
  return ParseCostModel(bytes, path);
}

}  // namespace ballast
