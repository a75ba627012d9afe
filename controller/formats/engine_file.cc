#include "controller/formats/engine_file.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/planner/level.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"
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

double WorstEqualSplit(const Placement& placement, const PlanFile& plan) {
  double worst = 1;
  for (const Scenario& s : plan.scenarios) {
    worst = std::min(worst, ScoreLoad(placement, s, plan.topology).balancedness_equal_split);
  }
  return worst;
}

// Every row's experts by slot, dense rows filled.
std::vector<std::vector<int32_t>> EveryRow(const SlotMap& map) {
  const size_t slots = map.expert_of_slot[0].size();
  std::vector<std::vector<int32_t>> rows(map.rows);
  for (size_t l = 0; l < map.row_of_layer.size(); ++l) rows[map.row_of_layer[l]] = map.expert_of_slot[l];
  for (std::vector<int32_t>& row : rows) {
    if (!row.empty()) continue;
    for (size_t s = 0; s < slots; ++s) row.push_back(static_cast<int32_t>(s % map.experts));
  }
  return rows;
}

std::string List(const std::vector<int32_t>& numbers) { return absl::StrCat("[", absl::StrJoin(numbers, ","), "]"); }

// {"key": rows}, a row a line.
std::string Lists(const char* key, const std::vector<std::string>& rows) {
  return absl::StrCat("\"", key, "\": [\n ", absl::StrJoin(rows, ",\n "), "]");
}

std::vector<std::string> ListEach(const std::vector<std::vector<int32_t>>& rows) {
  std::vector<std::string> out;
  for (const std::vector<int32_t>& row : rows) out.push_back(List(row));
  return out;
}

std::string FormatTensorRtLlm(const SlotMap& map, int32_t first_layer) {
  std::string out = absl::StrCat("num_slots: ", map.expert_of_slot[0].size(),
                                 "\n"
                                 "layer_updates_per_iter: 0\n"
                                 "initial_global_assignments:\n");
  for (size_t l = 0; l < map.row_of_layer.size(); ++l) {
    absl::StrAppend(&out, "  ", map.row_of_layer[l] + first_layer, ": [", absl::StrJoin(map.expert_of_slot[l], ", "),
                    "]\n");
  }
  return out;
}

std::string FormatVllmAscend(const SlotMap& map) {
  const size_t slots = map.expert_of_slot[0].size() / map.gpus;
  std::vector<std::string> layers;
  for (size_t l = 0; l < map.expert_of_slot.size(); ++l) {
    std::vector<std::string> devices;
    for (int32_t d = 0; d < map.gpus; ++d) {
      const auto begin = map.expert_of_slot[l].begin() + static_cast<std::ptrdiff_t>(d * slots);
      devices.push_back(absl::StrCat("{\"device_id\": ", d, ", \"device_expert\": ",
                                     List({begin, begin + static_cast<std::ptrdiff_t>(slots)}), "}"));
    }
    layers.push_back(absl::StrCat("{\"layer_id\": ", l, ", \"device_count\": ", map.gpus, ", \"device_list\": [\n  ",
                                  absl::StrJoin(devices, ",\n  "), "]}"));
  }
  return absl::StrCat("{\"moe_layer_count\": ", layers.size(), ",\n", Lists("layer_list", layers), "}\n");
}

std::string FormatEplb(const SlotMap& map) {
  const std::vector<std::vector<int32_t>> rows = EveryRow(map);
  std::vector<std::vector<std::vector<int32_t>>> slots_of(rows.size(), std::vector<std::vector<int32_t>>(map.experts));
  std::vector<std::vector<int32_t>> counts;
  size_t most = 0;
  for (size_t l = 0; l < rows.size(); ++l) {
    for (size_t s = 0; s < rows[l].size(); ++s) slots_of[l][rows[l][s]].push_back(static_cast<int32_t>(s));
    std::vector<int32_t>& count = counts.emplace_back();
    for (const std::vector<int32_t>& slots : slots_of[l]) {
      count.push_back(static_cast<int32_t>(slots.size()));
      most = std::max(most, slots.size());
    }
  }
  std::vector<std::string> physical;
  for (std::vector<std::vector<int32_t>>& row : slots_of) {
    for (std::vector<int32_t>& slots : row) slots.resize(most, -1);
    physical.push_back(absl::StrCat("[", absl::StrJoin(ListEach(row), ","), "]"));
  }
  return absl::StrCat("{", Lists("phy2log", ListEach(rows)), ",\n", Lists("log2phy", physical), ",\n",
                      Lists("logcnt", ListEach(counts)), "}\n");
}

}  // namespace

