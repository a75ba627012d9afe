// Reading other engines' placement files. The rules are the engines' own, as their code has them in 2026:
//
//   SGLang        one list a layer, all of one length, that divides by the GPUs; ids that count every expert, or it
//                 cannot look the rest up; no key beside the map. A .pt file holds the map as a tensor of integers or
//                 as lists (torch.load with weights_only), and a dump of its recorder the map that was in force.
//   TensorRT-LLM  num_slots must be given and divide by the GPUs; every list has num_slots ids from 0 to experts - 1;
//                 keys are the model's layer numbers, and a MoE layer without one is an error.
//   vLLM-Ascend   lists by their place, not by layer_id; every device of a layer has as many experts.
//   EPLB          logcnt and log2phy follow from phy2log; log2phy is padded with -1.
#include <algorithm>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/formats/engine_file.h"
#include "controller/formats/torch_file.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"
#include "yaml-cpp/yaml.h"

namespace ballast {
namespace {

using Json = nlohmann::json;

// yaml-cpp keeps some hundred bytes a number.
constexpr size_t kMostYamlBytes = size_t{64} << 20;
constexpr int64_t kMostSlots = int64_t{1} << 20;

constexpr char kMap[] = "physical_to_logical_map";
constexpr char kLoad[] =
    "logical_count: this is a load, not a placement; SGLang plans from it when it starts, as `ballastctl plan --policy "
    "eplb` does";

class EngineReader {
 public:
  EngineReader(std::string_view name, int32_t gpus) : name_(name), gpus_(gpus) {}

  absl::Status Error(const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": ", what));
  }

  absl::StatusOr<SlotMap> Sglang(const Json& json) {
    for (const auto& [key, value] : json.items()) BALLAST_RETURN_IF_ERROR(MapAlone(key));
    BALLAST_RETURN_IF_ERROR(Rows(json.at(kMap), kMap));
    return Finish();
  }

  absl::StatusOr<SlotMap> Sglang(const TorchFile& file) {
    const TorchFile::Value& root = file.root();
    const char* key = kMap;
    const TorchFile::Value* map = file.Find(root, key);
    if (map != nullptr) {
      for (size_t i = 0; i < root.items.size(); i += 2) {
        BALLAST_RETURN_IF_ERROR(MapAlone(file.value(root.items[i]).text));
      }
    } else {
      key = "last_physical_to_logical_map";
      map = file.Find(root, key);
    }
    if (map == nullptr && file.Find(root, "logical_count") != nullptr) return Error(kLoad);
    if (map == nullptr) {
      return Error(absl::StrCat("not a placement that is known: holds ", Describe(root), ", want a dict with ", kMap));
    }
    if (map->kind == TorchFile::Value::Kind::kTensor) {
      BALLAST_RETURN_IF_ERROR(Rows(map->tensor, key));
    } else {
      BALLAST_RETURN_IF_ERROR(Rows(file, *map, key));
    }
    return Finish();
  }

  absl::StatusOr<SlotMap> Eplb(const Json& json) {
    for (const char* key : {"phy2log", "log2phy", "logcnt"}) {
      if (!json.contains(key)) return Error(absl::StrCat(key, ": is missing"));
    }
    BALLAST_RETURN_IF_ERROR(Rows(json.at("phy2log"), "phy2log"));
    BALLAST_ASSIGN_OR_RETURN(SlotMap map, Finish());
    for (const char* key : {"log2phy", "logcnt"}) {
      const Json& rows = json.at(key);
      if (!rows.is_array() || rows.size() != map.expert_of_slot.size()) {
        return Error(absl::StrCat(key, ": is ", QuoteJson(rows), "; phy2log has ", map.expert_of_slot.size(), " rows"));
      }
      for (size_t l = 0; l < rows.size(); ++l) {
        if (rows[l].is_array() && rows[l].size() == static_cast<size_t>(map.experts)) continue;
        return Error(absl::StrCat(key, " row ", l, ": is ", QuoteJson(rows[l]), ", want ", map.experts, " experts"));
      }
    }
    for (size_t l = 0; l < map.expert_of_slot.size(); ++l) {
      std::vector<std::vector<int64_t>> slots(map.experts);
      for (size_t s = 0; s < map.expert_of_slot[l].size(); ++s) {
        slots[map.expert_of_slot[l][s]].push_back(static_cast<int64_t>(s));
      }
      for (int32_t e = 0; e < map.experts; ++e) {
        const std::string at = absl::StrCat(" row ", l, " expert ", e, ": ");
        const Json& count = json.at("logcnt")[l][e];
        if (count != slots[e].size()) {
          return Error(absl::StrCat("logcnt", at, QuoteJson(count), "; phy2log has ", slots[e].size()));
        }
        std::vector<int64_t> listed;
        for (const Json& slot : json.at("log2phy")[l][e]) {
          if (!slot.is_number_integer()) return Error(absl::StrCat("log2phy", at, QuoteJson(slot), " is no slot"));
          if (slot != -1) listed.push_back(slot.get<int64_t>());
        }
        std::sort(listed.begin(), listed.end());
        if (listed != slots[e]) return Error(absl::StrCat("log2phy", at, "other slots than in phy2log"));
      }
    }
    return map;
  }

