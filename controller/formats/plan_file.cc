#include "controller/formats/plan_file.h"

#include <algorithm>
#include <limits>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/formats/fields.h"
#include "controller/formats/load_file.h"
#include "controller/planner/memory.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

using Json = nlohmann::ordered_json;
using internal::Fields;

// Errors of `place`, a file or a field of one.
absl::Status In(std::string_view place, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(std::string(place), ": ", status.message()));
}

absl::Status ReadTopologyFields(Fields& fields, const std::string& where, Topology& topology) {
  BALLAST_RETURN_IF_ERROR(fields.Number("node_bytes_per_second", topology.node_bytes_per_second));
  BALLAST_RETURN_IF_ERROR(fields.Number("cross_node_bytes_per_second", topology.cross_node_bytes_per_second));
  BALLAST_RETURN_IF_ERROR(fields.Number("checkpoint_bytes_per_second", topology.checkpoint_bytes_per_second));
  const nlohmann::json* workers = nullptr;
  BALLAST_RETURN_IF_ERROR(fields.List("workers", workers));
  for (size_t i = 0; i < workers->size(); ++i) {
    Fields worker((*workers)[i], absl::StrCat(where, ".workers[", i, "]"));
    BALLAST_RETURN_IF_ERROR(worker.Object());
    TopologyWorker out;
    int64_t node = 0;
    int64_t slots = 0;
    int64_t staging = out.capacity.staging_slots;
    int64_t speed = out.speed;
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    BALLAST_RETURN_IF_ERROR(worker.String("name", out.name));
    BALLAST_RETURN_IF_ERROR(worker.Integer("node", 0, kMost, node));
    BALLAST_RETURN_IF_ERROR(worker.Integer("slots", 1, 1 << 24, slots));
    if (worker.Find("staging_slots") != nullptr) {
      BALLAST_RETURN_IF_ERROR(worker.Integer("staging_slots", 0, 1 << 24, staging));
    }
    if (worker.Find("speed") != nullptr) BALLAST_RETURN_IF_ERROR(worker.Integer("speed", 1, 1024, speed));
    BALLAST_RETURN_IF_ERROR(worker.NoOthers());
    out.node = static_cast<int32_t>(node);
    out.capacity = {static_cast<int32_t>(slots), static_cast<int32_t>(staging)};
    out.speed = static_cast<uint32_t>(speed);
    topology.workers.push_back(std::move(out));
  }
  return Validate(topology);
}

absl::Status ReadReplicas(const nlohmann::json& layers, const std::string& where, Placement& placement) {
  if (layers.size() != static_cast<size_t>(placement.num_layers)) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ".placement: ", layers.size(), " layers; layers is ", placement.num_layers));
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    const std::string at = absl::StrCat(where, ".placement[", l, "]");
    if (!layers[l].is_array()) return absl::InvalidArgumentError(absl::StrCat(at, ": must be a list"));
    for (size_t i = 0; i < layers[l].size(); ++i) {
      const nlohmann::json& entry = layers[l][i];
      const Fields fields(entry, at);
      const std::string key = absl::StrCat("[", i, "]");
      if (!entry.is_array() || entry.size() != 4) {
        return fields.Error(key, "must be [expert, worker, slot, weight]");
      }
      int64_t values[4];
      for (size_t k = 0; k < 4; ++k) {
        BALLAST_RETURN_IF_ERROR(fields.ReadInteger(
            entry[k], key, 0, k == 3 ? std::numeric_limits<uint32_t>::max() : std::numeric_limits<int32_t>::max(),
            values[k]));
      }
      placement.replicas.push_back({{static_cast<int32_t>(l), static_cast<int32_t>(values[0])},
                                    static_cast<int32_t>(values[1]),
                                    static_cast<int32_t>(values[2]),
                                    static_cast<uint32_t>(values[3])});
    }
  }
  placement.Sort();
  return absl::OkStatus();
}

