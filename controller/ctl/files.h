// What the offline verbs have in common: loads named on the command line, and files written whole or not at all.
#ifndef BALLAST_CONTROLLER_CTL_FILES_H_
#define BALLAST_CONTROLLER_CTL_FILES_H_

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "controller/formats/load_file.h"

namespace ballast {

// `--load F...`: one load under `name`. Empty where there are no files.
absl::StatusOr<std::vector<NamedLoads>> ReadLoads(std::string_view name, std::span<const std::string> files);
// `--scenario NAME=F`, each a load of its own; those with one name are one load. Names are UTF-8.
absl::StatusOr<std::vector<NamedLoads>> ReadScenarios(std::span<const std::string> scenarios);

// `--experts N`: csv of routes shows the experts that were used; it gets N. InvalidArgument names a file that has more,
// or that says how many there are, and says another number.
absl::Status SetExperts(int32_t experts, std::span<NamedLoads> loads);

// Writes to a hidden file beside `path`, .NAME.NUMBER.partial, and renames it once it is on the disk: readers see all
// of it or what was there before, also after a power loss and with several writers. A file that is replaced leaves its
// mode and, where this process may give it, its owner. A symbolic link stays, its file is replaced; pipes and devices
// are written to. Unavailable names the path and the system's error.
absl::Status WriteFile(const std::string& path, std::string_view bytes);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_FILES_H_
