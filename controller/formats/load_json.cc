// Loads in JSON.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "controller/formats/load_readers.h"
#include "controller/planner/bursts.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast::internal {
namespace {

using Json = nlohmann::json;

// One row of numbers into `row`, which has its size already or gets it.
absl::Status ReadRow(const Json& json, const std::string& name, const std::string& where, std::vector<double>& row) {
  if (!json.is_array() || json.empty())
    return Bad(name, absl::StrCat(where, ": must be a list of counts, one an expert"));
  if (json.size() > kMaxLoadExperts) {
    return Bad(name, absl::StrCat(where, ": ", json.size(), " experts; the limit is ", kMaxLoadExperts));
  }
  row.clear();
  for (const Json& value : json) {
    if (!value.is_number()) {
      return Bad(name, absl::StrCat(where, " expert ", row.size(), ": ", QuoteJson(value), " is no number"));
    }
    const auto tokens = value.get<double>();
    if (!(tokens >= 0) || tokens > kMostTokens) {
      return Bad(name, absl::StrCat(where, " expert ", row.size(), ": ", tokens, "; must be 0 to 1e18"));
    }
    row.push_back(tokens);
  }
  return absl::OkStatus();
}

// [layers][experts], added to `load` (or its first content where it has none).
absl::Status AddMatrix(const Json& json, const std::string& name, const std::string& where, LoadMatrix& load) {
  if (!json.is_array() || json.empty()) return Bad(name, absl::StrCat(where, ": must be a list of layers"));
  if (json.size() > kMaxLoadRows) {
    return Bad(name, absl::StrCat(where, ": ", json.size(), " layers; the limit is ", kMaxLoadRows));
  }
  std::vector<double> row;
  for (size_t l = 0; l < json.size(); ++l) {
    const std::string at = absl::StrCat(where, " row ", l);
    BALLAST_RETURN_IF_ERROR(ReadRow(json[l], name, at, row));
    if (load.layers == 0) {
      if (static_cast<int64_t>(json.size() * row.size()) > kMaxLoadCells) {
        return Bad(name, absl::StrCat(where, ": ", json.size(), " layers of ", row.size(), " experts; the limit is ",
                                      kMaxLoadCells, " counts"));
      }
      load = LoadMatrix(static_cast<int32_t>(json.size()), static_cast<int32_t>(row.size()));
    }
    if (static_cast<int32_t>(json.size()) != load.layers) {
      return Bad(name, absl::StrCat(where, ": ", json.size(), " layers; others have ", load.layers));
    }
    if (static_cast<int32_t>(row.size()) != load.experts) {
      return Bad(name, absl::StrCat(at, ": ", row.size(), " experts; rows before it have ", load.experts));
    }
    const auto out = load.layer(static_cast<int32_t>(l));
    for (size_t e = 0; e < row.size(); ++e) {
      out[e] += row[e];
      if (out[e] > kMostTokens) {
        return Bad(name, absl::StrCat(at, " expert ", e, ": sums to ", out[e], "; the limit is 1e18"));
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<LoadFile> ParseSglang(const Json& json, const std::string& name) {
  LoadFile file;
  file.format = "sglang";
  file.parts.push_back({std::string(name), {}});
  const Json& counts = json["logical_count"];
  if (!counts.is_array() || counts.empty() || !counts[0].is_array() || counts[0].empty()) {
    return Bad(name, "logical_count: must be [layers][experts] or [steps][layers][experts]");
  }
  if (!counts[0][0].is_array()) {
    BALLAST_RETURN_IF_ERROR(AddMatrix(counts, name, "logical_count", file.parts[0].load));
    return file;
  }
  LoadPart& part = file.parts[0];
  BurstMeter meter;
  for (size_t s = 0; s < counts.size(); ++s) {
    const std::vector<double> before = part.load.tokens;
    BALLAST_RETURN_IF_ERROR(AddMatrix(counts[s], name, absl::StrCat("logical_count step ", s), part.load));
    LoadMatrix step = part.load;
    for (size_t i = 0; i < before.size(); ++i) step.tokens[i] -= before[i];
    meter.Add(step);
  }
  if (std::ssize(counts) >= kLeastStepsForBursts) part.burstiness = meter.Burstiness();
  return file;
}

// One token of a trace: [sample, token, expert, ...].
absl::Status ReadToken(const Json& json, const std::string& name, const std::string& where, int32_t experts,
                       int32_t row, RouteTrace& routes) {
  const auto k = static_cast<size_t>(routes.top_k);
  if (!json.is_array() || json.size() != k + 2) {
    return Bad(name, absl::StrCat(where, ": must be [sample, token, ", k, " experts]"));
  }
  std::vector<int32_t>& chosen = routes.experts[row];
  for (size_t i = 0; i < json.size(); ++i) {
    const int64_t most = i < 2 ? INT64_MAX : experts - 1;
    // Unsigned where it is not negative.
    if (!json[i].is_number_unsigned() || json[i].get<uint64_t>() > static_cast<uint64_t>(most)) {
      return Bad(name, absl::StrCat(where, "[", i, "]: ", QuoteJson(json[i]), "; must be a whole number, 0 to ", most));
    }
    if (i < 2) continue;
    const auto expert = json[i].get<int32_t>();
    if (std::find(chosen.end() - static_cast<std::ptrdiff_t>(i - 2), chosen.end(), expert) != chosen.end()) {
      return Bad(name, absl::StrCat(where, ": expert ", expert, " twice for one token"));
    }
    chosen.push_back(expert);
  }
  routes.samples[row].push_back(json[0].get<int64_t>());
  routes.tokens[row].push_back(json[1].get<int64_t>());
  return absl::OkStatus();
}

absl::StatusOr<LoadFile> ParseTrace(const Json& json, const std::string& name) {
  LoadFile file;
  file.format = "trace";
  RouteTrace& routes = file.routes;
  for (const auto& [key, value] : json.items()) {
    if (key != "format" && key != "rows" && key != "experts" && key != "top_k" && key != "layers") {
      return Bad(name, absl::StrCat("unknown key ", Quote(key)));
    }
  }
  const JsonFields fields(json);
  const auto number = [&](const char* key, int64_t most) { return fields.Int(key, 1, static_cast<int32_t>(most)); };
  const auto rows = number("rows", kMaxLoadRows);
  if (!rows.ok()) return Bad(name, std::string(rows.status().message()));
  const auto experts = number("experts", kMaxLoadExperts);
  if (!experts.ok()) return Bad(name, std::string(experts.status().message()));
  const auto top_k = number("top_k", std::min(*experts, kMaxRoutedExperts));
  if (!top_k.ok()) return Bad(name, std::string(top_k.status().message()));
  routes.top_k = *top_k;
  routes.experts.resize(*rows);
  routes.samples.resize(*rows);
  routes.tokens.resize(*rows);
  const Json* layers = fields.Find("layers");
  if (layers == nullptr || !layers->is_array()) return Bad(name, "layers: must be a list of {row, tokens}");
  int32_t before = -1;
  for (size_t i = 0; i < layers->size(); ++i) {
    const Json& layer = (*layers)[i];
    const std::string where = absl::StrCat("layers[", i, "]");
    if (!layer.is_object() || layer.size() != 2 || !layer.contains("tokens") || !layer["tokens"].is_array()) {
      return Bad(name, absl::StrCat(where, ": must be {row, tokens}"));
    }
    const auto row = JsonFields(layer, where + ".").Int("row", before + 1, *rows - 1);
    if (!row.ok()) return Bad(name, std::string(row.status().message()));
    before = *row;
    for (size_t t = 0; t < layer["tokens"].size(); ++t) {
      BALLAST_RETURN_IF_ERROR(
          ReadToken(layer["tokens"][t], name, absl::StrCat(where, ".tokens[", t, "]"), *experts, *row, routes));
    }
  }
  BALLAST_RETURN_IF_ERROR(CountRoutes(name, *experts, file));
  return file;
}

absl::StatusOr<LoadFile> ParseBallast(const Json& json, const std::string& name) {
  if (json["format"] == "ballast.trace/v1") return ParseTrace(json, name);
  if (json["format"] != "ballast.load/v1") {
    return Bad(name, absl::StrCat("format: ", QuoteJson(json["format"]),
                                  "; a load is \"ballast.load/v1\" or \"ballast.trace/v1\""));
  }
  for (const auto& [key, value] : json.items()) {
    if (key != "format" && key != "parts") return Bad(name, absl::StrCat("unknown key ", Quote(key)));
  }
  const auto parts = json.find("parts");
  if (parts == json.end() || !parts->is_array() || parts->empty()) {
    return Bad(name, "parts: must be a list of at least one {name, tokens}");
  }
  LoadFile file;
  file.format = "ballast";
  for (size_t i = 0; i < parts->size(); ++i) {
    const Json& part = (*parts)[i];
    const std::string where = absl::StrCat("parts[", i, "]");
    if (!part.is_object() || !part.contains("name") || !part["name"].is_string() || !part.contains("tokens")) {
      return Bad(name, absl::StrCat(where, ": must be an object with a string, name, and tokens"));
    }
    for (const auto& [key, value] : part.items()) {
      if (key != "name" && key != "tokens") return Bad(name, absl::StrCat(where, ": unknown key ", Quote(key)));
    }
    file.parts.push_back({part["name"].get<std::string>(), {}});
    BALLAST_RETURN_IF_ERROR(AddMatrix(part["tokens"], name, where + ".tokens", file.parts.back().load));
  }
  return file;
}

absl::StatusOr<LoadFile> ParseModelCounts(const Json& json, const std::string& name) {
  LoadFile file;
  file.format = "model-counts";
  for (const auto& [model, kinds] : json.items()) {
    if (!kinds.is_object() || !kinds.contains("expert_counts") || !kinds["expert_counts"].is_object()) {
      return Bad(name, absl::StrCat(Quote(model), ": has no \"expert_counts\" by domain"));
    }
    for (const auto& [domain, counts] : kinds["expert_counts"].items()) {
      file.parts.push_back({absl::StrCat(model, "/", domain), {}});
      BALLAST_RETURN_IF_ERROR(
          AddMatrix(counts, name, absl::StrCat(model, ".expert_counts.", domain), file.parts.back().load));
    }
  }
  return file;
}

}  // namespace

absl::StatusOr<LoadFile> ParseJsonLoad(std::string_view bytes, const std::string& name) {
  auto parsed = ParseJson(bytes);
  if (!parsed.ok()) return Bad(name, std::string(parsed.status().message()));
  const Json& json = *parsed;
  if (json.is_object()) {
    if (json.contains("format")) return ParseBallast(json, name);
    if (json.contains("logical_count")) return ParseSglang(json, name);
    if (json.contains("physical_to_logical_map")) {
      return Bad(name, "physical_to_logical_map: this is a placement, not a load; a load has logical_count");
    }
    const bool models = !json.empty() && std::all_of(json.begin(), json.end(), [](const Json& model) {
      return model.is_object() && model.contains("expert_counts");
    });
    if (models) return ParseModelCounts(json, name);
  }
  return Bad(
      name,
      "not a load that is known: JSON of a load has format \"ballast.load/v1\" or \"ballast.trace/v1\", logical_count, "
      "or expert_counts by model");
}

}  // namespace ballast::internal