absl::Status ReadPlanFields(const nlohmann::json& json, const std::string& where, PlanFile& plan) {
  Fields fields(json, where);
  BALLAST_RETURN_IF_ERROR(fields.Object());
  BALLAST_RETURN_IF_ERROR(fields.Format("ballast.plan/v1"));
  BALLAST_RETURN_IF_ERROR(fields.String("policy", plan.policy));
  int64_t layers = 0;
  int64_t experts = 0;
  int64_t rows = 0;
  BALLAST_RETURN_IF_ERROR(fields.Integer("layers", 1, kMaxLoadRows, layers));
  BALLAST_RETURN_IF_ERROR(fields.Integer("experts", 1, kMaxLoadExperts, experts));
  BALLAST_RETURN_IF_ERROR(fields.Integer("expert_bytes", 0, kMaxExpertBytes, plan.expert_bytes));
  BALLAST_RETURN_IF_ERROR(fields.Integer("load_rows", layers, kMaxLoadRows, rows));
  plan.rows = static_cast<int32_t>(rows);
  const nlohmann::json* list = nullptr;
  BALLAST_RETURN_IF_ERROR(fields.List("row_of_layer", list));
  if (list->size() != static_cast<size_t>(layers)) {
    return fields.Error("row_of_layer", absl::StrCat(list->size(), " rows; layers is ", layers));
  }
  int64_t row = -1;
  for (const nlohmann::json& value : *list) {
    BALLAST_RETURN_IF_ERROR(fields.ReadInteger(value, "row_of_layer", row + 1, rows - 1, row));
    plan.row_of_layer.push_back(static_cast<int32_t>(row));
  }
  const nlohmann::json* topology = nullptr;
  BALLAST_RETURN_IF_ERROR(fields.Sub("topology", topology));
  const std::string topology_where = absl::StrCat(where, ".topology");
  Fields topology_fields(*topology, topology_where);
  BALLAST_RETURN_IF_ERROR(ReadTopologyFields(topology_fields, topology_where, plan.topology));
  BALLAST_RETURN_IF_ERROR(topology_fields.NoOthers());
  plan.placement.num_layers = static_cast<int32_t>(layers);
  plan.placement.num_experts = static_cast<int32_t>(experts);
  std::vector<SlotCapacity> capacity;
  for (const TopologyWorker& w : plan.topology.workers) {
    plan.placement.workers.push_back(w.name);
    capacity.push_back(w.capacity);
  }
  BALLAST_RETURN_IF_ERROR(fields.List("placement", list));
  BALLAST_RETURN_IF_ERROR(ReadReplicas(*list, where, plan.placement));
  BALLAST_RETURN_IF_ERROR(In(absl::StrCat(where, ".placement"), Validate(plan.placement, capacity)));
  if (const nlohmann::json* scenarios = fields.Find("scenarios"); scenarios != nullptr && !scenarios->empty()) {
    const nlohmann::json load = {{"format", "ballast.load/v1"}, {"parts", *scenarios}};
    BALLAST_ASSIGN_OR_RETURN(LoadFile parts, ParseLoad(load.dump(), absl::StrCat(where, ".scenarios")));
    for (LoadPart& part : parts.parts) plan.scenarios.push_back({std::move(part.name), 1, std::move(part.load)});
    BALLAST_RETURN_IF_ERROR(In(absl::StrCat(where, ".scenarios"), Validate(plan.scenarios)));
    if (plan.scenarios[0].load.layers != layers || plan.scenarios[0].load.experts != experts) {
      return fields.Error("scenarios",
                          absl::StrCat(plan.scenarios[0].load.layers, " layers of ", plan.scenarios[0].load.experts,
                                       " experts; the plan has ", layers, " of ", experts));
    }
  }
  if (const nlohmann::json* predicted = fields.Find("predicted"); predicted != nullptr) {
    const std::string at = absl::StrCat(where, ".predicted");
    BALLAST_RETURN_IF_ERROR(ReadPrediction(*predicted, at, plan.predicted.emplace()));
    const auto same = [](const PlanPrediction::OfScenario& p, const Scenario& s) { return p.scenario == s.name; };
    if (!std::equal(plan.predicted->scenarios.begin(), plan.predicted->scenarios.end(), plan.scenarios.begin(),
                    plan.scenarios.end(), same)) {
      return fields.Error("predicted", "its scenarios are not the plan's, in order");
    }
  }
  return fields.NoOthers();
}

