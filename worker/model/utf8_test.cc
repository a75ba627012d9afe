#include "worker/model/utf8.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ballast {
namespace {

using Kind = Utf8Char::Kind;

TEST(Utf8, EveryCodePointComesBack) {
  for (int32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    AppendUtf8(c, text);
    const Utf8Char decoded = DecodeUtf8(text + "x");
    ASSERT_EQ(decoded.kind, Kind::kWhole) << c;
    ASSERT_EQ(decoded.code_point, c);
    ASSERT_EQ(decoded.length, text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Char part = DecodeUtf8(text.substr(0, cut));
      ASSERT_EQ(part.kind, Kind::kCut) << c;
      ASSERT_EQ(part.length, cut) << c;
    }
  }
}

// With the lengths of the maximal subparts: Unicode 15, tables 3-8 to 3-11.
TEST(Utf8, MalformedSequences) {
  const struct {
    std::string text;
    std::vector<size_t> lengths;
  } kCases[] = {
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", {1, 1, 1, 1, 1, 1, 1, 1}},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", {1, 1, 1, 1, 1, 1, 1, 1}},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", {1, 1, 1, 1, 1, 0, 1, 1}},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", {2, 1, 3, 2}},
  };
  for (const auto& c : kCases) {
    std::string_view rest = c.text;
    for (const size_t length : c.lengths) {
      const Utf8Char next = DecodeUtf8(rest);
      if (length == 0) {
        EXPECT_EQ(next.kind, Kind::kWhole);
        rest.remove_prefix(1);
        continue;
      }
      EXPECT_EQ(next.kind, Kind::kMalformed);
      EXPECT_EQ(next.length, length);
      rest.remove_prefix(length);
    }
    EXPECT_EQ(DecodeUtf8(rest).kind, Kind::kWhole);
    EXPECT_EQ(rest.size(), 1u);
  }
}

TEST(Utf8, FindsWhereTextIsMalformed) {
  EXPECT_FALSE(FindMalformedUtf8("").has_value());
  EXPECT_FALSE(FindMalformedUtf8("gr\xC3\xBC\xC3\x9F").has_value());
  EXPECT_EQ(FindMalformedUtf8("gr\xC3\xBC\xC3"), 4u);
  EXPECT_EQ(FindMalformedUtf8("a\xFFz"), 1u);
}

TEST(Utf8, WhiteSpace) {
  int count = 0;
  for (int32_t c = 0; c < 0x110000; ++c) count += IsWhiteSpace(c);
  EXPECT_EQ(count, 25);
  EXPECT_TRUE(IsWhiteSpace(0x85));
  EXPECT_FALSE(IsWhiteSpace(0x200B));
}

}  // namespace
}  // namespace ballast
