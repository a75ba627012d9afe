#include "controller/ctl/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <random>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync_folder.h"

namespace ballast {
namespace {

std::error_code LastError() { return {errno, std::generic_category()}; }

std::error_code WriteAll(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno != EINTR) return LastError();
    if (written > 0) bytes.remove_prefix(static_cast<size_t>(written));
  }
  return {};
}

// A new file beside `target`, hidden and of a name that nobody else has; `path` is its name. With the mode and, as far
// as this process may give it, the owner of `before` where that is a file. -1: errno says why.
int OpenBeside(const std::string& target, const struct stat* before, std::string& path) {
  const std::filesystem::path whole(target);
  // Names have at most 255 bytes.
  const std::string name = whole.filename().string().substr(0, 220);
  std::random_device random;
  int fd = -1;
  do {
    const uint64_t number = uint64_t{random()} << 32 | random();
    path = (whole.parent_path() / absl::StrCat(".", name, ".", absl::Hex(number), ".partial")).string();
    fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, before == nullptr ? 0666 : 0600);
  } while (fd < 0 && errno == EEXIST);
  if (fd < 0 || before == nullptr) return fd;
  // Where neither is ours to give the file is the writer's.
  const bool given =
      fchown(fd, before->st_uid, before->st_gid) == 0 || fchown(fd, static_cast<uid_t>(-1), before->st_gid) == 0;
  static_cast<void>(given);
  if (fchmod(fd, before->st_mode & 0777) == 0) return fd;
  const int error = errno;
  close(fd);
  unlink(path.c_str());
  errno = error;
  return -1;
}

// `target` is no symbolic link.
std::error_code Replace(const std::string& target, std::string_view bytes) {
  struct stat before = {};
  const bool exists = lstat(target.c_str(), &before) == 0 && S_ISREG(before.st_mode);
  std::string partial;
  const int fd = OpenBeside(target, exists ? &before : nullptr, partial);
  if (fd < 0) return LastError();
  std::error_code error = WriteAll(fd, bytes);
  // On the disk before it has its name: otherwise a power loss could leave the name with nothing in it.
  if (!error && fsync(fd) != 0) error = LastError();
  if (close(fd) != 0 && !error) error = LastError();
  if (!error && rename(partial.c_str(), target.c_str()) != 0) error = LastError();
  if (error) unlink(partial.c_str());
  return error;
}

}  // namespace

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
    if (ToUtf8(name) != name) {
      return absl::InvalidArgumentError(absl::StrCat("--scenario ", Quote(scenario), ": NAME must be UTF-8"));
    }
    BALLAST_ASSIGN_OR_RETURN(LoadFile file, ReadLoad(scenario.substr(equals + 1)));
    auto found = std::find_if(loads.begin(), loads.end(), [&](const NamedLoads& l) { return l.name == name; });
    if (found == loads.end()) found = loads.insert(loads.end(), NamedLoads{name, {}});
    found->files.push_back(std::move(file));
  }
  return loads;
}

absl::Status SetExperts(int32_t experts, std::span<NamedLoads> loads) {
  for (NamedLoads& named : loads) {
    for (LoadFile& file : named.files) {
      for (LoadPart& part : file.parts) {
        const LoadMatrix& load = part.load;
        if (load.experts == experts) continue;
        if (file.format != "routes" || load.experts > experts) {
          return absl::InvalidArgumentError(
              absl::StrCat("--experts ", experts, ": ", file.name, " has ", load.experts, " experts a layer"));
        }
        LoadMatrix grown(load.layers, experts);
        for (int32_t l = 0; l < load.layers; ++l) {
          std::copy(load.layer(l).begin(), load.layer(l).end(), grown.layer(l).begin());
        }
        part.load = std::move(grown);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, std::string_view bytes) {
  namespace fs = std::filesystem;
  const auto failed = [&](const std::error_code& error) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be written: ", error.message()));
  };
  // A file that standard output was led into: it goes on there, and keeps what it has.
  struct stat file = {}, out = {};
  if (stat(path.c_str(), &file) == 0 && S_ISREG(file.st_mode) && fstat(STDOUT_FILENO, &out) == 0 &&
      file.st_dev == out.st_dev && file.st_ino == out.st_ino) {
    std::cout << bytes << std::flush;
    return std::cout ? absl::OkStatus() : failed(LastError());
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  // Pipes and devices are written to, not replaced.
  if (fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status)) {
    const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return failed(LastError());
    error = WriteAll(fd, bytes);
    if (close(fd) != 0 && !error) error = LastError();
    return error ? failed(error) : absl::OkStatus();
  }
  std::string target = path;
  if (fs::is_symlink(fs::symlink_status(path, error))) {
    target = fs::canonical(path, error).string();
    if (error) return failed(error);
  }
  error = Replace(target, bytes);
  return error ? failed(error) : SyncFolderOf(target);
}

}  // namespace ballast