// By Split.
constexpr const char* kSplitNames[] = {"equal", "solved"};
static_assert(static_cast<int>(Split::kEqual) == 0 && static_cast<int>(Split::kSolved) == 1);

std::string NamesOf(const PlanSetFile& set) {
  std::vector<std::string> names;
  for (const PlanSetFile::Member& member : set.members) names.push_back(member.name);
  return absl::StrJoin(names, ", ");
}

absl::Status ReadMembers(const nlohmann::json& list, PlanSetFile& set) {
  std::set<std::string> names;
  std::set<std::string> scenarios;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string where = absl::StrCat("set.members[", i, "]");
    Fields fields(list[i], where);
    PlanSetFile::Member& member = set.members.emplace_back();
    BALLAST_RETURN_IF_ERROR(fields.Object());
    BALLAST_RETURN_IF_ERROR(fields.String("name", member.name));
    if (member.name.empty() || member.name.find('#') != std::string::npos) {
      return fields.Error("name", absl::StrCat(Quote(member.name), "; must not be empty or have a '#'"));
    }
    if (!names.insert(member.name).second) {
      return fields.Error("name", absl::StrCat(Quote(member.name), " is another member's, too"));
    }
    const nlohmann::json* plan = nullptr;
    BALLAST_RETURN_IF_ERROR(fields.Sub("plan", plan));
    BALLAST_RETURN_IF_ERROR(ReadPlanFields(*plan, absl::StrCat(where, ".plan"), member.plan));
    for (const char* key : {"layers", "experts", "expert_bytes", "load_rows", "row_of_layer", "topology"}) {
      if (plan->at(key) != list[0].at("plan").at(key)) {
        return fields.Error("plan", absl::StrCat(key, " is not that of set.members[0]"));
      }
    }
    for (const Scenario& s : member.plan.scenarios) {
      if (scenarios.insert(s.name).second) continue;
      return fields.Error("plan", absl::StrCat("scenario ", Quote(s.name), " is another member's, too"));
    }
    BALLAST_RETURN_IF_ERROR(fields.NoOthers());
  }
  return absl::OkStatus();
}

absl::Status ReadSwitches(const nlohmann::json& list, PlanSetFile& set) {
  const size_t members = set.members.size();
  if (list.size() != members) {
    return absl::InvalidArgumentError(absl::StrCat("set.switches: ", list.size(), " rows; members are ", members));
  }
  for (size_t from = 0; from < members; ++from) {
    const nlohmann::json& row = list[from];
    const std::string where = absl::StrCat("set.switches[", from, "]");
    if (!row.is_array() || row.size() != members) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": must be a list of one for each of ", members, " members"));
    }
    std::vector<Switch>& out = set.switches.emplace_back();
    for (size_t to = 0; to < members; ++to) {
      Fields fields(row[to], absl::StrCat(where, "[", to, "]"));
      Switch& change = out.emplace_back();
      const int64_t most = from == to ? 0 : INT64_MAX;
      BALLAST_RETURN_IF_ERROR(fields.Object());
      BALLAST_RETURN_IF_ERROR(fields.Integer("moves", 0, most, change.moves));
      BALLAST_RETURN_IF_ERROR(fields.Integer("bytes", 0, most, change.bytes));
      BALLAST_RETURN_IF_ERROR(fields.Integer("waves", 0, most, change.waves));
      BALLAST_RETURN_IF_ERROR(fields.Number("transfer_seconds", 0, from == to ? 0 : 1e18, change.transfer_seconds));
      BALLAST_RETURN_IF_ERROR(fields.NoOthers());
    }
  }
  return absl::OkStatus();
}

