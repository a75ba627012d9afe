#ifndef BALLAST_WORKER_MODEL_UTF8_H_
#define BALLAST_WORKER_MODEL_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace ballast {

// What a text starts with.
struct Utf8Char {
  enum class Kind {
    kWhole,      // a code point
    kMalformed,  // bytes that no continuation can make a code point
    kCut,        // the text ends inside what may become one
  };
  Kind kind = Kind::kWhole;
  // Of kWhole.
  int32_t code_point = 0;
  // Bytes. Of kMalformed: the maximal subpart, which the Unicode standard (3.9) has replaced by one U+FFFD.
  size_t length = 0;
};

// `text` must not be empty. Surrogates, overlong forms and values past U+10FFFF are malformed.
Utf8Char DecodeUtf8(std::string_view text);

void AppendUtf8(int32_t code_point, std::string& out);

// Where the first byte is that does not belong to UTF-8, if anywhere.
std::optional<size_t> FindMalformedUtf8(std::string_view text);

// Unicode's White_Space, which is what regular expressions call \s.
bool IsWhiteSpace(int32_t code_point);

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_UTF8_H_
