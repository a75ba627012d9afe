// How the readers of plan files take JSON objects apart.
#ifndef BALLAST_CONTROLLER_FORMATS_FIELDS_H_
#define BALLAST_CONTROLLER_FORMATS_FIELDS_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast::internal {

// Reads the fields of one object, remembers which, and names what is wrong: "WHERE.FIELD: VALUE; must be ...".
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

  // A number that must be there.
  absl::Status Number(const char* key, double least, double most, double& out) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return Error(key, "is missing");
    if (!value->is_number() || !(value->get<double>() >= least && value->get<double>() <= most)) {
      return Error(key, absl::StrCat(QuoteJson(*value), "; must be a number, ", least, " to ", most));
    }
    out = value->get<double>();
    return absl::OkStatus();
  }

  absl::Status Bool(const char* key, bool& out) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return Error(key, "is missing");
    if (!value->is_boolean()) return Error(key, absl::StrCat(QuoteJson(*value), "; must be true or false"));
    out = value->get<bool>();
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

  // An object that must be there.
  absl::Status Sub(const char* key, const nlohmann::json*& out) {
    out = Find(key);
    if (out == nullptr) return Error(key, "is missing");
    if (!out->is_object()) return Error(key, "must be an object");
    return absl::OkStatus();
  }

  // Format files say what they are in "format".
  absl::Status Format(std::string_view want) {
    std::string format;
    BALLAST_RETURN_IF_ERROR(String("format", format));
    if (format == want) return absl::OkStatus();
    return Error("format", absl::StrCat(Quote(format), "; must be ", Quote(want)));
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

}  // namespace ballast::internal

#endif  // BALLAST_CONTROLLER_FORMATS_FIELDS_H_
