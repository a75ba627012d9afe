#include <algorithm>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "controller/telemetry/load_window.h"
#include "controller/telemetry/report_ledger.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const absl::Time kStart = absl::FromUnixSeconds(1'700'000'000);

LoadWindow::Options SmallOptions() {
  return {.window = absl::Seconds(50), .bucket = absl::Seconds(10), .max_tasks = 2};
}

v1::LoadReport Report(absl::Time end, const std::string& task, v1::Phase phase, int layer, int expert, int64_t tokens) {
  v1::LoadReport report;
  report.mutable_end()->set_seconds(absl::ToUnixSeconds(end));
  v1::TaskTokens& entered = *report.add_task_tokens();
  entered.set_task(task);
  if (phase == v1::PHASE_PREFILL) {
    entered.set_prefill_tokens(tokens);
  } else {
    entered.set_decode_tokens(tokens);
  }
  v1::LoadCount& count = *report.add_counts();
  count.set_layer(layer);
  count.set_expert(expert);
  count.set_phase(phase);
  count.set_tokens(tokens);
  return report;
}

TEST(LoadWindow, AddsBySelection) {
  LoadWindow window("g", 2, 2, SmallOptions());
  ASSERT_TRUE(window.Add(Report(kStart, "a", v1::PHASE_PREFILL, 0, 1, 5), kStart).ok());
  ASSERT_TRUE(window.Add(Report(kStart, "a", v1::PHASE_DECODE, 0, 1, 7), kStart).ok());
  ASSERT_TRUE(window.Add(Report(kStart, "b", v1::PHASE_DECODE, 1, 0, 3), kStart).ok());
  EXPECT_THAT(window.Tokens({}, kStart), ElementsAre(0, 12, 3, 0));
  EXPECT_THAT(window.Tokens({.phase = v1::PHASE_DECODE}, kStart), ElementsAre(0, 7, 3, 0));
  EXPECT_THAT(window.Tokens({.task = "b"}, kStart), ElementsAre(0, 0, 3, 0));
  EXPECT_EQ(window.total_tokens(), 15);
  const auto tasks = window.Tasks({}, kStart);
  ASSERT_THAT(tasks, SizeIs(2));
  EXPECT_EQ(tasks[0].task, "a");
  EXPECT_EQ(tasks[0].prefill, 5);
  EXPECT_EQ(tasks[0].decode, 7);
}

TEST(LoadWindow, BucketsLeaveTheWindow) {
  LoadWindow window("g", 1, 1, SmallOptions());
  for (int i = 0; i < 8; ++i) {
    const absl::Time at = kStart + i * absl::Seconds(10);
    ASSERT_TRUE(window.Add(Report(at, "", v1::PHASE_DECODE, 0, 0, 1), at).ok());
    window.Expire(at);
  }
  const absl::Time end = kStart + absl::Seconds(70);
  EXPECT_THAT(window.Tokens({}, end), ElementsAre(5));
  EXPECT_THAT(window.Tokens({.last = absl::Seconds(15)}, end), ElementsAre(3)) << "rounded up to whole buckets";
  EXPECT_EQ(window.total_tokens(), 5);
  window.Expire(end + absl::Minutes(10));
  EXPECT_EQ(window.total_tokens(), 0);
}

TEST(LoadWindow, AReportFromAnotherClockStillCounts) {
  LoadWindow window("g", 1, 1, SmallOptions());
  ASSERT_TRUE(window.Add(Report(kStart + absl::Hours(1), "", v1::PHASE_DECODE, 0, 0, 1), kStart).ok());
  ASSERT_TRUE(window.Add(Report(kStart - absl::Hours(1), "", v1::PHASE_DECODE, 0, 0, 1), kStart).ok());
  window.Expire(kStart);
  EXPECT_THAT(window.Tokens({}, kStart), ElementsAre(2));
}

TEST(LoadWindow, TasksBeyondTheLimitArePooledUntilRoomIsFree) {
  LoadWindow window("g", 1, 1, SmallOptions());
  for (const char* task : {"a", "b", "c", "d"}) {
    ASSERT_TRUE(window.Add(Report(kStart, task, v1::PHASE_DECODE, 0, 0, 1), kStart).ok());
  }
  EXPECT_THAT(window.Tokens({.task = std::string(kPooledTask)}, kStart), ElementsAre(2));
  const absl::Time later = kStart + absl::Minutes(5);
  window.Expire(later);
  ASSERT_TRUE(window.Add(Report(later, "c", v1::PHASE_DECODE, 0, 0, 1), later).ok());
  EXPECT_THAT(window.Tokens({.task = "c"}, later), ElementsAre(1));
}

