#include "worker/schedule/batcher.h"

#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kVocab = 10;

struct Outcome : RequestSink {
  void OnToken(int32_t token, float logprob) override {
    tokens.push_back(token);
    logprobs.push_back(logprob);
  }
  void OnScores(const ScoredRows& rows) override {
    EXPECT_EQ(rows.first_position, static_cast<int>(argmax.size()));
    argmax.insert(argmax.end(), rows.argmax.begin(), rows.argmax.end());
    logprobs.insert(logprobs.end(), rows.logprobs.begin(), rows.logprobs.end());
    digests.insert(digests.end(), rows.digests.begin(), rows.digests.end());
  }
  void OnEnd(const absl::Status& end_status, FinishKind end_finish) override {
    EXPECT_FALSE(ended);
    ended = true;
    status = end_status;
    finish = end_finish;
  }
  std::vector<int32_t> tokens, argmax;
  std::vector<float> logprobs;
  std::vector<uint64_t> digests;
  bool ended = false;
  absl::Status status;
  FinishKind finish = FinishKind::kNone;
};

// Plays the step engine with a model whose next token is always the last one plus 1.
class BatcherTest : public ::testing::Test {
 protected:
  BatcherTest() {
    cache_ = *KvCache::Create({.num_layers = 1, .attention = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 16}}, 8);
    batcher_ =
        *Batcher::Create({.max_rows = 8, .max_logit_rows = 8, .max_running = 4, .max_waiting = 4, .max_positions = 64},
                         kVocab, *cache_, counters_, clock_);
    batcher_->set_notify([this] { ++notified_; });
  }

  std::shared_ptr<Outcome> Submit(SequenceKind kind, std::vector<int32_t> tokens, int max_tokens = 0,
                                  SequenceId* id = nullptr) {
    auto sink = std::make_shared<Outcome>();
    BatchedRequest request{.spec = {.kind = kind, .tokens = std::move(tokens), .max_tokens = max_tokens},
                           .logprobs = true,
                           .digests = true,
                           .sink = sink};
    const auto submitted = batcher_->Submit(std::move(request));
    EXPECT_EQ(submitted.status(), absl::OkStatus());
    if (id != nullptr && submitted.ok()) *id = *submitted;
    return sink;
  }

  // The open step's rows with their logits, and its end.
  void RunStep(std::vector<RowFailure> failures = {}) {
    ASSERT_TRUE(batcher_->HasWork());
    const StepRows rows = batcher_->Next(8);
    std::vector<float> logits(rows.input.logit_rows.size() * kVocab);
    for (size_t i = 0; i < rows.input.logit_rows.size(); ++i) {
      logits[i * kVocab + (rows.input.token_ids[rows.input.logit_rows[i]] + 1) % kVocab] = 5;
    }
    batcher_->Commit({.logits = logits.data(), .failures = failures});
  }

  SimulatedClock clock_;
  LoadCounters counters_{1, 2, 1};
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Batcher> batcher_;
  int notified_ = 0;
};

