#include "controller/ctl/top.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Two GPUs with 50 and 150 of a layer's tokens, which are 120, 40, 20 and 20 of four experts.
TopView Two() {
  TopView view{.at = absl::FromUnixSeconds(3661), .group = "demo"};
  v1::Group& group = view.groups.emplace_back();
  group.set_name("demo");
  group.set_state(v1::GROUP_STATE_SERVING);
  group.set_mode(v1::GROUP_MODE_APPROVE);
  group.set_policy("cost-aware");
  group.set_epoch(3);
  group.set_size(2);
  group.set_balancedness(0.667);
  group.set_window_tokens(200);
  for (int e = 0; e < 4; ++e) view.placement.add_replicas()->set_expert(e);
  v1::LayerLoad& layer = *view.load.add_layers();
  for (const double tokens : {120, 40, 20, 20}) layer.add_tokens(tokens);
  layer.set_balancedness(0.667);
  for (const char* name : {"gpu-0", "gpu-1"}) {
    view.placement.add_workers(name);
    v1::Worker& worker = view.workers.emplace_back();
    worker.set_name(name);
    worker.set_state(v1::WORKER_STATE_SERVING);
    worker.set_rank(static_cast<int>(view.workers.size()) - 1);
    worker.set_kv_cache_used_ratio(0.25);
    group.mutable_view()->add_members();
  }
  view.workers[0].set_load_ratio(0.25);
  view.workers[1].set_load_ratio(0.75);
  view.workers[0].set_requests_running(2);
  for (const auto& [task, tokens] : {std::pair("code", 30), std::pair("", 170)}) {
    v1::TaskLoad& load = *view.load.add_tasks();
    load.set_task(task);
    load.set_prefill_tokens(tokens);
  }
  return view;
}

TEST(TopText, ShowsAGroupInFull) {
  EXPECT_EQ(TopText(Two(), TopSort::kLoad, {.columns = 120, .lines = 40}),
            "01:01:01 UTC  q quit  g next group  sort by: [l load] r rank n running w waiting k KV\n"
            "\n"
            "  GROUP                     STATE      MODE              EPOCH     GPUS  BALANCEDNESS  TOKENS IN WINDOW  "
            "POLICY\n"
            "> demo                      serving    approve               3      2/2         0.667               200  "
            "cost-aware\n"
            "\n"
            "GPU    LOAD                                                         MEAN=1  STATE         RUN WAIT    KV\n"
            "gpu-1  #############################################                  1.50  serving         0    0   25%\n"
            "gpu-0  ###############               |                                0.50  serving         2    0   25%\n"
            "\n"
            "HOTTEST  LAYER  EXPERT  MEAN=1  REPLICAS\n"
            "      1      0       0     2.4         1\n"
            "      2      0       1     0.8         1\n"
            "      3      0       2     0.4         1\n"
            "      4      0       3     0.4         1\n"
            "\n"
            "LAYER  BALANCEDNESS\n"
            "    0         0.667\n"
            "\n"
            "TASK                      PREFILL TOKENS  DECODE TOKENS\n"
            "(unlabelled)                         170              0\n"
            "code                                  30              0\n");
}

TEST(TopText, SortsGpus) {
  TopView view = Two();
  v1::Worker& gone = view.workers.emplace_back();
  gone.set_name("gone");
  gone.set_state(v1::WORKER_STATE_DEAD);
  gone.set_rank(-1);
  gone.set_requests_waiting(7);
  gone.set_kv_cache_used_ratio(0.5);
  const auto order = [&](TopSort sort) {
    const std::string text = TopText(view, sort, {.columns = 120, .lines = 40});
    std::vector<std::string> names;
    for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
      for (const char* name : {"gpu-0", "gpu-1", "gone"}) {
        if (line.starts_with(name)) names.emplace_back(name);
      }
    }
    return names;
  };
  EXPECT_THAT(order(TopSort::kLoad), ElementsAre("gpu-1", "gpu-0", "gone"));
  EXPECT_THAT(order(TopSort::kRank), ElementsAre("gpu-0", "gpu-1", "gone"));
  EXPECT_THAT(order(TopSort::kRunning), ElementsAre("gpu-0", "gpu-1", "gone"));
  EXPECT_THAT(order(TopSort::kWaiting), ElementsAre("gone", "gpu-0", "gpu-1"));
  EXPECT_THAT(order(TopSort::kKvCache), ElementsAre("gone", "gpu-0", "gpu-1"));
}

