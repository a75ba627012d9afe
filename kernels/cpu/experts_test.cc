#include "kernels/experts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/cpu/test_data.h"

namespace ballast {
namespace {

using internal::ExpertReference;
using internal::RandomBf16;
using internal::RandomFloats;
using internal::RelativeError;

std::vector<const float*> Pointers(const std::vector<float>& rows, int width) {
  std::vector<const float*> out;
  for (size_t at = 0; at + width <= rows.size(); at += width) out.push_back(rows.data() + at);
  return out;
}

TEST(RunExpertsTest, MatchesReferenceAtAwkwardSizes) {
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    for (const auto& [hidden, intermediate] : {std::pair{1, 1}, {3, 17}, {17, 3}, {33, 40}, {192, 64}, {256, 64}}) {
      const std::vector<uint16_t> weights = RandomBf16(ExpertWeightBytes(hidden, intermediate) / 2, hidden, 0.2f);
      for (int rows : {1, 2, 3, 5, 17, 64, 65, 130}) {
        const std::vector<float> x = RandomFloats(static_cast<size_t>(rows) * hidden, rows);
        const std::vector<const float*> pointers = Pointers(x, hidden);
        std::vector<float> out(x.size());
        const ExpertTask task = {weights.data(), pointers, out.data()};
        RunExperts({&task, 1}, hidden, intermediate, Activation::kSwiGlu, pool);
        for (int r = 0; r < rows; ++r) {
          const std::vector<double> expected = ExpertReference(pointers[r], weights.data(), hidden, intermediate);
          const std::span<const float> got(out.data() + static_cast<size_t>(r) * hidden, hidden);
          ASSERT_LT(RelativeError(got, std::span<const double>(expected)), 2e-6)
              << hidden << "x" << intermediate << " row " << r << " of " << rows;
        }
      }
    }
  }
}

TEST(RunExpertsTest, LargeExpertIsSplitOverThreadsWithTheSameBits) {
  const int hidden = 1024, intermediate = 400;
  const std::vector<uint16_t> weights = RandomBf16(ExpertWeightBytes(hidden, intermediate) / 2, 1, 0.05f);
  const std::vector<float> x = RandomFloats(5 * hidden, 2);
  const std::vector<const float*> rows = Pointers(x, hidden);
  std::vector<float> alone(x.size()), split(x.size());
  for (auto [threads, out] : {std::pair{1, &alone}, {3, &split}}) {
    ThreadPool pool(threads);
    const ExpertTask task = {weights.data(), rows, out->data()};
    RunExperts({&task, 1}, hidden, intermediate, Activation::kSwiGlu, pool);
  }
  EXPECT_EQ(alone, split);
  EXPECT_LT(RelativeError(std::span<const float>(alone.data(), hidden),
                          std::span<const double>(ExpertReference(rows[0], weights.data(), hidden, intermediate))),
            2e-6);
}

// The contract of `exact`: the row alone, in batches of 1 to 70, at every place, on any number of threads.
TEST(RunExpertsTest, RowsBitsDependOnTheRowAlone) {
  const int hidden = 192, intermediate = 64;
  const std::vector<uint16_t> weights = RandomBf16(ExpertWeightBytes(hidden, intermediate) / 2, 1, 0.1f);
  const std::vector<float> others = RandomFloats(70 * hidden, 2);
  const std::vector<float> row = RandomFloats(hidden, 3);
  std::vector<float> alone(hidden);
  ThreadPool one(1);
  const float* only = row.data();
  const ExpertTask task = {weights.data(), {&only, 1}, alone.data()};
  RunExperts({&task, 1}, hidden, intermediate, Activation::kSwiGlu, one);
  for (int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    for (int rows = 1; rows <= 70; ++rows) {
      // Every place in two batches: the even ones among other rows at the odd ones, and the other way round.
      for (int parity : {0, 1}) {
        std::vector<const float*> pointers = Pointers(others, hidden);
        pointers.resize(rows);
        for (int at = parity; at < rows; at += 2) pointers[at] = row.data();
        std::vector<float> out(static_cast<size_t>(rows) * hidden);
        const ExpertTask batch = {weights.data(), pointers, out.data()};
        RunExperts({&batch, 1}, hidden, intermediate, Activation::kSwiGlu, pool);
        for (int at = parity; at < rows; at += 2) {
          ASSERT_EQ(std::memcmp(alone.data(), out.data() + static_cast<size_t>(at) * hidden, hidden * sizeof(float)), 0)
              << "row " << at << " of " << rows << ", " << threads << " threads";
        }
      }
    }
  }
}

TEST(RunExpertsTest, ManyTasksOfUnequalLength) {
  const int hidden = 64, intermediate = 48, experts = 40;
  const size_t size = ExpertWeightBytes(hidden, intermediate) / 2;
  const std::vector<uint16_t> weights = RandomBf16(size * experts, 1, 0.2f);
  const std::vector<float> x = RandomFloats(300 * hidden, 2);
  const std::vector<const float*> pointers = Pointers(x, hidden);
  std::vector<std::vector<float>> outs[2];
  for (int run = 0; run < 2; ++run) {
    ThreadPool pool(run == 0 ? 1 : 3);
    std::vector<ExpertTask> tasks;
    outs[run].resize(experts);
    for (int e = 0; e < experts; ++e) {
      const size_t rows = e * 37 % 150;  // none for expert 0
      outs[run][e].resize(rows * hidden);
      tasks.push_back({weights.data() + e * size, std::span(pointers).subspan(e, rows), outs[run][e].data()});
    }
    RunExperts(tasks, hidden, intermediate, Activation::kSwiGlu, pool);
  }
  EXPECT_EQ(outs[0], outs[1]);
  for (int e : {1, 7, 39}) {
    const std::vector<double> expected = ExpertReference(pointers[e], weights.data() + e * size, hidden, intermediate);
    EXPECT_LT(RelativeError(std::span<const float>(outs[0][e].data(), hidden), std::span<const double>(expected)),
              2e-6);
  }
}

TEST(RunExpertsTest, NoTasksAndNoRowsDoNothing) {
  ThreadPool pool(2);
  RunExperts({}, 64, 64, Activation::kSwiGlu, pool);
  const ExpertTask task = {nullptr, {}, nullptr};
  RunExperts({&task, 1}, 64, 64, Activation::kSwiGlu, pool);
}

}  // namespace
}  // namespace ballast