const std::vector<std::string>& EngineFormatNames() {
  static const auto& names = *new std::vector<std::string>{"sglang", "trtllm", "vllm-ascend", "eplb"};
  return names;
}

EngineFormat EngineFormatOf(std::string_view name) {
  const auto& names = EngineFormatNames();
  const auto found = std::find(names.begin(), names.end(), name);
  BALLAST_CHECK(found != names.end()) << std::string(name);
  return static_cast<EngineFormat>(found - names.begin());
}

absl::Status CheckOptions(EngineFormat format, const EngineFileOptions& options) {
  if (options.first_layer == 0 || format == EngineFormat::kTensorRtLlm) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--first-layer ", options.first_layer, ": is for trtllm files, not ",
                                                 EngineFormatNames()[static_cast<size_t>(format)]));
}

absl::StatusOr<SlotMap> ToSlotMap(const PlanFile& plan) {
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
  SlotMap map{.experts = placement.num_experts,
              .gpus = static_cast<int32_t>(placement.workers.size()),
              .rows = plan.rows,
              .row_of_layer = plan.row_of_layer};
  for (const auto& layer : BySlot(placement)) {
    std::vector<int32_t>& slots = map.expert_of_slot.emplace_back();
    for (const auto& worker : layer) slots.insert(slots.end(), worker.begin(), worker.end());
  }
  return map;
}

std::string FormatEngineFile(EngineFormat format, const SlotMap& map, const EngineFileOptions& options) {
  switch (format) {
    case EngineFormat::kSglang:
      return absl::StrCat("{", Lists("physical_to_logical_map", ListEach(EveryRow(map))), "}\n");
    case EngineFormat::kTensorRtLlm:
      return FormatTensorRtLlm(map, options.first_layer);
    case EngineFormat::kVllmAscend:
      return FormatVllmAscend(map);
    case EngineFormat::kEplb:
      return FormatEplb(map);
  }
  return "";
}

