// JSON from untrusted files: nlohmann's parser behind absl::Status.
#ifndef BALLAST_PROTO_BASE_JSON_H_
#define BALLAST_PROTO_BASE_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace ballast {

// Parses one JSON value. Bounded: nesting deeper than 32 is refused, and memory is at most about 50 bytes a byte of
// text. InvalidArgument, with the place where there is one: bad syntax, bad UTF-8, a key twice in one object (what the
// others would read is anybody's guess), too deep.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text);

// `text` in double quotes for an error message: escaped, and cut after `limit` bytes.
std::string Quote(std::string_view text, size_t limit = 128);

// `value` as JSON for an error message, cut likewise.
std::string QuoteJson(const nlohmann::json& value);

// "FIELD is VALUE, want WANT"
absl::Status WrongValue(std::string_view field, const nlohmann::json& value, const absl::AlphaNum& want);

// Typed reads of one JSON object's fields; a field that is null counts as absent. Errors are InvalidArgument and name
// the field as `prefix` + field, the value and what is wanted. Refers to the object.
class JsonFields {
 public:
  // `object` must be one.
  explicit JsonFields(const nlohmann::json& object, std::string_view prefix = "") : object_(&object), prefix_(prefix) {}
  // InvalidArgument unless `value` is an object.
  static absl::StatusOr<JsonFields> Of(const nlohmann::json& value, std::string_view name);

  // Null where absent.
  const nlohmann::json* Find(const char* field) const;
  // What errors call `field`.
  std::string Name(const char* field) const { return absl::StrCat(prefix_, field); }

  // Without `absent` the field must be there.
  absl::StatusOr<int32_t> Int(const char* field, int32_t min, int32_t max, std::optional<int32_t> absent = {}) const;
  absl::StatusOr<double> Double(const char* field, double min, double max, std::optional<double> absent = {}) const;
  absl::StatusOr<bool> Bool(const char* field, std::optional<bool> absent = {}) const;
  absl::StatusOr<std::string> String(const char* field, std::optional<std::string> absent = {}) const;

 private:
  const nlohmann::json* object_;
  std::string prefix_;
};

// `value` as an integer; errors call it `name`.
absl::StatusOr<int32_t> JsonInt(std::string_view name, const nlohmann::json& value, int32_t min, int32_t max);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_JSON_H_
