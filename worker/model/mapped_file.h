#ifndef BALLAST_WORKER_MODEL_MAPPED_FILE_H_
#define BALLAST_WORKER_MODEL_MAPPED_FILE_H_

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"

namespace ballast {

// A regular file mapped read-only. The file must not shrink while it is mapped: the kernel answers a read past its new
// end with SIGBUS.
class MappedFile {
 public:
  // Errors name `path`. NotFound: no such file. FailedPrecondition: not a regular file. ResourceExhausted: longer than
  // `max_bytes`. Otherwise what errno says. An empty file maps to an empty span.
  static absl::StatusOr<MappedFile> Open(const std::string& path, size_t max_bytes = SIZE_MAX);

  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::span<const std::byte> bytes_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_MAPPED_FILE_H_
