#include "controller/formats/load_file.h"

#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

using Json = nlohmann::json;

constexpr double kMostTokens = 1e18;

bool IsGzip(std::string_view bytes) { return bytes.substr(0, 2) == "\x1f\x8b"; }

absl::Status Bad(const std::string& name, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", what));
}

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
  for (size_t s = 0; s < counts.size(); ++s) {
    BALLAST_RETURN_IF_ERROR(AddMatrix(counts[s], name, absl::StrCat("logical_count step ", s), file.parts[0].load));
  }
  return file;
}

absl::StatusOr<LoadFile> ParseBallast(const Json& json, const std::string& name) {
  if (json["format"] != "ballast.load/v1") {
    return Bad(name, absl::StrCat("format: ", QuoteJson(json["format"]), "; a load is \"ballast.load/v1\""));
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
      "not a load that is known: JSON of a load has format \"ballast.load/v1\", logical_count, or expert_counts by "
      "model");
}

// Comma-separated lines; the fields of the current one.
class CsvReader {
 public:
  CsvReader(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  // False at the end. Skips empty lines.
  bool Next() {
    while (!text_.empty()) {
      ++line_;
      const size_t end = text_.find('\n');
      std::string_view line = text_.substr(0, end);
      text_ = end == std::string_view::npos ? std::string_view() : text_.substr(end + 1);
      if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
      if (line.empty()) continue;
      fields_.clear();
      while (true) {
        const size_t comma = line.find(',');
        fields_.push_back(line.substr(0, comma));
        if (comma == std::string_view::npos) break;
        line = line.substr(comma + 1);
      }
      return true;
    }
    return false;
  }

  const std::vector<std::string_view>& fields() const { return fields_; }
  absl::Status Error(const std::string& what) const { return Bad(name_, absl::StrCat("line ", line_, ": ", what)); }

  absl::Status WantFields(size_t count) const {
    if (fields_.size() == count) return absl::OkStatus();
    return Error(absl::StrCat(fields_.size(), " fields; the header has ", count));
  }

  absl::Status Integer(size_t field, const char* what, int64_t least, int64_t most, int64_t& out) const {
    const std::string_view text = fields_[field];
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    if (error != std::errc() || end != text.data() + text.size() || out < least || out > most) {
      return Error(absl::StrCat(what, " ", Quote(text, 32), "; must be a whole number, ", least, " to ", most));
    }
    return absl::OkStatus();
  }

  absl::Status Tokens(size_t field, size_t expert, double& out) const {
    const std::string_view text = fields_[field];
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    if (error != std::errc() || end != text.data() + text.size() || !(out >= 0) || out > kMostTokens) {
      return Error(absl::StrCat("expert ", expert, ": ", Quote(text, 32), "; must be a number, 0 to 1e18"));
    }
    return absl::OkStatus();
  }

 private:
  std::string_view text_;
  const std::string name_;
  int64_t line_ = 0;
  std::vector<std::string_view> fields_;
};

// Whether the header is `first` and then e0, e1, ...
bool HasHeader(const std::vector<std::string_view>& fields, const std::vector<std::string_view>& first) {
  if (fields.size() <= first.size()) return false;
  for (size_t i = 0; i < fields.size(); ++i) {
    if (i < first.size() ? fields[i] != first[i] : fields[i] != absl::StrCat("e", i - first.size())) return false;
  }
  return true;
}

absl::StatusOr<LoadFile> ParseRoutes(CsvReader& csv, const std::string& name) {
  const size_t fields = csv.fields().size();
  LoadFile file;
  file.format = "routes";
  RouteTrace& routes = file.routes;
  routes.top_k = static_cast<int32_t>(fields - 3);
  int32_t experts = 0;
  while (csv.Next()) {
    BALLAST_RETURN_IF_ERROR(csv.WantFields(fields));
    int64_t layer = 0;
    int64_t sample = 0;
    int64_t token = 0;
    BALLAST_RETURN_IF_ERROR(csv.Integer(0, "layer", 0, kMaxLoadRows - 1, layer));
    BALLAST_RETURN_IF_ERROR(csv.Integer(1, "sample", 0, INT64_MAX, sample));
    BALLAST_RETURN_IF_ERROR(csv.Integer(2, "token", 0, INT64_MAX, token));
    if (static_cast<size_t>(layer) >= routes.experts.size()) {
      routes.experts.resize(layer + 1);
      routes.samples.resize(layer + 1);
    }
    std::vector<int32_t>& row = routes.experts[layer];
    for (size_t i = 3; i < fields; ++i) {
      int64_t e = 0;
      BALLAST_RETURN_IF_ERROR(csv.Integer(i, "expert", 0, kMaxLoadExperts - 1, e));
      const auto expert = static_cast<int32_t>(e);
      if (std::find(row.end() - static_cast<std::ptrdiff_t>(i - 3), row.end(), expert) != row.end()) {
        return csv.Error(absl::StrCat("expert ", expert, " twice for one token"));
      }
      row.push_back(expert);
      experts = std::max(experts, expert + 1);
    }
    routes.samples[layer].push_back(sample);
  }
  if (experts == 0) return csv.Error("no tokens");
  if (static_cast<int64_t>(routes.experts.size()) * experts > kMaxLoadCells) {
    return csv.Error(absl::StrCat(routes.experts.size(), " layers of ", experts, " experts; the limit is ",
                                  kMaxLoadCells, " counts"));
  }
  file.parts.push_back({std::string(name), LoadMatrix(static_cast<int32_t>(routes.experts.size()), experts)});
  for (size_t l = 0; l < routes.experts.size(); ++l) {
    for (const int32_t e : routes.experts[l]) ++file.parts[0].load.layer(static_cast<int32_t>(l))[e];
  }
  return file;
}

absl::StatusOr<LoadFile> ParseCounts(CsvReader& csv) {
  const size_t fields = csv.fields().size();
  const size_t experts = fields - 3;
  if (static_cast<int64_t>(experts) > kMaxLoadExperts) {
    return csv.Error(absl::StrCat(experts, " experts; the limit is ", kMaxLoadExperts));
  }
  LoadFile file;
  file.format = "counts";
  std::map<std::string, std::vector<std::vector<double>>, std::less<>> datasets;
  std::vector<std::string> order;
  size_t rows = 0;
  while (csv.Next()) {
    BALLAST_RETURN_IF_ERROR(csv.WantFields(fields));
    int64_t iteration = 0;
    int64_t layer = 0;
    BALLAST_RETURN_IF_ERROR(csv.Integer(1, "iteration", 0, INT64_MAX, iteration));
    BALLAST_RETURN_IF_ERROR(csv.Integer(2, "layer", 0, kMaxLoadRows - 1, layer));
    auto found = datasets.find(csv.fields()[0]);
    if (found == datasets.end()) {
      order.emplace_back(csv.fields()[0]);
      found = datasets.emplace(order.back(), std::vector<std::vector<double>>()).first;
    }
    rows = std::max<size_t>(rows, layer + 1);
    if (static_cast<int64_t>(rows * experts * datasets.size()) > kMaxLoadCells) {
      return csv.Error(absl::StrCat(datasets.size(), " datasets of ", rows, " layers of ", experts,
                                    " experts; the limit is ", kMaxLoadCells, " counts"));
    }
    if (found->second.size() <= static_cast<size_t>(layer)) found->second.resize(layer + 1);
    std::vector<double>& sums = found->second[layer];
    sums.resize(experts);
    for (size_t e = 0; e < experts; ++e) {
      double tokens = 0;
      BALLAST_RETURN_IF_ERROR(csv.Tokens(e + 3, e, tokens));
      sums[e] += tokens;
      if (sums[e] > kMostTokens) return csv.Error(absl::StrCat("expert ", e, ": sums to more than 1e18"));
    }
  }
  if (order.empty()) return csv.Error("no rows after the header");
  for (const std::string& dataset : order) {
    LoadPart part{dataset, LoadMatrix(static_cast<int32_t>(rows), static_cast<int32_t>(experts))};
    const auto& layers = datasets[dataset];
    for (size_t l = 0; l < layers.size(); ++l) {
      std::copy(layers[l].begin(), layers[l].end(), part.load.layer(static_cast<int32_t>(l)).begin());
    }
    file.parts.push_back(std::move(part));
  }
  return file;
}

absl::StatusOr<LoadFile> ParseCsv(std::string_view bytes, const std::string& name) {
  CsvReader csv(bytes, name);
  if (csv.Next()) {
    if (HasHeader(csv.fields(), {"layer", "sample", "token"})) return ParseRoutes(csv, name);
    if (HasHeader(csv.fields(), {"dataset", "iteration", "layer"})) return ParseCounts(csv);
  }
  return Bad(name,
             "not a load that is known: neither JSON nor csv with the header layer,sample,token,e0,... or "
             "dataset,iteration,layer,e0,...");
}

// csv and file names can hold any bytes, JSON cannot: bad sequences become U+FFFD.
std::string ToUtf8(const std::string& text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace)).get<std::string>();
}

