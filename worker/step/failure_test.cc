// What a group does when ranks die, stall or lack an expert: discard, next view, the same tokens in the end.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/step/group_test_util.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kTiny[] = "testdata/qwen3moe-tiny";

class FailureTest : public ::testing::Test {
 protected:
  FailureTest() : model_(kTiny, /*threads=*/1, /*max_rows=*/64) {}

  Job RandomJob(std::mt19937& random, int generate) {
    Job job{.generate = generate};
    for (int n = 1 + static_cast<int>(random() % 24); n > 0; --n) {
      job.tokens.push_back(static_cast<int32_t>(random() % model_.config().vocab_size));
    }
    return job;
  }

  static std::unique_ptr<JobResult> Run(TestWorker& worker, const Job& job) {
    return worker.source->Await(worker.source->Submit(job));
  }

  void ExpectRight(const JobResult* result, const Job& job) {
    ASSERT_NE(result, nullptr);
    ASSERT_EQ(result->status, absl::OkStatus());
    const JobResult wanted = Reference(model_, job);
    ASSERT_EQ(result->tokens, wanted.tokens);
    ASSERT_TRUE(SameBits(result->logits, wanted.logits));
  }

  // The (layer, expert) pairs that a job needs.
  std::set<ExpertId> Needs(const Job& job) {
    std::set<ExpertId> needs;
    model_.moe->set_trace([&](const LocalMoe::Trace& trace) {
      for (const int32_t expert : trace.ids) needs.insert({trace.moe_layer, expert});
    });
    static_cast<void>(Reference(model_, job));
    model_.moe->set_trace(nullptr);
    return needs;
  }

  TestModel model_;
};

// A rank dies at any message of a step: the others discard it, say whom they lost, and go on in the next view.
TEST_F(FailureTest, RankKilledMidStep_SameTokensInTheNextView) {
  std::mt19937 random(1);
  for (int round = 0; round < 24; ++round) {
    TestGroup group(kTiny, 4, {}, round + 1);
    // Every expert on two workers at least. The leader's mode changes with the round, so that ranks die in exchanges of
    // counts too.
    const int leader = round / 4 % 4;
    ASSERT_NO_FATAL_FAILURE(group.Install(
        RandomPlacement(group.checkpoint(), group.names(), nullptr, 1, group.random(), 2), group.LedBy(leader)));
    const int victim = round % 4;
    const int victim_rank = (victim - leader + 4) % 4;
    std::atomic<int64_t> countdown{20 + static_cast<int64_t>(random() % 150)};
    const bool sender = round % 2 == 0;
    group.views().SetHook([&](ViewId view, const InProcessMessage& message) {
      if (view != ViewId(1) || (sender ? message.from : message.to) != victim_rank || --countdown != 0)
        return MessageFate::kDeliver;
      return sender ? MessageFate::kKillSender : MessageFate::kKillReceiver;
    });
    std::vector<std::pair<Job, int>> open[4];
    for (int w = 0; w < 4; ++w) {
      for (int i = 0; i < 3; ++i) {
        const Job job = RandomJob(random, 16);
        open[w].emplace_back(job, group.worker(w)->source->Submit(job));
      }
    }
    for (int w = 0; w < 4; ++w) {
      ASSERT_TRUE(group.worker(w)->events.AwaitLoss(ViewId(1)));
      EXPECT_EQ(group.worker(w)->engine->view(), ViewId());
    }
    group.Kill(victim);
    group.views().SetHook(nullptr);
    for (int w = 0; w < 4; ++w) {
      if (w == victim) continue;
      const auto losses = group.worker(w)->events.losses();
      ASSERT_EQ(losses.size(), 1u);
      EXPECT_FALSE(losses[0].ranks.empty());
    }
    ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
    for (int w = 0; w < 4; ++w) {
      if (w == victim) continue;
      EXPECT_EQ(group.worker(w)->engine->view(), ViewId(2));
      for (const auto& [job, number] : open[w]) {
        ASSERT_NO_FATAL_FAILURE(ExpectRight(group.worker(w)->source->Await(number).get(), job))
            << "round " << round << " worker " << w;
      }
    }
  }
}

