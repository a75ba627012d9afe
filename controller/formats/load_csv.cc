// Loads in comma-separated lines.
#include <algorithm>
#include <charconv>
#include <map>

#include "absl/strings/str_cat.h"
#include "controller/formats/load_readers.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast::internal {
namespace {

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
  if (fields - 3 > kMaxRoutedExperts) {
    return csv.Error(absl::StrCat(fields - 3, " experts a token; the limit is ", kMaxRoutedExperts));
  }
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
      routes.tokens.resize(layer + 1);
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
    routes.tokens[layer].push_back(token);
  }
  if (experts == 0) return csv.Error("no tokens");
  BALLAST_RETURN_IF_ERROR(CountRoutes(name, experts, file));
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

}  // namespace

absl::Status CountRoutes(const std::string& name, int32_t experts, LoadFile& file) {
  const auto rows = static_cast<int64_t>(file.routes.experts.size());
  if (rows * experts > kMaxLoadCells) {
    return Bad(name, absl::StrCat(rows, " layers of ", experts, " experts; the limit is ", kMaxLoadCells, " counts"));
  }
  file.parts = {{name, LoadMatrix(static_cast<int32_t>(rows), experts)}};
  for (int32_t l = 0; l < rows; ++l) {
    for (const int32_t e : file.routes.experts[l]) ++file.parts[0].load.layer(l)[e];
  }
  return absl::OkStatus();
}

absl::StatusOr<LoadFile> ParseCsvLoad(std::string_view bytes, const std::string& name) {
  CsvReader csv(bytes, name);
  if (csv.Next()) {
    if (HasHeader(csv.fields(), {"layer", "sample", "token"})) return ParseRoutes(csv, name);
    if (HasHeader(csv.fields(), {"dataset", "iteration", "layer"})) return ParseCounts(csv);
  }
  return Bad(name,
             "not a load that is known: neither JSON nor csv with the header layer,sample,token,e0,... or "
             "dataset,iteration,layer,e0,...");
}

}  // namespace ballast::internal
