#include "proto/base/json.h"

#include <algorithm>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace ballast {
namespace {

constexpr size_t kMaxDepth = 32;

// The first `limit` bytes, shortened to whole UTF-8 sequences.
std::string_view Cut(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  return text.substr(0, limit);
}

// The first `limit` bytes, escaped.
std::string Escape(std::string_view text, size_t limit) {
  const std::string_view cut = Cut(text, limit);
  return absl::Utf8SafeCHexEscape(absl::string_view(cut.data(), cut.size()));
}

// Where in a document its parser stands: the names and indices on the way there, down to kMaxDepth.
class JsonPlace {
 public:
  void Enter(bool array) { levels_.push_back({array, 0, ""}); }
  void Leave() {
    levels_.pop_back();
    Next();
  }
  // A value of the level has ended.
  void Next() {
    if (!levels_.empty()) ++levels_.back().index;
  }
  void Key(const std::string& key) { levels_.back().key = key; }

  // "a.b[1][2]"; empty at the top.
  std::string ToString() const {
    std::string out;
    for (const Level& level : levels_) {
      if (level.array) {
        absl::StrAppend(&out, "[", level.index, "]");
      } else {
        absl::StrAppend(&out, out.empty() ? "" : ".", Escape(level.key, 64));
      }
    }
    return out;
  }

 private:
  struct Level {
    bool array;
    size_t index;
    std::string key;
  };
  std::vector<Level> levels_;
};

// The word at which the parser stopped after `byte` bytes, if it is what some programs write for floating-point values
// that JSON does not have.
std::string_view NotFinite(std::string_view text, size_t byte) {
  constexpr std::string_view kEnds = ",:[]{} \t\r\n";
  if (byte == 0 || byte > text.size()) return "";
  const size_t before = text.find_last_of(kEnds, byte - 1);
  const size_t first = before == std::string_view::npos ? 0 : before + 1;
  const std::string_view word = text.substr(first, text.find_first_of(kEnds, first) - first);
  for (const std::string_view known : {"NaN", "nan", "Infinity", "-Infinity", "inf", "-inf"}) {
    if (word == known) return word;
  }
  return "";
}

absl::Status NotJson(std::string_view text, const nlohmann::json::exception& e, const JsonPlace& place) {
  const std::string where = place.ToString();
  if (const auto* parse = dynamic_cast<const nlohmann::json::parse_error*>(&e)) {
    const std::string word(NotFinite(text, parse->byte));
    if (!word.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("not JSON: ", where, where.empty() ? "" : ": ", word, "; numbers must be finite"));
    }
  }
  // Without the library's own number of the error, "[json.exception.parse_error.101] ".
  std::string_view what = e.what();
  if (const size_t end = what.find("] "); what.substr(0, 1) == "[" && end != std::string_view::npos) {
    what.remove_prefix(end + 2);
  }
  // Nothing here is in quotes of our own, so those of the library stay as they are.
  const std::string shown = absl::StrReplaceAll(Escape(what, 512), {{"\\'", "'"}, {"\\\"", "\""}});
  return absl::InvalidArgumentError(absl::StrCat("not JSON: ", where, where.empty() ? "" : ": ", shown));
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text) {
  using Event = nlohmann::json::parse_event_t;
  JsonPlace place;
  std::vector<std::unordered_set<std::string>> keys;
  size_t depth = 0;
  absl::Status refused;
  auto check = [&](int, Event event, nlohmann::json& parsed) {
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        if (++depth > kMaxDepth && refused.ok()) {
          refused = absl::InvalidArgumentError(absl::StrCat("JSON is nested deeper than ", kMaxDepth));
        }
        if (event == Event::object_start) keys.emplace_back();
        if (depth <= kMaxDepth) place.Enter(event == Event::array_start);
        break;
      case Event::object_end:
        keys.pop_back();
        if (depth-- <= kMaxDepth) place.Leave();
        break;
      case Event::array_end:
        if (depth-- <= kMaxDepth) place.Leave();
        break;
      case Event::key:
        place.Key(parsed.get_ref<const std::string&>());
        if (refused.ok() && !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
          refused = absl::InvalidArgumentError(
              absl::StrCat("JSON has the key ", Quote(parsed.get_ref<const std::string&>()), " twice in one object"));
        }
        break;
      case Event::value:
        place.Next();
        break;
    }
    return refused.ok();
  };
  try {
    nlohmann::json value = nlohmann::json::parse(text.begin(), text.end(), check);
    if (!refused.ok()) return refused;
    return value;
  } catch (const nlohmann::json::exception& e) {
    if (!refused.ok()) return refused;
    return NotJson(text, e, place);
  }
}