TEST(TopText, ShowsAPlanAndItsMovesInFlight) {
  TopView view = Two();
  v1::GetPlanResponse& plan = view.plan.emplace();
  plan.mutable_plan()->set_id("demo-1");
  plan.mutable_plan()->set_state(v1::PLAN_STATE_PROPOSED);
  plan.mutable_plan()->set_balancedness_before(0.667);
  plan.mutable_plan()->set_balancedness_after(0.98);
  plan.mutable_plan()->set_moves_total(2);
  plan.mutable_plan()->set_waves_total(2);
  plan.mutable_plan()->set_bytes_total(3'000'000);
  for (int i = 0; i < 2; ++i) {
    v1::Move& move = *plan.add_moves();
    move.set_expert(i);
    move.set_destination("gpu-0");
    move.set_bytes(1'500'000);
    plan.add_wave_moves(1);
  }
  plan.mutable_moves(1)->set_source("gpu-1");
  const TopSize size{.columns = 120, .lines = 40};
  EXPECT_THAT(
      TopText(view, TopSort::kLoad, size),
      AllOf(HasSubstr("\nplan demo-1 proposed: balancedness 0.667 to 0.980, 2 moves; ballastctl approve demo-1\n"),
            Not(HasSubstr("IN FLIGHT"))));
  plan.mutable_plan()->set_state(v1::PLAN_STATE_PREPARING);
  EXPECT_THAT(TopText(view, TopSort::kLoad, size),
              HasSubstr("\nIN FLIGHT  LAYER  EXPERT  FROM -> TO\n"
                        "   1.5 MB      0       0  host memory or checkpoint -> gpu-0\n\n"));
  plan.mutable_plan()->set_waves_done(1);
  plan.mutable_plan()->set_moves_done(1);
  plan.mutable_plan()->set_bytes_done(1'500'000);
  EXPECT_THAT(TopText(view, TopSort::kLoad, size),
              AllOf(HasSubstr("preparing: balancedness 0.667 to 0.980, wave 2 of 2, 1 of 2 moves, 1.5 MB of 3.0 MB\n"),
                    HasSubstr("\nIN FLIGHT  LAYER  EXPERT  FROM -> TO\n   1.5 MB      0       1  gpu-1 -> gpu-0\n\n")));
}

TEST(TopText, FitsAnyTerminalAndCountsWhatDoesNot) {
  TopView view = Two();
  for (int i = 2; i < 1024; ++i) view.workers.emplace_back(view.workers[0]).set_name(absl::StrCat("gpu-", i));
  for (const TopSize size : {TopSize{80, 24}, TopSize{40, 10}, TopSize{200, 60}, TopSize{30, 7}, TopSize{1, 1}}) {
    const std::string text = TopText(view, TopSort::kLoad, size);
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), size.lines) << text;
    for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
      EXPECT_LE(line.size(), static_cast<size_t>(size.columns)) << text;
    }
  }
  const std::string text = TopText(view, TopSort::kLoad, {.columns = 80, .lines = 40});
  EXPECT_THAT(text, HasSubstr("and 1008 more\n")) << "GPUs get what the other lists leave";
}

TEST(TopText, SaysWhatIsMissing) {
  TopView view;
  EXPECT_THAT(TopText(view, TopSort::kLoad, {}), HasSubstr("no groups; engines"));
  view.group = "demo";
  view.groups.emplace_back().set_name("demo");
  view.groups[0].set_missing_total(3);
  EXPECT_THAT(TopText(view, TopSort::kLoad, {.columns = 200, .lines = 40}),
              AllOf(HasSubstr("no load in the window\n"), HasSubstr("3 EXPERTS WITHOUT A LIVE REPLICA")));
}

