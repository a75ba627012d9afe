#include "controller/planner/level.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/nodes.h"
#include "controller/planner/polish.h"
#include "controller/planner/search.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// What a layer is tried with for one entry of the knapsack's table.
constexpr int64_t kTrialProposals = 60'000;
// More replicas are not tried where a layer is as level as this.
constexpr double kLevel = 1.001;

LayerProblem Problem(const PlanRequest& request, int32_t layer) {
  LayerProblem problem;
  for (const Scenario& s : request.scenarios) {
    problem.tokens.emplace_back(s.load.layer(layer).begin(), s.load.layer(layer).end());
  }
  problem.speed = Speeds(request.topology);
  return problem;
}

// The best packs for equal split. `tokens` stand for all scenarios.
Packs Search(const LayerProblem& problem, std::span<const double> tokens, std::span<const int32_t> slots,
             int64_t proposals) {
  Packs packs = PackGreedily(tokens, slots, problem.speed);
  if (std::adjacent_find(slots.begin(), slots.end(), std::not_equal_to<>()) == slots.end()) {
    // EPLB's choices differ a little from the greedy ones: what it finds is never lost.
    Packs eplb = EplbPacks(tokens, static_cast<int32_t>(slots.size()), slots[0]);
    if (Imbalance(problem, eplb) < Imbalance(problem, packs)) packs = std::move(eplb);
  }
  ImprovePacks(problem, {.proposals = proposals}, packs);
  return packs;
}

// [layers][workers] slots under the request's budget: to the layers that gain most by them.
absl::StatusOr<std::vector<std::vector<int32_t>>> SlotsByNeed(const PlanRequest& request, const LoadMatrix& blend,
                                                              int64_t proposals) {
  BALLAST_ASSIGN_OR_RETURN(const ReplicaBudget budget, BudgetOf(request));
  const auto workers = static_cast<int64_t>(request.topology.workers.size());
  const std::vector<int32_t> sizes =
      ReplicaSizes(static_cast<int32_t>(std::min({2 * workers, blend.experts * (workers - 1), budget.replicas})));
  std::vector<std::vector<double>> cost(blend.layers);
  for (int32_t l = 0; l < blend.layers; ++l) {
    const LayerProblem problem = Problem(request, l);
    for (const int32_t size : sizes) {
      if (cost[l].empty() || cost[l].back() > kLevel) {
        const int32_t replicas[] = {blend.experts + size};
        const auto slots = SpreadSlots(replicas, budget.slots, blend.experts);
        const Packs packs = Search(problem, blend.layer(l), slots[0],
                                   proposals > 0 ? std::min(proposals, kTrialProposals) : kTrialProposals);
        const double trial = Imbalance(problem, packs);
        // A search cut short may do worse with more: fewer would do then.
        cost[l].push_back(cost[l].empty() ? trial : std::min(trial, cost[l].back()));
      } else {
        cost[l].push_back(cost[l].back());
      }
    }
  }
  std::vector<int32_t> replicas = AllocateReplicas(cost, sizes, budget.replicas);
  for (int32_t& r : replicas) r += blend.experts;
  return SpreadSlots(replicas, budget.slots, blend.experts);
}

// [workers] a number for each pair of speed and slots: packs may change places within one.
std::vector<int32_t> Kinds(const Topology& topology, std::span<const int32_t> slots) {
  std::map<std::pair<uint32_t, int32_t>, int32_t> numbers;
  std::vector<int32_t> out;
  for (size_t w = 0; w < slots.size(); ++w) {
    const auto next = static_cast<int32_t>(numbers.size());
    out.push_back(numbers.emplace(std::pair(topology.workers[w].speed, slots[w]), next).first->second);
  }
  return out;
}

}  // namespace

absl::StatusOr<std::vector<DispatchTable>> CostAwarePolicy::Place(const PlanRequest& request) const {
  const LoadMatrix blend = Blend(request.scenarios);
  const bool equal_split = request.scenarios.size() > 1 || split_ == Split::kEqual;
  const bool served_with_shares = request.scenarios.size() > 1 && split_ == Split::kSolved;
  const bool budget = request.replicas_per_worker.has_value();
  std::vector<std::vector<int32_t>> slots;  // [layers][workers]
  if (budget) {
    BALLAST_ASSIGN_OR_RETURN(slots, SlotsByNeed(request, blend, proposals_));
  } else {
    BALLAST_ASSIGN_OR_RETURN(std::vector<int32_t> each, SlotsOfWorkers(request));
    slots.assign(blend.layers, std::move(each));
  }
  std::vector<DispatchTable> current;
  if (request.current) current = Onto(*request.current, request.topology);
  const std::vector<uint32_t> speed = Speeds(request.topology);
  std::set<int32_t> nodes;
  for (const TopologyWorker& w : request.topology.workers) nodes.insert(w.node);
  std::vector<DispatchTable> tables;
  for (int32_t l = 0; l < blend.layers; ++l) {
    if (!equal_split && !budget && current.empty() && nodes.size() == 1) {
      // Packs stay where they are made.
      tables.push_back(LevelTable(blend.layer(l), slots[l], speed));
      continue;
    }
    Packs packs = equal_split || budget ? Search(Problem(request, l), blend.layer(l), slots[l], proposals_)
                                        : PlaceLevel(blend.layer(l), slots[l], speed);
    if (served_with_shares) PolishForShares(Problem(request, l), {}, packs);
    const std::vector<int32_t> kinds = Kinds(request.topology, slots[l]);
    if (!current.empty()) packs = Relabel(packs, current[l], kinds);
    if (nodes.size() > 1) {
      DispatchTable table = ToTable(packs, blend.experts);
      if (equal_split) {
        table.weight.assign(table.weight.size(), 1);
      } else {
        SolveWeights(blend.layer(l), speed, static_cast<int32_t>(packs.size()), table);
      }
      SpreadOverNodes(table, blend.layer(l), request.topology, kinds, current.empty() ? nullptr : &current[l], packs);
    }
    tables.push_back(ToTable(packs, blend.experts));
    if (equal_split) tables.back().weight.assign(tables.back().weight.size(), 1);
  }
  return tables;
}

}  // namespace ballast
