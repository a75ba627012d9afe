#include "controller/planner/plan_set.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/planner/memory.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

class SetPlanner {
 public:
  SetPlanner(const PlannerPolicy& policy, const PlanRequest& request) : policy_(policy), request_(request) {
    PlanRequest one = request;
    one.scenarios.resize(1);
    split_ = policy.split(one);
  }

  absl::StatusOr<PlanSet> Make(const PlanSetOptions& options) {
    const auto scenarios = static_cast<int32_t>(request_.scenarios.size());
    std::vector<int32_t> everything(scenarios);
    std::iota(everything.begin(), everything.end(), 0);
    PlanSet best;
    BALLAST_ASSIGN_OR_RETURN(PlanSetMember all, Member(everything));
    const std::vector<LoadScore> single = all.plan.predicted;
    best.members.push_back(std::move(all));
    best.worst = Worst(best.members[0]);
    anchor_ = best.members[0].plan.placement;
    if (scenarios > 1 && options.most_plans > 1 && best.worst < options.enough) {
      std::vector<PlanSetMember> alone;
      for (int32_t s = 0; s < scenarios; ++s) {
        BALLAST_ASSIGN_OR_RETURN(PlanSetMember member, Member({s}));
        std::vector<double>& row = cross_.emplace_back();
        for (int32_t t = 0; t < scenarios; ++t) row.push_back(On(member.plan.placement, t));
        alone.push_back(std::move(member));
      }
      for (int32_t k = 2; k <= std::min(options.most_plans, scenarios) && best.worst < options.enough; ++k) {
        BALLAST_ASSIGN_OR_RETURN(PlanSet set, Divide(k, alone));
        if (set.worst > best.worst) best = std::move(set);
      }
    }
    if (best.members.size() > 1) {
      // Made from the anchor, or for one scenario of its part: predicted anew for all of them, from what is in force.
      for (PlanSetMember& member : best.members) {
        BALLAST_ASSIGN_OR_RETURN(member.plan, PlanTo(policy_.name(), For(member.scenarios), member.plan.placement));
      }
    }
    BALLAST_RETURN_IF_ERROR(AddSwitches(best));
    best.split = split_;
    best.single = single;
    return best;
  }

 private:
  absl::StatusOr<PlanSetMember> Member(std::vector<int32_t> scenarios) const {
    PlanRequest request = For(scenarios);
    if (!request.current && !anchor_.workers.empty()) request.current = anchor_;
    BALLAST_ASSIGN_OR_RETURN(Plan plan, MakePlan(policy_, request));
    return PlanSetMember{std::move(scenarios), std::move(plan)};
  }

  PlanRequest For(const std::vector<int32_t>& scenarios) const {
    PlanRequest request = request_;
    request.scenarios.clear();
    for (const int32_t s : scenarios) request.scenarios.push_back(request_.scenarios[s]);
    return request;
  }

  double On(const Placement& placement, int32_t scenario) const {
    return BalancednessOf(ScoreLoad(placement, request_.scenarios[scenario], request_.topology), split_);
  }
  double Worst(const PlanSetMember& member) const {
    double worst = 1;
    for (const int32_t s : member.scenarios) worst = std::min(worst, On(member.plan.placement, s));
    return worst;
  }

  // The worst scenario's balancedness on the best of the medoids, and the sum of all.
  std::pair<double, double> Serve(const std::vector<int32_t>& medoids) const {
    double worst = 1;
    double sum = 0;
    for (size_t s = 0; s < cross_.size(); ++s) {
      const double on = cross_[Best(medoids, s)][s];
      worst = std::min(worst, on);
      sum += on;
    }
    return {worst, sum};
  }
  int32_t Best(const std::vector<int32_t>& medoids, size_t scenario) const {
    return *std::max_element(medoids.begin(), medoids.end(),
                             [&](int32_t a, int32_t b) { return cross_[a][scenario] < cross_[b][scenario]; });
  }

  // Into k parts: medoids by greedy addition, then exchange while that helps; a plan for each part.
  absl::StatusOr<PlanSet> Divide(int32_t k, const std::vector<PlanSetMember>& alone) const {
    const auto scenarios = static_cast<int32_t>(alone.size());
    std::vector<int32_t> medoids;
    const auto best_at = [&](size_t place) {
      std::vector<int32_t> best = medoids;
      for (int32_t s = 0; s < scenarios; ++s) {
        if (std::find(medoids.begin(), medoids.end(), s) != medoids.end()) continue;
        std::vector<int32_t> other = medoids;
        if (place == other.size()) other.push_back(s);
        other[place] = s;
        if (best.size() < other.size() || Serve(other) > Serve(best)) best = std::move(other);
      }
      return best;
    };
    while (static_cast<int32_t>(medoids.size()) < k) medoids = best_at(medoids.size());
    for (bool better = true; better;) {
      better = false;
      for (size_t place = 0; place < medoids.size(); ++place) {
        std::vector<int32_t> other = best_at(place);
        if (Serve(other) <= Serve(medoids)) continue;
        medoids = std::move(other);
        better = true;
      }
    }
    std::sort(medoids.begin(), medoids.end());
    std::vector<std::vector<int32_t>> parts(scenarios);
    for (int32_t s = 0; s < scenarios; ++s) parts[Best(medoids, s)].push_back(s);
    PlanSet set;
    for (int32_t medoid = 0; medoid < scenarios; ++medoid) {
      if (parts[medoid].empty()) continue;
      PlanSetMember member{parts[medoid], alone[medoid].plan};
      if (parts[medoid].size() > 1) {
        BALLAST_ASSIGN_OR_RETURN(PlanSetMember joint, Member(parts[medoid]));
        if (Worst(joint) > Worst(member)) member = std::move(joint);
      }
      set.worst = std::min(set.worst, Worst(member));
      set.members.push_back(std::move(member));
    }
    std::sort(set.members.begin(), set.members.end(),
              [](const PlanSetMember& a, const PlanSetMember& b) { return a.scenarios < b.scenarios; });
    return set;
  }

