#include "controller/formats/plan_file.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "controller/formats/load_file.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

using Json = nlohmann::ordered_json;

// Reads the fields of one object, remembers which, and names what is wrong.
class Fields {
 public:
  Fields(const nlohmann::json& json, std::string where) : json_(json), where_(std::move(where)) {}

  absl::Status Error(const std::string& key, const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(where_, ".", key, ": ", what));
  }

  absl::Status Object() const {
    if (json_.is_object()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(where_, ": must be an object"));
  }

  const nlohmann::json* Find(const char* key) {
    known_.push_back(key);
    const auto found = json_.find(key);
    return found == json_.end() ? nullptr : &*found;
  }

  absl::Status Integer(const char* key, int64_t least, int64_t most, int64_t& out) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return Error(key, "is missing");
    return ReadInteger(*value, key, least, most, out);
  }

  absl::Status ReadInteger(const nlohmann::json& value, const std::string& key, int64_t least, int64_t most,
                           int64_t& out) const {
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) ||
        value.get<int64_t>() < least || value.get<int64_t>() > most) {
      return Error(key, absl::StrCat(QuoteJson(value), "; must be a whole number, ", least, " to ", most));
    }
    out = value.get<int64_t>();
    return absl::OkStatus();
  }

  // Keeps `out` where the key is absent.
  absl::Status Number(const char* key, double& out) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return absl::OkStatus();
    if (!value->is_number()) return Error(key, absl::StrCat(QuoteJson(*value), " is no number"));
    out = value->get<double>();
    return absl::OkStatus();
  }

  absl::Status String(const char* key, std::string& out) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr || !value->is_string()) return Error(key, "must be a string");
    out = value->get<std::string>();
    return absl::OkStatus();
  }

  absl::Status List(const char* key, const nlohmann::json*& out) {
    out = Find(key);
    if (out == nullptr || !out->is_array()) return Error(key, "must be a list");
    return absl::OkStatus();
  }

  // After all were asked for.
  absl::Status NoOthers() const {
    for (const auto& [key, value] : json_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
        return absl::InvalidArgumentError(absl::StrCat(where_, ": unknown key ", Quote(key)));
      }
    }
    return absl::OkStatus();
  }

 private:
  const nlohmann::json& json_;
  const std::string where_;
  std::vector<std::string> known_;
};

absl::Status ReadFormat(Fields& fields, std::string_view want) {
  std::string format;
  BALLAST_RETURN_IF_ERROR(fields.String("format", format));
  if (format == want) return absl::OkStatus();
  return fields.Error("format", absl::StrCat(Quote(format), "; must be ", Quote(want)));
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

absl::Status InFile(std::string_view name, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(std::string(name), ": ", status.message()));
}

absl::Status ReadPlanFields(const nlohmann::json& json, std::string_view name, PlanFile& plan) {
  Fields fields(json, "plan");
  BALLAST_RETURN_IF_ERROR(fields.Object());
  BALLAST_RETURN_IF_ERROR(ReadFormat(fields, "ballast.plan/v1"));
  BALLAST_RETURN_IF_ERROR(fields.String("policy", plan.policy));
  int64_t layers = 0;
  int64_t experts = 0;
  int64_t rows = 0;
  BALLAST_RETURN_IF_ERROR(fields.Integer("layers", 1, kMaxLoadRows, layers));
  BALLAST_RETURN_IF_ERROR(fields.Integer("experts", 1, kMaxLoadExperts, experts));
  BALLAST_RETURN_IF_ERROR(fields.Integer("expert_bytes", 0, int64_t{1} << 50, plan.expert_bytes));
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
  const nlohmann::json* topology = fields.Find("topology");
  if (topology == nullptr) return fields.Error("topology", "is missing");
  Fields topology_fields(*topology, "plan.topology");
  BALLAST_RETURN_IF_ERROR(topology_fields.Object());
  BALLAST_RETURN_IF_ERROR(ReadTopologyFields(topology_fields, "plan.topology", plan.topology));
  BALLAST_RETURN_IF_ERROR(topology_fields.NoOthers());
  plan.placement.num_layers = static_cast<int32_t>(layers);
  plan.placement.num_experts = static_cast<int32_t>(experts);
  std::vector<SlotCapacity> capacity;
  for (const TopologyWorker& w : plan.topology.workers) {
    plan.placement.workers.push_back(w.name);
    capacity.push_back(w.capacity);
  }
  BALLAST_RETURN_IF_ERROR(fields.List("placement", list));
  BALLAST_RETURN_IF_ERROR(ReadReplicas(*list, "plan", plan.placement));
  BALLAST_RETURN_IF_ERROR(Validate(plan.placement, capacity));
  if (const nlohmann::json* scenarios = fields.Find("scenarios"); scenarios != nullptr && !scenarios->empty()) {
    const nlohmann::json load = {{"format", "ballast.load/v1"}, {"parts", *scenarios}};
    BALLAST_ASSIGN_OR_RETURN(LoadFile parts, ParseLoad(load.dump(), name));
    for (LoadPart& part : parts.parts) plan.scenarios.push_back({std::move(part.name), 1, std::move(part.load)});
    BALLAST_RETURN_IF_ERROR(Validate(plan.scenarios));
    if (plan.scenarios[0].load.layers != layers || plan.scenarios[0].load.experts != experts) {
      return fields.Error("scenarios",
                          absl::StrCat(plan.scenarios[0].load.layers, " layers of ", plan.scenarios[0].load.experts,
                                       " experts; the plan has ", layers, " of ", experts));
    }
  }
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
  out += "}\n";
  return out;
}

absl::StatusOr<PlanFile> ParsePlan(std::string_view bytes, std::string_view name) {
  auto json = ParseJson(bytes);
  if (!json.ok()) return InFile(name, json.status());
  PlanFile plan;
  BALLAST_RETURN_IF_ERROR(InFile(name, ReadPlanFields(*json, name, plan)));
  return plan;
}

absl::StatusOr<PlanFile> ReadPlan(const std::string& path) {
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path));
  return ParsePlan(bytes, path);
}

absl::StatusOr<Topology> ParseTopology(std::string_view bytes, std::string_view name) {
  auto json = ParseJson(bytes);
  if (!json.ok()) return InFile(name, json.status());
  Topology topology;
  Fields fields(*json, "topology");
  const auto read = [&]() -> absl::Status {
    BALLAST_RETURN_IF_ERROR(fields.Object());
    BALLAST_RETURN_IF_ERROR(ReadFormat(fields, "ballast.topology/v1"));
    BALLAST_RETURN_IF_ERROR(ReadTopologyFields(fields, "topology", topology));
    return fields.NoOthers();
  };
  BALLAST_RETURN_IF_ERROR(InFile(name, read()));
  return topology;
}

absl::StatusOr<Topology> ReadTopology(const std::string& path) {
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(path));
  return ParseTopology(bytes, path);
}

}  // namespace ballast
