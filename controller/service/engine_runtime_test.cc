// Engines with a store that may end between any two batches.
#include "controller/service/engine_runtime.h"

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "controller/planner/level.h"
#include "controller/service/gauges.h"
#include "controller/store/flaky_store.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"

namespace ballast {
namespace {

constexpr int32_t kLayers = 2;
constexpr int32_t kExperts = 8;

// Remembers what a crash behind each batch would leave.
class CrashStore final : public Store {
 public:
  absl::Status Apply(std::span<const StoreWrite> writes) override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    const absl::Status status = store_.Apply(writes);
    left_.push_back(store_.contents());
    return status;
  }
  absl::StatusOr<std::optional<std::string>> Get(std::string_view key) const override { return store_.Get(key); }
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> List(std::string_view prefix) const override {
    return store_.List(prefix);
  }
  std::vector<std::map<std::string, std::string, std::less<>>> left() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return left_;
  }

 private:
  MemoryStore store_;
  Mutex mu_;
  std::vector<std::map<std::string, std::string, std::less<>>> left_ BALLAST_GUARDED_BY(mu_);
};

class Engines {
 public:
  explicit Engines(Store& store) {
    EngineRuntime::Options options;
    options.group.planning.min_tokens = 1000;
    options.planner = [](const PlanRequest& request) {
      return MakePlan(CostAwarePolicy(0, CostAwarePolicy::Split::kEqual), request);
    };
    auto runtime = EngineRuntime::Start(std::move(options), store, clock_, metrics_);
    EXPECT_TRUE(runtime.ok()) << runtime.status();
    runtime_ = *std::move(runtime);
  }
  EngineRuntime* operator->() { return runtime_.get(); }

  absl::StatusOr<v1::RegisterEngineResponse> Register(int32_t slots_per_layer) {
    v1::RegisterEngineRequest request;
    v1::Engine& engine = *request.mutable_engine();
    engine.set_name("e");
    engine.set_num_layers(kLayers);
    engine.set_num_experts(kExperts);
    engine.set_slots_per_layer(slots_per_layer);
    for (int i = 0; i < 4; ++i) engine.add_workers()->set_name(absl::StrCat("gpu", i));
    request.set_replace(true);
    request.set_reporter("rank0");
    request.set_report_stream(static_cast<uint64_t>(slots_per_layer));
    return runtime_->Register(request);
  }
  // Reports once in the stream of this definition; the epoch of the placement that is planned for it.
  uint64_t EpochAfterAReport(int32_t slots_per_layer) {
    v1::ReportLoadRequest request;
    request.set_engine("e");
    request.set_reporter("rank0");
    request.set_report_stream(static_cast<uint64_t>(slots_per_layer));
    v1::LoadReport& report = *request.mutable_report();
    report.set_sequence(1);
    report.add_task_tokens()->set_decode_tokens(80'000);
    for (int32_t l = 0; l < kLayers; ++l) {
      for (int32_t e = 0; e < kExperts; ++e) {
        v1::LoadCount& count = *report.add_counts();
        count.set_layer(l);
        count.set_expert(e);
        count.set_phase(v1::PHASE_DECODE);
        count.set_tokens(80'000 / (e + 1));
      }
    }
    const auto reported = runtime_->Report(request);
    EXPECT_TRUE(reported.ok()) << reported.status();
    if (!reported.ok()) return 0;
    const auto placed = runtime_->Placement("e", 0, absl::InfiniteFuture());
    EXPECT_TRUE(placed.ok()) << placed.status();
    return placed.ok() ? placed->placement().epoch() : 0;
  }

 private:
  SimulatedClock clock_;
  Metrics metrics_{ControllerMetrics()};
  std::unique_ptr<EngineRuntime> runtime_;
};

TEST(EngineRuntime, EpochsGrowOverANewDefinitionWhereverTheControllerDies) {
  CrashStore store;
  size_t before = 0;
  {
    Engines engines(store);
    ASSERT_TRUE(engines.Register(3).ok());
    ASSERT_EQ(engines.EpochAfterAReport(3), 1u);
    before = store.left().size();
    const auto replaced = engines.Register(4);
    ASSERT_TRUE(replaced.ok()) << replaced.status();
    EXPECT_EQ(replaced->status().window_tokens(), 0);
  }
  const auto left = store.left();
  ASSERT_GT(left.size(), before);
  for (size_t i = before; i < left.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "the controller dies behind batch " << i);
    MemoryStore survivor(left[i]);
    Engines engines(survivor);
    // The engine asks again, as its answer is lost.
    const auto again = engines.Register(4);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(engines.EpochAfterAReport(4), 2u);
  }
}

TEST(EngineRuntime, EpochsGrowOverRemovalAndARestart) {
  MemoryStore store;
  {
    Engines engines(store);
    ASSERT_TRUE(engines.Register(3).ok());
    ASSERT_EQ(engines.EpochAfterAReport(3), 1u);
    ASSERT_TRUE(engines->Remove("e").ok());
    EXPECT_EQ(engines->Describe("e").status().code(), absl::StatusCode::kNotFound);
    ASSERT_TRUE(engines.Register(3).ok());
    EXPECT_EQ(engines.EpochAfterAReport(3), 2u);
    ASSERT_TRUE(engines->Remove("e").ok());
  }
  Engines engines(store);
  ASSERT_TRUE(engines.Register(3).ok());
  EXPECT_EQ(engines.EpochAfterAReport(3), 3u);
}

TEST(EngineRuntime, AReplacementThatCannotBeStoredChangesNothing) {
  FlakyStore store;
  Engines engines(store);
  ASSERT_TRUE(engines.Register(3).ok());
  ASSERT_EQ(engines.EpochAfterAReport(3), 1u);
  store.broken = true;
  EXPECT_EQ(engines.Register(4).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engines->Remove("e").code(), absl::StatusCode::kUnavailable);
  store.broken = false;
  const auto status = engines->Describe("e");
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->engine().slots_per_layer(), 3);
  EXPECT_EQ(status->epoch(), 1u);
  EXPECT_EQ(status->window_tokens(), 80'000);
}

TEST(EngineRuntime, CountsOfANewDefinitionAreAnotherGeneration) {
  MemoryStore store;
  Engines engines(store);
  ASSERT_TRUE(engines.Register(3).ok());
  engines.EpochAfterAReport(3);
  const auto first = engines->Counted("e");
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->decode[0], 80'000);
  ASSERT_TRUE(engines.Register(3).ok());
  EXPECT_EQ(engines->Counted("e")->generation, first->generation);
  ASSERT_TRUE(engines.Register(4).ok());
  const auto second = engines->Counted("e");
  EXPECT_NE(second->generation, first->generation);
  EXPECT_EQ(second->decode[0], 0);
  ASSERT_TRUE(engines->Remove("e").ok());
  ASSERT_TRUE(engines.Register(4).ok());
  EXPECT_NE(engines->Counted("e")->generation, second->generation);
}

}  // namespace
}  // namespace ballast