  absl::StatusOr<SlotMap> VllmAscend(const Json& json) {
    const JsonFields fields(json);
    const auto count = fields.Int("moe_layer_count", 1, static_cast<int32_t>(kMaxLoadRows));
    if (!count.ok()) return Error(std::string(count.status().message()));
    const Json* layers = fields.Find("layer_list");
    if (layers == nullptr || !layers->is_array() || layers->size() != static_cast<size_t>(*count)) {
      return Error(absl::StrCat("layer_list: must be a list of ", *count, " layers, as moe_layer_count says"));
    }
    for (size_t l = 0; l < layers->size(); ++l) {
      const std::string where = absl::StrCat("layer_list[", l, "]");
      const Json& layer = (*layers)[l];
      if (!layer.is_object() || !layer.contains("device_list") || !layer["device_list"].is_array() ||
          layer["device_list"].empty()) {
        return Error(absl::StrCat(where, ".device_list: must be a list of devices"));
      }
      // The engine goes by places; numbers that say otherwise are a mistake somewhere.
      if (layer.contains("layer_id") && layer["layer_id"] != l) {
        return Error(absl::StrCat(where, ".layer_id: ", QuoteJson(layer["layer_id"]), ", want ", l));
      }
      const Json& devices = layer["device_list"];
      if (layer.contains("device_count") && layer["device_count"] != devices.size()) {
        return Error(
            absl::StrCat(where, ".device_count: ", QuoteJson(layer["device_count"]), "; there are ", devices.size()));
      }
      if (gpus_ == 0) gpus_ = static_cast<int32_t>(std::min<size_t>(devices.size(), kMostSlots));
      if (devices.size() != static_cast<size_t>(gpus_)) {
        return Error(absl::StrCat(where, ": ", devices.size(), " devices, want ", gpus_));
      }
      std::vector<int32_t> slots;
      size_t each = 0;
      for (size_t d = 0; d < devices.size(); ++d) {
        const std::string at = absl::StrCat(where, ".device_list[", d, "]");
        if (!devices[d].is_object() || !devices[d].contains("device_expert") ||
            (devices[d].contains("device_id") && devices[d]["device_id"] != d)) {
          return Error(absl::StrCat(at, ": must have device_id ", d, " and device_expert"));
        }
        const size_t before = slots.size();
        BALLAST_RETURN_IF_ERROR(Row(devices[d]["device_expert"], at + ".device_expert", slots));
        if (d == 0) each = slots.size();
        if (slots.size() - before != each) {
          return Error(absl::StrCat(at, ": ", slots.size() - before, " experts, device 0 has ", each));
        }
      }
      BALLAST_RETURN_IF_ERROR(AddLayer(where, static_cast<int32_t>(l), std::move(slots)));
    }
    return Finish();
  }

