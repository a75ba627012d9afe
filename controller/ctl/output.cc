#include "controller/ctl/output.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "google/protobuf/util/json_util.h"
#include "proto/base/check.h"
#include "yaml-cpp/yaml.h"

namespace ballast {
namespace {

// Code points, near enough to columns for names and numbers.
size_t Width(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

bool LooksLikeANumber(const std::string& cell) {
  return !cell.empty() && (std::isdigit(static_cast<unsigned char>(cell[0])) || cell == "-" ||
                           (cell.size() > 1 && cell[0] == '-' && std::isdigit(static_cast<unsigned char>(cell[1]))));
}

void EmitYaml(const nlohmann::ordered_json& json, YAML::Emitter& out) {
  if (json.is_object()) {
    out << YAML::BeginMap;
    for (const auto& [key, value] : json.items()) {
      out << YAML::Key << key << YAML::Value;
      EmitYaml(value, out);
    }
    out << YAML::EndMap;
  } else if (json.is_array()) {
    out << YAML::BeginSeq;
    for (const auto& value : json) EmitYaml(value, out);
    out << YAML::EndSeq;
  } else if (json.is_string()) {
    // Quoted, or a program reads the text "1" or "yes" as something else.
    out << YAML::DoubleQuoted << json.get<std::string>();
  } else if (json.is_null()) {
    out << YAML::Null;
  } else {
    out << json.dump();
  }
}

}  // namespace

void Table::AddRow(std::vector<std::string> cells) {
  BALLAST_CHECK(cells.size() == columns_.size()) << cells.size() << " cells for " << columns_.size() << " columns";
  rows_.push_back(std::move(cells));
}

void Table::Print(std::ostream& out) const {
  std::vector<size_t> widths;
  std::vector<bool> right(columns_.size(), !rows_.empty());
  for (size_t c = 0; c < columns_.size(); ++c) {
    widths.push_back(Width(columns_[c]));
    for (const auto& row : rows_) {
      widths[c] = std::max(widths[c], Width(row[c]));
      right[c] = right[c] && LooksLikeANumber(row[c]);
    }
  }
  const auto print = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t c = 0; c < cells.size(); ++c) {
      const std::string pad(widths[c] - Width(cells[c]), ' ');
      absl::StrAppend(&line, right[c] ? pad : "", cells[c], right[c] ? "" : pad, "  ");
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out << line << "\n";
  };
  print(columns_);
  for (const auto& row : rows_) print(row);
}

std::string HumanBytes(int64_t bytes) {
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  const char* unit = "";
  for (const char* u : {"kB", "MB", "GB", "TB"}) {
    if (value < 999.95) break;
    value /= 1000;
    unit = u;
  }
  return absl::StrFormat("%.1f %s", value, unit);
}

std::string EnumText(const google::protobuf::EnumDescriptor& type, int value) {
  const google::protobuf::EnumValueDescriptor* found = type.FindValueByNumber(value);
  if (found == nullptr) return absl::StrCat(value);
  // What all names of a type begin with is before the first one's "UNSPECIFIED".
  const absl::string_view prefix = absl::StripSuffix(type.value(0)->name(), "UNSPECIFIED");
  return absl::AsciiStrToLower(absl::StripPrefix(found->name(), prefix));
}

void PrintDocument(OutputFormat format, const nlohmann::ordered_json& document, std::ostream& out) {
  if (format == OutputFormat::kJson) {
    out << document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
    return;
  }
  YAML::Emitter emitter;
  EmitYaml(document, emitter);
  out << emitter.c_str() << "\n";
}

nlohmann::ordered_json ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  BALLAST_CHECK(status.ok()) << status.ToString();
  return nlohmann::ordered_json::parse(text);
}

}  // namespace ballast