TEST_F(BatcherTest, LogitsThatAreNotFinite_EndTheRequestAndNoOther) {
  const auto bad = Submit(SequenceKind::kGenerate, {1, 2}, 3);
  const auto good = Submit(SequenceKind::kGenerate, {3, 4}, 3);
  ASSERT_TRUE(batcher_->HasWork());
  const StepRows rows = batcher_->Next(8);
  std::vector<float> logits(rows.input.logit_rows.size() * kVocab, 1);
  std::fill_n(logits.begin(), kVocab, std::nanf(""));
  batcher_->Commit({.logits = logits.data()});
  while (batcher_->HasWork()) RunStep();
  EXPECT_EQ(bad->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(good->status, absl::OkStatus());
}

// The next tokens' logits are finite, their log probabilities are not.
TEST_F(BatcherTest, LogProbabilitiesThatAreNotFinite_EndTheRequestAndNoOther) {
  const auto scored = Submit(SequenceKind::kScore, {1, 2});
  const auto generated = Submit(SequenceKind::kGenerate, {1, 2}, 3);
  const auto good = Submit(SequenceKind::kScore, {3, 4});
  ASSERT_TRUE(batcher_->HasWork());
  const StepRows rows = batcher_->Next(8);
  ASSERT_EQ(rows.input.logit_rows.size(), 5u);
  std::vector<float> logits(rows.input.logit_rows.size() * kVocab, 1);
  // Of the scored one's first row and of the generating one's only row.
  logits[2] = -INFINITY;
  logits[2 * kVocab + 3] = std::nanf("");
  batcher_->Commit({.logits = logits.data()});
  while (batcher_->HasWork()) RunStep();
  EXPECT_EQ(scored->status.code(), absl::StatusCode::kInternal) << scored->status;
  EXPECT_THAT(scored->logprobs, IsEmpty());
  EXPECT_EQ(generated->status.code(), absl::StatusCode::kInternal) << generated->status;
  EXPECT_THAT(generated->tokens, IsEmpty());
  EXPECT_EQ(good->status, absl::OkStatus());
  EXPECT_EQ(good->logprobs.size(), 1u);
}

TEST_F(BatcherTest, Generates) {
  const auto outcome = Submit(SequenceKind::kGenerate, {1, 2, 3}, 3);
  EXPECT_EQ(notified_, 1);
  while (batcher_->HasWork()) RunStep();
  EXPECT_THAT(outcome->tokens, ElementsAre(4, 5, 6));
  EXPECT_TRUE(outcome->ended);
  EXPECT_EQ(outcome->status, absl::OkStatus());
  EXPECT_EQ(outcome->finish, FinishKind::kLength);
  const double expected = 5 - std::log(std::exp(5.0) + kVocab - 1);
  for (const float logprob : outcome->logprobs) EXPECT_NEAR(logprob, expected, 1e-5);
  EXPECT_EQ(cache_->used_blocks(), 0);
  EXPECT_TRUE(batcher_->AwaitIdle(absl::InfinitePast()));
}

TEST_F(BatcherTest, ScoresInChunks) {
  const auto outcome = Submit(SequenceKind::kScore, {1, 2, 3, 4, 5, 6, 7, 8, 9, 0});
  RunStep();
  EXPECT_EQ(outcome->argmax.size(), 8u);
  RunStep();
  EXPECT_THAT(outcome->argmax, ElementsAre(2, 3, 4, 5, 6, 7, 8, 9, 0, 1));
  EXPECT_EQ(outcome->logprobs.size(), 9u);
  EXPECT_EQ(outcome->digests.size(), 10u);
  EXPECT_NE(outcome->digests[0], outcome->digests[1]);
  EXPECT_EQ(outcome->finish, FinishKind::kStop);
}

TEST_F(BatcherTest, LabelsAndHints) {
  Submit(SequenceKind::kGenerate, {1, 2}, 2);
  ASSERT_TRUE(batcher_->HasWork());
  StepRows rows = batcher_->Next(8);
  ASSERT_EQ(rows.labels.size(), 2u);
  EXPECT_EQ(rows.labels[1].phase, TokenPhase::kPrefill);
  EXPECT_TRUE(rows.more_work);
  batcher_->Discard(absl::UnavailableError("lost"));
  RunStep();
  EXPECT_EQ(batcher_->last_rows().prefill, 2);
  rows = batcher_->Next(8);
  ASSERT_EQ(rows.labels.size(), 1u);
  EXPECT_EQ(rows.labels[0].phase, TokenPhase::kDecode);
  EXPECT_EQ(rows.input.sequences[0].start_position, 2);
  EXPECT_EQ(rows.input.sequences[0].kv->committed(), 2);
  EXPECT_FALSE(rows.more_work);
}

TEST_F(BatcherTest, DiscardedStepIsRunAgain) {
  const auto outcome = Submit(SequenceKind::kGenerate, {1, 2}, 2);
  ASSERT_TRUE(batcher_->HasWork());
  const StepRows rows = batcher_->Next(8);
  const std::vector<int32_t> first(rows.input.token_ids.begin(), rows.input.token_ids.end());
  batcher_->Discard(absl::UnavailableError("lost"));
  EXPECT_FALSE(outcome->ended);
  const StepRows again = batcher_->Next(8);
  EXPECT_THAT(first, ::testing::ElementsAreArray(again.input.token_ids));
  batcher_->Discard(absl::UnavailableError("lost"));
  while (batcher_->HasWork()) RunStep();
  EXPECT_THAT(outcome->tokens, ElementsAre(3, 4));
}

TEST_F(BatcherTest, RowsThatCannotRunEndTheirRequests) {
  const auto outcome = Submit(SequenceKind::kGenerate, {1, 2}, 2);
  ASSERT_TRUE(batcher_->HasWork());
  batcher_->Next(8);
  batcher_->Discard(absl::InvalidArgumentError("token 99"));
  EXPECT_EQ(outcome->status.code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(batcher_->HasWork());
  EXPECT_EQ(cache_->used_blocks(), 0);
}

TEST_F(BatcherTest, FailedRowsEndTheirRequestAlone) {
  const auto lost = Submit(SequenceKind::kGenerate, {1, 2}, 2);
  const auto fine = Submit(SequenceKind::kGenerate, {4, 5}, 2);
  RunStep({{.row = 0, .expert = {0, 1}, .workers = {"w3"}}, {.row = 1, .expert = {0, 1}, .workers = {"w3"}}});
  EXPECT_EQ(lost->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(lost->status.message()), HasSubstr("w3"));
  EXPECT_THAT(lost->tokens, IsEmpty());
  EXPECT_THAT(fine->tokens, ElementsAre(6));
  while (batcher_->HasWork()) RunStep();
  EXPECT_THAT(fine->tokens, ElementsAre(6, 7));
}

TEST_F(BatcherTest, Cancel_TakesEffectBeforeTheNextStep) {
  SequenceId id;
  const auto outcome = Submit(SequenceKind::kGenerate, {1, 2}, 20, &id);
  RunStep();
  EXPECT_GT(cache_->used_blocks(), 0);
  ASSERT_TRUE(batcher_->HasWork());
  batcher_->Next(8);
  batcher_->Cancel(id);
  // The open step ends as if nothing had happened.
  std::vector<float> logits(kVocab);
  batcher_->Commit({.logits = logits.data()});
  EXPECT_FALSE(batcher_->HasWork());
  EXPECT_FALSE(outcome->ended);
  EXPECT_EQ(cache_->used_blocks(), 0);
  batcher_->Cancel(id);
}

TEST_F(BatcherTest, DeadlineAndNoView) {
  auto sink = std::make_shared<Outcome>();
  ASSERT_TRUE(batcher_
                  ->Submit({.spec = {.tokens = {1}, .max_tokens = 5, .deadline = clock_.Now() + absl::Seconds(1)},
                            .sink = sink})
                  .ok());
  const auto other = Submit(SequenceKind::kGenerate, {1}, 5);
  RunStep();
  clock_.Advance(absl::Seconds(2));
  EXPECT_TRUE(batcher_->HasWork());
  EXPECT_EQ(sink->status.code(), absl::StatusCode::kDeadlineExceeded);
  batcher_->NoView(absl::UnavailableError("lost rank 1"));
  EXPECT_EQ(other->status, absl::UnavailableError("lost rank 1"));
  EXPECT_FALSE(batcher_->HasWork());
}

TEST_F(BatcherTest, ClosedAdmissionAndFullQueue) {
  for (int i = 0; i < 4; ++i) Submit(SequenceKind::kGenerate, {1}, 5);
  EXPECT_EQ(batcher_->Submit({.spec = {.tokens = {1}, .max_tokens = 5}}).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(batcher_->stats().waiting, 4);
  batcher_->CloseAdmission(absl::UnavailableError("leaving"));
  EXPECT_EQ(batcher_->Submit({.spec = {.tokens = {1}, .max_tokens = 5}}).status(), absl::UnavailableError("leaving"));
  EXPECT_FALSE(batcher_->AwaitIdle(absl::InfinitePast()));
  while (batcher_->HasWork()) RunStep();
  EXPECT_TRUE(batcher_->AwaitIdle(absl::InfinitePast()));
}

// The rows of a step that is worth waking the pool for: whoever reads them, they say the same.
TEST(BatcherPoolTest, WhatIsReadDoesNotDependOnTheThreads) {
  constexpr int kLarge = 20000, kRequests = 12;
  std::vector<float> logits(3 * kRequests * kLarge);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = 9 * static_cast<float>(UniformAt(5, i));
  std::vector<std::vector<std::shared_ptr<Outcome>>> outcomes;
  for (const int threads : {0, 1, 3}) {
    SimulatedClock clock;
    LoadCounters counters(1, 2, 1);
    const auto cache =
        *KvCache::Create({.num_layers = 1, .attention = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 16}}, 64);
    std::optional<ThreadPool> pool;
    if (threads > 0) pool.emplace(threads);
    const auto batcher = *Batcher::Create(
        {.max_rows = 64, .max_logit_rows = 64, .max_running = kRequests, .max_waiting = kRequests, .max_positions = 64},
        kLarge, *cache, counters, clock, nullptr, pool.has_value() ? &*pool : nullptr);
    auto& sinks = outcomes.emplace_back();
    for (int i = 0; i < kRequests; ++i) {
      sinks.push_back(std::make_shared<Outcome>());
      const SequenceKind kind = i % 3 == 0 ? SequenceKind::kScore : SequenceKind::kGenerate;
      ASSERT_TRUE(batcher
                      ->Submit({.spec = {.kind = kind, .tokens = {i, i + 1, i + 2}, .max_tokens = 1},
                                .sampling = {.temperature = 0.5f, .top_p = i % 2 == 0 ? 0.9f : 1, .seed = 3},
                                .logprobs = true,
                                .digests = true,
                                .sink = sinks.back()})
                      .ok());
    }
    ASSERT_TRUE(batcher->HasWork());
    const StepRows rows = batcher->Next(64);
    ASSERT_EQ(rows.input.logit_rows.size(), 4u * 3 + 8);
    batcher->Commit({.logits = logits.data()});
  }
  for (int i = 0; i < kRequests; ++i) {
    const Outcome& alone = *outcomes[0][i];
    EXPECT_EQ(alone.status, absl::OkStatus());
    EXPECT_EQ(alone.tokens.size(), i % 3 == 0 ? 0u : 1u);
    EXPECT_EQ(alone.digests.size(), i % 3 == 0 ? 3u : 0u);
    for (const auto& with_pool : {outcomes[1][i], outcomes[2][i]}) {
      EXPECT_EQ(with_pool->tokens, alone.tokens);
      EXPECT_EQ(with_pool->argmax, alone.argmax);
      EXPECT_EQ(with_pool->logprobs, alone.logprobs);
      EXPECT_EQ(with_pool->digests, alone.digests);
    }
  }
}

// Of a request whose routes are not told: its failed row is its own, not the next one's.
TEST_F(BatcherTest, AFailureOfARequestThatEndsForAnotherReasonEndsNoOther) {
  auto untold = std::make_shared<Outcome>();
  ASSERT_TRUE(
      batcher_->Submit({.spec = {.kind = SequenceKind::kScore, .tokens = {1, 2}}, .routes = true, .sink = untold})
          .ok());
  const auto fine = Submit(SequenceKind::kGenerate, {4, 5}, 1);
  RunStep({{.row = 0, .expert = {0, 1}, .workers = {"w3"}}});
  EXPECT_EQ(untold->status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(fine->status, absl::OkStatus());
  EXPECT_THAT(fine->tokens, ElementsAre(6));
}

// A step chooses expert 0 for even tokens and 1 for odd ones; "even" and "odd" are tasks that choose so nine times of
// ten.
class ClassifyingTest : public ::testing::Test {
 protected:
  static constexpr int kRows = 100;

  ClassifyingTest() {
    cache_ = *KvCache::Create({.num_layers = 1, .attention = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 16}}, 64);
    v1::TaskProfiles profiles;
    for (const auto& [task, even] : {std::pair("even", 900), {"odd", 100}}) {
      v1::TaskProfile& profile = *profiles.add_tasks();
      profile.set_task(task);
      profile.add_tokens(even);
      profile.add_tokens(1000 - even);
    }
    profiles_ = profiles;
    batcher_ = *Batcher::Create(
        {.max_rows = kRows, .max_logit_rows = kRows, .max_running = 4, .max_waiting = 4, .max_positions = 512}, kVocab,
        *cache_, counters_, clock_, &classifier_);
  }

  SequenceId Submit(std::vector<int32_t> tokens, const std::string& task = "", int max_tokens = 2,
                    SequenceKind kind = SequenceKind::kGenerate) {
    return *batcher_->Submit(
        {.spec = {.kind = kind, .tokens = std::move(tokens), .max_tokens = max_tokens, .task = task},
         .sink = std::make_shared<Outcome>()});
  }

  void RunStep(std::vector<RowFailure> failures = {}) {
    ASSERT_TRUE(batcher_->HasWork());
    const StepRows rows = batcher_->Next(kRows);
    const std::vector<RowLabel> labels(rows.labels.begin(), rows.labels.end());
    std::vector<int32_t> experts;
    for (const int32_t token : rows.input.token_ids) experts.push_back(token % 2);
    const std::vector<float> weights(experts.size(), 1);
    const RoutedLayer layer{0, experts, weights};
    std::vector<uint8_t> failed(labels.size());
    for (const RowFailure& failure : failures) failed[failure.row] = 1;
    counters_.AddStep(Epoch(1), labels, failed, {&layer, 1}, {});
    const std::vector<float> logits(rows.input.logit_rows.size() * kVocab);
    batcher_->Commit({.logits = logits.data(), .failures = failures});
  }

  // Tokens counted since the last call: "task prefill+decode", a star after the task where it was classified.
  std::vector<std::string> Counted() {
    std::vector<std::string> out;
    int64_t tokens = 0, chosen = 0;
    const LoadWindow window = counters_.Take();
    for (const TaskCount& task : window.tasks) {
      if (task.prefill_tokens + task.decode_tokens == 0) continue;
      tokens += task.prefill_tokens + task.decode_tokens;
      out.push_back(task.task + (task.classified ? "* " : " ") + std::to_string(task.prefill_tokens) + "+" +
                    std::to_string(task.decode_tokens));
    }
    for (const LoadCount& count : window.counts) chosen += count.tokens;
    EXPECT_EQ(chosen, tokens);
    return out;
  }

  SimulatedClock clock_;
  LoadCounters counters_{1, 2, 1};
  std::vector<std::string> told_;
  TaskClassifier classifier_{1, 2, 1, .9, [this](const Classification& c) { told_.push_back(c.task); }};
  v1::TaskProfiles profiles_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Batcher> batcher_;
};

TEST_F(ClassifyingTest, WithoutProfilesNothingIsHeldBack) {
  Submit({2, 4, 6, 8, 2, 4, 6, 8});
  ASSERT_EQ(classifier_.SetProfiles(profiles_), absl::OkStatus());
  RunStep();
  EXPECT_THAT(Counted(), ElementsAre(" 8+0"));
  EXPECT_THAT(told_, IsEmpty());
}

TEST_F(ClassifyingTest, AnUnlabelledPromptCountsAsWhatItLooksLike_AndSoDoesWhatFollows) {
  ASSERT_EQ(classifier_.SetProfiles(profiles_), absl::OkStatus());
  Submit({2, 4, 6, 8, 2, 4, 6, 8});
  Submit({1, 3, 5, 7, 1, 3, 5, 7}, "", 0, SequenceKind::kScore);
  // Neither its label nor too few tokens are overruled.
  Submit({1, 3, 5, 7, 1, 3, 5, 7}, "even");
  Submit({2, 3});
  RunStep();
  EXPECT_THAT(told_, ElementsAre("even", "odd", ""));
  EXPECT_THAT(Counted(), ::testing::UnorderedElementsAre("even* 8+0", "odd* 8+0", "even 8+0", " 2+0"));
  RunStep();
  EXPECT_THAT(Counted(), ::testing::UnorderedElementsAre("even* 0+1", "even 0+1", " 0+1"));
  EXPECT_EQ(told_.size(), 3u);
}

TEST_F(ClassifyingTest, LongPromptsAreToldByTheirFirstTokens) {
  ASSERT_EQ(classifier_.SetProfiles(profiles_), absl::OkStatus());
  Submit(std::vector<int32_t>(350, 2));
  for (int step = 0; step < 2; ++step) {
    RunStep();
    EXPECT_THAT(Counted(), IsEmpty());
  }
  RunStep();
  EXPECT_THAT(told_, ElementsAre("even"));
  EXPECT_THAT(Counted(), ElementsAre("even* 300+0"));
  RunStep();
  EXPECT_THAT(Counted(), ElementsAre("even* 50+0"));
}

TEST_F(ClassifyingTest, WhatWasHeldBackOfARequestThatEndsCountsAsUnlabelled) {
  ASSERT_EQ(classifier_.SetProfiles(profiles_), absl::OkStatus());
  const SequenceId cancelled = Submit(std::vector<int32_t>(150, 2));
  RunStep();
  EXPECT_THAT(Counted(), IsEmpty());
  batcher_->Cancel(cancelled);
  EXPECT_FALSE(batcher_->HasWork());
  EXPECT_THAT(Counted(), ElementsAre(" 100+0"));

  // The last rows' expert has no replica: what ran before counts.
  Submit(std::vector<int32_t>(150, 2));
  RunStep();
  RunStep({{.row = 0, .expert = {0, 0}, .workers = {"w3"}}});
  EXPECT_THAT(Counted(), ElementsAre(" 100+0"));

  Submit(std::vector<int32_t>(150, 2));
  RunStep();
  batcher_->NoView(absl::UnavailableError("lost rank 1"));
  EXPECT_THAT(Counted(), ElementsAre(" 100+0"));
  EXPECT_THAT(told_, IsEmpty());
}

}  // namespace
}  // namespace ballast
