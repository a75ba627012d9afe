#include "worker/moe/choice_kernel.h"

#include <algorithm>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/test_support.h"
#include "proto/placement/quotas.h"
#include "proto/placement/table_test_util.h"
#include "worker/moe/choice_reference.h"

namespace ballast {
namespace {

// Each expert on one rank or more, with random weights.
DispatchTable WeightedTable(int experts, int ranks, std::mt19937& random) {
  DispatchTable table = RandomEqualTable(random, experts, ranks, ranks, /*holes=*/false);
  for (uint32_t& weight : table.weight) weight = 1 + static_cast<uint32_t>(random() % 9);
  return table;
}

struct Case {
  int experts, ranks, top_k, rows;
};

// What the kernel and the plain words make of the same random rows; `flows` and `quotas` as ChoiceArgs.
void Compare(const Case& c, std::mt19937& random, bool counted_first) {
  DispatchTable table = WeightedTable(c.experts, c.ranks, random);
  const bool missing = random() % 3 == 0;
  if (missing) {
    // Nobody holds expert 1.
    const int32_t first = table.begin[1], last = table.begin[2];
    table.rank.erase(table.rank.begin() + first, table.rank.begin() + last);
    table.weight.erase(table.weight.begin() + first, table.weight.begin() + last);
    for (int e = 2; e <= c.experts; ++e) table.begin[e] -= last - first;
  }
  const int own = static_cast<int>(random() % c.ranks);
  std::vector<int32_t> ids, failed(c.rows, -1);
  for (int row = 0; row < c.rows; ++row) {
    std::vector<int32_t> all(c.experts);
    for (int e = 0; e < c.experts; ++e) all[e] = e;
    std::shuffle(all.begin(), all.end(), random);
    ids.insert(ids.end(), all.begin(), all.begin() + c.top_k);
    if (random() % 20 == 0) failed[row] = 5;
  }
  constexpr int kLayer = 3;
  std::vector<int32_t> wanted_failed = failed, counts(c.experts, 0);
  for (int row = 0; row < c.rows; ++row) {
    const auto of_row = std::span(ids).subspan(static_cast<size_t>(row) * c.top_k, c.top_k);
    if (failed[row] >= 0) continue;
    if (missing && std::find(of_row.begin(), of_row.end(), 1) != of_row.end()) {
      wanted_failed[row] = kLayer * c.experts + 1;
      continue;
    }
    for (const int32_t e : of_row) ++counts[e];
  }
  // Shares solved from elsewhere: some experts have none.
  const int replicas = table.num_replicas();
  std::vector<int32_t> flows(static_cast<size_t>(c.ranks) * replicas);
  for (int32_t& flow : flows) flow = random() % 3 == 0 ? static_cast<int32_t>(random() % 50) : 0;
  const bool with_flows = random() % 2 == 0;
  DispatchTable shares = table;
  for (int e = 0; e < c.experts && with_flows; ++e) {
    std::vector<uint32_t> sums;
    uint32_t all = 0;
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      uint32_t sum = 0;
      for (int s = 0; s < c.ranks; ++s) sum += flows[static_cast<size_t>(s) * replicas + r];
      sums.push_back(sum);
      all += sum;
    }
    for (size_t i = 0; i < sums.size() && all > 0; ++i) shares.weight[table.begin[e] + i] = sums[i];
  }
  constexpr uint32_t kRotation = 11;
  std::vector<int32_t> quotas(replicas);
  SolveQuotas(shares, counts, kRotation, quotas);
  // Some ranks are near, some rows have homes.
  const auto near = static_cast<uint32_t>(random() % 3 == 0 ? random() % (uint64_t{1} << c.ranks) : 0) & ~(1u << own);
  std::vector<uint32_t> homes(random() % 2 == 0 ? c.rows : 0);
  for (uint32_t& bits : homes) bits = random() % 2 == 0 ? 1u << random() % c.ranks : 0;
  const std::vector<int32_t> wanted = ReferenceChoice(table, own, near, homes, ids, c.top_k, wanted_failed, quotas);