absl::Status ReadSetFields(const nlohmann::json& json, PlanSetFile& set) {
  Fields fields(json, "set");
  BALLAST_RETURN_IF_ERROR(fields.Format("ballast.plan_set/v1"));
  std::string split;
  BALLAST_RETURN_IF_ERROR(fields.String("split", split));
  if (split != kSplitNames[0] && split != kSplitNames[1]) {
    return fields.Error("split", absl::StrCat(Quote(split), "; must be \"equal\" or \"solved\""));
  }
  set.split = split == kSplitNames[0] ? Split::kEqual : Split::kSolved;
  const nlohmann::json* list = nullptr;
  BALLAST_RETURN_IF_ERROR(fields.List("members", list));
  if (list->empty() || list->size() > kMaxPlanSetMembers) {
    return fields.Error("members", absl::StrCat(list->size(), "; must be 1 to ", kMaxPlanSetMembers));
  }
  BALLAST_RETURN_IF_ERROR(ReadMembers(*list, set));
  BALLAST_RETURN_IF_ERROR(fields.List("switches", list));
  BALLAST_RETURN_IF_ERROR(ReadSwitches(*list, set));
  return fields.NoOthers();
}

}  // namespace

std::string FormatPlan(const PlanFile& plan) {
  std::string out = "{\"format\": \"ballast.plan/v1\"";
  const auto add = [&](const char* key, const Json& value) {
    absl::StrAppend(&out, ",\n \"", key, "\": ", value.dump());
  };
  add("policy", plan.policy);
  add("layers", plan.placement.num_layers);
  add("experts", plan.placement.num_experts);
  add("expert_bytes", plan.expert_bytes);
  add("load_rows", plan.rows);
  add("row_of_layer", plan.row_of_layer);
  Json workers = Json::array();
  for (const TopologyWorker& w : plan.topology.workers) {
    workers.push_back({{"name", w.name},
                       {"node", w.node},
                       {"slots", w.capacity.slots},
                       {"staging_slots", w.capacity.staging_slots},
                       {"speed", w.speed}});
  }
  add("topology", {{"node_bytes_per_second", plan.topology.node_bytes_per_second},
                   {"cross_node_bytes_per_second", plan.topology.cross_node_bytes_per_second},
                   {"checkpoint_bytes_per_second", plan.topology.checkpoint_bytes_per_second},
                   {"workers", std::move(workers)}});
  out += ",\n \"placement\": [";
  int32_t layer = -1;
  for (const Replica& r : plan.placement.replicas) {
    const bool first = r.expert.layer != layer;
    if (first) absl::StrAppend(&out, layer < 0 ? "\n" : "],\n", "  [");
    layer = r.expert.layer;
    absl::StrAppend(&out, first ? "" : ",", "[", r.expert.expert, ",", r.worker, ",", r.slot, ",", r.weight, "]");
  }
  out += "]]";
  if (!plan.scenarios.empty()) {
    out += ",\n \"scenarios\": [";
    for (size_t i = 0; i < plan.scenarios.size(); ++i) {
      const Scenario& s = plan.scenarios[i];
      absl::StrAppend(&out, i == 0 ? "\n" : ",\n", "  {\"name\": ", Json(s.name).dump(), ", \"tokens\": [");
      for (int32_t l = 0; l < s.load.layers; ++l) {
        const auto row = s.load.layer(l);
        absl::StrAppend(&out, l == 0 ? "\n" : ",\n", "   ", Json(std::vector<double>(row.begin(), row.end())).dump());
      }
      out += "]}";
    }
    out += "]";
  }
  if (plan.predicted) add("predicted", ToJson(*plan.predicted));
  out += "}\n";
  return out;
}

absl::StatusOr<PlanFile> ParsePlan(std::string_view bytes, std::string_view name) {
  auto json = ParseJson(bytes);
  if (!json.ok()) return In(name, json.status());
  PlanFile plan;
  BALLAST_RETURN_IF_ERROR(In(name, ReadPlanFields(*json, "plan", plan)));
  return plan;
}

