// How far tokens travel and how level the workers are, by one definition for every placement.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_HOPS_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_HOPS_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "controller/planner/grouping/routes.h"
#include "controller/planner/topology.h"
#include "proto/placement/quotas.h"

namespace ballast {

// Loads of workers are pairs over speed; MaxVio = (max - mean) / mean, Jain = (sum)^2 / (workers * sum of squares).
struct BalanceScore {
  // Of each layer, then averaged over layers: what a layer's time sees. The worst layer's MaxVio.
  double maxvio_layer = 0;
  double jain_layer = 1;
  double maxvio_worst_layer = 0;
  // Of the loads summed over layers: the published form, which says little, as layers cancel each other out.
  double maxvio_all = 0;
  double jain_all = 1;
};

struct HopScore {
  // Empty: the mix.
  std::string task;
  // A token's mean, summed over layers: the distinct workers that hold the replicas it uses, less one ("Comm" of the
  // paper on task-conditioned grouping); those of them that are not its own; and those that are on another node.
  double hops = 0;
  double copies = 0;
  double cross_node = 0;
  BalanceScore balance;
};

// Collects what tokens use, layer by layer. One thread.
class HopCounter {
 public:
  // Tasks, layers and their weights as in `routes`, which, as `topology`, must outlive it.
  HopCounter(const Routes& routes, const Topology& topology);
  // A token of `task` in `layer`, at home on `source`, uses the workers of `ranks` for its pairs; -1: no pair.
  void Add(int32_t layer, int32_t task, int32_t source, std::span<const int32_t> ranks);
  // The mix first, then every task. The mix's loads and hops are the tasks' shares of them by weight.
  std::vector<HopScore> Scores() const;

 private:
  struct Sum {
    int64_t tokens = 0;
    int64_t hops = 0;
    int64_t copies = 0;
    int64_t cross_node = 0;
  };
  const Routes& routes_;
  const Topology& topology_;
  std::vector<Sum> sum_;        // [layers][tasks]
  std::vector<int64_t> pairs_;  // [layers][tasks][workers]
  std::vector<int32_t> seen_;   // [workers], the token that was there last
  int32_t token_ = 0;
};

// A placement's layers, by the workers' own dispatch (quotas.h): all tokens of a layer in steps of `step_tokens` a
// worker (0: in one), taking the tasks in turn, token t of a task at home on worker t mod workers; every worker's
// counts are split by the tables' weights, and among the assignments that meet these quotas one that stays where the
// token is. Every expert needs a replica.
std::vector<HopScore> ScoreHops(std::span<const DispatchTable> layers, const Routes& routes, const Topology& topology,
                                int32_t step_tokens = 0);

// What uniformly random placement costs, a token and layer: the expected number of distinct workers of a token that
// chooses `top_k` of all experts, sizes [workers] being the experts on each, less one.
double RandomPlacementHops(std::span<const int32_t> sizes, int32_t top_k);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_HOPS_H_
