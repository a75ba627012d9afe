// The input is a tokenizer.json, and after a zero byte, if there is one, a text.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "proto/base/check.h"
#include "worker/model/tokenizer.h"
#include "worker/model/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ballast;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const auto tokenizer = Tokenizer::Parse(input.substr(0, zero));
  if (!tokenizer.ok() || zero == input.npos) return 0;
  const auto ids = (*tokenizer)->Encode(input.substr(zero + 1));
  if (!ids.ok()) return 0;
  BALLAST_CHECK(!FindMalformedUtf8((*tokenizer)->Decode(*ids)).has_value());
  return 0;
}
