#include "controller/planner/memory.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

TEST(ChooseReplicas, IsTheBestOfAll) {
  for (const double slope : {0.01, 0.1, 0.5, 3.0}) {
    for (const int64_t expert : {1, 7, 20, 300, 2000}) {
      for (const int64_t needed : {0, 400, 5000}) {
        const MemoryRule rule{.kv_bytes = 1000, .expert_bytes = expert, .kv_bytes_needed = needed, .most_replicas = 58};
        const auto level = [&](int32_t r) { return 1 - 0.5 * std::exp(-slope * r); };
        int asked = 0;
        const auto choice = ChooseReplicas(rule, [&](int32_t r) -> absl::StatusOr<double> {
          ++asked;
          return level(r);
        });
        ASSERT_TRUE(choice.ok()) << choice.status();
        double best = 0;
        for (int32_t r = 0; r <= 58 && r * expert <= 1000; ++r) {
          const double memory =
              static_cast<double>(1000 - r * expert) / static_cast<double>(needed > 0 ? needed : 1000);
          best = std::max(best, std::min({1.0, level(r), memory}));
        }
        EXPECT_NEAR(choice->best.goodput, best, 1e-12);
        EXPECT_LE(asked, 7);
      }
    }
  }
}

TEST(ChooseReplicas, IsNotTheGreatestGainAReplica) {
  // 40 GB of KV cache, 88 MB an expert: balance is worth more than one replica's memory for long.
  const MemoryRule rule{.kv_bytes = 40'000, .expert_bytes = 88, .most_replicas = 58};
  const auto choice =
      ChooseReplicas(rule, [](int32_t r) -> absl::StatusOr<double> { return 0.52 + 0.46 * (1 - std::exp(-r / 6.0)); });
  EXPECT_GT(choice->best.replicas, 6);
  EXPECT_LT(choice->best.replicas, 40);
}

TEST(ChooseReplicas, NamesWhatIsWrong) {
  const auto level = [](int32_t) -> absl::StatusOr<double> { return 1; };
  EXPECT_THAT(ChooseReplicas({.kv_bytes = 0, .expert_bytes = 1}, level).status().message(), HasSubstr("KV bytes: 0"));
  EXPECT_THAT(ChooseReplicas({.kv_bytes = 5, .expert_bytes = 0}, level).status().message(),
              HasSubstr("expert bytes: 0"));
  EXPECT_THAT(ChooseReplicas({.kv_bytes = 5, .expert_bytes = 1, .kv_bytes_needed = -1}, level).status().message(),
              HasSubstr("KV bytes needed: -1"));
  EXPECT_THAT(ChooseReplicas({.kv_bytes = 5, .expert_bytes = 1},
                             [](int32_t) -> absl::StatusOr<double> { return absl::AbortedError("no plan"); })
                  .status()
                  .message(),
              HasSubstr("no plan"));
}

TEST(ReplicasForBytes, AreWhole) {
  EXPECT_EQ(*ReplicasForBytes(999, 100), 9);
  EXPECT_EQ(*ReplicasForBytes(0, 100), 0);
  EXPECT_THAT(ReplicasForBytes(-1, 100).status().message(), HasSubstr("bytes for replicas: -1; must be at least 0"));
  EXPECT_THAT(ReplicasForBytes(1, 0).status().message(), HasSubstr("expert bytes: 0; must be at least 1"));
}

TEST(BytesOf, EndsWhere64BitsDo) {
  EXPECT_EQ(BytesOf(3, 100), 300);
  EXPECT_EQ(BytesOf((int64_t{1} << 13) - 1, kMaxExpertBytes), ((int64_t{1} << 13) - 1) << 50);
  EXPECT_EQ(BytesOf(int64_t{1} << 13, kMaxExpertBytes), std::numeric_limits<int64_t>::max());
}

}  // namespace
}  // namespace ballast
