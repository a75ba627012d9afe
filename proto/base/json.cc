#include "proto/base/json.h"

#include <algorithm>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

constexpr size_t kMaxDepth = 32;

// The first `limit` bytes, shortened to whole UTF-8 sequences.
std::string_view Cut(std::string_view text, size_t limit) {
  if (text.size() <= limit) return text;
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xC0) == 0x80) --limit;
  return text.substr(0, limit);
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text) {
  using Event = nlohmann::json::parse_event_t;
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
        break;
      case Event::object_end:
        keys.pop_back();
        --depth;
        break;
      case Event::array_end:
        --depth;
        break;
      case Event::key:
        if (refused.ok() && !keys.back().insert(parsed.get_ref<const std::string&>()).second) {
          refused = absl::InvalidArgumentError(
              absl::StrCat("JSON has the key ", Quote(parsed.get_ref<const std::string&>()), " twice in one object"));
        }
        break;
      case Event::value:
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
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", Quote(e.what(), 512)));
  }
}

std::string Quote(std::string_view text, size_t limit) {
  const std::string_view cut = Cut(text, limit);
  return absl::StrCat("\"", absl::Utf8SafeCHexEscape(absl::string_view(cut.data(), cut.size())),
                      cut.size() < text.size() ? "...\"" : "\"");
}

std::string QuoteJson(const nlohmann::json& value) {
  if (value.is_string()) return Quote(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  return value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
}

}  // namespace ballast