TEST(LoadWindow, TasksOfCountsAloneTakeRoomToo) {
  LoadWindow window("g", 1, 1, SmallOptions());
  v1::LoadReport report;
  for (int i = 0; i < 7; ++i) {
    report.add_task_tokens()->set_task(std::string(1, static_cast<char>('a' + i)));
    // Of the first no count tells.
    if (i == 0) continue;
    v1::LoadCount& count = *report.add_counts();
    count.set_phase(v1::PHASE_DECODE);
    count.set_task(i);
    count.set_tokens(1);
  }
  ASSERT_TRUE(window.Add(report, kStart).ok());
  std::vector<std::string> tasks;
  for (const LoadWindow::TaskTotal& task : window.Tasks({}, kStart)) tasks.push_back(task.task);
  EXPECT_THAT(tasks, ElementsAre(std::string(kPooledTask), "b", "c"));
  EXPECT_THAT(window.Tokens({.task = std::string(kPooledTask)}, kStart), ElementsAre(4));
  window.Expire(kStart + absl::Minutes(5));
  EXPECT_EQ(window.Shown("z"), "z") << "there is room again";
}

TEST(LoadWindow, BadReportsChangeNothingAndNameTheField) {
  LoadWindow window("g", 2, 4, SmallOptions());
  const auto expect_refused = [&](const v1::LoadReport& report, const std::string& field) {
    const absl::Status status = window.Add(report, kStart);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
    EXPECT_EQ(window.total_tokens(), 0);
  };
  expect_refused(Report(kStart, "a", v1::PHASE_DECODE, 2, 0, 1), "layer: 2 is not in 0 to 1");
  expect_refused(Report(kStart, "a", v1::PHASE_DECODE, 0, -1, 1), "expert: -1");
  expect_refused(Report(kStart, "a", v1::PHASE_UNSPECIFIED, 0, 0, 1), "phase");
  expect_refused(Report(kStart, "a b", v1::PHASE_DECODE, 0, 0, 1), "task");
  expect_refused(Report(kStart, "a", v1::PHASE_DECODE, 0, 0, -1), "tokens: -1");
  v1::LoadReport report = Report(kStart, "a", v1::PHASE_DECODE, 0, 0, 1);
  report.mutable_counts(0)->set_task(1);
  expect_refused(report, "task: 1 is not in 0 to 0");

  report.mutable_counts(0)->set_task(0);
  v1::StepBalance& balance = *report.add_balance();
  expect_refused(report, "balance.phase: 0 is no phase");
  balance.set_phase(v1::PHASE_DECODE);
  expect_refused(report, "balance.buckets: 0 numbers, not 15");
  for (int i = 0; i < 15; ++i) balance.add_buckets(i == 3 ? -1 : 0);
  expect_refused(report, "balance.buckets: -1");
  balance.set_buckets(3, 4);
  expect_refused(report, "balance.steps: 0 is not the sum of the buckets, 4");
  balance.set_steps(4);
  balance.set_balancedness_sum(4.5);
  expect_refused(report, "balance.balancedness_sum: 4.5 is not in 0 to 4");
  balance.set_balancedness_sum(std::numeric_limits<double>::quiet_NaN());
  expect_refused(report, "balance.balancedness_sum: nan");
  balance.set_balancedness_sum(1.5);
  balance.set_layers_with_current_shares(-2);
  expect_refused(report, "balance.layers_with_current_shares: -2");
  balance.set_layers_with_current_shares(2);
  EXPECT_EQ(window.Add(report, kStart), absl::OkStatus());
}

