#include "kernels/tokens.h"

#include <gtest/gtest.h>

#include <limits>

#include "kernels/cpu/test_data.h"

namespace ballast {
namespace {

using internal::RandomFloats;

TEST(GroupByExpertTest, IsAStableCountingSort) {
  const std::vector<int32_t> ids = {2, 0, 2, 3, 0, 2};
  std::vector<int32_t> begin(6), order(ids.size());
  GroupByExpert(ids, 5, begin, order);
  EXPECT_EQ(begin, (std::vector<int32_t>{0, 2, 2, 5, 6, 6}));
  EXPECT_EQ(order, (std::vector<int32_t>{1, 4, 0, 2, 5, 3}));
}

TEST(GroupByExpertTest, NoPairs) {
  std::vector<int32_t> begin(4, 7);
  GroupByExpert({}, 3, begin, {});
  EXPECT_EQ(begin, (std::vector<int32_t>{0, 0, 0, 0}));
}

TEST(GatherRowsTest, CopiesRowsByIndex) {
  const std::vector<float> source = RandomFloats(5 * 17, 1);
  const std::vector<int32_t> index = {4, 0, 4};
  std::vector<float> out(3 * 17);
  GatherRows(source.data(), index, 17, out.data());
  for (int i = 0; i < 3; ++i) {
    for (int d = 0; d < 17; ++d) EXPECT_EQ(out[i * 17 + d], source[index[i] * 17 + d]);
  }
}

TEST(CombineRowsTest, AddsInTheGivenOrder) {
  for (int width : {1, 3, 16, 17, 192}) {
    for (int terms : {0, 1, 2, 8}) {
      const std::vector<float> rows = RandomFloats(terms * width + 1, width), weights = RandomFloats(terms + 1, 3);
      std::vector<CombineTerm> list;
      for (int i = 0; i < terms; ++i) list.push_back({rows.data() + i * width, weights[i]});
      std::vector<float> out(width, 99);
      CombineRows(list, width, out.data());
      for (int d = 0; d < width; ++d) {
        double expected = 0;
        for (int i = 0; i < terms; ++i) expected += static_cast<double>(weights[i]) * rows[i * width + d];
        ASSERT_NEAR(out[d], expected, 1e-5);
        // An element's bits do not depend on its place or on the width.
        std::vector<float> column(terms);
        std::vector<CombineTerm> single;
        for (int i = 0; i < terms; ++i) column[i] = rows[i * width + d];
        for (int i = 0; i < terms; ++i) single.push_back({&column[i], weights[i]});
        float one;
        CombineRows(single, 1, &one);
        ASSERT_EQ(one, out[d]) << "width=" << width << " d=" << d;
      }
    }
  }
}

TEST(AddRowTest, Adds) {
  std::vector<float> out = {1, 2, 3};
  const std::vector<float> row = {10, 20, 30};
  AddRow(row.data(), 3, out.data());
  EXPECT_EQ(out, (std::vector<float>{11, 22, 33}));
}

TEST(CountExpertsTest, CountsByTaskAndExpert) {
  const std::vector<int32_t> ids = {0, 2, 1, 2, 0, 1}, task = {1, 0, 1};
  std::vector<uint64_t> counts(2 * 3, 5);
  CountExperts(ids, task, 2, 3, counts);
  EXPECT_EQ(counts, (std::vector<uint64_t>{5, 6, 6, 7, 6, 6}));
}

TEST(ArgMaxTest, TiesGoToTheLowestIndexAndNanNeverWins) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(ArgMax(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(ArgMax(std::vector<float>{nan, -1, nan}), 1);
  EXPECT_EQ(ArgMax(std::vector<float>{nan, nan}), 0);
  EXPECT_EQ(ArgMax(std::vector<float>{-inf, -inf}), 0);
  EXPECT_EQ(ArgMax({}), 0);
  for (int n : {1, 17, 4096}) {
    std::vector<float> x(n, -2);
    x[n - 1] = -1;
    EXPECT_EQ(ArgMax(x), n - 1);
  }
  // Equal ones in different blocks of the search; a block without a number in front.
  std::vector<float> x(5000, -2);
  std::fill(x.begin(), x.begin() + 1500, nan);
  x[1500] = x[2047] = x[2048] = x[4999] = 7;
  EXPECT_EQ(ArgMax(x), 1500);
  x[1500] = nan;
  EXPECT_EQ(ArgMax(x), 2047);
  x[2047] = -2;
  EXPECT_EQ(ArgMax(x), 2048);
}

}  // namespace
}  // namespace ballast
