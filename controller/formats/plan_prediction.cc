#include "controller/formats/plan_prediction.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "controller/formats/fields.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

using Json = nlohmann::ordered_json;
using internal::Fields;

// Loads are at most 1e18 tokens an expert; times experts and layers, and what they cost.
constexpr double kMost = 1e36;
constexpr int64_t kMostCount = int64_t{1} << 53;

Json ToJson(const TransferCost::Link& link) {
  return {{"moves", link.moves}, {"bytes", link.bytes}, {"seconds", link.seconds}};
}

absl::Status ReadLink(Fields& transfers, const char* key, const std::string& where, TransferCost::Link& out) {
  const nlohmann::json* json = nullptr;
  BALLAST_RETURN_IF_ERROR(transfers.Sub(key, json));
  Fields fields(*json, absl::StrCat(where, ".", key));
  BALLAST_RETURN_IF_ERROR(fields.Integer("moves", 0, kMostCount, out.moves));
  BALLAST_RETURN_IF_ERROR(fields.Integer("bytes", 0, INT64_MAX, out.bytes));
  BALLAST_RETURN_IF_ERROR(fields.Number("seconds", 0, kMost, out.seconds));
  return fields.NoOthers();
}

absl::Status ReadChange(const nlohmann::json& json, const std::string& where, PlanChange& out) {
  Fields fields(json, where);
  BALLAST_RETURN_IF_ERROR(fields.Integer("moves", 0, kMostCount, out.moves));
  BALLAST_RETURN_IF_ERROR(fields.Integer("bytes", 0, INT64_MAX, out.bytes));
  BALLAST_RETURN_IF_ERROR(fields.Integer("waves", 0, kMostCount, out.waves));
  BALLAST_RETURN_IF_ERROR(fields.Number("predicted_gain", -kMost, 1, out.gain));
  BALLAST_RETURN_IF_ERROR(fields.Number("gain_tokens", -kMost, kMost, out.gain_tokens));
  BALLAST_RETURN_IF_ERROR(fields.Number("gain_microseconds", -kMost, kMost, out.gain_microseconds));
  BALLAST_RETURN_IF_ERROR(fields.Number("transfer_seconds", 0, kMost, out.transfer.seconds));
  const nlohmann::json* links = nullptr;
  BALLAST_RETURN_IF_ERROR(fields.Sub("transfers", links));
  const std::string at = absl::StrCat(where, ".transfers");
  Fields transfers(*links, at);
  BALLAST_RETURN_IF_ERROR(ReadLink(transfers, "node", at, out.transfer.node));
  BALLAST_RETURN_IF_ERROR(ReadLink(transfers, "cross_node", at, out.transfer.cross_node));
  BALLAST_RETURN_IF_ERROR(ReadLink(transfers, "checkpoint", at, out.transfer.checkpoint));
  BALLAST_RETURN_IF_ERROR(transfers.NoOthers());
  BALLAST_RETURN_IF_ERROR(fields.Bool("pays", out.pays));
  BALLAST_RETURN_IF_ERROR(fields.String("pays_reason", out.pays_reason));
  return fields.NoOthers();
}

}  // namespace

PlanPrediction PredictionOf(const Plan& plan) {
  PlanPrediction out;
  for (const LoadScore& score : plan.predicted) {
    out.scenarios.push_back(
        {score.scenario, score.balancedness, score.upper_bound, score.busiest, score.busiest_bound});
  }
  if (plan.current.empty()) return out;
  out.change = PlanChange{.moves = plan.moves,
                          .bytes = plan.bytes,
                          .waves = static_cast<int64_t>(plan.waves.size()),
                          .gain = plan.gain,
                          .gain_tokens = plan.gain_tokens,
                          .gain_microseconds = plan.gain_microseconds,
                          .transfer = plan.transfer,
                          .pays = plan.gate.worth,
                          .pays_reason = plan.gate.reason};
  return out;
}

Json ToJson(const PlanChange& change) {
  return {{"moves", change.moves},
          {"bytes", change.bytes},
          {"waves", change.waves},
          {"predicted_gain", change.gain},
          {"gain_tokens", change.gain_tokens},
          {"gain_microseconds", change.gain_microseconds},
          {"transfer_seconds", change.transfer.seconds},
          {"transfers",
           {{"node", ToJson(change.transfer.node)},
            {"cross_node", ToJson(change.transfer.cross_node)},
            {"checkpoint", ToJson(change.transfer.checkpoint)}}},
          {"pays", change.pays},
          {"pays_reason", change.pays_reason}};
}

Json ToJson(const PlanPrediction& prediction) {
  Json scenarios = Json::array();
  for (const PlanPrediction::OfScenario& s : prediction.scenarios) {
    // A mean over layers may round to just above 1.
    scenarios.push_back({{"scenario", s.scenario},
                         {"balancedness", std::min(1.0, s.balancedness)},
                         {"upper_bound", std::min(1.0, s.upper_bound)},
                         {"busiest_tokens", s.busiest_tokens},
                         {"busiest_tokens_bound", s.busiest_tokens_bound}});
  }
  Json out = {{"scenarios", std::move(scenarios)}};
  if (prediction.change) out["change"] = ToJson(*prediction.change);
  return out;
}

absl::Status ReadPrediction(const nlohmann::json& json, const std::string& where, PlanPrediction& out) {
  Fields fields(json, where);
  BALLAST_RETURN_IF_ERROR(fields.Object());
  const nlohmann::json* list = nullptr;
  BALLAST_RETURN_IF_ERROR(fields.List("scenarios", list));
  for (size_t i = 0; i < list->size(); ++i) {
    Fields scenario((*list)[i], absl::StrCat(where, ".scenarios[", i, "]"));
    PlanPrediction::OfScenario& s = out.scenarios.emplace_back();
    BALLAST_RETURN_IF_ERROR(scenario.Object());
    BALLAST_RETURN_IF_ERROR(scenario.String("scenario", s.scenario));
    BALLAST_RETURN_IF_ERROR(scenario.Number("balancedness", 0, 1, s.balancedness));
    BALLAST_RETURN_IF_ERROR(scenario.Number("upper_bound", 0, 1, s.upper_bound));
    BALLAST_RETURN_IF_ERROR(scenario.Number("busiest_tokens", 0, kMost, s.busiest_tokens));
    BALLAST_RETURN_IF_ERROR(scenario.Number("busiest_tokens_bound", 0, kMost, s.busiest_tokens_bound));
    BALLAST_RETURN_IF_ERROR(scenario.NoOthers());
  }
  if (fields.Find("change") != nullptr) {
    const nlohmann::json* change = nullptr;
    BALLAST_RETURN_IF_ERROR(fields.Sub("change", change));
    BALLAST_RETURN_IF_ERROR(ReadChange(*change, absl::StrCat(where, ".change"), out.change.emplace()));
  }
  return fields.NoOthers();
}

}  // namespace ballast