std::string FormatPlanSet(const PlanSetFile& set) {
  std::string out = "{\"format\": \"ballast.plan_set/v1\"";
  absl::StrAppend(&out, ",\n\"split\": \"", kSplitNames[static_cast<int>(set.split)], "\",\n\"members\": [");
  for (size_t i = 0; i < set.members.size(); ++i) {
    const PlanSetFile::Member& member = set.members[i];
    std::string plan = FormatPlan(member.plan);
    plan.pop_back();
    absl::StrAppend(&out, i == 0 ? "\n" : ",\n", "{\"name\": ", Json(member.name).dump(), ", \"plan\":\n", plan, "}");
  }
  out += "],\n\"switches\": [";
  for (size_t i = 0; i < set.switches.size(); ++i) {
    Json row = Json::array();
    for (const Switch& s : set.switches[i]) {
      row.push_back(
          {{"moves", s.moves}, {"bytes", s.bytes}, {"waves", s.waves}, {"transfer_seconds", s.transfer_seconds}});
    }
    absl::StrAppend(&out, i == 0 ? "\n" : ",\n", " ", row.dump());
  }
  out += "]}\n";
  return out;
}

absl::StatusOr<PlanSetFile> ParsePlanSet(std::string_view bytes, std::string_view name) {
  auto json = ParseJson(bytes);
  if (!json.ok()) return In(name, json.status());
  PlanSetFile set;
  const auto format = json->is_object() ? json->find("format") : json->end();
  const bool several = json->is_object() && format != json->end() && format->is_string() &&
                       format->get_ref<const std::string&>().starts_with("ballast.plan_set/");
  if (several) {
    BALLAST_RETURN_IF_ERROR(In(name, ReadSetFields(*json, set)));
  } else {
    set.switches = {{Switch()}};
    BALLAST_RETURN_IF_ERROR(In(name, ReadPlanFields(*json, "plan", set.members.emplace_back().plan)));
  }
  return set;
}

absl::StatusOr<PlanSetFile> ReadPlanSet(const std::string& path) {
  const auto [file, part] = SplitPart(path);
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(file));
  BALLAST_ASSIGN_OR_RETURN(PlanSetFile set, ParsePlanSet(bytes, file));
  if (!part) return set;
  const std::string& name = *part;
  if (set.members[0].name.empty()) {
    return absl::NotFoundError(absl::StrCat(file, ": is one plan, not a set with a member ", Quote(name)));
  }
  const auto found = std::find_if(set.members.begin(), set.members.end(),
                                  [&](const PlanSetFile::Member& member) { return member.name == name; });
  if (found == set.members.end()) {
    return absl::NotFoundError(absl::StrCat(file, ": no member ", Quote(name), "; there are ", NamesOf(set)));
  }
  PlanSetFile one;
  one.members.push_back(std::move(*found));
  one.split = set.split;
  one.switches = {{Switch()}};
  return one;
}

absl::StatusOr<PlanFile> ReadPlan(const std::string& path) {
  BALLAST_ASSIGN_OR_RETURN(PlanSetFile set, ReadPlanSet(path));
  if (set.members.size() == 1) return std::move(set.members[0].plan);
  return absl::FailedPreconditionError(
      absl::StrCat(path, ": a set of ", set.members.size(), " plans; choose one with FILE#MEMBER from ", NamesOf(set)));
}

absl::StatusOr<Pick> PickMember(const PlanSetFile& set, int32_t in_force, const LoadMatrix& observed,
                                const GateLimits& gate) {
  std::vector<Placement> placements;
  std::vector<std::string> names;
  for (const PlanSetFile::Member& member : set.members) {
    placements.push_back(member.plan.placement);
    names.push_back(member.name);
  }
  return PickMember(PickInput{placements, names, set.switches, set.members[0].plan.topology, set.split, in_force},
                    observed, gate);
}

absl::StatusOr<Topology> ParseTopology(std::string_view bytes, std::string_view name) {
  auto json = ParseJson(bytes);
  if (!json.ok()) return In(name, json.status());
  Topology topology;
  Fields fields(*json, "topology");
  const auto read = [&]() -> absl::Status {
    BALLAST_RETURN_IF_ERROR(fields.Object());
    BALLAST_RETURN_IF_ERROR(fields.Format("ballast.topology/v1"));
    BALLAST_RETURN_IF_ERROR(ReadTopologyFields(fields, "topology", topology));
    return fields.NoOthers();
  };
  BALLAST_RETURN_IF_ERROR(In(name, read()));
  return topology;
}

absl::StatusOr<Topology> ReadTopology(const std::string& path) {
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path));
  return ParseTopology(bytes, path);
}

}  // namespace ballast
