#include "worker/schedule/scheduler.h"

#include <map>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const absl::Time kNow = absl::FromUnixSeconds(1000);
constexpr int32_t kStopToken = 99;

SchedulerLimits Limits() {
  return {.max_rows = 8,
          .max_logit_rows = 8,
          .max_running = 4,
          .max_waiting = 4,
          .kv_blocks = 10,
          .block_positions = 4,
          .max_positions = 32};
}

SequenceSpec Generate(uint64_t id, int prompt, int max_tokens, std::string task = "") {
  SequenceSpec spec{.id = SequenceId(id), .max_tokens = max_tokens, .stop_tokens = {kStopToken}};
  for (int i = 0; i < prompt; ++i) spec.tokens.push_back(static_cast<int32_t>(id * 100 + i));
  spec.task = std::move(task);
  return spec;
}

SequenceSpec Score(uint64_t id, int tokens) {
  SequenceSpec spec = Generate(id, tokens, 0);
  spec.kind = SequenceKind::kScore;
  return spec;
}

// "1:0+8* 2:0+3" - id:start+rows, with a mark for each piece whose logits are wanted.
std::string Show(const StepPlan& plan) {
  std::string out;
  for (const StepPiece& piece : plan.pieces) {
    if (!out.empty()) out += " ";
    out += std::to_string(piece.id.value()) + (piece.decode ? "d" : ":") + std::to_string(piece.start_position) + "+" +
           std::to_string(piece.num_rows);
    out += std::string(piece.num_logits, '*');
  }
  return out;
}

// Ends the open step with token 7 for everybody.
std::vector<SequenceUpdate> End(Scheduler& scheduler, const StepPlan& plan, int32_t token = 7) {
  return scheduler.EndStep(std::vector<PieceResult>(plan.pieces.size(), PieceResult{.token = token}));
}

TEST(SchedulerLimitsTest, NamesFieldValueAndLimit) {
  EXPECT_EQ(Validate(Limits()), absl::OkStatus());
  SchedulerLimits limits = Limits();
  limits.kv_blocks = 0;
  EXPECT_EQ(Validate(limits).message(), "kv_blocks is 0; it must be at least 1");
  limits = Limits();
  limits.max_running = 9;
  EXPECT_EQ(Validate(limits).message(), "max_running is 9; it must be at most max_rows, 8");
  limits = Limits();
  limits.max_logit_rows = 3;
  EXPECT_EQ(Validate(limits).message(), "max_logit_rows is 3; it must be at least 4");
}

TEST(SchedulerTest, Submit_RefusesWhatCanNeverRun) {
  struct Case {
    const char* name;
    SequenceSpec spec;
    absl::StatusCode code;
    const char* text;
  };
  SequenceSpec late = Generate(1, 1, 1);
  late.deadline = kNow;
  const Case cases[] = {
      {"empty", Generate(1, 0, 1), absl::StatusCode::kInvalidArgument, "no tokens"},
      {"long prompt", Generate(1, 33, 1), absl::StatusCode::kInvalidArgument, "33 tokens; the model has 32 positions"},
      {"full prompt", Generate(1, 32, 0), absl::StatusCode::kInvalidArgument, "0 positions left"},
      {"many tokens", Generate(1, 30, 3), absl::StatusCode::kInvalidArgument, "max_tokens is 3"},
      {"negative", Generate(1, 1, -1), absl::StatusCode::kInvalidArgument, "max_tokens is -1"},
      {"late", late, absl::StatusCode::kDeadlineExceeded, "deadline"},
      {"full score", Score(1, 32), absl::StatusCode::kOk, ""},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    Scheduler scheduler(Limits());
    const absl::Status status = scheduler.Submit(c.spec, kNow);
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.text));
    EXPECT_EQ(scheduler.has_work(), status.ok());
  }
}

TEST(SchedulerTest, Submit_RefusesWhatTheCacheCanNeverHold) {
  SchedulerLimits limits = Limits();
  limits.kv_blocks = 4;
  Scheduler scheduler(limits);
  const absl::Status status = scheduler.Submit(Generate(1, 8, 9), kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("17 positions of KV cache; this worker has 16"));
  EXPECT_EQ(scheduler.Submit(Generate(1, 8, 8), kNow), absl::OkStatus());
}

TEST(SchedulerTest, Submit_RefusesWhenTheQueueIsFull) {
  Scheduler scheduler(Limits());
  for (int i = 1; i <= 4; ++i) ASSERT_EQ(scheduler.Submit(Generate(i, 1, 1), kNow), absl::OkStatus());
  const absl::Status status = scheduler.Submit(Generate(5, 1, 1), kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("4 requests wait"));
}