  absl::StatusOr<SlotMap> TensorRtLlm(const YAML::Node& yaml, int32_t first_layer) {
    const YAML::Node num_slots = yaml["num_slots"];
    int64_t slots = 0;
    if (!num_slots.IsDefined()) return Error("num_slots: is missing");
    BALLAST_RETURN_IF_ERROR(Integer(num_slots, "num_slots", 1, kMostSlots, slots));
    const YAML::Node layers = yaml["initial_global_assignments"];
    if (!layers.IsDefined() || !layers.IsMap() || layers.size() == 0) {
      return Error("initial_global_assignments: must be a map of layer to the expert of each slot");
    }
    // Of an alias that stands for many lists, too.
    if (static_cast<int64_t>(layers.size()) > kMaxLoadCells / slots) {
      return Error(absl::StrCat("initial_global_assignments: ", layers.size(), " layers of ", slots,
                                " slots; the limit is ", kMaxLoadCells, " slots in all"));
    }
    std::map<int32_t, YAML::Node> sorted;
    for (const auto& entry : layers) {
      int64_t layer = 0;
      BALLAST_RETURN_IF_ERROR(
          Integer(entry.first, "initial_global_assignments", first_layer, first_layer + kMaxLoadRows - 1, layer));
      if (!sorted.emplace(static_cast<int32_t>(layer), entry.second).second) {
        return Error(absl::StrCat("initial_global_assignments: layer ", layer, " twice"));
      }
    }
    for (const auto& [layer, list] : sorted) {
      const std::string where = absl::StrCat("initial_global_assignments layer ", layer);
      if (!list.IsSequence() || list.size() != static_cast<size_t>(slots)) {
        return Error(absl::StrCat(where, ": must be a list of num_slots, ", slots, " experts",
                                  list.IsSequence() ? absl::StrCat("; has ", list.size()) : ""));
      }
      std::vector<int32_t> experts;
      for (const YAML::Node& item : list) {
        int64_t expert = 0;
        BALLAST_RETURN_IF_ERROR(
            Integer(item, absl::StrCat(where, " slot ", experts.size()), 0, kMaxLoadExperts - 1, expert));
        experts.push_back(static_cast<int32_t>(expert));
      }
      BALLAST_RETURN_IF_ERROR(AddLayer(where, layer - first_layer, std::move(experts)));
    }
    return Finish();
  }

 private:
  absl::Status Integer(const YAML::Node& node, const std::string& where, int64_t least, int64_t most,
                       int64_t& out) const {
    if (node.IsScalar() && absl::SimpleAtoi(node.Scalar(), &out) && out >= least && out <= most)
      return absl::OkStatus();
    return Error(absl::StrCat(where, ": ", node.IsScalar() ? Quote(node.Scalar(), 32) : "no number",
                              "; must be a whole number, ", least, " to ", most));
  }

  absl::Status MapAlone(std::string_view key) const {
    if (key == kMap) return absl::OkStatus();
    return Error(absl::StrCat(Quote(key, 64), ": SGLang takes no key beside ", kMap));
  }

  absl::Status NoExpert(const std::string& where, size_t slot, const std::string& what) const {
    return Error(absl::StrCat(where, " slot ", slot, ": ", what, "; must be an expert, 0 to ", kMaxLoadExperts - 1));
  }

  absl::Status CheckLayers(size_t layers, const std::string& key) const {
    if (layers >= 1 && layers <= static_cast<size_t>(kMaxLoadRows)) return absl::OkStatus();
    return Error(absl::StrCat(key, ": ", layers, " layers; must be 1 to ", kMaxLoadRows));
  }

  // Of a tensor.
  absl::Status Rows(const TorchTensor& map, const std::string& key) {
    const bool whole = map.type == TorchTensor::Type::kInt32 || map.type == TorchTensor::Type::kInt64;
    if (!whole || map.shape.size() != 2) {
      return Error(absl::StrCat(key, ": is a tensor [", absl::StrJoin(map.shape, ", "), "] of ",
                                whole ? "integers" : "floats", ", want integers [layers, slots]"));
    }
    BALLAST_RETURN_IF_ERROR(CheckLayers(static_cast<size_t>(map.shape[0]), key));
    const int64_t slots = map.shape[1];
    for (int64_t l = 0; l < map.shape[0]; ++l) {
      const std::string where = absl::StrCat(key, " row ", l);
      std::vector<int32_t> row;
      for (int64_t s = 0; s < slots; ++s) {
        const double expert = map.at(l * slots + s);
        if (!(expert >= 0 && expert < static_cast<double>(kMaxLoadExperts))) {
          return NoExpert(where, static_cast<size_t>(s), absl::StrCat(expert));
        }
        row.push_back(static_cast<int32_t>(expert));
      }
      if (row.empty()) return Error(absl::StrCat(where, ": must be a list of experts"));
      BALLAST_RETURN_IF_ERROR(AddLayer(where, static_cast<int32_t>(l), std::move(row)));
    }
    return absl::OkStatus();
  }