  absl::Status AddSwitches(PlanSet& set) const {
    for (const PlanSetMember& from : set.members) {
      std::vector<Switch>& row = set.switches.emplace_back();
      for (const PlanSetMember& to : set.members) {
        Switch& change = row.emplace_back();
        if (&from == &to) continue;
        BALLAST_ASSIGN_OR_RETURN(const std::vector<Wave> waves,
                                 PlanWaves(from.plan.placement, Onto(to.plan.placement, request_.topology),
                                           request_.topology, request_.scenarios, request_.waves));
        for (const Wave& wave : waves) change.moves += static_cast<int64_t>(wave.moves.size());
        change.bytes = BytesOf(change.moves, request_.expert_bytes);
        change.waves = static_cast<int64_t>(waves.size());
        change.transfer_seconds = CostOfTransfers(waves, request_.topology, request_.expert_bytes).seconds;
      }
    }
    return absl::OkStatus();
  }

  const PlannerPolicy& policy_;
  const PlanRequest& request_;
  Split split_ = Split::kSolved;
  Placement anchor_;  // what later members keep in place
  // [scenarios][scenarios] balancedness of the plan for one alone under another.
  std::vector<std::vector<double>> cross_;
};

}  // namespace

double BalancednessOf(const LoadScore& score, Split split) {
  return split == Split::kSolved ? score.balancedness_solved : score.balancedness_equal_split;
}

absl::StatusOr<PlanSet> MakePlanSet(const PlannerPolicy& policy, const PlanRequest& request,
                                    const PlanSetOptions& options) {
  if (options.most_plans < 1) {
    return absl::InvalidArgumentError(absl::StrCat("most_plans: ", options.most_plans, "; must be at least 1"));
  }
  if (!(options.enough >= 0 && options.enough <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("enough: ", options.enough, "; must be 0 to 1"));
  }
  BALLAST_RETURN_IF_ERROR(Validate(request));
  return SetPlanner(policy, request).Make(options);
}

absl::StatusOr<Pick> PickMember(const PickInput& input, const LoadMatrix& observed, const GateLimits& gate) {
  const auto members = static_cast<int32_t>(input.members.size());
  if (members == 0) return absl::InvalidArgumentError("plan set: 0 members; at least 1 is needed");
  BALLAST_CHECK(input.names.size() == input.members.size()) << input.names.size() << " names";
  if (input.in_force < -1 || input.in_force >= members) {
    return absl::InvalidArgumentError(
        absl::StrCat("member in force: ", input.in_force, "; must be -1 (none) to ", members - 1));
  }
  const Scenario scenario{"observed", 1, observed};
  BALLAST_RETURN_IF_ERROR(Validate(std::span(&scenario, 1)));
  Pick pick;
  std::vector<double> busiest;
  double tokens = 0;
  for (const double t : observed.tokens) tokens += t;
  for (const Placement& placement : input.members) {
    if (placement.num_layers != observed.layers || placement.num_experts != observed.experts) {
      return absl::InvalidArgumentError(absl::StrCat("plan set: members have ", placement.num_layers, " layers of ",
                                                     placement.num_experts, " experts; the load has ", observed.layers,
                                                     " of ", observed.experts));
    }
    const LoadScore score = ScoreLoad(placement, scenario, input.topology);
    pick.balancedness.push_back(BalancednessOf(score, input.split));
    busiest.push_back(input.split == Split::kSolved ? score.busiest_solved : score.busiest_equal_split);
  }
  const auto best = static_cast<int32_t>(std::min_element(busiest.begin(), busiest.end()) - busiest.begin());
  if (input.in_force < 0) {
    pick.member = best;
    pick.reason = absl::StrFormat("%s has balancedness %.4f, the best of %d", input.names[best],
                                  pick.balancedness[best], members);
    return pick;
  }
  pick.member = input.in_force;
  if (busiest[best] >= busiest[input.in_force]) {
    pick.reason = absl::StrFormat("%s, which is in force, has balancedness %.4f, the best of %d",
                                  input.names[input.in_force], pick.balancedness[input.in_force], members);
    return pick;
  }
  const Switch& change = input.switches[input.in_force][best];
  GateInput decision;
  decision.gain = 1 - busiest[best] / busiest[input.in_force];
  decision.moves = change.moves;
  decision.waves = change.waves;
  decision.transfer_seconds = change.transfer_seconds;
  decision.tokens_per_worker_layer = tokens / observed.layers / static_cast<double>(input.topology.workers.size());
  const GateDecision decided = Decide(decision, gate);
  if (decided.worth) pick.member = best;
  pick.reason = absl::StrFormat("%s has balancedness %.4f, %s, which is in force, %.4f: %s", input.names[best],
                                pick.balancedness[best], input.names[input.in_force], pick.balancedness[input.in_force],
                                decided.reason);
  return pick;
}

}  // namespace ballast