absl::Status Select(const std::string& select, const std::string& name, LoadFile& file) {
  std::vector<std::string> names;
  for (LoadPart& part : file.parts) {
    part.name = ToUtf8(part.name);
    names.push_back(part.name);
  }
  std::set<std::string> distinct(names.begin(), names.end());
  if (distinct.size() != names.size()) return Bad(name, "two parts have the same name");
  if (!select.empty()) {
    std::erase_if(file.parts, [&](const LoadPart& part) {
      return part.name != select && !absl::StartsWith(part.name, absl::StrCat(select, "/"));
    });
    if (file.parts.empty()) {
      return Bad(name, absl::StrCat("no part ", Quote(select), "; there are ", absl::StrJoin(names, ", ")));
    }
  }
  for (const LoadPart& part : file.parts) {
    const LoadPart& first = file.parts[0];
    if (part.load.layers != first.load.layers || part.load.experts != first.load.experts) {
      return Bad(name,
                 absl::StrCat("part ", Quote(part.name), " has ", part.load.layers, " layers of ", part.load.experts,
                              " experts, ", Quote(first.name), " has ", first.load.layers, " of ", first.load.experts,
                              "; choose with FILE#PART from ", absl::StrJoin(names, ", ")));
    }
  }
  return absl::OkStatus();
}

