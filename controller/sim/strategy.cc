#include "controller/sim/strategy.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "proto/base/status_macros.h"

namespace ballast {
namespace {

PlanRequest RequestFor(const Ground& ground, std::vector<Scenario> scenarios) {
  PlanRequest request;
  request.scenarios = std::move(scenarios);
  request.topology = ground.topology;
  request.current = ground.placement;
  request.expert_bytes = ground.expert_bytes;
  return request;
}

class Periodic final : public Strategy {
 public:
  Periodic(PeriodicOptions options, std::unique_ptr<PlannerPolicy> policy)
      : options_(std::move(options)), policy_(std::move(policy)), next_(options_.window) {}
  std::string name() const override { return options_.name; }
  StepSplit split() const override { return StepSplit::kEqual; }

  absl::StatusOr<std::optional<Plan>> Look(const Observed& observed, const Ground& ground, bool moving) override {
    recent_.push_back({observed.step, observed.counts});
    while (recent_.front().first <= observed.step - options_.window) recent_.pop_front();
    if (moving || observed.step < next_) return std::nullopt;
    next_ = options_.every > 0 ? next_ + options_.every : std::numeric_limits<int64_t>::max();
    LoadMatrix sum(observed.counts.layers, observed.counts.experts);
    for (const auto& [step, counts] : recent_) {
      for (size_t i = 0; i < sum.tokens.size(); ++i) sum.tokens[i] += counts.tokens[i];
    }
    PlanRequest request = RequestFor(ground, {{"window", 1, std::move(sum)}});
    request.replicas_per_worker = options_.replicas_per_worker;
    BALLAST_ASSIGN_OR_RETURN(Plan plan, MakePlan(*policy_, request));
    return plan;
  }

 private:
  const PeriodicOptions options_;
  const std::unique_ptr<PlannerPolicy> policy_;
  int64_t next_;
  // With the step that each ends at.
  std::deque<std::pair<int64_t, LoadMatrix>> recent_;
};

class Stay final : public Strategy {
 public:
  explicit Stay(std::string name) : name_(std::move(name)) {}
  std::string name() const override { return name_; }
  StepSplit split() const override { return StepSplit::kEqual; }
  absl::StatusOr<std::optional<Plan>> Look(const Observed&, const Ground&, bool) override { return std::nullopt; }

 private:
  const std::string name_;
};

class Drift final : public Strategy {
 public:
  Drift(DriftStrategyOptions options, std::unique_ptr<PlannerPolicy> policy)
      : options_(std::move(options)), policy_(std::move(policy)), book_(options_.book), next_(options_.warm_up) {}
  std::string name() const override { return options_.name; }
  StepSplit split() const override { return options_.split; }

  absl::StatusOr<std::optional<Plan>> Look(const Observed& observed, const Ground& ground, bool moving) override {
    book_.Add(observed.phase, observed.counts);
    if (options_.measure_bursts) book_.AddStep(observed.phase, observed.first_step);
    if (moving || observed.step < next_) return std::nullopt;
    next_ = observed.step + options_.look_every;
    PlanRequest request = RequestFor(ground, book_.Scenarios());
    request.replicas_per_worker = options_.replicas_per_worker;
    request.move_budget = options_.move_budget;
    request.gate = options_.gate;
    // Bursts that are not planned for are no reason to plan.
    if (auto by_means = ByMeans(request, policy_->split(request))) request = *std::move(by_means);
    const DriftReport drift =
        DetectDrift(ground.placement, ground.topology, request.scenarios, settled_, options_.drift);
    const ReplanState state{
        .seconds_since_plan = static_cast<double>(observed.step - planned_) * observed.seconds_per_step,
        .fruitless = fruitless_};
    if (planned_ >= 0 && !DecideReplan(drift, state, options_.replan).plan) return std::nullopt;
    if (!drift.drifted) return std::nullopt;
    planned_ = observed.step;
    BALLAST_ASSIGN_OR_RETURN(Plan plan, MakePlan(*policy_, request));
    const auto before = Settle(ground.placement, ground.topology, request.scenarios, options_.drift.shares);
    const auto after = Settle(plan.placement, ground.topology, request.scenarios, options_.drift.shares);
    GateInput input = MakeGateInput(request, plan);
    input.gain = MeanGain(before, after);
    if (!Decide(input, options_.gate).worth) {
      ++fruitless_;
      settled_ = before;
      return std::nullopt;
    }
    // A plan that its budget cut short leaves what the next one may take.
    const MoveBudget& budget = options_.move_budget;
    const bool cut_short = (budget.max_moves > 0 && plan.moves >= budget.max_moves) ||
                           (budget.max_bytes > 0 && plan.bytes > budget.max_bytes - ground.expert_bytes);
    settled_ = cut_short ? std::vector<SettledScenario>() : after;
    fruitless_ = 0;
    return plan;
  }

 private:
  const DriftStrategyOptions options_;
  const std::unique_ptr<PlannerPolicy> policy_;
  ScenarioBook book_;
  std::vector<SettledScenario> settled_;
  int64_t next_;
  // The step of the last plan; -1: none yet.
  int64_t planned_ = -1;
  int32_t fruitless_ = 0;
};

}  // namespace

std::unique_ptr<Strategy> PeriodicStrategy(PeriodicOptions options, std::unique_ptr<PlannerPolicy> policy) {
  return std::make_unique<Periodic>(std::move(options), std::move(policy));
}

std::unique_ptr<Strategy> StayStrategy(std::string name) { return std::make_unique<Stay>(std::move(name)); }

std::unique_ptr<Strategy> DriftStrategy(DriftStrategyOptions options, std::unique_ptr<PlannerPolicy> policy) {
  return std::make_unique<Drift>(std::move(options), std::move(policy));
}

}  // namespace ballast