// The view changes with the leader alive: whoever leads next goes on.
TEST_F(FailureTest, ViewsComeAndGoUnderLoad) {
  std::mt19937 random(2);
  TestGroup group(kTiny, 3);
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  std::vector<std::pair<Job, int>> open[3];
  for (int round = 0; round < 30; ++round) {
    for (int w = 0; w < 3; ++w) {
      const Job job = RandomJob(random, 10);
      open[w].emplace_back(job, group.worker(w)->source->Submit(job));
    }
    std::vector<int> order = {0, 1, 2};
    std::shuffle(order.begin(), order.end(), random);
    ASSERT_NO_FATAL_FAILURE(group.Install(group.placement(), order));
  }
  for (int w = 0; w < 3; ++w) {
    for (const auto& [job, number] : open[w]) {
      ASSERT_NO_FATAL_FAILURE(ExpectRight(group.worker(w)->source->Await(number).get(), job));
    }
  }
}

TEST_F(FailureTest, MissingExpert_FailsWhatNeedsItAndNothingElse) {
  std::mt19937 random(3);
  TestGroup group(kTiny, 3);
  // One expert on w2 alone, all others on w0 and w1.
  const ExpertId lonely{1, 2};
  Placement p = group.placement();
  p.replicas.clear();
  int32_t slot = 0;
  for (int32_t layer = 0; layer < p.num_layers; ++layer) {
    for (int32_t e = 0; e < p.num_experts; ++e, ++slot) {
      const ExpertId id{layer, e};
      if (id == lonely) {
        p.replicas.push_back({.expert = id, .worker = 2, .slot = slot});
      } else {
        for (const int32_t w : {0, 1}) p.replicas.push_back({.expert = id, .worker = w, .slot = slot});
      }
    }
  }
  ASSERT_NO_FATAL_FAILURE(group.Install(p));
  group.Kill(2);
  ASSERT_NO_FATAL_FAILURE(group.Install(p));
  int failed = 0;
  int served = 0;
  std::vector<std::tuple<Job, int, int>> open;
  for (int i = 0; i < 60; ++i) {
    Job job{.tokens = RandomJob(random, 0).tokens};
    job.tokens.resize(1 + i % 4);
    open.emplace_back(job, i % 2, group.worker(i % 2)->source->Submit(job));
  }
  for (const auto& [job, w, number] : open) {
    const auto result = group.worker(w)->source->Await(number);
    if (Needs(job).contains(lonely)) {
      ++failed;
      ASSERT_NE(result, nullptr);
      EXPECT_EQ(result->status.code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(result->status.message(), "no live replica of layer 1 expert 2: lost with worker w2");
    } else {
      ++served;
      ASSERT_NO_FATAL_FAILURE(ExpectRight(result.get(), job));
    }
  }
  EXPECT_GT(failed, 0);
  EXPECT_GT(served, 0);
  // It comes back: everything is served again.
  group.Restart(2);
  ASSERT_NO_FATAL_FAILURE(group.Install(p));
  for (const auto& [job, w, number] : open) {
    const auto result = Run(*group.worker(w), job);
    ASSERT_NO_FATAL_FAILURE(ExpectRight(result.get(), job));
  }
}

TEST_F(FailureTest, LateRank_IsNamedWhenTheStepsDeadlinePasses) {
  SimulatedClock clock;
  TestGroup group(kTiny, 2, {.clock = &clock, .hasty_worker = 0, .hasty_step_timeout = absl::Seconds(1)});
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  std::atomic<bool> dropped{false};
  group.views().SetHook([&](ViewId, const InProcessMessage& message) {
    // Counts and rows are longer than the follower's requests for a step.
    if (message.from != 1 || message.bytes <= 40 || dropped.exchange(true)) return MessageFate::kDeliver;
    dropped.notify_all();
    return MessageFate::kDrop;
  });
  std::mt19937 random(4);
  const Job job = RandomJob(random, 3);
  const int number = group.worker(1)->source->Submit(job);
  // The step that the message belongs to was announced before: its deadline is set.
  dropped.wait(false);
  clock.Advance(absl::Seconds(1));
  ASSERT_TRUE(group.worker(0)->events.AwaitLoss(ViewId(1)));
  const auto losses = group.worker(0)->events.losses();
  EXPECT_THAT(losses[0].ranks, ElementsAre(1));
  EXPECT_THAT(std::string(losses[0].reason.message()), HasSubstr("deadline passed waiting for rank 1"));
  ASSERT_TRUE(group.worker(1)->events.AwaitLoss(ViewId(1)));
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  ASSERT_NO_FATAL_FAILURE(ExpectRight(group.worker(1)->source->Await(number).get(), job));
}

TEST_F(FailureTest, NoView_RequestsFailAfterThePatienceAndAtOnceFromThenOn) {
  TestGroup group(kTiny, 2, {.view_patience = absl::Milliseconds(20)});
  std::mt19937 random(5);
  TestWorker& worker = *group.worker(1);
  const Job job = RandomJob(random, 3);
  auto result = Run(worker, job);
  ASSERT_NE(result, nullptr);
  EXPECT_EQ(result->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(result->status.message()), HasSubstr("no view yet"));
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  result = Run(worker, job);
  ASSERT_NO_FATAL_FAILURE(ExpectRight(result.get(), job));
  group.Kill(0);
  ASSERT_TRUE(worker.events.AwaitLoss(ViewId(1)));
  EXPECT_THAT(worker.events.losses()[0].ranks, ElementsAre(0));
  for (int i = 0; i < 3; ++i) {
    result = Run(worker, job);
    ASSERT_NE(result, nullptr);
    EXPECT_EQ(result->status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(result->status.message()), HasSubstr("lost rank 0"));
  }
  group.Restart(0);
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  result = Run(worker, job);
  ASSERT_NO_FATAL_FAILURE(ExpectRight(result.get(), job));
}

TEST_F(FailureTest, ViewsThatCannotBeInstalled_DoNotRenewThePatience) {
  SimulatedClock clock;
  TestGroup group(kTiny, 1, {.view_patience = absl::Milliseconds(20), .clock = &clock});
  std::mt19937 random(7);
  TestWorker& worker = *group.worker(0);
  const int number = worker.source->Submit(RandomJob(random, 3));
  Placement bad = group.placement();
  bad.replicas.pop_back();
  for (uint64_t view = 1; view <= 2; ++view) {
    const GroupView asked{.view = ViewId(view), .members = {{.worker = "w0"}}};
    ASSERT_EQ(worker.engine->InstallView(asked, bad), absl::OkStatus());
    EXPECT_EQ(worker.events.AwaitInstalled(ViewId(view)).code(), absl::StatusCode::kInvalidArgument);
    // The engine waits for the next view.
    clock.AwaitWaiters(1);
    clock.Advance(absl::Milliseconds(12));
  }
  const auto result = worker.source->Await(number);
  ASSERT_NE(result, nullptr);
  EXPECT_EQ(result->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(result->status.message()), HasSubstr("view 2 could not be installed"));
}

TEST_F(FailureTest, PatienceIsOver_RequestsDoNotWaitForTheNextViewToForm) {
  SimulatedClock clock;
  TestGroup group(kTiny, 2, {.view_patience = absl::Milliseconds(20), .clock = &clock});
  std::mt19937 random(7);
  TestWorker& worker = *group.worker(0);
  const int number = worker.source->Submit(RandomJob(random, 3));
  // w1 never comes to either.
  GroupView view{.view = ViewId(1), .members = {{.worker = "w0"}, {.worker = "w1"}}};
  ASSERT_EQ(worker.engine->InstallView(view, group.placement()), absl::OkStatus());
  clock.Advance(absl::Milliseconds(21));
  view.view = ViewId(2);
  ASSERT_EQ(worker.engine->InstallView(view, group.placement()), absl::OkStatus());
  const auto result = worker.source->Await(number);
  ASSERT_NE(result, nullptr);
  EXPECT_EQ(result->status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(FailureTest, CapacitiesDiffer_TheLeastIsAnnounced) {
  for (const int leader : {0, 1}) {
    TestGroup group(kTiny, 2, {.capacities = {8, 4}});
    ASSERT_NO_FATAL_FAILURE(group.Install(group.placement(), group.LedBy(leader)));
    std::mt19937 random(9);
    std::vector<std::pair<Job, int>> open[2];
    for (int w = 0; w < 2; ++w) {
      for (int i = 0; i < 3; ++i) {
        const Job job = RandomJob(random, 5);
        open[w].emplace_back(job, group.worker(w)->source->Submit(job));
      }
    }
    for (int w = 0; w < 2; ++w) {
      for (const auto& [job, number] : open[w]) {
        ASSERT_NO_FATAL_FAILURE(ExpectRight(group.worker(w)->source->Await(number).get(), job));
      }
      EXPECT_TRUE(group.worker(w)->events.losses().empty());
    }
  }
}

// A copy of the tiny model in which the embedding of one token is NaN.
std::string ModelWithBadToken(int32_t token) {
  const std::filesystem::path dir = std::filesystem::path(::testing::TempDir()) / "bad_token";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir);
  for (const auto& file : std::filesystem::directory_iterator(kTiny)) {
    std::ifstream in(file.path(), std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(in), {}};
    if (file.path().filename() == "model.safetensors") {
      const auto good = TestWorker::Value(Checkpoint::Open(kTiny));
      const std::span<const std::byte> data = TestWorker::Value(good->Find("model.embed_tokens.weight")).data;
      const size_t at = bytes.find(std::string(reinterpret_cast<const char*>(data.data()), data.size()));
      BALLAST_CHECK(at != std::string::npos) << file.path();
      const size_t row = data.size() / good->config().vocab_size;
      std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at + row * token), row, '\xff');
    }
    std::ofstream(dir / file.path().filename(), std::ios::binary) << bytes;
  }
  return dir.string();
}

