#include "controller/formats/engine_file.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/planner/eplb.h"
#include "controller/planner/score.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// [layers][workers]: experts by slot.
std::vector<std::vector<std::vector<int32_t>>> BySlot(const Placement& placement) {
  std::vector<Replica> replicas = placement.replicas;
  std::sort(replicas.begin(), replicas.end(), [](const Replica& a, const Replica& b) {
    return std::tie(a.expert.layer, a.worker, a.slot) < std::tie(b.expert.layer, b.worker, b.slot);
  });
  std::vector<std::vector<std::vector<int32_t>>> out(placement.num_layers,
                                                     std::vector<std::vector<int32_t>>(placement.workers.size()));
  for (const Replica& r : replicas) out[r.expert.layer][r.worker].push_back(r.expert.expert);
  return out;
}

// What says that slots are not equal; nothing where they are.
std::optional<std::string> UnequalSlots(const Placement& placement) {
  const auto layers = BySlot(placement);
  const size_t slots = layers[0][0].size();
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t w = 0; w < layers[l].size(); ++w) {
      if (layers[l][w].size() == slots) continue;
      return absl::StrCat("layer ", l, " has ", layers[l][w].size(), " slots on worker '", placement.workers[w],
                          "', layer 0 has ", slots, " on '", placement.workers[0], "'");
    }
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<std::string> ExportSglang(const PlanFile& plan) {
  constexpr char kHint[] = "; --equalize drops what the file cannot say";
  const Placement& placement = plan.placement;
  for (size_t i = 1; i < placement.replicas.size(); ++i) {
    const Replica& a = placement.replicas[i - 1];
    const Replica& b = placement.replicas[i];
    if (a.expert == b.expert && a.weight != b.weight) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", b.expert.layer, " expert ", b.expert.expert,
                                                        " has replicas of different shares, and the engine splits "
                                                        "equally",
                                                        kHint));
    }
  }
  if (const auto unequal = UnequalSlots(placement)) {
    return absl::FailedPreconditionError(absl::StrCat(*unequal, ", and the engine wants as many everywhere", kHint));
  }
  const auto layers = BySlot(placement);
  const size_t slots = layers[0][0].size() * placement.workers.size();
  std::string out = "{\"physical_to_logical_map\": [";
  size_t layer = 0;
  for (int32_t row = 0; row < plan.rows; ++row) {
    std::vector<int32_t> experts;
    if (layer < plan.row_of_layer.size() && plan.row_of_layer[layer] == row) {
      for (const auto& worker : layers[layer]) experts.insert(experts.end(), worker.begin(), worker.end());
      ++layer;
    } else {
      for (size_t s = 0; s < slots; ++s) experts.push_back(static_cast<int32_t>(s % placement.num_experts));
    }
    absl::StrAppend(&out, row == 0 ? "\n" : ",\n", " [", absl::StrJoin(experts, ","), "]");
  }
  out += "]}\n";
  return out;
}

absl::StatusOr<Equalized> Equalize(const PlanFile& plan) {
  Equalized out{plan, {}};
  Placement& placement = out.plan.placement;
  if (const auto unequal = UnequalSlots(placement)) {
    if (plan.scenarios.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(*unequal, ", and the plan has no load to make equal ones for"));
    }
    const auto workers = static_cast<int64_t>(placement.workers.size());
    const auto replicas = static_cast<int64_t>(placement.replicas.size());
    PlanRequest request;
    request.scenarios = plan.scenarios;
    request.topology = plan.topology;
    request.slots_per_layer = static_cast<int32_t>(replicas / workers / placement.num_layers);
    if (request.slots_per_layer * workers < placement.num_experts) {
      return absl::FailedPreconditionError(
          absl::StrCat(replicas, " replicas are ", request.slots_per_layer, " slots a layer on each of ", workers,
                       " workers when made equal; a layer has ", placement.num_experts, " experts"));
    }
    BALLAST_ASSIGN_OR_RETURN(Plan equal, MakePlan(EplbPolicy(1, EplbPolicy::Split::kEqual), request));
    placement = std::move(equal.placement);
  }
  for (Replica& r : placement.replicas) r.weight = 1;
  for (const Scenario& s : plan.scenarios) {
    out.losses.push_back({s.name, ScoreLoad(plan.placement, s, plan.topology).balancedness,
                          ScoreLoad(placement, s, plan.topology).balancedness});
  }
  return out;
}

}  // namespace ballast