  const DeviceTableLayout at = LayOutDeviceTable(c.experts, c.ranks);
  const DeviceNotesLayout notes_at = LayOutDeviceNotes(c.experts, c.ranks);
  std::vector<int32_t> words(at.words);
  FillDeviceTable(table, c.ranks, own, words);
  std::vector<int32_t> step(kStepWords);
  step[kStepRows] = c.rows;
  step[kStepRotation] = kRotation;
  step[kStepFlags] = 3;
  step[kStepPerPair] = 17;
  step[kStepExchange] = 19;
  const DeviceArray<int32_t> device_ids(ids), device_table(words), device_step(step), device_flows(flows),
      device_quotas(quotas), device_failed(failed);
  const DeviceArray<uint32_t> device_homes(homes);
  DeviceArray<int32_t> notes(notes_at.words), chosen(ids.size());
  DeviceArray<int2> open(ids.size());
  DeviceArray<uint32_t> visited(c.rows), all(c.rows);
  chosen.Fill(0x55);
  notes.Fill(0x55);
  ChoiceArgs args{.rows = c.rows,
                  .top_k = c.top_k,
                  .experts = c.experts,
                  .ranks = c.ranks,
                  .rank = own,
                  .layer = kLayer,
                  .ids = device_ids.data(),
                  .table = device_table.data(),
                  .step = device_step.data(),
                  .none = -1,
                  .near = near,
                  .homes = homes.empty() ? nullptr : device_homes.data(),
                  .failed = device_failed.data(),
                  .notes = notes.data(),
                  .replicas = chosen.data(),
                  .visited = visited.data(),
                  .chosen = all.data(),
                  .open = open.data()};
  if (with_flows) {
    args.flows = device_flows.data();
    args.flow_stride = replicas;
  }
  if (counted_first) {
    CheckCuda(LaunchCount(args, nullptr));
    args.flows = nullptr;
    args.quotas = device_quotas.data();
  }
  CheckCuda(LaunchChoose(args, counted_first, nullptr));
  CheckCuda(cudaDeviceSynchronize());

  EXPECT_EQ(device_failed.Read(), wanted_failed);
  std::vector<int32_t> numbers(ids.size(), -1), pairs_to(c.ranks, 0), rows_to(c.ranks, 0);
  for (int row = 0; row < c.rows; ++row) {
    std::vector<bool> visits(c.ranks);
    for (int k = 0; k < c.top_k; ++k) {
      const size_t pair = static_cast<size_t>(row) * c.top_k + k;
      if (wanted[pair] < 0) continue;
      numbers[pair] = words[at.number + wanted[pair]];
      ++pairs_to[table.rank[wanted[pair]]];
      visits[table.rank[wanted[pair]]] = true;
    }
    for (int r = 0; r < c.ranks; ++r) rows_to[r] += visits[r];
  }
  EXPECT_EQ(chosen.Read(), numbers);
  const std::vector<int32_t> told = notes.Read();
  EXPECT_TRUE(std::equal(counts.begin(), counts.end(), told.begin() + notes_at.counts));
  EXPECT_TRUE(std::equal(pairs_to.begin(), pairs_to.end(), told.begin() + notes_at.pairs));
  EXPECT_TRUE(std::equal(rows_to.begin(), rows_to.end(), told.begin() + notes_at.rows));
  EXPECT_EQ(told[notes_at.flags], 3);
  EXPECT_EQ(told[notes_at.nanoseconds_per_pair], 17);
  EXPECT_EQ(told[notes_at.exchange_nanoseconds], 19);
}

TEST(ChoiceKernelTest, IsTheReference) {
  int gpus = 0;
  if (cudaGetDeviceCount(&gpus) != cudaSuccess || gpus < 1) GTEST_SKIP() << "no GPU";
  std::mt19937 random(7);
  for (const Case& c : {Case{4, 1, 1, 1}, Case{8, 2, 2, 3}, Case{32, 2, 4, 64}, Case{128, 4, 8, 129},
                        Case{64, 8, 6, 1000}, Case{256, 32, 8, 300}, Case{64, 2, 8, 4096}, Case{16, 3, 2, 0}}) {
    for (int round = 0; round < 6; ++round) {
      SCOPED_TRACE(testing::Message() << c.experts << " experts, " << c.ranks << " ranks, " << c.rows << " rows");
      Compare(c, random, round % 2 == 1);
    }
  }
}

}  // namespace
}  // namespace ballast