TEST_F(FailureTest, RowThatIsNotFinite_EndsItsOwnRequestOnly) {
  constexpr int32_t kBad = 5;
  TestGroup group(ModelWithBadToken(kBad), 2);
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  const int guilty = group.worker(0)->source->Submit({.tokens = {1, kBad, 2}});
  std::vector<std::pair<Job, int>> open[2];
  for (int w = 0; w < 2; ++w) {
    for (int32_t i = 0; i < 4; ++i) {
      const Job job{.tokens = {6 + i, 7, 8}};
      open[w].emplace_back(job, group.worker(w)->source->Submit(job));
    }
  }
  const auto result = group.worker(0)->source->Await(guilty);
  ASSERT_NE(result, nullptr);
  EXPECT_EQ(result->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(result->status.message()), HasSubstr("routing weight of layer 0 expert"));
  for (int w = 0; w < 2; ++w) {
    for (const auto& [job, number] : open[w]) {
      const auto innocent = group.worker(w)->source->Await(number);
      ASSERT_NE(innocent, nullptr);
      EXPECT_EQ(innocent->status, absl::OkStatus());
    }
    EXPECT_TRUE(group.worker(w)->events.losses().empty());
  }
}

TEST_F(FailureTest, IdleGroup_Sleeps) {
  TestGroup group(kTiny, 4);
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  std::mt19937 random(6);
  const Job job = RandomJob(random, 5);
  for (int w = 0; w < 4; ++w) {
    const auto result = Run(*group.worker(w), job);
    ASSERT_NO_FATAL_FAILURE(ExpectRight(result.get(), job));
  }
  int64_t polls[4];
  for (int w = 0; w < 4; ++w) polls[w] = group.worker(w)->source->polls();
  // Tens of milliseconds of something else.
  for (int i = 0; i < 20; ++i) static_cast<void>(Reference(model_, RandomJob(random, 10)));
  for (int w = 0; w < 4; ++w) EXPECT_LE(group.worker(w)->source->polls() - polls[w], 4) << w;
}

