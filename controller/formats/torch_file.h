// What torch.save writes (.pt), read without executing anything: a pickle is a program, and this reader knows the few
// instructions that build plain values and tensors, no others.
//
// Allowed: None, bool, int (64 bits), float, str, list, tuple, dict with str keys, collections.OrderedDict() and dense
// CPU or GPU tensors of int32, int64, float32 and float64. Whatever else a pickle can say (any other global, BUILD,
// classes, extensions, sets, bytes) is refused by name with its place. Safe on any bytes; memory is bounded by the file
// and kMaxTorchValues.
#ifndef BALLAST_CONTROLLER_FORMATS_TORCH_FILE_H_
#define BALLAST_CONTROLLER_FORMATS_TORCH_FILE_H_

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace ballast {

// Values of one pickle, some 150 bytes each. Tensors count once, whatever their size, and so do equal ints: a recorder
// lists the id and the position of every token, millions of ints of which few differ.
inline constexpr size_t kMaxTorchValues = 1'000'000;

// A view of a storage; as long-lived as the file's bytes.
struct TorchTensor {
  enum class Type { kInt32, kInt64, kFloat32, kFloat64 };
  Type type = Type::kInt32;
  // Row-major sizes, and elements between neighbours of each dimension (at least 0). Every element lies in `storage`,
  // and there are no more elements than `storage` has.
  std::vector<int64_t> shape;
  std::vector<int64_t> stride;
  int64_t offset = 0;
  std::string_view storage;

  int64_t size() const;
  // Element `index` in row-major order. int64 beyond 2^53 loses its last bits.
  double at(int64_t index) const;
};

class TorchFile {
 public:
  // A value of the file; `items` are indices of values. Values may be shared (equal ints are), and a list may hold
  // itself.
  struct Value {
    enum class Kind { kNone, kBool, kInt, kFloat, kString, kList, kTuple, kDict, kTensor, kStorage, kGlobal, kMark };
    Kind kind = Kind::kNone;
    // kBool, kInt.
    int64_t integer = 0;
    double number = 0;
    // kString; of kGlobal its full name.
    std::string_view text;
    // kList, kTuple: elements. kDict: key, value, key, value, ...; keys are strings, each once.
    std::vector<int32_t> items;
    // kTensor; a kStorage has type and storage alone.
    TorchTensor tensor;
  };

  // `bytes` must outlive the file. InvalidArgument names the entry or the byte of the pickle, what is there and what
  // may be.
  static absl::StatusOr<TorchFile> Parse(std::string_view bytes);
  // The same from the entries of its archive, which `entries` refers to.
  static absl::StatusOr<TorchFile> FromEntries(const std::map<std::string, std::string_view>& entries);

  const Value& root() const { return values_[root_]; }
  int32_t size() const { return static_cast<int32_t>(values_.size()); }
  const Value& value(int32_t index) const { return values_[index]; }
  // Null where `dict` is none or has no such key.
  const Value* Find(const Value& dict, std::string_view key) const;

 private:
  std::vector<Value> values_;
  int32_t root_ = 0;
};

// "a list of 3", "int 7", ...: what a value is, for messages.
std::string Describe(const TorchFile::Value& value);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_FORMATS_TORCH_FILE_H_