// The parts of all files, summed into `rows` x `experts`.
absl::StatusOr<LoadMatrix> Sum(const NamedLoads& loads, int32_t rows, int32_t experts) {
  LoadMatrix sum(rows, experts);
  for (const LoadFile& file : loads.files) {
    for (const LoadPart& part : file.parts) {
      const bool fits = file.format == "routes" ? part.load.layers <= rows && part.load.experts <= experts
                                                : part.load.layers == rows && part.load.experts == experts;
      if (!fits) {
        return absl::InvalidArgumentError(absl::StrCat("load '", part.name, "' has ", part.load.layers, " layers of ",
                                                       part.load.experts, " experts; ", rows, " of ", experts,
                                                       " are expected"));
      }
      for (int32_t l = 0; l < part.load.layers; ++l) {
        for (int32_t e = 0; e < part.load.experts; ++e) sum.layer(l)[e] += part.load.layer(l)[e];
      }
    }
  }
  return sum;
}

LoadMatrix PickRows(const LoadMatrix& from, std::span<const int32_t> rows) {
  LoadMatrix out(static_cast<int32_t>(rows.size()), from.experts);
  for (size_t l = 0; l < rows.size(); ++l) {
    const auto row = from.layer(rows[l]);
    std::copy(row.begin(), row.end(), out.layer(static_cast<int32_t>(l)).begin());
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> Gunzip(std::string_view bytes, std::string_view file_name) {
  const std::string name(file_name);
  z_stream stream{};
  // 15 bits of window, 16: gzip.
  if (inflateInit2(&stream, 15 + 16) != Z_OK) return absl::ResourceExhaustedError(absl::StrCat(name, ": no memory"));
  std::string out;
  std::string chunk(1 << 16, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(std::min<size_t>(bytes.size(), kMaxLoadBytes));
  int result = Z_OK;
  while (result == Z_OK && static_cast<int64_t>(out.size()) <= kMaxLoadBytes) {
    stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
    stream.avail_out = static_cast<uInt>(chunk.size());
    result = inflate(&stream, Z_NO_FLUSH);
    out.append(chunk.data(), chunk.size() - stream.avail_out);
    // A file may be several gzip members end to end.
    if (result == Z_STREAM_END && stream.avail_in > 0) result = inflateReset(&stream);
  }
  inflateEnd(&stream);
  if (static_cast<int64_t>(out.size()) > kMaxLoadBytes) {
    return Bad(name, absl::StrCat("more than ", kMaxLoadBytes, " bytes once decompressed; that is the limit"));
  }
  if (result != Z_STREAM_END)
    return Bad(name, absl::StrCat("gzip data is damaged or cut after ", out.size(), " bytes"));
  return out;
}

absl::StatusOr<std::string> ReadBytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const std::streamoff size = in.tellg();
  if (size < 0) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  if (size > kMaxLoadBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", size, " bytes; the limit is ", kMaxLoadBytes));
  }
  in.seekg(0);
  std::string bytes(static_cast<size_t>(size), '\0');
  if (!in.read(bytes.data(), size)) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  if (IsGzip(bytes)) return Gunzip(bytes, path);
  return bytes;
}

absl::StatusOr<LoadFile> ParseLoad(std::string_view bytes, std::string_view file_name, std::string_view select) {
  const std::string name(file_name);
  std::string inflated;
  if (IsGzip(bytes)) {
    BALLAST_ASSIGN_OR_RETURN(inflated, Gunzip(bytes, name));
    bytes = inflated;
  }
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return Bad(name, "is empty");
  auto file = bytes[first] == '{' || bytes[first] == '[' ? ParseJsonLoad(bytes, name) : ParseCsv(bytes, name);
  if (!file.ok()) return file;
  BALLAST_RETURN_IF_ERROR(Select(std::string(select), name, *file));
  return file;
}

absl::StatusOr<LoadFile> ReadLoad(const std::string& path) {
  const size_t hash = path.rfind('#');
  const std::string file = path.substr(0, hash);
  BALLAST_ASSIGN_OR_RETURN(const std::string bytes, ReadBytes(file));
  return ParseLoad(bytes, file, hash == std::string::npos ? "" : path.substr(hash + 1));
}

absl::StatusOr<LoadSet> MakeLoadSet(std::span<const NamedLoads> loads) {
  LoadSet set;
  int32_t experts = 0;
  for (const NamedLoads& named : loads) {
    for (const LoadFile& file : named.files) {
      set.rows = std::max(set.rows, file.parts[0].load.layers);
      experts = std::max(experts, file.parts[0].load.experts);
    }
  }
  if (set.rows == 0) return absl::InvalidArgumentError("no load was given");
  std::vector<LoadMatrix> whole;
  for (const NamedLoads& named : loads) {
    BALLAST_ASSIGN_OR_RETURN(LoadMatrix sum, Sum(named, set.rows, experts));
    whole.push_back(std::move(sum));
  }
  for (int32_t l = 0; l < set.rows; ++l) {
    const bool used = std::any_of(whole.begin(), whole.end(), [&](const LoadMatrix& load) {
      const auto row = load.layer(l);
      return std::any_of(row.begin(), row.end(), [](double t) { return t > 0; });
    });
    if (used) set.row_of_layer.push_back(l);
  }
  if (set.row_of_layer.empty()) {
    for (int32_t l = 0; l < set.rows; ++l) set.row_of_layer.push_back(l);
  }
  for (size_t i = 0; i < loads.size(); ++i) {
    set.scenarios.push_back({loads[i].name, 1, PickRows(whole[i], set.row_of_layer)});
  }
  return set;
}

absl::StatusOr<Scenario> OntoLayers(const NamedLoads& loads, int32_t rows, std::span<const int32_t> row_of_layer,
                                    int32_t experts) {
  BALLAST_ASSIGN_OR_RETURN(const LoadMatrix sum, Sum(loads, rows, experts));
  return Scenario{loads.name, 1, PickRows(sum, row_of_layer)};
}

std::string FormatLoad(std::span<const LoadPart> parts) {
  std::string out = "{\"format\": \"ballast.load/v1\",\n \"parts\": [";
  for (size_t i = 0; i < parts.size(); ++i) {
    absl::StrAppend(&out, i == 0 ? "\n" : ",\n", "  {\"name\": ", Json(parts[i].name).dump(), ", \"tokens\": [");
    for (int32_t l = 0; l < parts[i].load.layers; ++l) {
      const auto row = parts[i].load.layer(l);
      absl::StrAppend(&out, l == 0 ? "\n" : ",\n", "   ", Json(std::vector<double>(row.begin(), row.end())).dump());
    }
    out += "]}";
  }
  out += "]}\n";
  return out;
}

}  // namespace ballast