TEST(LoadWindow, RestartFindsWhatWasStored) {
  std::mt19937 random(7);
  MemoryStore store;
  LoadWindow window("g", 3, 5, {.window = absl::Seconds(60), .bucket = absl::Seconds(10), .max_tasks = 3});
  absl::Time now = kStart;
  for (int i = 0; i < 300; ++i) {
    now += absl::Seconds(random() % 3);
    ASSERT_TRUE(window
                    .Add(Report(now, std::string(1, static_cast<char>('a' + random() % 5)),
                                random() % 2 == 0 ? v1::PHASE_DECODE : v1::PHASE_PREFILL, random() % 3, random() % 5,
                                random() % 100),
                         now)
                    .ok());
    window.Expire(now);
    if (i % 10 != 9) continue;
    ASSERT_TRUE(store.Apply(window.TakeWrites()).ok());
    EXPECT_FALSE(window.dirty());
    LoadWindow again("g", 3, 5, window.options());
    const auto stored = store.List(LoadWindow::StorePrefix("g"));
    ASSERT_TRUE(stored.ok());
    for (const auto& [key, value] : *stored) again.Load(key, value);
    ASSERT_EQ(again.Tokens({}, now), window.Tokens({}, now));
    ASSERT_EQ(again.total_tokens(), window.total_tokens());
    ASSERT_EQ(again.Tasks({}, now).size(), window.Tasks({}, now).size());
  }
}

TEST(Level, SplitsByWeightAndAveragesLoadedLayers) {
  Placement placement;
  placement.num_layers = 2;
  placement.num_experts = 2;
  placement.workers = {"a", "b"};
  placement.replicas = {{{0, 0}, 0, 0, 3}, {{0, 0}, 1, 0, 1}, {{0, 1}, 1, 1, 1}, {{1, 0}, 0, 1, 1}, {{1, 1}, 1, 2, 1}};
  const auto levels = LevelByLayer(placement, {}, {8, 4, 0, 0});
  EXPECT_THAT(levels[0].worker_tokens, ElementsAre(6, 6));
  EXPECT_THAT(levels[0].balancedness, DoubleNear(1, 1e-12));
  EXPECT_EQ(MeanBalancedness(levels), 1);
  EXPECT_EQ(MeanBalancedness(LevelByLayer(placement, {}, {0, 0, 3, 1})), 2.0 / 3);
  EXPECT_EQ(MeanBalancedness(LevelByLayer(placement, {}, {0, 0, 0, 0})), 0);
  // Three times as fast, three times as much: level. Loads stay tokens.
  const uint32_t speeds[] = {3, 1};
  EXPECT_THAT(MeanBalancedness(LevelByLayer(placement, speeds, {0, 0, 3, 1})), DoubleNear(1, 1e-12));
  EXPECT_THAT(LevelByLayer(placement, speeds, {0, 0, 3, 1})[1].worker_tokens, ElementsAre(3, 1));
}

v1::LoadReport Sequence(uint64_t first, uint64_t last) {
  v1::LoadReport report;
  report.set_first_sequence(first);
  report.set_sequence(last);
  return report;
}

TEST(ReportLedger, CountsEachReportOnce) {
  using Verdict = ReportLedger::Verdict;
  ReportLedger ledger;
  ledger.BeginStream("w", 77);
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(1, 1)), Verdict::kNew);
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(1, 1)), Verdict::kDuplicate);
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(0, 2)), Verdict::kNew) << "first absent";
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(3, 6)), Verdict::kNew) << "merged";
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(4, 5)), Verdict::kDuplicate);
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(9, 9)), Verdict::kAfterGap);
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(9, 10)), Verdict::kOverlap);
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(12, 11)), Verdict::kInvalid);
  EXPECT_EQ(ledger.Accept("w", 5, Sequence(1, 1)), Verdict::kDuplicate) << "a stream of another process";

  EXPECT_EQ(ledger.stored("w"), 0u);
  EXPECT_TRUE(ledger.dirty());
  const store::ReportMarks pending = ledger.Pending();
  EXPECT_EQ(ledger.Accept("w", 77, Sequence(11, 11)), Verdict::kNew);
  const auto acks = ledger.Stored(pending);
  ASSERT_THAT(acks, SizeIs(1));
  EXPECT_EQ(acks[0].sequence, 10u) << "what came after the marks were taken is not stored";
  EXPECT_EQ(ledger.stored("w"), 10u);

  ReportLedger restarted;
  restarted.Load(pending);
  restarted.BeginStream("w", 77);
  EXPECT_EQ(restarted.stored("w"), 10u);
  EXPECT_EQ(restarted.Accept("w", 77, Sequence(10, 10)), Verdict::kDuplicate);
  EXPECT_EQ(restarted.Accept("w", 77, Sequence(11, 11)), Verdict::kNew);
  restarted.BeginStream("w", 78);
  EXPECT_EQ(restarted.stored("w"), 0u);
  EXPECT_EQ(restarted.Accept("w", 78, Sequence(1, 1)), Verdict::kNew);
}

}  // namespace
}  // namespace ballast