  // Of lists in a .pt file, where one may stand for many rows: all together have no more slots than a load has counts.
  absl::Status Rows(const TorchFile& file, const TorchFile::Value& map, const std::string& key) {
    using Kind = TorchFile::Value::Kind;
    if (map.kind != Kind::kList || map.items.empty()) {
      return Error(absl::StrCat(key, ": is ", Describe(map), ", want a tensor, or a list of layers"));
    }
    BALLAST_RETURN_IF_ERROR(CheckLayers(map.items.size(), key));
    int64_t left = kMaxLoadCells;
    for (size_t l = 0; l < map.items.size(); ++l) {
      const std::string where = absl::StrCat(key, " row ", l);
      const TorchFile::Value& list = file.value(map.items[l]);
      if (list.kind != Kind::kList || list.items.empty()) {
        return Error(absl::StrCat(where, ": is ", Describe(list), ", want a list of experts"));
      }
      left -= std::ssize(list.items);
      if (left < 0)
        return Error(absl::StrCat(where, ": more than ", kMaxLoadCells, " slots in all; that is the limit"));
      std::vector<int32_t> row;
      for (size_t s = 0; s < list.items.size(); ++s) {
        const TorchFile::Value& expert = file.value(list.items[s]);
        if (expert.kind != Kind::kInt || expert.integer < 0 || expert.integer >= kMaxLoadExperts) {
          return NoExpert(where, s, Describe(expert));
        }
        row.push_back(static_cast<int32_t>(expert.integer));
      }
      BALLAST_RETURN_IF_ERROR(AddLayer(where, static_cast<int32_t>(l), std::move(row)));
    }
    return absl::OkStatus();
  }

  // Appends a list of experts.
  absl::Status Row(const Json& json, const std::string& where, std::vector<int32_t>& out) const {
    if (!json.is_array() || json.empty()) return Error(absl::StrCat(where, ": must be a list of experts"));
    for (size_t i = 0; i < json.size(); ++i) {
      if (!json[i].is_number_unsigned() || json[i].get<uint64_t>() >= static_cast<uint64_t>(kMaxLoadExperts)) {
        return NoExpert(where, i, QuoteJson(json[i]));
      }
      out.push_back(json[i].get<int32_t>());
    }
    return absl::OkStatus();
  }

  absl::Status Rows(const Json& json, const std::string& key) {
    if (!json.is_array() || json.empty()) return Error(absl::StrCat(key, ": must be a list of layers"));
    BALLAST_RETURN_IF_ERROR(CheckLayers(json.size(), key));
    for (size_t l = 0; l < json.size(); ++l) {
      const std::string where = absl::StrCat(key, " row ", l);
      std::vector<int32_t> slots;
      BALLAST_RETURN_IF_ERROR(Row(json[l], where, slots));
      BALLAST_RETURN_IF_ERROR(AddLayer(where, static_cast<int32_t>(l), std::move(slots)));
    }
    return absl::OkStatus();
  }

  absl::Status AddLayer(const std::string& where, int32_t row, std::vector<int32_t> slots) {
    const size_t want = map_.expert_of_slot.empty() ? slots.size() : map_.expert_of_slot[0].size();
    if (slots.size() != want) {
      return Error(absl::StrCat(where, ": ", slots.size(), " slots; layers before it have ", want));
    }
    if (gpus_ == 0) return Error("how many GPUs the slots are for is not in the file: give --gpus or --topology");
    if (slots.size() % gpus_ != 0) {
      return Error(absl::StrCat(where, ": ", slots.size(), " slots do not divide by ", gpus_, " GPUs"));
    }
    for (const int32_t expert : slots) map_.experts = std::max(map_.experts, expert + 1);
    map_.row_of_layer.push_back(row);
    map_.expert_of_slot.push_back(std::move(slots));
    return absl::OkStatus();
  }

