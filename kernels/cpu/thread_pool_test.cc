#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace ballast {
namespace {

TEST(ThreadPoolTest, RunsEveryItemOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int n : {0, 1, 2, 3, 17, 100}) {
      std::vector<std::atomic<int>> seen(n);
      pool.ParallelFor(n, [&](int i) { seen[i].fetch_add(1); });
      for (int i = 0; i < n; ++i) EXPECT_EQ(seen[i].load(), 1) << "item " << i << " of " << n;
    }
  }
}

TEST(ThreadPoolTest, WritesOfItemsAreSeenByTheCaller) {
  ThreadPool pool(4);
  std::vector<int> values(64);
  for (int round = 1; round <= 2000; ++round) {
    pool.ParallelFor(64, [&](int i) { values[i] += i; });
    ASSERT_EQ(values[63], 63 * round);
    ASSERT_EQ(values[1], round);
  }
}

TEST(ThreadPoolTest, ItemsMayBeFewerThanThreads) {
  ThreadPool pool(6);
  std::atomic<int> total{0};
  for (int round = 0; round < 500; ++round) pool.ParallelFor(2, [&](int i) { total += i + 1; });
  EXPECT_EQ(total.load(), 1500);
}

}  // namespace
}  // namespace ballast
