// JSON from untrusted files: nlohmann's parser behind absl::Status.
#ifndef BALLAST_PROTO_BASE_JSON_H_
#define BALLAST_PROTO_BASE_JSON_H_

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ballast {

// Parses one JSON value. Bounded: nesting deeper than 32 is refused, and memory is at most about 50 bytes a byte of
// text. InvalidArgument, with the place where there is one: bad syntax, bad UTF-8, a key twice in one object (what the
// others would read is anybody's guess), too deep.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text);

// `text` in double quotes for an error message: escaped, and cut after `limit` bytes.
std::string Quote(std::string_view text, size_t limit = 128);

// `value` as JSON for an error message, cut likewise.
std::string QuoteJson(const nlohmann::json& value);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_JSON_H_
