// Reader for the safetensors format (https://github.com/huggingface/safetensors, format 0.4): an 8-byte little-endian
// header length, a JSON header, then the tensors' bytes. Files are mapped, never copied, and never trusted.
#ifndef BALLAST_WORKER_MODEL_SAFETENSORS_H_
#define BALLAST_WORKER_MODEL_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/mapped_file.h"

namespace ballast {

enum class DType { kBool, kU8, kI8, kF8E4M3, kF8E5M2, kU16, kI16, kF16, kBF16, kU32, kI32, kF32, kU64, kI64, kF64 };

// The name in the header, "BF16".
std::string_view DTypeName(DType dtype);
// Bytes of one element.
size_t DTypeSize(DType dtype);

// A tensor in a mapped file; lives as long as the file. Row-major, little-endian, aligned to the element's size.
struct TensorView {
  std::string_view name;
  DType dtype = DType::kU8;
  std::span<const int64_t> shape;
  std::span<const std::byte> data;

  int64_t num_elements() const { return static_cast<int64_t>(data.size() / DTypeSize(dtype)); }
  // The elements in place. T's size must be the dtype's.
  template <typename T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(data.data()), data.size() / sizeof(T)};
  }
};

// "BF16 [32, 192]"
std::string Describe(DType dtype, std::span<const int64_t> shape);

// Converts a BF16, F16 or F32 tensor; every value is exact in float. `out` has num_elements() floats.
// InvalidArgument names the tensor: another dtype, another length.
absl::Status ReadAsFloat(const TensorView& tensor, std::span<float> out);

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kU8;
  std::vector<int64_t> shape;
  // Bytes from the start of the file.
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Checks the header of `file` (a whole file's bytes; only the header is read) and lists its tensors in the order of
// their bytes. Guarantees: names are distinct; each shape's product times the element size is end - begin, without
// overflow; the tensors lie one after another, without overlap or gap, from the header's end to the file's end,
// aligned. InvalidArgument names the tensor and the reason.
absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(std::span<const std::byte> file);

// One mapped .safetensors file. Thread-safe: immutable.
class SafetensorsFile {
 public:
  // As MappedFile::Open and ParseSafetensors; errors name `path` too.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  // In the order of their bytes.
  std::span<const TensorView> tensors() const { return tensors_; }

 private:
  SafetensorsFile(MappedFile file, std::vector<SafetensorsEntry> entries);

  const MappedFile file_;
  const std::vector<SafetensorsEntry> entries_;
  std::vector<TensorView> tensors_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_SAFETENSORS_H_
