// How ballastctl prints: tables for people, JSON and YAML for programs.
#ifndef BALLAST_CONTROLLER_CTL_OUTPUT_H_
#define BALLAST_CONTROLLER_CTL_OUTPUT_H_

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "controller/ctl/context.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/generated_enum_reflection.h"
#include "google/protobuf/message.h"
#include "nlohmann/json.hpp"

namespace ballast {

// Columns as wide as their widest cell; numbers to the right. Every row has as many cells as there are columns.
class Table {
 public:
  explicit Table(std::vector<std::string> columns) : columns_(std::move(columns)) {}
  void AddRow(std::vector<std::string> cells);
  void Print(std::ostream& out) const;

 private:
  const std::vector<std::string> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// "1.5 MB"; decimal units, as bandwidths are.
std::string HumanBytes(int64_t bytes);

// A value's name without its type's, in small letters: GROUP_STATE_SERVING is "serving"; a number where it has no name.
std::string EnumText(const google::protobuf::EnumDescriptor& type, int value);
template <typename Enum>
std::string EnumText(Enum value) {
  return EnumText(*google::protobuf::GetEnumDescriptor<Enum>(), value);
}

// `document` as JSON or YAML; never called for tables.
void PrintDocument(OutputFormat format, const nlohmann::ordered_json& document, std::ostream& out);

// A message in proto3's JSON form with the .proto's field names; fields at their default are there, too.
nlohmann::ordered_json ToJson(const google::protobuf::Message& message);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_OUTPUT_H_
