// What a plan was predicted to do when it was made: what plan files keep of it, and what verbs print.
#ifndef BALLAST_CONTROLLER_FORMATS_PLAN_PREDICTION_H_
#define BALLAST_CONTROLLER_FORMATS_PLAN_PREDICTION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "controller/planner/planner.h"
#include "nlohmann/json.hpp"

namespace ballast {

// Getting to a plan from the placement in force; see Plan for the fields.
struct PlanChange {
  int64_t moves = 0;
  int64_t bytes = 0;
  int64_t waves = 0;
  double gain = 0;
  double gain_tokens = 0;
  double gain_microseconds = 0;
  TransferCost transfer;
  bool pays = false;
  std::string pays_reason;
};

struct PlanPrediction {
  struct OfScenario {
    std::string scenario;
    // With the plan's shares, and what no placement of as many replicas can be above.
    double balancedness = 1;
    double upper_bound = 1;
    // Tokens of each layer's busiest worker, summed over layers, and what no placement of as many replicas can be
    // below.
    double busiest_tokens = 0;
    double busiest_tokens_bound = 0;
  };
  // As PlanFile::scenarios.
  std::vector<OfScenario> scenarios;
  // Getting there from the placement in force. Absent: there was none.
  std::optional<PlanChange> change;
};

PlanPrediction PredictionOf(const Plan& plan);

// {"moves", "bytes", "waves", "predicted_gain", "gain_tokens", "gain_microseconds", "transfer_seconds", "transfers",
// "pays", "pays_reason"}, see docs/schemas/plan.v1.schema.json.
nlohmann::ordered_json ToJson(const PlanChange& change);
// {"scenarios": [...], "change": {...}}; without a change where there is none.
nlohmann::ordered_json ToJson(const PlanPrediction& prediction);

// What ToJson writes. InvalidArgument names the field, beginning with `where`, the value and the limit.
absl::Status ReadPrediction(const nlohmann::json& json, const std::string& where, PlanPrediction& out);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_PLAN_PREDICTION_H_