TEST(TopText, NamesCannotCommandTheTerminal) {
  TopView view = Two();
  // The last are U+009B, CSI in one character, and U+00A0, no control.
  view.load.mutable_tasks(0)->set_task("x\033[2J\n\ty\u009b2J\u00a0z");
  const std::string text = TopText(view, TopSort::kLoad, {.columns = 120, .lines = 40});
  EXPECT_THAT(text, AllOf(HasSubstr("\nx?[2J??y?2J\u00a0z "), Not(HasSubstr("\033")), Not(HasSubstr("\u009b"))));
}

// Keys that come at once, and frames that are kept. A '.' lets the time come.
class FakeScreen final : public TopScreen {
 public:
  FakeScreen(SimulatedClock& clock, std::string keys) : clock_(clock), keys_(std::move(keys)) {}
  TopSize size() override { return {.columns = 120, .lines = 40}; }
  void Draw(const std::string& frame) override { frames.push_back(frame); }
  std::optional<char> Key(absl::Time deadline) override {
    const char key = keys_.at(next_++);
    if (key != '.') return key;
    clock_.Advance(deadline - clock_.Now());
    return std::nullopt;
  }
  std::vector<std::string> frames;

 private:
  SimulatedClock& clock_;
  const std::string keys_;
  size_t next_ = 0;
};

class RunTopTest : public ::testing::Test {
 protected:
  void Run(const std::string& keys, absl::Status error = absl::OkStatus()) {
    screen_.emplace(clock_, keys);
    const auto look = [this](const std::string& group) {
      TopView view = Two();
      view.at = clock_.Now();
      view.groups.emplace_back().set_name("other");
      if (!group.empty()) view.group = group;
      return view;
    };
    RunTop(
        [this, error, look](const std::string& group) -> absl::StatusOr<TopView> {
          asked_.push_back(group);
          if (asked_.size() < 3 && !error.ok()) return error;
          return look(group);
        },
        "", look(""), absl::Seconds(2), clock_, *screen_);
  }

  SimulatedClock clock_{absl::FromUnixSeconds(0)};
  std::optional<FakeScreen> screen_;
  std::vector<std::string> asked_;
};

TEST_F(RunTopTest, LooksAgainAfterTheIntervalAndNotAtEachKey) {
  Run("r.kx.q");
  EXPECT_THAT(asked_, ElementsAre("", ""));
  EXPECT_THAT(screen_->frames,
              ElementsAre(HasSubstr("00:00:00 UTC"), AllOf(HasSubstr("00:00:00 UTC"), HasSubstr("[r rank]")),
                          AllOf(HasSubstr("00:00:02 UTC"), HasSubstr("[r rank]")),
                          AllOf(HasSubstr("00:00:02 UTC"), HasSubstr("[k KV]")), HasSubstr("[k KV]"),
                          HasSubstr("00:00:04 UTC")));
}

TEST_F(RunTopTest, GoesFromGroupToGroup) {
  Run("g.ggq");
  EXPECT_THAT(asked_, ElementsAre("other", "other", "demo", "other"));
  EXPECT_THAT(screen_->frames.back(), HasSubstr("> other "));
}

TEST_F(RunTopTest, KeepsWhatWasSeenWhenTheControllerIsAway) {
  Run("...q", absl::UnavailableError("nobody there"));
  EXPECT_THAT(screen_->frames, ElementsAre(StartsWith("00:00:00 UTC"),
                                           StartsWith("no answer: nobody there; what follows is what was seen last\n"
                                                      "00:00:00 UTC"),
                                           StartsWith("no answer: nobody there"), StartsWith("00:00:06 UTC")));
}

}  // namespace
}  // namespace ballast
