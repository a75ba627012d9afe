// How an engine enters and leaves views of a model that takes its time with it, or that has lost its device.
#include <functional>
#include <memory>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/step/group_test_util.h"

namespace ballast {
namespace {

using ::testing::Each;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr char kTiny[] = "testdata/qwen3moe-tiny";

// The CPU's model but for what a test sets. Thread-safe where StepModel is, and the setters.
class OddModel final : public StepModel {
 public:
  explicit OddModel(std::unique_ptr<StepModel> model) : model_(std::move(model)) {}

  // From now on Enter waits, for peers that never come, until it is interrupted.
  void set_waits(bool waits) {
    MutexLock lock(mu_);
    waits_ = waits;
  }
  void AwaitWaiting() {
    MutexLock lock(mu_);
    while (!waiting_) BALLAST_CHECK(Clock::Real().WaitUntil(changed_, mu_, Clock::Real().Now() + kTestPatience));
  }
  // Such a wait came to its end by itself.
  bool timed_out() {
    MutexLock lock(mu_);
    return timed_out_;
  }
  // Every Run fails, and the device is gone.
  void set_lost(const absl::Status& lost) {
    MutexLock lock(mu_);
    lost_ = lost;
  }

  const StepModelShape& shape() const override { return model_->shape(); }
  absl::Status Enter(const GroupView& view, Transport* transport, std::shared_ptr<const ReplicaTable> table,
                     absl::Time deadline) override {
    {
      MutexLock lock(mu_);
      waiting_ = waits_;
      changed_.NotifyAll();
      while (waiting_ && !interrupted_) {
        if (Clock::Real().WaitUntil(changed_, mu_, deadline)) continue;
        timed_out_ = true;
        return absl::DeadlineExceededError("nobody came");
      }
      waiting_ = false;
      if (interrupted_) return absl::CancelledError("interrupted");
    }
    return model_->Enter(view, transport, std::move(table), deadline);
  }
  absl::Status Flip(std::shared_ptr<const ReplicaTable> table) override { return model_->Flip(std::move(table)); }
  void Leave() override {
    {
      MutexLock lock(mu_);
      interrupted_ = false;
    }
    model_->Leave();
  }
  void Interrupt() override {
    MutexLock lock(mu_);
    interrupted_ = true;
    changed_.NotifyAll();
  }
  absl::Status Lost() override {
    MutexLock lock(mu_);
    return lost_;
  }
  absl::Status Run(const MoeStep& step, const StepInput& input, float* logits) override {
    {
      MutexLock lock(mu_);
      if (!lost_.ok()) return absl::InternalError("an illegal address");
    }
    return model_->Run(step, input, logits);
  }
  bool begun() const override { return model_->begun(); }
  std::span<const RowFailure> failures() const override { return model_->failures(); }
  const MoeStepStats& stats() const override { return model_->stats(); }
  std::span<const int> late_peers() const override { return model_->late_peers(); }
  bool shared(int layer) const override { return model_->shared(layer); }
  std::optional<ShareComparison> CompareShares(int layer) override { return model_->CompareShares(layer); }
  double SecondsPerPair(int of_rank) const override { return model_->SecondsPerPair(of_rank); }
  void CountStep(LoadCounters& counters) override { model_->CountStep(counters); }

 private:
  const std::unique_ptr<StepModel> model_;
  Mutex mu_;
  CondVar changed_;
  bool waits_ BALLAST_GUARDED_BY(mu_) = false;
  bool waiting_ BALLAST_GUARDED_BY(mu_) = false;
  bool interrupted_ BALLAST_GUARDED_BY(mu_) = false;
  bool timed_out_ BALLAST_GUARDED_BY(mu_) = false;
  absl::Status lost_ BALLAST_GUARDED_BY(mu_);
};

class EnterTest : public ::testing::Test {
 protected:
  EnterTest() {
    group_ =
        std::make_unique<TestGroup>(kTiny, 1, TestWorkerOptions{.wrap_model = [this](std::unique_ptr<StepModel> model) {
                                      auto odd = std::make_unique<OddModel>(std::move(model));
                                      model_ = odd.get();
                                      return odd;
                                    }});
  }

  GroupView View(uint64_t number) const { return {.view = ViewId(number), .members = {{.worker = "w0"}}}; }
  StepEngine& engine() { return *group_->worker(0)->engine; }
  RecordedEvents& events() { return group_->worker(0)->events; }

  OddModel* model_ = nullptr;
  std::unique_ptr<TestGroup> group_;
};

TEST_F(EnterTest, ANewerViewEndsTheEnterThatWaits) {
  model_->set_waits(true);
  ASSERT_EQ(engine().InstallView(View(1), group_->placement()), absl::OkStatus());
  model_->AwaitWaiting();
  model_->set_waits(false);
  ASSERT_EQ(engine().InstallView(View(2), group_->placement()), absl::OkStatus());
  EXPECT_EQ(events().AwaitInstalled(ViewId(2)), absl::OkStatus());
  EXPECT_TRUE(events().AwaitInForce(VersionOf(group_->placement())));
  EXPECT_EQ(engine().view(), ViewId(2));
  EXPECT_FALSE(model_->timed_out());
}

TEST_F(EnterTest, StopEndsTheEnterThatWaits) {
  model_->set_waits(true);
  ASSERT_EQ(engine().InstallView(View(1), group_->placement()), absl::OkStatus());
  model_->AwaitWaiting();
  engine().Stop();
  EXPECT_EQ(engine().view(), ViewId());
  EXPECT_FALSE(model_->timed_out());
}

TEST_F(EnterTest, ALostDeviceIsTold) {
  ASSERT_EQ(engine().InstallView(View(1), group_->placement()), absl::OkStatus());
  ASSERT_EQ(events().AwaitInstalled(ViewId(1)), absl::OkStatus());
  EXPECT_TRUE(events().AwaitInForce(VersionOf(group_->placement())));
  EXPECT_THAT(events().processor_lost(), IsEmpty());
  const absl::Status lost = absl::InternalError("the GPU has faulted");
  model_->set_lost(lost);
  group_->worker(0)->source->Submit({.tokens = {1, 2}, .generate = 1});
  EXPECT_TRUE(events().AwaitLoss(ViewId(1)));
  EXPECT_THAT(events().processor_lost(), Not(IsEmpty()));
  EXPECT_THAT(events().processor_lost(), Each(lost));
}

// A view that fails for another reason says nothing of the device.
TEST_F(EnterTest, AViewThatFailsIsNoLostDevice) {
  ASSERT_EQ(engine().InstallView(View(1), group_->placement()), absl::OkStatus());
  ASSERT_EQ(events().AwaitInstalled(ViewId(1)), absl::OkStatus());
  Placement other = group_->placement();
  other.epoch = Epoch(9);
  other.num_layers += 1;
  ASSERT_EQ(engine().InstallView(View(2), other), absl::OkStatus());
  EXPECT_NE(events().AwaitInstalled(ViewId(2)), absl::OkStatus());
  EXPECT_THAT(events().processor_lost(), IsEmpty());
}

}  // namespace
}  // namespace ballast
