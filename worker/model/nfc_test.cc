#include "worker/model/nfc.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace ballast {
namespace {

TEST(Nfc, Composes) {
  const struct {
    const char* text;
    const char* nfc;
  } kCases[] = {
      {"", ""},
      {"plain", "plain"},
      {"e\u0301", "\u00E9"},
      {"\u00E9", "\u00E9"},
      // Marks are put in order first.
      {"s\u0307\u0323", "\u1E69"},
      {"s\u0323\u0307", "\u1E69"},
      {"\u1100\u1161\u11A8", "\uAC01"},
      {"\u212B", "\u00C5"},
      // Excluded from composition.
      {"\u0958", "\u0915\u093C"},
      // One code point of four.
      {"\u1F82", "\u1F82"},
      {"\uFB01", "\uFB01"},
  };
  for (const auto& c : kCases) EXPECT_EQ(ToNfc(c.text), c.nfc) << c.text;
}

// Sorting the marks by insertion would take hours.
TEST(Nfc, LongRunOfMarks) {
  std::string text = "a", want = "\u1EA1";
  constexpr int kMarks = 200'000;
  for (int i = 0; i < kMarks; ++i) text += "\u0315\u0323";
  for (int i = 1; i < kMarks; ++i) want += "\u0323";
  for (int i = 0; i < kMarks; ++i) want += "\u0315";
  EXPECT_TRUE(ToNfc(text) == want);
}

}  // namespace
}  // namespace ballast
