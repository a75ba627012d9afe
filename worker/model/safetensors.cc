#include "worker/model/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/base/check.h"
#include "proto/base/json.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and used in place");

constexpr uint64_t kLengthBytes = 8;
// The reference implementation's limit.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxRank = 8;

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  size_t size;
};
// In DType's order.
constexpr std::array<DTypeInfo, 15> kDTypes = {{
    {DType::kBool, "BOOL", 1},
    {DType::kU8, "U8", 1},
    {DType::kI8, "I8", 1},
    {DType::kF8E4M3, "F8_E4M3", 1},
    {DType::kF8E5M2, "F8_E5M2", 1},
    {DType::kU16, "U16", 2},
    {DType::kI16, "I16", 2},
    {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2},
    {DType::kU32, "U32", 4},
    {DType::kI32, "I32", 4},
    {DType::kF32, "F32", 4},
    {DType::kU64, "U64", 8},
    {DType::kI64, "I64", 8},
    {DType::kF64, "F64", 8},
}};

// The header's events, in a state machine rather than a tree: the header may have 100 MB, and everything that does not
// belong is refused at its first byte.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<SafetensorsEntry> TakeEntries() { return std::move(entries_); }
  const absl::Status& status() const { return status_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_float(number_float_t, const string_t& text) override { return Unexpected(text); }
  bool binary(binary_t&) override { return Unexpected("binary"); }
  bool number_integer(number_integer_t value) override { return Unexpected(absl::StrCat(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (shape_.size() == kMaxRank) return Fail(absl::StrCat("more than ", kMaxRank, " dimensions"));
      if (value > static_cast<uint64_t>(INT64_MAX)) return Fail(absl::StrCat("dimension ", value, " is too large"));
      shape_.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (num_offsets_ == offsets_.size()) return Fail("data_offsets has more than 2 values");
      offsets_[num_offsets_++] = value;
      return true;
    }
    return Unexpected(absl::StrCat(value));
  }
  bool string(string_t& value) override {
    if (state_ == State::kMetadataValue) {
      state_ = State::kMetadata;
      return true;
    }
    if (state_ != State::kDType) return Unexpected(Quote(value));
    const auto* found = std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& d) { return d.name == value; });
    if (found == kDTypes.end()) return Fail(absl::StrCat("dtype ", Quote(value), " is not known"));
    dtype_ = found->dtype;
    state_ = State::kTensor;
    return true;
  }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kTop;
        return true;
      case State::kTopValue:
        state_ = name_ == "__metadata__" ? State::kMetadata : State::kTensor;
        metadata_keys_.clear();
        dtype_.reset();
        has_shape_ = false;
        shape_.clear();
        num_offsets_ = 0;
        has_offsets_ = false;
        return true;
      default:
        return Unexpected("an object");
    }
  }
  bool key(string_t& value) override {
    switch (state_) {
      case State::kTop:
        name_ = value;
        state_ = State::kTopValue;
        if (!names_.insert(value).second) return Fail("the header lists it twice");
        return true;
      case State::kMetadata:
        if (!metadata_keys_.insert(value).second) return Fail(absl::StrCat("has the key ", Quote(value), " twice"));
        state_ = State::kMetadataValue;
        return true;
      default:
        return TensorField(value);
    }
  }
  bool end_object() override {
    if (state_ == State::kTensor) {
      if (!dtype_.has_value()) return Fail("dtype is missing");
      if (!has_shape_) return Fail("shape is missing");
      if (!has_offsets_) return Fail("data_offsets is missing");
      entries_.push_back({.name = name_, .dtype = *dtype_, .shape = shape_, .begin = offsets_[0], .end = offsets_[1]});
    }
    state_ = state_ == State::kTop ? State::kEnd : State::kTop;
    return true;
  }
  bool start_array(std::size_t) override {
    if (state_ == State::kShapeValue) {
      state_ = State::kShape;
    } else if (state_ == State::kOffsetsValue) {
      state_ = State::kOffsets;
    } else {
      return Unexpected("an array");
    }
    return true;
  }
  bool end_array() override {
    if (state_ == State::kShape) {
      has_shape_ = true;
    } else {
      if (num_offsets_ != offsets_.size()) return Fail("data_offsets has fewer than 2 values");
      has_offsets_ = true;
    }
    state_ = State::kTensor;
    return true;
  }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& e) override {
    status_ = absl::InvalidArgumentError(absl::StrCat("header is not JSON: ", Quote(e.what(), 512)));
    return false;
  }

 private:
  // What is expected next.
  enum class State {
    kStart,
    kTop,            // a name
    kTopValue,       // a name's object
    kMetadata,       // a key
    kMetadataValue,  // its string
    kTensor,         // a field's name
    kDType,
    kShapeValue,  // the array
    kShape,       // its elements
    kOffsetsValue,
    kOffsets,
    kEnd,
  };

  bool TensorField(const std::string& field) {
    if (field == "dtype") {
      if (dtype_.has_value()) return Fail("dtype is given twice");
      state_ = State::kDType;
    } else if (field == "shape") {
      if (has_shape_) return Fail("shape is given twice");
      state_ = State::kShapeValue;
    } else if (field == "data_offsets") {
      if (has_offsets_) return Fail("data_offsets is given twice");
      state_ = State::kOffsetsValue;
    } else {
      return Fail(absl::StrCat("unknown field ", Quote(field)));
    }
    return true;
  }

  bool Fail(const absl::AlphaNum& reason) {
    status_ = absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(name_), ": ", reason));
    return false;
  }
  bool Unexpected(const absl::AlphaNum& what) {
    switch (state_) {
      case State::kStart:
        status_ = absl::InvalidArgumentError(absl::StrCat("header is not an object but ", what));
        return false;
      case State::kTopValue:
        return Fail(absl::StrCat("wants an object, got ", what));
      case State::kMetadataValue:
        return Fail(absl::StrCat("wants strings, got ", what));
      case State::kDType:
        return Fail(absl::StrCat("dtype wants a string, got ", what));
      case State::kShapeValue:
      case State::kShape:
        return Fail(absl::StrCat("shape wants an array of integers from 0 to 2^63-1, got ", what));
      default:
        return Fail(absl::StrCat("data_offsets wants an array of integers from 0 to 2^64-1, got ", what));
    }
  }

  State state_ = State::kStart;
  absl::Status status_;
  std::vector<SafetensorsEntry> entries_;
  std::unordered_set<std::string> names_;
  std::unordered_set<std::string> metadata_keys_;
  // The entry being read.
  std::string name_;
  std::optional<DType> dtype_;
  bool has_shape_ = false;
  std::vector<int64_t> shape_;
  bool has_offsets_ = false;
  std::array<uint64_t, 2> offsets_ = {};
  size_t num_offsets_ = 0;
};