TEST_F(FailureTest, ViewRequests_AreChecked) {
  TestGroup group(kTiny, 2);
  StepEngine& engine = *group.worker(0)->engine;
  const auto refusal = [&](GroupView view) {
    return std::string(engine.InstallView(std::move(view), group.placement()).message());
  };
  EXPECT_THAT(refusal({.view = ViewId(1)}), HasSubstr("no members"));
  EXPECT_THAT(refusal({.view = ViewId(1), .members = {{.worker = "w0"}}, .rank = 1}), HasSubstr("rank is 1"));
  EXPECT_THAT(refusal({.view = ViewId(1), .members = {{.worker = "w1"}}}),
              HasSubstr("rank 0 is w1, not this worker, w0"));
  EXPECT_THAT(refusal({.view = ViewId(1), .members = {{.worker = "w0"}, {.worker = "w0"}}}),
              HasSubstr("ranks 0 and 1"));
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  EXPECT_THAT(refusal({.view = ViewId(1), .members = {{.worker = "w0"}}}),
              HasSubstr("view 1 is not newer than view 1"));
  // Only the leader announces, and only what is prepared.
  const PlacementVersion next{Epoch(2), SharesVersion(1)};
  EXPECT_EQ(engine.CommitVersion(next).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(group.worker(1)->engine->CommitVersion(next), absl::OkStatus());
  EXPECT_EQ(engine.CommitVersion(VersionOf(group.placement())), absl::OkStatus());
}

TEST_F(FailureTest, UnusablePlacement_IsReportedAndTheNextViewWorks) {
  TestGroup group(kTiny, 1);
  Placement bad = group.placement();
  bad.replicas.pop_back();
  const GroupView view{.view = ViewId(1), .members = {{.worker = "w0"}}};
  ASSERT_EQ(group.worker(0)->engine->InstallView(view, bad), absl::OkStatus());
  EXPECT_EQ(group.worker(0)->events.AwaitInstalled(ViewId(1)).code(), absl::StatusCode::kInvalidArgument);
  const GroupView next{.view = ViewId(2), .members = {{.worker = "w0"}}};
  ASSERT_EQ(group.worker(0)->engine->InstallView(next, group.placement()), absl::OkStatus());
  EXPECT_EQ(group.worker(0)->events.AwaitInstalled(ViewId(2)), absl::OkStatus());
}

TEST_F(FailureTest, StopWhileConnecting_EndsAtOnce) {
  TestGroup group(kTiny, 2);
  const GroupView view{.view = ViewId(1), .members = {{.worker = "w0"}, {.worker = "w1"}}};
  // w1 never comes.
  ASSERT_EQ(group.worker(0)->engine->InstallView(view, group.placement()), absl::OkStatus());
  group.Kill(0);
}

// Random events in random order; whatever happens, an answer is right or UNAVAILABLE, and in the end all are served.
TEST_F(FailureTest, RandomEvents) {
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    std::mt19937 random(seed);
    TestGroup group(kTiny, 4, {}, seed);
    ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
    std::vector<std::tuple<Job, int, int>> open;
    uint64_t epoch = 1;
    const auto drain = [&](int worker, bool may_fail) {
      for (const auto& [job, w, number] : open) {
        if (w != worker && worker >= 0) continue;
        const auto result = group.worker(w)->source->Await(number);
        ASSERT_NE(result, nullptr);
        if (may_fail && !result->status.ok()) {
          ASSERT_EQ(result->status.code(), absl::StatusCode::kUnavailable);
        } else {
          ASSERT_NO_FATAL_FAILURE(ExpectRight(result.get(), job));
        }
      }
      std::erase_if(open, [&](const auto& o) { return worker < 0 || std::get<1>(o) == worker; });
    };
    bool complete = true;
    for (int event = 0; event < 40; ++event) {
      switch (random() % 5) {
        case 0:
        case 1: {  // a request
          const int w = static_cast<int>(random() % 4);
          if (group.worker(w) == nullptr) break;
          const Job job = RandomJob(random, static_cast<int>(random() % 8));
          open.emplace_back(job, w, group.worker(w)->source->Submit(job));
          break;
        }
        case 2: {  // a rollout
          if (!complete) break;
          const Placement next =
              RandomPlacement(group.checkpoint(), group.names(), &group.placement(), ++epoch, random);
          ASSERT_NO_FATAL_FAILURE(group.Prepare(next));
          if (random() % 4 == 0) {
            for (int w = 0; w < 4; ++w) group.worker(w)->store->Abort(next.epoch);
          } else {
            ASSERT_NO_FATAL_FAILURE(group.Commit(next));
          }
          break;
        }
        case 3: {  // a death, with its requests, and the next view
          if (!complete) break;
          const int w = static_cast<int>(random() % 4);
          std::erase_if(open, [&](const auto& o) { return std::get<1>(o) == w; });
          group.Kill(w);
          ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
          complete = false;
          break;
        }
        case 4: {  // a return
          if (complete) break;
          ASSERT_NO_FATAL_FAILURE(drain(-1, /*may_fail=*/true));
          for (int w = 0; w < 4; ++w) {
            if (group.worker(w) == nullptr) group.Restart(w);
          }
          std::vector<int> order = {0, 1, 2, 3};
          std::shuffle(order.begin(), order.end(), random);
          ASSERT_NO_FATAL_FAILURE(group.Install(group.placement(), order));
          complete = true;
          break;
        }
      }
    }
    ASSERT_NO_FATAL_FAILURE(drain(-1, /*may_fail=*/true));
  }
}

