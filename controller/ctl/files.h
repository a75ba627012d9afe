// What the offline verbs have in common: loads named on the command line, and files written whole or not at all.
#ifndef BALLAST_CONTROLLER_CTL_FILES_H_
#define BALLAST_CONTROLLER_CTL_FILES_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/formats/load_file.h"

namespace ballast {

// `--load F...`: one load under `name`. Empty where there are no files.
absl::StatusOr<std::vector<NamedLoads>> ReadLoads(std::string_view name, std::span<const std::string> files);
// `--scenario NAME=F`, each a load of its own; those with one name are one load.
absl::StatusOr<std::vector<NamedLoads>> ReadScenarios(std::span<const std::string> scenarios);

// Writes to a file beside `path` and renames it, so that readers see all of it or nothing. A symbolic link stays, its
// file is replaced; pipes and devices are written to.
absl::Status WriteFile(const std::string& path, std::string_view bytes);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_FILES_H_
