#include "proto/base/release.h"

#include <charconv>
#include <cstdlib>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/version.h"

namespace ballast {
namespace {

struct Release {
  int major = 0;
  int minor = 0;
};

std::optional<Release> Parse(std::string_view text) {
  text = text.substr(0, text.find_first_of("-+"));
  int parts[3];
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  for (int i = 0; i < 3; ++i) {
    if (i > 0 && (at == end || *at++ != '.')) return std::nullopt;
    const auto [next, error] = std::from_chars(at, end, parts[i]);
    if (error != std::errc() || parts[i] < 0) return std::nullopt;
    at = next;
  }
  if (at != end) return std::nullopt;
  return Release{parts[0], parts[1]};
}

}  // namespace

__attribute__((weak)) const char* Version() { return kVersion; }

absl::Status CheckSkew(std::string_view own, std::string_view other) {
  const std::optional<Release> mine = Parse(own);
  BALLAST_CHECK(mine.has_value()) << "this program's version is '" << own << "'";
  const std::optional<Release> theirs = Parse(other);
  if (!theirs.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("'", std::string(other), "' is no version like 1.2.3"));
  }
  if (mine->major == theirs->major && std::abs(mine->minor - theirs->minor) <= 1) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(std::string(other), " and ", std::string(own),
                   " are more than one minor version apart: upgrade one minor version at a time"));
}

}  // namespace ballast
