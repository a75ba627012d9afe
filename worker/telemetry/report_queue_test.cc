#include "worker/telemetry/report_queue.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// "1 2-4": the sequences that reports cover.
std::string Show(const std::vector<v1::LoadReport>& reports) {
  std::string out;
  for (const v1::LoadReport& report : reports) {
    if (!out.empty()) out += " ";
    if (report.first_sequence() != report.sequence()) out += std::to_string(report.first_sequence()) + "-";
    out += std::to_string(report.sequence());
  }
  return out;
}

LoadWindow Window(std::string task, int32_t expert, int64_t tokens) {
  BalanceCount balance{.steps = 1, .balancedness_sum = 0.75, .layers_by_form = {1, 2, 3}};
  balance.buckets[7] = 1;
  return {
      .tasks = {{"unused", 0, 0}, {std::move(task), 2 * tokens, tokens}},
      .counts = {{.expert = {1, expert}, .task = 1, .phase = TokenPhase::kDecode, .tokens = tokens, .gate_mass = 0.5}},
      .balance = {balance, BalanceCount()},
      .epoch = Epoch(3)};
}

v1::LoadReport Report(std::string task, int32_t expert, int64_t tokens) {
  return MakeReport(Window(std::move(task), expert, tokens), absl::FromUnixSeconds(10), absl::FromUnixSeconds(11));
}

TEST(MakeReportTest, SparseAndRenumbersTasks) {
  const v1::LoadReport report = Report("chat", 7, 4);
  ASSERT_EQ(report.task_tokens_size(), 1);
  EXPECT_EQ(report.task_tokens(0).task(), "chat");
  EXPECT_EQ(report.task_tokens(0).prefill_tokens(), 8);
  EXPECT_EQ(report.task_tokens(0).decode_tokens(), 4);
  ASSERT_EQ(report.counts_size(), 1);
  EXPECT_EQ(report.counts(0).task(), 0);
  EXPECT_EQ(report.counts(0).layer(), 1);
  EXPECT_EQ(report.counts(0).expert(), 7);
  EXPECT_EQ(report.counts(0).phase(), v1::PHASE_DECODE);
  EXPECT_EQ(report.counts(0).tokens(), 4);
  EXPECT_EQ(report.epoch(), 3u);
  EXPECT_EQ(report.start().seconds(), 10);
  EXPECT_EQ(report.end().seconds(), 11);
  EXPECT_EQ(report.steps(), 1);
  EXPECT_EQ(report.step_balancedness_sum(), 0.75);
  ASSERT_EQ(report.balance_size(), 1);
  EXPECT_EQ(report.balance(0).phase(), v1::PHASE_PREFILL);
  EXPECT_EQ(report.balance(0).steps(), 1);
  ASSERT_EQ(report.balance(0).buckets_size(), static_cast<int>(kStepBalancednessBounds.size()) + 1);
  EXPECT_EQ(report.balance(0).buckets(7), 1);
  EXPECT_EQ(report.balance(0).layers_with_current_shares(), 3);
}

TEST(MakeReportTest, EmptyWindow) {
  EXPECT_TRUE(IsEmpty(LoadWindow{.tasks = {{"chat", 0, 0}}}));
  EXPECT_FALSE(IsEmpty(Window("chat", 1, 1)));
}

TEST(MergeReportTest, ClassifiedTokensStayApart) {
  LoadWindow window = Window("code", 7, 4);
  window.tasks[1].classified = true;
  v1::LoadReport to = MakeReport(window, absl::FromUnixSeconds(10), absl::FromUnixSeconds(11));
  EXPECT_TRUE(to.task_tokens(0).classified());
  to.set_first_sequence(1);
  to.set_sequence(1);
  v1::LoadReport from = Report("code", 7, 5);
  EXPECT_FALSE(from.task_tokens(0).classified());
  from.set_first_sequence(2);
  from.set_sequence(2);
  MergeReport(from, to);
  from = MakeReport(window, absl::FromUnixSeconds(12), absl::FromUnixSeconds(13));
  from.set_first_sequence(3);
  from.set_sequence(3);
  MergeReport(from, to);
  ASSERT_EQ(to.task_tokens_size(), 2);
  EXPECT_TRUE(to.task_tokens(0).classified());
  EXPECT_EQ(to.task_tokens(0).decode_tokens(), 8);
  EXPECT_FALSE(to.task_tokens(1).classified());
  EXPECT_EQ(to.task_tokens(1).decode_tokens(), 5);
}