  absl::StatusOr<SlotMap> Finish() {
    map_.gpus = gpus_;
    map_.rows = map_.row_of_layer.back() + 1;
    for (size_t l = 0; l < map_.expert_of_slot.size(); ++l) {
      std::vector<bool> placed(map_.experts);
      for (const int32_t expert : map_.expert_of_slot[l]) placed[expert] = true;
      const auto missing = std::find(placed.begin(), placed.end(), false);
      if (missing == placed.end()) continue;
      return Error(absl::StrCat("layer ", map_.row_of_layer[l], ": expert ", missing - placed.begin(), " of ",
                                map_.experts, " has no slot"));
    }
    return std::move(map_);
  }

  const std::string name_;
  int32_t gpus_;
  SlotMap map_;
};

// What the file is, and that it is as asked for.
absl::Status WantFormat(const EngineReader& reader, EngineFormat found, std::optional<EngineFormat> want,
                        const EngineFileOptions& options) {
  if (!want.has_value() || *want == found) return CheckOptions(found, options);
  return reader.Error(absl::StrCat("is a ", EngineFormatNames()[static_cast<size_t>(found)], " file, not ",
                                   EngineFormatNames()[static_cast<size_t>(*want)]));
}

constexpr char kUnknown[] =
    "not a placement that is known: JSON or a .pt file with physical_to_logical_map (sglang), JSON with "
    "moe_layer_count (vllm-ascend) or phy2log (eplb), or YAML with num_slots (trtllm)";

}  // namespace

absl::StatusOr<SlotMap> ParseEngineFile(std::string_view bytes, std::string_view name,
                                        std::optional<EngineFormat> format, int32_t gpus,
                                        const EngineFileOptions& options) {
  EngineReader reader(name, gpus);
  bytes = WithoutByteOrderMark(bytes);
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return reader.Error("is empty");
  if (bytes.substr(0, 2) == "PK") {
    BALLAST_RETURN_IF_ERROR(WantFormat(reader, EngineFormat::kSglang, format, options));
    const absl::StatusOr<TorchFile> file = TorchFile::Parse(bytes);
    if (!file.ok()) return reader.Error(std::string(file.status().message()));
    return reader.Sglang(*file);
  }
  if (bytes[0] == '\x80') {
    return reader.Error("a pickle outside of an archive (torch before 1.6); save it with torch.save anew");
  }
  if (bytes[first] == '{') {
    const absl::StatusOr<Json> json = ParseJson(bytes);
    if (!json.ok()) return reader.Error(std::string(json.status().message()));
    if (json->contains("physical_to_logical_map")) {
      BALLAST_RETURN_IF_ERROR(WantFormat(reader, EngineFormat::kSglang, format, options));
      return reader.Sglang(*json);
    }
    if (json->contains("moe_layer_count")) {
      BALLAST_RETURN_IF_ERROR(WantFormat(reader, EngineFormat::kVllmAscend, format, options));
      return reader.VllmAscend(*json);
    }
    if (json->contains("phy2log")) {
      BALLAST_RETURN_IF_ERROR(WantFormat(reader, EngineFormat::kEplb, format, options));
      return reader.Eplb(*json);
    }
    return reader.Error(json->contains("logical_count") ? kLoad : kUnknown);
  }
  if (bytes.size() > kMostYamlBytes) {
    return reader.Error(absl::StrCat(bytes.size(), " bytes of YAML; the limit is ", kMostYamlBytes));
  }
  try {
    const YAML::Node yaml = YAML::Load(std::string(bytes));
    if (!yaml.IsMap() || (!yaml["num_slots"].IsDefined() && !yaml["initial_global_assignments"].IsDefined())) {
      return reader.Error(kUnknown);
    }
    BALLAST_RETURN_IF_ERROR(WantFormat(reader, EngineFormat::kTensorRtLlm, format, options));
    return reader.TensorRtLlm(yaml, options.first_layer);
  } catch (const YAML::Exception& e) {
    return reader.Error(absl::StrCat("not YAML: ", Quote(e.what(), 256)));
  }
}

}  // namespace ballast