TEST(SchedulerTest, PromptInChunksThenDecode) {
  Scheduler scheduler(Limits());
  ASSERT_EQ(scheduler.Submit(Generate(1, 10, 3), kNow), absl::OkStatus());
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1:0+8");
  EXPECT_THAT(End(scheduler, scheduler.NextStep(8)), IsEmpty());
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1:8+2*");
  EXPECT_THAT(scheduler.NextStep(8).token_ids, ElementsAre(108, 109));
  EXPECT_THAT(scheduler.NextStep(8).logit_rows, ElementsAre(1));
  auto updates = End(scheduler, scheduler.NextStep(8), 41);
  ASSERT_EQ(updates.size(), 1u);
  EXPECT_EQ(updates[0].token, 41);
  EXPECT_EQ(updates[0].finish, FinishKind::kNone);
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1d10+1*");
  EXPECT_THAT(scheduler.NextStep(8).token_ids, ElementsAre(41));
  EXPECT_EQ(End(scheduler, scheduler.NextStep(8), 42)[0].finish, FinishKind::kNone);
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1d11+1*");
  updates = End(scheduler, scheduler.NextStep(8), 43);
  EXPECT_EQ(updates[0].token, 43);
  EXPECT_EQ(updates[0].finish, FinishKind::kLength);
  EXPECT_FALSE(scheduler.has_work());
  EXPECT_EQ(scheduler.free_blocks(), 10);
  EXPECT_TRUE(scheduler.NextStep(8).empty());
}

TEST(SchedulerTest, StopTokenEndsAndIsNotPartOfTheAnswer) {
  Scheduler scheduler(Limits());
  ASSERT_EQ(scheduler.Submit(Generate(1, 2, 3), kNow), absl::OkStatus());
  const auto updates = End(scheduler, scheduler.NextStep(8), kStopToken);
  ASSERT_EQ(updates.size(), 1u);
  EXPECT_EQ(updates[0].token, std::nullopt);
  EXPECT_EQ(updates[0].finish, FinishKind::kStop);
  EXPECT_FALSE(scheduler.has_work());
}

TEST(SchedulerTest, NoMaxTokens_AsManyAsFit) {
  SchedulerLimits limits = Limits();
  limits.kv_blocks = 2;
  Scheduler scheduler(limits);
  ASSERT_EQ(scheduler.Submit(Generate(1, 6, 0), kNow), absl::OkStatus());
  EXPECT_EQ(End(scheduler, scheduler.NextStep(8))[0].finish, FinishKind::kNone);
  EXPECT_EQ(End(scheduler, scheduler.NextStep(8))[0].finish, FinishKind::kLength);
}

TEST(SchedulerTest, DecodeRowsComeFirst) {
  Scheduler scheduler(Limits());
  ASSERT_EQ(scheduler.Submit(Generate(1, 2, 9), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(2, 3, 9), kNow), absl::OkStatus());
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1:0+2* 2:0+3*");
  End(scheduler, scheduler.NextStep(8));
  ASSERT_EQ(scheduler.Submit(Generate(3, 9, 3), kNow), absl::OkStatus());
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1d2+1* 2d3+1* 3:0+6");
  EXPECT_THAT(scheduler.NextStep(8).logit_rows, ElementsAre(0, 1));
  End(scheduler, scheduler.NextStep(8));
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1d3+1* 2d4+1* 3:6+3*");
}

TEST(SchedulerTest, SmallCapacity_DecodingTakesTurns) {
  Scheduler scheduler(Limits());
  for (int i = 1; i <= 3; ++i) ASSERT_EQ(scheduler.Submit(Generate(i, 1, 8), kNow), absl::OkStatus());
  End(scheduler, scheduler.NextStep(8));
  std::map<uint64_t, int> rows;
  for (int step = 0; step < 6; ++step) {
    const StepPlan plan = scheduler.NextStep(2);
    ASSERT_EQ(plan.pieces.size(), 2u);
    for (const StepPiece& piece : plan.pieces) ++rows[piece.id.value()];
    End(scheduler, plan);
  }
  EXPECT_THAT(rows, ElementsAre(std::pair(1, 4), std::pair(2, 4), std::pair(3, 4)));
}

TEST(SchedulerTest, TasksTakeTurns_FifoWithin) {
  SchedulerLimits limits = Limits();
  limits.max_running = 1;
  Scheduler scheduler(limits);
  ASSERT_EQ(scheduler.Submit(Generate(1, 1, 1, "a"), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(2, 1, 1, "a"), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(3, 1, 1, "a"), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(4, 1, 1, "b"), kNow), absl::OkStatus());
  std::string order;
  while (scheduler.has_work()) {
    const StepPlan plan = scheduler.NextStep(8);
    order += std::to_string(plan.pieces.at(0).id.value());
    End(scheduler, plan);
  }
  EXPECT_EQ(order, "1423");
}