absl::StatusOr<ImportedPlan> FromSlotMap(SlotMap map, const Topology& topology, const LoadSet* load) {
  if (static_cast<int32_t>(topology.workers.size()) != map.gpus) {
    return absl::InvalidArgumentError(
        absl::StrCat("the topology has ", topology.workers.size(), " GPUs, the file ", map.gpus));
  }
  if (load != nullptr) {
    const LoadMatrix& tokens = load->scenarios[0].load;
    if (tokens.experts < map.experts) {
      return absl::InvalidArgumentError(
          absl::StrCat("the load has ", tokens.experts, " experts, the file ", map.experts));
    }
    map.experts = tokens.experts;
    // A file of MoE layers alone is told by the load which rows they are.
    const bool every_row = static_cast<int32_t>(map.row_of_layer.size()) == load->rows;
    if (!every_row && map.row_of_layer.size() == load->row_of_layer.size() &&
        map.rows == static_cast<int32_t>(map.row_of_layer.size())) {
      map.row_of_layer = load->row_of_layer;
    }
    std::vector<std::vector<int32_t>> kept;
    for (const int32_t row : load->row_of_layer) {
      const auto found = std::find(map.row_of_layer.begin(), map.row_of_layer.end(), row);
      if (found == map.row_of_layer.end()) {
        return absl::InvalidArgumentError(absl::StrCat("row ", row, " of the load has tokens, and the file of ",
                                                       map.row_of_layer.size(), " layers does not list it"));
      }
      kept.push_back(map.expert_of_slot[found - map.row_of_layer.begin()]);
    }
    if (map.row_of_layer.back() >= load->rows) {
      return absl::InvalidArgumentError(
          absl::StrCat("the file lists layer ", map.row_of_layer.back(), ", the load has ", load->rows));
    }
    map.expert_of_slot = std::move(kept);
    map.row_of_layer = load->row_of_layer;
    map.rows = load->rows;
  }
  ImportedPlan out;
  PlanFile& plan = out.plan;
  plan.policy = "imported";
  plan.topology = topology;
  plan.rows = map.rows;
  plan.row_of_layer = map.row_of_layer;
  if (load != nullptr) plan.scenarios = load->scenarios;
  Placement& placement = plan.placement;
  placement.num_layers = static_cast<int32_t>(map.row_of_layer.size());
  placement.num_experts = map.experts;
  std::vector<SlotCapacity> capacity;
  for (const TopologyWorker& worker : topology.workers) {
    placement.workers.push_back(worker.name);
    capacity.push_back(worker.capacity);
  }
  const auto slots = static_cast<int32_t>(map.expert_of_slot[0].size()) / map.gpus;
  for (int32_t l = 0; l < placement.num_layers; ++l) {
    std::vector<bool> placed(map.experts);
    for (int32_t g = 0; g < map.gpus; ++g) {
      // Expert -> its replica on this GPU.
      std::map<int32_t, size_t> here;
      for (int32_t s = 0; s < slots; ++s) {
        const int32_t expert = map.expert_of_slot[l][g * slots + s];
        placed[expert] = true;
        const auto [replica, first] = here.emplace(expert, placement.replicas.size());
        if (first) {
          placement.replicas.push_back({{l, expert}, g, l * slots + s, 1});
        } else {
          ++placement.replicas[replica->second].weight;
        }
      }
      for (const auto& [expert, replica] : here) {
        const auto weight = static_cast<int32_t>(placement.replicas[replica].weight);
        if (weight > 1) out.merged.push_back({l, expert, placement.workers[g], weight});
      }
    }
    const auto missing = std::find(placed.begin(), placed.end(), false);
    if (missing != placed.end()) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", map.row_of_layer[l], ": expert ",
                                                     missing - placed.begin(), " of ", map.experts, " has no slot"));
    }
  }
  placement.Sort();
  BALLAST_RETURN_IF_ERROR(Validate(placement, capacity));
  return out;
}

absl::StatusOr<Equalized> Equalize(const PlanFile& plan) {
  const auto workers = static_cast<int64_t>(plan.placement.workers.size());
  const auto replicas = static_cast<int64_t>(plan.placement.replicas.size());
  const int64_t average = replicas / workers / plan.placement.num_layers;
  const int64_t needed = (plan.placement.num_experts + workers - 1) / workers;
  Equalized out{plan, static_cast<int32_t>(std::max(average, needed)), false, {}};
  // What was predicted is of the plan as it was.
  out.plan.predicted.reset();
  Placement& placement = out.plan.placement;
  for (Replica& r : placement.replicas) r.weight = 1;
  const auto unequal = UnequalSlots(placement);
  if (unequal.has_value() && plan.scenarios.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(*unequal, ", and the plan has no load to make equal ones for"));
  }
  if (!plan.scenarios.empty()) {
    PlanRequest request;
    request.scenarios = plan.scenarios;
    request.topology = plan.topology;
    request.slots_per_layer = out.slots;
    // The engine's slots are its own: as many as the layers need.
    for (TopologyWorker& worker : request.topology.workers) {
      worker.capacity.slots =
          std::max(worker.capacity.slots, out.slots * placement.num_layers + worker.capacity.staging_slots);
    }
    BALLAST_ASSIGN_OR_RETURN(Plan equal, MakePlan(CostAwarePolicy(0, CostAwarePolicy::Split::kEqual), request));
    // What stays as it is moves nothing: another placement must be worth more than the search's own scatter.
    constexpr double kWorthIt = 1e-3;
    if (unequal.has_value() || WorstEqualSplit(equal.placement, plan) > WorstEqualSplit(placement, plan) + kWorthIt) {
      placement = std::move(equal.placement);
      out.plan.topology = request.topology;
      out.planned_anew = true;
      for (Replica& r : placement.replicas) r.weight = 1;
    }
  }
  for (const Scenario& s : plan.scenarios) {
    out.losses.push_back({s.name, ScoreLoad(plan.placement, s, plan.topology).balancedness,
                          ScoreLoad(placement, s, plan.topology).balancedness});
  }
  return out;
}

}  // namespace ballast