// Counts and balancedness add up over ranks, with discarded steps in between.
TEST_F(FailureTest, Counters_CountEachTokenOnce) {
  std::mt19937 random(8);
  TestGroup group(kTiny, 3);
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  int64_t rows = 0;
  std::vector<std::pair<int, int>> open;
  for (int i = 0; i < 30; ++i) {
    const Job job = RandomJob(random, 4);
    rows += static_cast<int64_t>(job.tokens.size()) + 4;
    open.emplace_back(i % 3, group.worker(i % 3)->source->Submit(job));
    if (i % 10 == 5) {
      ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
    }
  }
  for (const auto& [w, number] : open) ASSERT_NE(group.worker(w)->source->Await(number), nullptr);
  int64_t tokens = 0;
  int64_t pairs = 0;
  double mass = 0;
  for (int w = 0; w < 3; ++w) {
    const LoadWindow window = group.worker(w)->counters.Take();
    for (const TaskCount& task : window.tasks) tokens += task.prefill_tokens + task.decode_tokens;
    for (const LoadCount& count : window.counts) {
      pairs += count.tokens;
      mass += count.gate_mass;
    }
    for (const double b : group.worker(w)->events.balancedness()) {
      EXPECT_GT(b, 0);
      EXPECT_LE(b, 1);
    }
    EXPECT_EQ(window.balance[0].steps + window.balance[1].steps > 0, w == 0);
  }
  const ModelConfig& config = model_.config();
  EXPECT_EQ(tokens, rows);
  EXPECT_EQ(pairs, rows * config.num_moe_layers() * config.experts_per_token);
  // Renormalised weights sum to one a token and layer.
  EXPECT_NEAR(mass, static_cast<double>(rows * config.num_moe_layers()), 1e-2);
}

}  // namespace
}  // namespace ballast