TEST(SchedulerTest, LargeRequestWaitsForItsBlocks_NothingOvertakes) {
  Scheduler scheduler(Limits());  // 10 blocks of 4
  ASSERT_EQ(scheduler.Submit(Generate(1, 4, 20), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(2, 4, 20), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(3, 4, 4), kNow), absl::OkStatus());
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1:0+4*");
  EXPECT_EQ(scheduler.waiting(), 2);
  EXPECT_EQ(scheduler.free_blocks(), 4);
  EXPECT_EQ(scheduler.reserved_positions(SequenceId(1)), 24);
  EXPECT_EQ(scheduler.reserved_positions(SequenceId(2)), 0);
  EXPECT_TRUE(scheduler.Cancel(SequenceId(1)));
  EXPECT_EQ(Show(scheduler.NextStep(8)), "2:0+4* 3:0+4*");
}

TEST(SchedulerTest, Score_WantsEveryRowsLogits) {
  SchedulerLimits limits = Limits();
  limits.max_logit_rows = 5;
  Scheduler scheduler(limits);
  ASSERT_EQ(scheduler.Submit(Score(1, 7), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(2, 3, 2), kNow), absl::OkStatus());
  // No logits left for the end of request 2's prompt: it stops one short.
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1:0+5***** 2:0+2");
  EXPECT_THAT(End(scheduler, scheduler.NextStep(8)), IsEmpty());
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1:5+2** 2:2+1*");
  EXPECT_EQ(scheduler.NextStep(8).pieces[1].first_logit, 2);
  const auto updates = End(scheduler, scheduler.NextStep(8));
  ASSERT_EQ(updates.size(), 2u);
  EXPECT_EQ(updates[0].finish, FinishKind::kStop);
  EXPECT_EQ(updates[0].token, std::nullopt);
  EXPECT_EQ(updates[1].token, 7);
}

TEST(SchedulerTest, MoreAfterStep) {
  Scheduler scheduler(Limits());
  EXPECT_FALSE(scheduler.more_after_step());
  ASSERT_EQ(scheduler.Submit(Generate(1, 10, 2), kNow), absl::OkStatus());
  for (const bool more : {true, true, false}) {  // half the prompt, its end, the last token
    scheduler.NextStep(8);
    EXPECT_EQ(scheduler.more_after_step(), more);
    End(scheduler, scheduler.NextStep(8));
  }
  ASSERT_EQ(scheduler.Submit(Score(2, 3), kNow), absl::OkStatus());
  scheduler.NextStep(8);
  EXPECT_FALSE(scheduler.more_after_step());
  ASSERT_EQ(scheduler.Submit(Score(3, 3), kNow), absl::OkStatus());
  EXPECT_TRUE(scheduler.more_after_step());
}

TEST(SchedulerTest, DiscardedStep_IsOfferedAgainAsItWas) {
  Scheduler scheduler(Limits());
  ASSERT_EQ(scheduler.Submit(Generate(1, 2, 9), kNow), absl::OkStatus());
  End(scheduler, scheduler.NextStep(8));
  const StepPlan first = scheduler.NextStep(8);
  ASSERT_EQ(scheduler.Submit(Generate(2, 2, 9), kNow), absl::OkStatus());
  EXPECT_EQ(scheduler.NextStep(8), first);
  End(scheduler, scheduler.NextStep(8));
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1d3+1* 2:0+2*");
  // A request of it ended: the rest is planned anew.
  EXPECT_TRUE(scheduler.Cancel(SequenceId(1)));
  EXPECT_EQ(Show(scheduler.NextStep(8)), "2:0+2*");
}

