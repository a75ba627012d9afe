#include "worker/model/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "proto/base/check.h"
#include "worker/model/utf8.h"

namespace ballast {
namespace {

int CombiningClass(int32_t code_point) { return utf8proc_get_property(code_point)->combining_class; }

}  // namespace

std::string ToNfc(std::string_view text) {
  // No code point below U+0300 is a mark or decomposes into another composition than itself. Every lead byte of the
  // others is at least 0xCC.
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0xCC; })) {
    return std::string(text);
  }
  std::vector<int32_t> points;
  points.reserve(text.size());
  while (!text.empty()) {
    const Utf8Char next = DecodeUtf8(text);
    BALLAST_CHECK(next.kind == Utf8Char::Kind::kWhole);
    text.remove_prefix(next.length);
    // The longest canonical decomposition has 4 code points.
    std::array<int32_t, 8> parts;
    int boundary = 0;
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(next.code_point, parts.data(), parts.size(), UTF8PROC_DECOMPOSE, &boundary);
    BALLAST_CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(parts.size()))
        << "code point " << next.code_point;
    points.insert(points.end(), parts.begin(), parts.begin() + count);
  }
  // utf8proc_decompose sorts marks in quadratic time, which a long run of them would abuse.
  for (auto at = points.begin(); at != points.end();) {
    at = std::find_if(at, points.end(), [](int32_t c) { return CombiningClass(c) != 0; });
    const auto end = std::find_if(at, points.end(), [](int32_t c) { return CombiningClass(c) == 0; });
    std::stable_sort(at, end, [](int32_t a, int32_t b) { return CombiningClass(a) < CombiningClass(b); });
    at = end;
  }
  const utf8proc_ssize_t composed =
      utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  BALLAST_CHECK(composed >= 0);
  std::string out;
  for (utf8proc_ssize_t i = 0; i < composed; ++i) AppendUtf8(points[i], out);
  return out;
}

}  // namespace ballast