absl::Status TensorError(const SafetensorsEntry& entry, const absl::AlphaNum& reason) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(entry.name), ": ", reason));
}

// The entry's offsets are still relative to the data's start.
absl::Status CheckExtent(const SafetensorsEntry& entry, uint64_t data_bytes) {
  if (entry.begin > entry.end) {
    return TensorError(entry, absl::StrCat("data_offsets [", entry.begin, ", ", entry.end, "] run backwards"));
  }
  if (entry.end > data_bytes) {
    return TensorError(entry, absl::StrCat("data_offsets [", entry.begin, ", ", entry.end, "] end past the ",
                                           data_bytes, " bytes of data in the file"));
  }
  uint64_t want = DTypeSize(entry.dtype);
  // A dimension of 0 makes the tensor empty, however large the others are.
  const bool empty = std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end();
  for (const int64_t dimension : entry.shape) {
    if (empty) {
      want = 0;
    } else if (__builtin_mul_overflow(want, static_cast<uint64_t>(dimension), &want)) {
      return TensorError(entry, absl::StrCat(Describe(entry.dtype, entry.shape), " has more than 2^64 bytes"));
    }
  }
  if (want != entry.end - entry.begin) {
    return TensorError(
        entry, absl::StrCat(Describe(entry.dtype, entry.shape), " needs ", want, " bytes, data_offsets [", entry.begin,
                            ", ", entry.end, "] hold ", entry.end - entry.begin));
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view DTypeName(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }
size_t DTypeSize(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].size; }

std::string Describe(DType dtype, std::span<const int64_t> shape) {
  return absl::StrCat(std::string(DTypeName(dtype)), " [", absl::StrJoin(shape, ", "), "]");
}

absl::Status ReadAsFloat(const TensorView& tensor, std::span<float> out) {
  if (out.size() != static_cast<size_t>(tensor.num_elements())) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(tensor.name), " has ", tensor.num_elements(),
                                                   " elements, the output has ", out.size()));
  }
  switch (tensor.dtype) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), tensor.data.data(), tensor.data.size());
      return absl::OkStatus();
    case DType::kBF16: {
      const std::span<const uint16_t> bits = tensor.as<uint16_t>();
      for (size_t i = 0; i < bits.size(); ++i) out[i] = std::bit_cast<float>(static_cast<uint32_t>(bits[i]) << 16);
      return absl::OkStatus();
    }
    case DType::kF16: {
      const std::span<const uint16_t> bits = tensor.as<uint16_t>();
      for (size_t i = 0; i < bits.size(); ++i) {
        const uint32_t sign = static_cast<uint32_t>(bits[i] & 0x8000) << 16;
        const uint32_t exponent = (bits[i] >> 10) & 0x1F;
        const uint32_t mantissa = bits[i] & 0x3FF;
        float magnitude;
        if (exponent == 0) {
          magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        } else {
          const uint32_t wide = exponent == 0x1F ? 0xFF : exponent + (127 - 15);
          magnitude = std::bit_cast<float>(wide << 23 | mantissa << 13);
        }
        out[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
      }
      return absl::OkStatus();
    }
    default:
      return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(tensor.name), " is ",
                                                     Describe(tensor.dtype, tensor.shape), ", want BF16, F16 or F32"));
  }
}

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensors(std::span<const std::byte> file) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("file has ", file.size(), " bytes, the header's length alone needs ", kLengthBytes));
  }
  uint64_t header_bytes;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("header has ", header_bytes, " bytes, the limit is ", kMaxHeaderBytes));
  }
  if (header_bytes > file.size() - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat("header has ", header_bytes, " bytes, the file only ",
                                                   file.size() - kLengthBytes, " after the header's length"));
  }
  const uint64_t data_start = kLengthBytes + header_bytes;
  const uint64_t data_bytes = file.size() - data_start;

  HeaderHandler handler;
  const char* text = reinterpret_cast<const char*>(file.data()) + kLengthBytes;
  if (!nlohmann::json::sax_parse(text, text + header_bytes, &handler)) {
    BALLAST_CHECK(!handler.status().ok());
    return handler.status();
  }
  std::vector<SafetensorsEntry> entries = handler.TakeEntries();

  for (const SafetensorsEntry& entry : entries) BALLAST_RETURN_IF_ERROR(CheckExtent(entry, data_bytes));
  std::sort(entries.begin(), entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  uint64_t expected = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    SafetensorsEntry& entry = entries[i];
    if (entry.begin < expected) {
      return TensorError(entry, absl::StrCat("starts at byte ", entry.begin, " of the data, inside tensor ",
                                             Quote(entries[i - 1].name), ", which ends at ", expected));
    }
    if (entry.begin > expected) {
      return TensorError(
          entry, absl::StrCat("starts at byte ", entry.begin, " of the data, but the one before it ends at ", expected,
                              ": no tensor owns the bytes between"));
    }
    expected = entry.end;
    entry.begin += data_start;
    entry.end += data_start;
    if (entry.begin % DTypeSize(entry.dtype) != 0) {
      return TensorError(entry, absl::StrCat("starts at byte ", entry.begin, " of the file, which is not aligned for ",
                                             Describe(entry.dtype, entry.shape), ": save the file again"));
    }
  }
  if (expected != data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("file has ", data_bytes, " bytes of data, its tensors only ", expected));
  }
  return entries;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  BALLAST_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  auto entries = ParseSafetensors(file.bytes());
  if (!entries.ok()) {
    return absl::Status(entries.status().code(), absl::StrCat(path, ": ", entries.status().message()));
  }
  return std::unique_ptr<SafetensorsFile>(new SafetensorsFile(std::move(file), *std::move(entries)));
}

SafetensorsFile::SafetensorsFile(MappedFile file, std::vector<SafetensorsEntry> entries)
    : file_(std::move(file)), entries_(std::move(entries)) {
  tensors_.reserve(entries_.size());
  for (const SafetensorsEntry& entry : entries_) {
    tensors_.push_back({.name = entry.name,
                        .dtype = entry.dtype,
                        .shape = entry.shape,
                        .data = file_.bytes().subspan(entry.begin, entry.end - entry.begin)});
  }
}

}  // namespace ballast
