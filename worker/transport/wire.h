// Bytes of the link protocol: little-endian integers and length-prefixed strings.
#ifndef BALLAST_WORKER_TRANSPORT_WIRE_H_
#define BALLAST_WORKER_TRANSPORT_WIRE_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

namespace ballast::internal {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

class WireWriter {
 public:
  template <typename Int>
  WireWriter& Put(Int value) {
    static_assert(std::is_integral_v<Int>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  // Bytes as they are.
  WireWriter& PutRaw(std::string_view bytes) {
    bytes_.append(bytes);
    return *this;
  }
  WireWriter& PutString(std::string_view text) { return Put(static_cast<uint32_t>(text.size())).PutRaw(text); }
  std::string Take() && { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// After a read past the end everything reads as zero or empty and ok() is false.
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}

  template <typename Int>
  Int Get() {
    static_assert(std::is_integral_v<Int>);
    Int value{};
    const std::string_view raw = GetRaw(sizeof value);
    if (ok_) std::memcpy(&value, raw.data(), sizeof value);
    return value;
  }
  std::string_view GetRaw(size_t size) {
    if (size > bytes_.size()) ok_ = false;
    if (!ok_) return {};
    const std::string_view out = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return out;
  }
  std::string_view GetString(size_t limit) {
    const uint32_t size = Get<uint32_t>();
    if (size > limit) ok_ = false;
    return GetRaw(size);
  }
  bool ok() const { return ok_; }
  // All was there and nothing is left.
  bool AtEnd() const { return ok_ && bytes_.empty(); }

 private:
  std::string_view bytes_;
  bool ok_ = true;
};

}  // namespace ballast::internal

#endif  // BALLAST_WORKER_TRANSPORT_WIRE_H_
