#include "kernels/cuda/quotas.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/test_support.h"
#include "proto/placement/step_quotas.h"
#include "proto/placement/table_test_util.h"

namespace ballast {
namespace {

// Several steps of one table, against the CPU's solver.
void ExpectTheCpus(const DispatchTable& table, int ranks, const std::vector<uint32_t>& speed,
                   const std::vector<std::vector<int32_t>>& steps, int sources) {
  absl::StatusOr<CudaStepQuotas> quotas =
      CudaStepQuotas::Create(table.begin, table.rank, ranks, std::vector<int32_t>(speed.begin(), speed.end()));
  ASSERT_TRUE(quotas.ok()) << quotas.status();
  StepQuotaSolver solver(table, ranks, speed);
  DeviceArray<int32_t> device_table(std::vector<int32_t>(quotas->table().begin(), quotas->table().end()));
  DeviceArray<int32_t> out(static_cast<size_t>(sources) * table.num_replicas());
  DeviceArray<int64_t> bound(1);
  for (const std::vector<int32_t>& counts : steps) {
    DeviceArray<int32_t> device_counts(counts);
    out.Fill(0xff);
    const absl::Status status =
        quotas->Run({device_table.data(), device_counts.data(), sources, out.data(), bound.data()}, nullptr);
    ASSERT_TRUE(status.ok()) << status;
    CheckCuda(cudaDeviceSynchronize());
    std::vector<int32_t> wanted(out.size());
    ASSERT_EQ(bound.Read()[0], SolveStepQuotas(solver, counts, sources, wanted));
    ASSERT_EQ(out.Read(), wanted);
  }
}

std::vector<int32_t> SkewedCounts(int sources, int experts, int tokens, std::mt19937& random) {
  std::vector<double> weights(experts);
  for (double& w : weights) w = std::exponential_distribution<double>(1)(random);
  for (double& w : weights) w *= w;
  std::discrete_distribution<int> expert(weights.begin(), weights.end());
  std::vector<int32_t> counts(static_cast<size_t>(sources) * experts);
  for (int i = 0; i < tokens; ++i) ++counts[random() % sources * experts + expert(random)];
  return counts;
}

TEST(CudaStepQuotasTest, RandomTablesAsTheCpu) {
  std::mt19937 random(1);
  for (int i = 0; i < 150; ++i) {
    const int experts = 1 + static_cast<int>(random() % 300), ranks = 1 + static_cast<int>(random() % 32);
    const int most = 1 + static_cast<int>(random() % 6), sources = 1 + static_cast<int>(random() % ranks);
    SCOPED_TRACE(testing::Message() << "case " << i << ": " << experts << " experts on " << ranks << " ranks");
    const DispatchTable table = RandomEqualTable(random, experts, ranks, most, i % 3 == 0);
    if (table.num_replicas() == 0) continue;
    std::vector<uint32_t> speed;
    if (i % 4 == 0) {
      for (int d = 0; d < ranks; ++d) speed.push_back(1 + random() % (i % 8 == 0 ? 1024 : 3));
    }
    std::vector<std::vector<int32_t>> steps;
    for (const int tokens : {0, 1, 100, 3000}) steps.push_back(SkewedCounts(sources, experts, tokens, random));
    ExpectTheCpus(table, ranks, speed, steps, sources);
  }
}

// Most experts on one rank, and chains of experts that neighbours share: long paths.
TEST(CudaStepQuotasTest, ChainsAsTheCpu) {
  std::mt19937 random(2);
  for (int i = 0; i < 40; ++i) {
    const int ranks = 32, experts = 256;
    std::vector<std::vector<int32_t>> on(experts);
    for (int e = 0; e < experts; ++e) on[e] = {static_cast<int32_t>(random() % ranks)};
    for (int d = 0; d + 1 < ranks; ++d) on[random() % experts] = {d, d + 1};
    for (int copies = 0; copies < i % 4; ++copies) {
      std::vector<int32_t>& hot = on[random() % experts];
      hot.clear();
      for (int d = 0; d < ranks; ++d) {
        if (random() % 2 == 0 || d == 31) hot.push_back(d);
      }
    }
    std::vector<std::vector<int32_t>> steps;
    for (const int tokens : {4096, 65536}) steps.push_back(SkewedCounts(ranks, experts, tokens, random));
    ExpectTheCpus(EqualTable(on), ranks, {}, steps, ranks);
  }
}

TEST(CudaStepQuotasTest, LargeCountsAsTheCpu) {
  std::mt19937 random(3);
  const DispatchTable table = RandomEqualTable(random, 64, 16, 4, false);
  std::vector<int32_t> counts(16 * 64);
  for (int32_t& count : counts) count = static_cast<int32_t>(random() % ((1u << 31) / 16));
  ExpectTheCpus(table, 16, {}, {counts}, 16);
  std::vector<uint32_t> speed(16);
  for (uint32_t& s : speed) s = 1 + random() % 1024;
  ExpectTheCpus(table, 16, speed, {counts}, 16);
}

TEST(CudaStepQuotasTest, ErrorsNameFieldValueAndLimit) {
  const std::vector<int32_t> begin = {0, 1, 3}, rank = {0, 0, 1};
  EXPECT_EQ(CudaStepQuotas::Create(begin, rank, 33).status().message(), "num_ranks is 33, has to be 1 to 32");
  EXPECT_EQ(CudaStepQuotas::Create(begin, rank, 1).status().message(), "rank[2] is 1, has to be 0 to 0");
  EXPECT_EQ(CudaStepQuotas::Create(begin, rank, 2, std::vector<int32_t>{1, 2000}).status().message(),
            "speed[1] is 2000, has to be 1 to 1024");
  absl::StatusOr<CudaStepQuotas> quotas = CudaStepQuotas::Create(begin, rank, 2);
  ASSERT_TRUE(quotas.ok()) << quotas.status();
  EXPECT_EQ(quotas->Run({nullptr, nullptr, 3, nullptr, nullptr}, nullptr).message(),
            "sources is 3, has to be 1 to num_ranks, 2");
}

}  // namespace
}  // namespace ballast
