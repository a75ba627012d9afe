// Shapes that nobody deploys, and that must not keep the planner busy for minutes: every kind of plan on them but for
// bursts, most in a fraction of a second. One that is not bounded by work runs into the test's limit.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/failure.h"
#include "controller/planner/level.h"
#include "controller/planner/planner.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

struct Shape {
  int32_t experts = 0;
  int32_t workers = 0;
  int32_t slots = 0;
};

class OddShapes : public ::testing::TestWithParam<Shape> {
 protected:
  static constexpr int32_t kLayers = 3;

  // A layer by Zipf's law from expert `first` on, one whose load is all on `first`, and one without load.
  static LoadMatrix Load(int32_t experts, int32_t first, double exponent) {
    LoadMatrix load(kLayers, experts);
    for (int32_t e = 0; e < experts; ++e) {
      load.layer(0)[(e + first) % experts] = std::floor(1e6 / std::pow(e + 1, exponent));
    }
    load.layer(1)[first % experts] = 1e6;
    return load;
  }

  void SetUp() override {
    const Shape shape = GetParam();
    request_.scenarios = {{"a", 1, Load(shape.experts, 0, 1)}};
    request_.topology = UniformTopology(shape.workers, std::min(shape.workers, 3), shape.slots * kLayers);
    request_.slots_per_layer = shape.slots;
    request_.expert_bytes = 1000;
  }

  static std::vector<SlotCapacity> Capacities(const Topology& topology) {
    std::vector<SlotCapacity> out;
    for (const TopologyWorker& w : topology.workers) out.push_back(w.capacity);
    return out;
  }

  static void Check(const PlanRequest& request, const absl::StatusOr<Plan>& plan) {
    ASSERT_TRUE(plan.ok()) << plan.status();
    const absl::Status sound = Validate(plan->placement, Capacities(request.topology));
    ASSERT_TRUE(sound.ok()) << sound;
    for (const LoadScore& score : plan->predicted) {
      ASSERT_TRUE(score.balancedness > 0 && score.balancedness_solved <= score.upper_bound * (1 + 1e-6));
      ASSERT_GE(score.balancedness_solved, score.balancedness * (1 - 1e-6));
    }
  }

  // From the placement of another load.
  PlanRequest FromAnother() const {
    PlanRequest request = request_;
    request.scenarios[0].load = Load(GetParam().experts, 1, 3);
    auto plan = MakePlan(EplbPolicy(1, Split::kEqual), request);
    EXPECT_TRUE(plan.ok()) << plan.status();
    request.scenarios = request_.scenarios;
    request.current = std::move(plan->placement);
    return request;
  }

  PlanRequest request_;
};

TEST_P(OddShapes, EveryPolicyPlans) {
  const CostAwarePolicy shares;
  Check(request_, MakePlan(EplbPolicy(1, Split::kEqual), request_));
  Check(request_, MakePlan(EplbPolicy(1, Split::kSolved), request_));
  Check(request_, MakePlan(shares, request_));
  Check(request_, MakePlan(CostAwarePolicy(0, Split::kEqual), request_));
  PlanRequest two = request_;
  two.scenarios.push_back({"b", 1, Load(GetParam().experts, 1, .5)});
  Check(two, MakePlan(shares, two));
}

TEST_P(OddShapes, WorkersMayDiffer) {
  PlanRequest request = request_;
  request.slots_per_layer = 0;
  for (size_t w = 0; w < request.topology.workers.size(); ++w) {
    TopologyWorker& worker = request.topology.workers[w];
    worker.capacity.slots += kLayers * static_cast<int32_t>(w % 2);
    worker.speed = static_cast<uint32_t>(1 + w % 3);
  }
  Check(request, MakePlan(CostAwarePolicy(), request));
}

TEST_P(OddShapes, ReplicasByNeed) {
  const int32_t once = kLayers * GetParam().experts;
  const int32_t one_each = (once + GetParam().workers - 1) / GetParam().workers;
  PlanRequest request = request_;
  request.slots_per_layer = 0;
  request.replicas_per_worker = std::min(GetParam().slots, once - one_each);
  request.topology = UniformTopology(GetParam().workers, 1, one_each + *request.replicas_per_worker);
  Check(request, MakePlan(CostAwarePolicy(), request));
  Check(request, MakePlan(CraftPolicy(), request));
}

TEST_P(OddShapes, ChangesOfWhatIsInForce) {
  PlanRequest request = FromAnother();
  for (const Split split : {Split::kSolved, Split::kEqual}) {
    const CostAwarePolicy policy(0, split);
    request.move_budget.max_moves = 0;
    Check(request, MakePlan(policy, request));
    for (const int64_t moves : {int64_t{8}, int64_t{1} << 40}) {
      request.move_budget.max_moves = moves;
      const auto plan = MakePlan(policy, request);
      Check(request, plan);
      ASSERT_LE(plan->moves, moves);
      ASSERT_LE(plan->objective, plan->objective_now);
    }
  }
}

TEST_P(OddShapes, WorkersThatFail) {
  PlanRequest request = FromAnother();
  const size_t all = request.topology.workers.size();
  for (const size_t left : {(all + 1) / 2, (all + 7) / 8}) {
    request.topology.workers.resize(left);
    request.move_budget.max_moves = left == (all + 1) / 2 ? 0 : 1 << 20;
    const auto failure = PlanFailure(request);
    ASSERT_TRUE(failure.ok()) << failure.status();
    if (failure->without_replica.empty()) Check(request, failure->plan);
  }
}

INSTANTIATE_TEST_SUITE_P(Grid, OddShapes,
                         ::testing::Values(Shape{1, 1, 1}, Shape{1, 10'000, 1}, Shape{2, 1, 2}, Shape{2, 1000, 2},
                                           Shape{8, 10'000, 1}, Shape{8, 10'000, 2}, Shape{8, 1000, 8},
                                           Shape{64, 31, 64}, Shape{64, 320, 9}, Shape{64, 10'000, 1},
                                           Shape{512, 1000, 2}, Shape{1024, 1, 1024}, Shape{1024, 31, 64}),
                         [](const auto& shape) {
                           return std::to_string(shape.param.experts) + "ExpertsOn" +
                                  std::to_string(shape.param.workers) + "WorkersOf" + std::to_string(shape.param.slots);
                         });

}  // namespace
}  // namespace ballast
