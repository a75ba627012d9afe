// The readers behind ParseLoad, one a kind of file. `name` is the file's, for errors.
#ifndef BALLAST_CONTROLLER_FORMATS_LOAD_READERS_H_
#define BALLAST_CONTROLLER_FORMATS_LOAD_READERS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "controller/formats/load_file.h"

namespace ballast::internal {

constexpr double kMostTokens = 1e18;
// BurstMeter compares a step with both beside it; fewer say nothing, not that there are none.
constexpr int64_t kLeastStepsForBursts = 3;

inline absl::Status Bad(const std::string& name, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", what));
}

absl::StatusOr<LoadFile> ParseJsonLoad(std::string_view bytes, const std::string& name);
absl::StatusOr<LoadFile> ParseCsvLoad(std::string_view bytes, const std::string& name);
absl::StatusOr<LoadFile> ParseTorchLoad(std::string_view bytes, const std::string& name);

// [layers] tokens of each expert from the routes of `file`, as its only part. InvalidArgument above the limits.
absl::Status CountRoutes(const std::string& name, int32_t experts, LoadFile& file);

}  // namespace ballast::internal

#endif  // BALLAST_CONTROLLER_FORMATS_LOAD_READERS_H_