TEST(SchedulerTest, FailedPiece_EndsItsRequestAlone) {
  Scheduler scheduler(Limits());
  ASSERT_EQ(scheduler.Submit(Generate(1, 2, 9), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(2, 2, 9), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.NextStep(8).pieces.size(), 2u);
  const PieceResult results[] = {{.status = absl::UnavailableError("layer 1 expert 2")}, {.token = 5}};
  const auto updates = scheduler.EndStep(results);
  ASSERT_EQ(updates.size(), 2u);
  EXPECT_EQ(updates[0].finish, FinishKind::kFailed);
  EXPECT_EQ(updates[0].status, absl::UnavailableError("layer 1 expert 2"));
  EXPECT_EQ(updates[1].token, 5);
  EXPECT_EQ(Show(scheduler.NextStep(8)), "2d2+1*");
}

TEST(SchedulerTest, Cancel_InEveryState) {
  Scheduler scheduler(Limits());
  EXPECT_FALSE(scheduler.Cancel(SequenceId(1)));
  ASSERT_EQ(scheduler.Submit(Generate(1, 2, 9), kNow), absl::OkStatus());
  EXPECT_TRUE(scheduler.Cancel(SequenceId(1)));
  EXPECT_FALSE(scheduler.has_work());
  ASSERT_EQ(scheduler.Submit(Generate(2, 2, 9), kNow), absl::OkStatus());
  End(scheduler, scheduler.NextStep(8));
  EXPECT_TRUE(scheduler.Cancel(SequenceId(2)));
  EXPECT_FALSE(scheduler.Cancel(SequenceId(2)));
  EXPECT_FALSE(scheduler.has_work());
  EXPECT_EQ(scheduler.free_blocks(), 10);
}

TEST(SchedulerTest, Expire_WaitingAndRunning) {
  SchedulerLimits limits = Limits();
  limits.max_running = 1;
  Scheduler scheduler(limits);
  for (int i = 1; i <= 3; ++i) {
    SequenceSpec spec = Generate(i, 2, 9);
    spec.deadline = kNow + absl::Seconds(i == 3 ? 9 : 1);
    ASSERT_EQ(scheduler.Submit(spec, kNow), absl::OkStatus());
  }
  EXPECT_EQ(Show(scheduler.NextStep(8)), "1:0+2*");
  EXPECT_THAT(scheduler.Expire(kNow), IsEmpty());
  const auto updates = scheduler.Expire(kNow + absl::Seconds(1));
  ASSERT_EQ(updates.size(), 2u);
  EXPECT_EQ(updates[0].id, SequenceId(1));
  EXPECT_EQ(updates[1].id, SequenceId(2));
  EXPECT_EQ(updates[1].status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Show(scheduler.NextStep(8)), "3:0+2*");
}

TEST(SchedulerTest, FailAll_EmptiesBothQueues) {
  SchedulerLimits limits = Limits();
  limits.max_running = 1;
  Scheduler scheduler(limits);
  ASSERT_EQ(scheduler.Submit(Generate(1, 2, 9), kNow), absl::OkStatus());
  ASSERT_EQ(scheduler.Submit(Generate(2, 2, 9), kNow), absl::OkStatus());
  End(scheduler, scheduler.NextStep(8));
  const auto updates = scheduler.FailAll(absl::UnavailableError("no view"));
  ASSERT_EQ(updates.size(), 2u);
  EXPECT_EQ(updates[0].status, absl::UnavailableError("no view"));
  EXPECT_FALSE(scheduler.has_work());
  EXPECT_EQ(scheduler.free_blocks(), 10);
}

// Any mix of requests ends, with every block given back and every position run exactly once.
TEST(SchedulerTest, RandomMix_RunsEveryPositionOnce) {
  uint64_t state = 1;
  const auto random = [&state](int limit) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int>((state >> 33) % limit);
  };
  Scheduler scheduler(Limits());
  std::map<uint64_t, int> next_position, expected;
  uint64_t id = 0;
  int ended = 0;
  for (int step = 0; step < 3000; ++step) {
    if (id < 200) {
      const bool score = random(4) == 0;
      SequenceSpec spec = score ? Score(id + 1, 1 + random(20)) : Generate(id + 1, 1 + random(20), 1 + random(8));
      spec.task = std::string(1, static_cast<char>('a' + random(3)));
      if (scheduler.Submit(spec, kNow).ok()) {
        ++id;
        expected[id] = static_cast<int>(spec.tokens.size()) + (score ? 0 : spec.max_tokens - 1);
      }
    }
    const StepPlan plan = scheduler.NextStep(1 + random(8));
    if (plan.empty() || random(5) == 0) continue;  // nothing to do, or the step was discarded
    int row = 0;
    for (const StepPiece& piece : plan.pieces) {
      ASSERT_EQ(piece.first_row, row);
      row += piece.num_rows;
      ASSERT_EQ(piece.start_position, next_position[piece.id.value()]);
      next_position[piece.id.value()] += piece.num_rows;
      ASSERT_LE(piece.start_position + piece.num_rows, scheduler.reserved_positions(piece.id));
    }
    ASSERT_LE(row, 8);
    for (const SequenceUpdate& update : End(scheduler, plan)) ended += update.finish != FinishKind::kNone;
  }
  EXPECT_EQ(id, 200u);
  EXPECT_EQ(ended, 200);
  EXPECT_EQ(next_position, expected);
  EXPECT_EQ(scheduler.free_blocks(), 10);
}

}  // namespace
}  // namespace ballast
