// How level a placement is under a load, and how level any placement could be.
#ifndef BALLAST_CONTROLLER_PLANNER_SCORE_H_
#define BALLAST_CONTROLLER_PLANNER_SCORE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "controller/planner/load.h"
#include "controller/planner/nodes.h"
#include "controller/planner/topology.h"
#include "proto/placement/placement.h"
#include "proto/placement/quotas.h"
#include "proto/placement/shares.h"

namespace ballast {

// Shares solved for loads, one layer after the other. Not bound to a thread.
class LayerSolver {
 public:
  // `speed` as in Topology; empty: all alike.
  LayerSolver(int32_t workers, std::span<const uint32_t> speed);
  // Returns the balancedness.
  double Solve(const DispatchTable& layer, std::span<const double> tokens);
  // The same, and makes the shares the layer's weights.
  double SolveWeights(std::span<const double> tokens, DispatchTable& layer);

 private:
  const int32_t workers_;
  const std::vector<uint32_t> speed_;
  const double sum_of_speeds_;
  std::optional<ShareSolver> solver_;
  // Scratch.
  std::vector<int64_t> tokens_;  // [experts] as integers
  std::vector<int64_t> flow_;    // [replicas]
};

// One layer. Loads are tokens over speed. A layer without load is level: 1 everywhere.
struct LayerScore {
  // Mean over max of the workers' loads with the placement's weights, and with every expert split equally.
  double balancedness = 1;
  double balancedness_equal_split = 1;
  // With shares solved for this very load. Where the placement's weights or equal split come within 1e-4 of the upper
  // bound they stand in for them.
  double balancedness_solved = 1;
  // No placement of as many replicas on each of these workers can be above it.
  double upper_bound = 1;
  // Load of the busiest worker, with the placement's weights.
  double busiest = 0;
  // Mean load.
  double mean = 0;
  // (sum x)^2 / (n * sum x^2) of the workers' loads, 1 is level; and max over mean, less 1.
  double jain = 1;
  double maxvio = 0;
  // Load of the busiest worker with every expert split equally, with shares solved for this load, and what no placement
  // of as many replicas can be below (see upper_bound).
  double busiest_equal_split = 0;
  double busiest_solved = 0;
  double busiest_bound = 0;
  // The part of (token, expert) pairs that cross nodes, see CrossNodePart (nodes.h).
  double cross_node_part = 0;
  // What `busiest` is expected to be in a single step, at most (bursts.h); `busiest` where no bursts are known.
  double busiest_in_step = 0;
};

// A whole load, with means over the layers that have any.
struct LoadScore {
  std::string scenario;
  std::vector<LayerScore> layers;
  double balancedness = 1;
  double balancedness_equal_split = 1;
  double balancedness_solved = 1;
  double upper_bound = 1;
  double jain = 1;
  double maxvio = 0;
  // The lowest balancedness of a layer, and which.
  double worst = 1;
  int32_t worst_layer = 0;
  // The busiest workers' loads summed over layers: what the steps wait for.
  double busiest = 0;
  // The same for the other splits, and no placement's can be below the last.
  double busiest_equal_split = 0;
  double busiest_solved = 0;
  double busiest_bound = 0;
  // Over all layers' pairs.
  double cross_node_part = 0;
  double busiest_in_step = 0;
};

// Tokens over speed of each worker in one layer, experts split by weight; experts without a replica are left out.
std::vector<double> WorkerLoads(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology);
// The same, experts split equally.
std::vector<double> WorkerLoadsEqualSplit(const DispatchTable& layer, std::span<const double> tokens,
                                          const Topology& topology);

// Whether all weights are 1.
bool SplitsEqually(const DispatchTable& layer);

// Mean over max, 1 when all are zero.
double Balancedness(std::span<const double> loads);

LayerScore ScoreLayer(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology);

// The same for many layers, one after the other. Not bound to a thread.
class LayerScorer {
 public:
  explicit LayerScorer(const Topology& topology);
  // `solved`: the balancedness with shares solved for `tokens` where it is known; 0 where it is not.
  LayerScore Score(const DispatchTable& layer, std::span<const double> tokens, double solved = 0,
                   double burstiness = 0);
  // The same without solving anything: what is said of solved shares is the better of the other splits.
  LayerScore ScoreUnsolved(const DispatchTable& layer, std::span<const double> tokens, double burstiness = 0);
  // LayerScore::busiest_in_step alone.
  double Busiest(const DispatchTable& layer, std::span<const double> tokens, double burstiness = 0);

 private:
  const std::vector<double> speed_;     // [workers]
  const std::vector<uint32_t> speeds_;  // empty: all alike
  const double sum_of_speeds_;
  CrossNodeCounter nodes_;
  LayerSolver solver_;
  // Scratch, [workers].
  std::vector<double> loads_;
  std::vector<int32_t> slots_;
};

// `placement` is valid, its workers are those of `topology` in order (a worker that is missing from `topology` counts
// as dead: see Onto), its shape that of the load.
LoadScore ScoreLoad(const Placement& placement, const Scenario& scenario, const Topology& topology);
// The same from its tables (Onto).
LoadScore ScoreLoad(std::span<const DispatchTable> layers, const Scenario& scenario, const Topology& topology);
// The same from the scores of the layers.
LoadScore SumUp(std::vector<LayerScore> layers, const Scenario& scenario);

// The layers of a valid placement with workers numbered as in `topology`; replicas on other workers are left out.
std::vector<DispatchTable> Onto(const Placement& placement, const Topology& topology);

// A proven upper bound on the balancedness, with any shares, of any placement of one layer over workers of `slots`
// [workers] slots each, experts on distinct workers. `speed` [workers] as in Topology; empty: all alike.
//
// A level z gives an expert with c replicas at most z times the speeds of the c fastest workers, so it takes the least
// z at which the replicas that experts need are no more than the slots: giving each next replica to the expert that
// needs the highest level is optimal, for an expert's level only falls with its replicas. With equal speeds that is M*
// = min over counts of max_e tokens_e / count_e.
//
// With equal speeds and at most two slots a worker, all used: the m hottest experts occupy at most m + spare slots,
// whose workers' other slots hold at least the m + spare lightest experts, so the busiest worker has at least
// (top m + low m+spare) / (m + spare), valid while the heaviest of those light ones is at most half of it.
double UpperBound(std::span<const double> tokens, std::span<const int32_t> slots, std::span<const uint32_t> speed = {});
// The same for `replicas` slots spread evenly over workers of equal speed.
double UpperBound(std::span<const double> tokens, int32_t replicas, int32_t workers);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_SCORE_H_
