#include "controller/ctl/files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {

absl::StatusOr<std::vector<NamedLoads>> ReadLoads(std::string_view name, std::span<const std::string> files) {
  std::vector<NamedLoads> loads;
  for (const std::string& path : files) {
    if (loads.empty()) loads.push_back({std::string(name), {}});
    BALLAST_ASSIGN_OR_RETURN(LoadFile file, ReadLoad(path));
    loads[0].files.push_back(std::move(file));
  }
  return loads;
}

absl::StatusOr<std::vector<NamedLoads>> ReadScenarios(std::span<const std::string> scenarios) {
  std::vector<NamedLoads> loads;
  for (const std::string& scenario : scenarios) {
    const size_t equals = scenario.find('=');
    if (equals == 0 || equals == std::string::npos || equals + 1 == scenario.size()) {
      return absl::InvalidArgumentError(absl::StrCat("--scenario ", Quote(scenario), ": must be NAME=FILE"));
    }
    const std::string name = scenario.substr(0, equals);
    BALLAST_ASSIGN_OR_RETURN(LoadFile file, ReadLoad(scenario.substr(equals + 1)));
    auto found = std::find_if(loads.begin(), loads.end(), [&](const NamedLoads& l) { return l.name == name; });
    if (found == loads.end()) found = loads.insert(loads.end(), NamedLoads{name, {}});
    found->files.push_back(std::move(file));
  }
  return loads;
}

absl::Status WriteFile(const std::string& path, std::string_view bytes) {
  namespace fs = std::filesystem;
  const auto failed = [&](const std::error_code& error) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be written: ", error.message()));
  };
  const auto write = [&](const fs::path& to) {
    std::ofstream out(to, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    out.close();
    return out ? std::error_code() : std::error_code(errno, std::generic_category());
  };
  std::error_code error;
  // A file that standard output was led into: it goes on there, and keeps what it has.
  struct stat file = {}, out = {};
  if (stat(path.c_str(), &file) == 0 && S_ISREG(file.st_mode) && fstat(STDOUT_FILENO, &out) == 0 &&
      file.st_dev == out.st_dev && file.st_ino == out.st_ino) {
    std::cout << bytes << std::flush;
    return std::cout ? absl::OkStatus() : failed(std::error_code(errno, std::generic_category()));
  }
  const fs::file_status status = fs::status(path, error);
  // Pipes and devices are written to, not replaced.
  if (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status)) {
    error = write(path);
    return error ? failed(error) : absl::OkStatus();
  }
  fs::path target = path;
  if (fs::is_symlink(fs::symlink_status(path, error))) {
    target = fs::canonical(path, error);
    if (error) return failed(error);
  }
  fs::path partial = target;
  partial += ".partial";
  error = write(partial);
  if (!error) fs::rename(partial, target, error);
  if (!error) return absl::OkStatus();
  std::remove(partial.c_str());
  return failed(error);
}

}  // namespace ballast
