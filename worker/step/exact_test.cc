// Invariant 4, exact: the same bits for 1, 2 and 4 workers, in every placement, composition, with shares of every form,
// and through epoch flips.
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/step/group_test_util.h"

namespace ballast {
namespace {

constexpr char kTrained[] = "testdata/olmoe-9m";
constexpr char kTiny[] = "testdata/qwen3moe-tiny";

class ExactTest : public ::testing::TestWithParam<std::string> {
 protected:
  ExactTest() : model_(GetParam(), /*threads=*/1, /*max_rows=*/64) {
    std::mt19937 random(7);
    for (int i = 0; i < 12; ++i) {
      Job job{.generate = i % 3 == 0 ? 5 : 0, .task = absl::StrCat("task", i % 2)};
      for (int n = 1 + static_cast<int>(random() % 24); n > 0; --n) {
        job.tokens.push_back(static_cast<int32_t>(random() % model_.config().vocab_size));
      }
      jobs_.push_back(job);
      wanted_.push_back(Reference(model_, job));
    }
  }

  // Every job on a random worker; all answers as one process gives them.
  void RunJobs(TestGroup& group, int count, std::mt19937& random) {
    std::vector<std::tuple<int, int, int>> open;
    for (int i = 0; i < count; ++i) {
      const int job = static_cast<int>(random() % jobs_.size());
      const int worker = static_cast<int>(random() % group.size());
      open.emplace_back(job, worker, group.worker(worker)->source->Submit(jobs_[job]));
    }
    for (const auto& [job, worker, number] : open) {
      const auto result = group.worker(worker)->source->Await(number);
      ASSERT_NE(result, nullptr);
      ASSERT_EQ(result->status, absl::OkStatus());
      ASSERT_EQ(result->tokens, wanted_[job].tokens);
      ASSERT_TRUE(SameBits(result->logits, wanted_[job].logits)) << "job " << job << " on worker " << worker;
    }
  }

  // Epochs and shares change while every worker has work.
  void FlipUnderLoad(ShareMode mode, uint64_t flips) {
    TestGroup group(GetParam(), 4, {.step_shares = mode});
    ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
    std::jthread load([&](std::stop_token stop) {
      std::mt19937 random(5);
      while (!stop.stop_requested()) ASSERT_NO_FATAL_FAILURE(RunJobs(group, 8, random));
    });
    std::mt19937 random(3);
    for (uint64_t epoch = 2; epoch <= flips + 1; ++epoch) {
      Placement next = group.placement();
      if (epoch % 5 == 0) {
        // New shares alone.
        next.shares_version = next.shares_version.next();
        for (Replica& r : next.replicas) r.weight = 1 + random() % 5;
      } else {
        next = RandomPlacement(group.checkpoint(), group.names(), &group.placement(), epoch, random);
      }
      // Homes of the jobs' tasks come and go: they choose among replicas.
      next.task_homes.clear();
      if (epoch % 3 != 0) next.task_homes = {{"task0", {{static_cast<int32_t>(random() % 4), 1}}}};
      if (epoch % 4 != 0) next.task_homes.push_back({"task1", {{1, 1}, {3, 2}}});
      ASSERT_NO_FATAL_FAILURE(group.Prepare(next));
      ASSERT_NO_FATAL_FAILURE(RunJobs(group, 1, random));
      ASSERT_NO_FATAL_FAILURE(group.Commit(next));
    }
    load.request_stop();
    load.join();
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(group.worker(i)->source->discards(), 0);
      EXPECT_TRUE(group.worker(i)->events.losses().empty());
    }
    const RecordedEvents& events = group.worker(0)->events;
    if (mode == ShareMode::kCurrent || mode == ShareMode::kPrevious) {
      // The first step has no step before, and a layer may have nothing to share.
      EXPECT_GT(events.layers_in(mode == ShareMode::kCurrent ? ShareForm::kCurrent : ShareForm::kPrevious),
                events.layers_in(ShareForm::kFixed));
    }
    if (mode == ShareMode::kFixed) {
      EXPECT_EQ(events.layers_in(ShareForm::kCurrent) + events.layers_in(ShareForm::kPrevious), 0);
    }
  }

  bool trained() const { return GetParam() == kTrained; }

  TestModel model_;
  std::vector<Job> jobs_;
  std::vector<JobResult> wanted_;
};

TEST_P(ExactTest, OneTwoAndFourWorkers) {
  for (const int workers : {1, 2, 4}) {
    TestGroup group(GetParam(), workers, {.threads = workers == 1 ? 2 : 1});
    ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
    ASSERT_NO_FATAL_FAILURE(RunJobs(group, 24, group.random()));
  }
}

TEST_P(ExactTest, HundredRandomPlacements) {
  for (const int workers : {2, 4}) {
    TestGroup group(GetParam(), workers);
    for (int i = 0; i < 50; ++i) {
      ASSERT_NO_FATAL_FAILURE(
          group.Install(RandomPlacement(group.checkpoint(), group.names(), nullptr, i + 1, group.random()),
                        group.LedBy(i % workers)));
      ASSERT_NO_FATAL_FAILURE(RunJobs(group, trained() ? 5 : 10, group.random())) << "placement " << i;
    }
  }
}

TEST_P(ExactTest, EpochFlipsUnderLoad_WithSharesOfEveryForm) {
  for (const ShareMode mode : kGroupShareModes) FlipUnderLoad(mode, mode == ShareMode::kCurrent ? 50 : 17);
}
TEST_P(ExactTest, IdleGroup_FlipsWithAnEmptyStep) {
  TestGroup group(GetParam(), 4);
  ASSERT_NO_FATAL_FAILURE(group.Install(group.placement()));
  for (uint64_t epoch = 2; epoch <= 4; ++epoch) {
    const Placement next =
        RandomPlacement(group.checkpoint(), group.names(), &group.placement(), epoch, group.random());
    ASSERT_NO_FATAL_FAILURE(group.Prepare(next));
    ASSERT_NO_FATAL_FAILURE(group.Commit(next));
    // Nobody has work, so slots of the old epoch are free and steps are few.
    for (int i = 0; i < 4; ++i) {
      for (const SlotInfo& slot : group.worker(i)->store->slots()) EXPECT_NE(slot.state, SlotState::kDraining);
    }
  }
  EXPECT_LE(group.worker(0)->engine->last_step().value(), 4u);
}

INSTANTIATE_TEST_SUITE_P(Models, ExactTest, ::testing::Values(kTiny, kTrained),
                         [](const auto& info) { return info.param == kTiny ? "Tiny" : "Trained"; });

}  // namespace
}  // namespace ballast
