#include "worker/decoder/recently_used.h"

#include <gtest/gtest.h>

#include <memory>

namespace ballast {
namespace {

TEST(RecentlyUsedTest, WhatWasUsedLongestAgoMakesRoom) {
  RecentlyUsed<int, std::unique_ptr<int>> values(3);
  for (int key = 1; key <= 3; ++key) values.Insert(key, std::make_unique<int>(10 * key));
  ASSERT_NE(values.Find(1), nullptr);
  EXPECT_EQ(**values.Find(1), 10);
  EXPECT_EQ(**values.Insert(4, std::make_unique<int>(40)), 40);
  EXPECT_EQ(values.Find(2), nullptr);
  EXPECT_EQ(values.size(), 3u);
  values.Insert(5, std::make_unique<int>(50));
  EXPECT_EQ(values.Find(3), nullptr);
  for (const int key : {1, 4, 5}) {
    ASSERT_NE(values.Find(key), nullptr) << key;
    EXPECT_EQ(**values.Find(key), 10 * key);
  }
  values.Clear();
  EXPECT_EQ(values.Find(1), nullptr);
  EXPECT_EQ(values.size(), 0u);
}

// A load of more kinds than there is room for, most of them rare: what is used again and again stays.
TEST(RecentlyUsedTest, RareOnesDoNotDriveOutTheUsual) {
  RecentlyUsed<int, int> values(64);
  int made = 0;
  const auto use = [&](int key) {
    if (values.Find(key) != nullptr) return;
    values.Insert(key, key);
    ++made;
  };
  for (int step = 0; step < 10000; ++step) {
    use(step % 32);
    if (step % 32 == 0) use(1000 + step);
  }
  EXPECT_EQ(made, 32 + 313);
}

}  // namespace
}  // namespace ballast
