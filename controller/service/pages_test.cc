#include "controller/service/pages.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> Keys(int n) {
  std::vector<std::string> keys;
  for (int i = 0; i < n; ++i) keys.push_back("k" + std::to_string(1000 + i));
  return keys;
}

TEST(CutPage, WalksAList) {
  const std::vector<std::string> keys = Keys(25);
  std::string token;
  size_t seen = 0;
  for (const size_t expected : {10u, 10u, 5u}) {
    const auto page = CutPage(keys, 10, token);
    ASSERT_TRUE(page.ok());
    EXPECT_EQ(page->begin, seen);
    EXPECT_EQ(page->end - page->begin, expected);
    seen = page->end;
    token = page->next_token;
  }
  EXPECT_EQ(token, "");
  EXPECT_EQ(CutPage(Keys(150), 0, "")->end, 100u);
  EXPECT_EQ(CutPage({}, 10, "")->end, 0u);
}

TEST(CutPage, AListThatChangesIsSeenOnce) {
  std::vector<std::string> keys = Keys(6);
  const auto first = CutPage(keys, 3, "");
  // The last one seen is gone, one before it is new.
  keys.erase(keys.begin() + 2);
  keys.insert(keys.begin(), "a");
  const auto second = CutPage(keys, 3, first->next_token);
  EXPECT_EQ(keys[second->begin], "k1003");
}

TEST(CutPage, RefusesWhatItDidNotGiveOut) {
  for (const int size : {-1, 1001}) {
    const auto page = CutPage(Keys(3), size, "");
    EXPECT_EQ(page.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(page.status().message()), HasSubstr("page_size: " + std::to_string(size)));
  }
  for (const char* token : {"k1001", "!", "azEwMDE"}) {
    EXPECT_EQ(CutPage(Keys(3), 3, token).status().code(), absl::StatusCode::kInvalidArgument) << token;
  }
}

}  // namespace
}  // namespace ballast
