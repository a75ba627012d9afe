#include "proto/base/sync_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace ballast {

absl::Status SyncFolderOf(const std::string& path) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  const char* folder = parent.empty() ? "." : parent.c_str();
  const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int error = fd >= 0 && fsync(fd) == 0 ? 0 : errno;
  if (fd >= 0) close(fd);
  if (fd >= 0 ? error == EINVAL : error == EACCES) {
    sync();
    error = 0;
  }
  if (error == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("sync ", folder, ": ", std::generic_category().message(error)));
}

}  // namespace ballast