std::string Quote(std::string_view text, size_t limit) {
  return absl::StrCat("\"", Escape(text, limit), Cut(text, limit).size() < text.size() ? "...\"" : "\"");
}

std::string QuoteJson(const nlohmann::json& value) {
  if (value.is_string()) return Quote(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  return value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

absl::Status WrongValue(std::string_view field, const nlohmann::json& value, const absl::AlphaNum& want) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(field), " is ", QuoteJson(value), ", want ", want));
}

absl::StatusOr<JsonFields> JsonFields::Of(const nlohmann::json& value, std::string_view name) {
  if (!value.is_object()) return WrongValue(name, value, "an object");
  return JsonFields(value, absl::StrCat(std::string(name), "."));
}

const nlohmann::json* JsonFields::Find(const char* field) const {
  const auto found = object_->find(field);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

absl::StatusOr<int32_t> JsonFields::Int(const char* field, int32_t min, int32_t max,
                                        std::optional<int32_t> absent) const {
  const nlohmann::json* value = Find(field);
  if (value != nullptr) return JsonInt(Name(field), *value, min, max);
  if (absent.has_value()) return *absent;
  return absl::InvalidArgumentError(absl::StrCat(Name(field), " is missing"));
}

absl::StatusOr<double> JsonFields::Double(const char* field, double min, double max,
                                          std::optional<double> absent) const {
  const nlohmann::json* value = Find(field);
  if (value == nullptr) {
    if (absent.has_value()) return *absent;
    return absl::InvalidArgumentError(absl::StrCat(Name(field), " is missing"));
  }
  if (!value->is_number() || !(value->get<double>() >= min && value->get<double>() <= max)) {
    return WrongValue(Name(field), *value, absl::StrCat("a number from ", min, " to ", max));
  }
  return value->get<double>();
}

absl::StatusOr<bool> JsonFields::Bool(const char* field, std::optional<bool> absent) const {
  const nlohmann::json* value = Find(field);
  if (value == nullptr) {
    if (absent.has_value()) return *absent;
    return absl::InvalidArgumentError(absl::StrCat(Name(field), " is missing"));
  }
  if (!value->is_boolean()) return WrongValue(Name(field), *value, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> JsonFields::String(const char* field, std::optional<std::string> absent) const {
  const nlohmann::json* value = Find(field);
  if (value == nullptr) {
    if (absent.has_value()) return *absent;
    return absl::InvalidArgumentError(absl::StrCat(Name(field), " is missing"));
  }
  if (!value->is_string()) return WrongValue(Name(field), *value, "a string");
  return value->get<std::string>();
}

absl::StatusOr<int32_t> JsonInt(std::string_view name, const nlohmann::json& value, int32_t min, int32_t max) {
  const bool fits = value.is_number_unsigned()  ? value.get<uint64_t>() <= static_cast<uint64_t>(max)
                    : value.is_number_integer() ? value.get<int64_t>() <= max
                                                : false;
  if (!fits || value.get<int64_t>() < min) {
    return WrongValue(name, value, absl::StrCat("an integer from ", min, " to ", max));
  }
  return value.get<int32_t>();
}

}  // namespace ballast