TEST(MergeReportTest, AddsUpByTaskPhaseAndExpert) {
  v1::LoadReport to = Report("chat", 7, 4);
  to.set_first_sequence(1);
  to.set_sequence(1);
  v1::LoadReport from = Report("code", 7, 5);
  from.set_first_sequence(2);
  from.set_sequence(3);
  MergeReport(from, to);
  from = Report("chat", 7, 6);
  from.set_first_sequence(4);
  from.set_sequence(4);
  MergeReport(from, to);
  EXPECT_EQ(Show({to}), "1-4");
  ASSERT_EQ(to.task_tokens_size(), 2);
  EXPECT_EQ(to.task_tokens(0).decode_tokens(), 10);
  EXPECT_EQ(to.task_tokens(1).decode_tokens(), 5);
  ASSERT_EQ(to.counts_size(), 2);
  EXPECT_EQ(to.counts(0).tokens(), 10);
  EXPECT_EQ(to.counts(0).gate_mass(), 1.0);
  EXPECT_EQ(to.counts(1).tokens(), 5);
  EXPECT_EQ(to.counts(1).task(), 1);
  EXPECT_EQ(to.steps(), 3);
  LoadWindow decode = Window("chat", 7, 1);
  std::swap(decode.balance[0], decode.balance[1]);
  from = MakeReport(decode, absl::FromUnixSeconds(12), absl::FromUnixSeconds(13));
  from.set_first_sequence(5);
  from.set_sequence(5);
  MergeReport(from, to);
  ASSERT_EQ(to.balance_size(), 2);
  EXPECT_EQ(to.balance(0).steps(), 3);
  EXPECT_EQ(to.balance(0).balancedness_sum(), 2.25);
  EXPECT_EQ(to.balance(0).buckets(7), 3);
  EXPECT_EQ(to.balance(0).layers_with_fixed_shares(), 3);
  EXPECT_EQ(to.balance(0).layers_with_previous_shares(), 6);
  EXPECT_EQ(to.balance(0).layers_with_current_shares(), 9);
  EXPECT_EQ(to.balance(1).phase(), v1::PHASE_DECODE);
  EXPECT_EQ(to.balance(1).steps(), 1);
}

// A window of one task in which each of the tokens chose one expert of one layer.
v1::LoadReport Sampled(std::string task, int64_t decode_tokens, std::vector<int32_t> sample) {
  LoadWindow window{.tasks = {{std::move(task), 0, decode_tokens}}};
  const auto tokens = static_cast<int32_t>(sample.size());
  window.samples = {{.task = 0, .phase = TokenPhase::kDecode, .tokens = tokens, .experts = std::move(sample)}};
  return MakeReport(window, absl::FromUnixSeconds(10), absl::FromUnixSeconds(11));
}

TEST(MergeReportTest, SamplesOfRoutesStandForTheTokensOfBoth) {
  v1::LoadReport to = Sampled("chat", 8, {1, 2, 3, 4});
  ASSERT_EQ(to.route_samples_size(), 1);
  EXPECT_EQ(to.route_samples(0).tokens(), 4);
  EXPECT_EQ(to.route_samples(0).phase(), v1::PHASE_DECODE);
  EXPECT_THAT(to.route_samples(0).experts(), ElementsAre(1, 2, 3, 4));
  to.set_first_sequence(1);
  to.set_sequence(1);
  // Three times the tokens: three of four.
  v1::LoadReport from = Sampled("chat", 24, {11, 12, 13, 14});
  from.set_first_sequence(2);
  from.set_sequence(2);
  MergeReport(from, to);
  ASSERT_EQ(to.route_samples_size(), 1);
  EXPECT_EQ(to.route_samples(0).tokens(), 4);
  EXPECT_THAT(to.route_samples(0).experts(), ElementsAre(1, 11, 12, 13));
  // The sample stands for all 32 tokens now.
  from = Sampled("chat", 32, {21, 22});
  from.set_first_sequence(3);
  from.set_sequence(3);
  MergeReport(from, to);
  EXPECT_THAT(to.route_samples(0).experts(), ElementsAre(11, 13, 21, 22));
  from = Sampled("code", 5, {31});
  from.set_first_sequence(4);
  from.set_sequence(4);
  MergeReport(from, to);
  ASSERT_EQ(to.route_samples_size(), 2);
  EXPECT_EQ(to.route_samples(1).task(), 1);
  EXPECT_THAT(to.route_samples(1).experts(), ElementsAre(31));
}

TEST(ReportQueueTest, SendsOnceAndRepeatsWhatIsNotStored) {
  ReportQueue queue({.max_sent = 4, .max_waiting = 2});
  queue.Add(Report("a", 0, 1));
  queue.Add(Report("a", 0, 1));
  EXPECT_EQ(Show(queue.TakeUnsent()), "1 2");
  EXPECT_THAT(queue.TakeUnsent(), IsEmpty());
  queue.Stored(1);
  queue.Add(Report("a", 0, 1));
  EXPECT_EQ(Show(queue.Sent()), "2");
  EXPECT_EQ(Show(queue.TakeUnsent()), "3");
  queue.Stored(3);
  EXPECT_EQ(queue.size(), 0u);
}

TEST(ReportQueueTest, MergesOnlyWhatWasNeverSent_LosesNothing) {
  ReportQueue queue({.max_sent = 2, .max_waiting = 3});
  int64_t total = 0;
  for (int i = 1; i <= 20; ++i) {
    queue.Add(Report("a", i % 3, i));
    total += i;
    if (i <= 3) queue.TakeUnsent();
    EXPECT_LE(queue.size(), 5u);
  }
  EXPECT_EQ(Show(queue.Sent()), "1 2");
  std::vector<v1::LoadReport> all = queue.Sent();
  queue.Stored(2);
  while (queue.size() > 0) {
    const auto next = queue.TakeUnsent();
    all.insert(all.end(), next.begin(), next.end());
    queue.Stored(all.back().sequence());
  }
  uint64_t covered = 0;
  int64_t tokens = 0;
  for (const v1::LoadReport& report : all) {
    EXPECT_EQ(report.first_sequence(), covered + 1);
    covered = report.sequence();
    for (const v1::LoadCount& count : report.counts()) tokens += count.tokens();
  }
  EXPECT_EQ(covered, 20u);
  EXPECT_EQ(tokens, total);
}

}  // namespace
}  // namespace ballast
