// One step under a placement: how level it is and how long it takes by the cost model.
#ifndef BALLAST_CONTROLLER_SIM_STEP_H_
#define BALLAST_CONTROLLER_SIM_STEP_H_

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

#include "controller/planner/cost_model.h"
#include "controller/planner/load.h"
#include "controller/planner/topology.h"
#include "proto/placement/placement.h"
#include "proto/placement/shares.h"

namespace ballast {

// How a step's pairs are split over replicas.
enum class StepSplit {
  // Every replica alike, as engines do.
  kEqual,
  // By the placement's weights.
  kWeights,
  // Solved for the step's own counts.
  kSolved,
};

struct StepFigures {
  // Mean over max of the workers' load (pairs over speed), mean over the layers that have pairs; 1 where none has.
  double balancedness = 1;
  // StepMicroseconds of all layers.
  double microseconds = 0;
};

// Holds what steps of one placement share. One thread at a time.
class StepRunner {
 public:
  // `placement` is valid; `topology` has its workers (others count as gone). Every expert that gets pairs must have a
  // replica.
  StepRunner(const Placement& placement, const Topology& topology, const CostModel& model, StepSplit split);

  // `pairs` [layers][experts], whole numbers where the split is kSolved.
  StepFigures Run(const LoadMatrix& pairs);

 private:
  const Topology topology_;
  const CostModel model_;
  const StepSplit split_;
  double speed_ = 0;
  std::vector<DispatchTable> layers_;
  // By layer, where the split is kSolved.
  std::vector<ShareSolver> solvers_;
  // Scratch.
  std::vector<int64_t> counts_;
  std::vector<int64_t> flow_;
  std::vector<double> pairs_;
};

struct SampleOptions {
  // Tokens of one step of the whole group, and the experts that each chooses in a layer.
  int64_t tokens_per_step = 4096;
  int32_t top_k = 8;
  // Deviation over mean of an expert's part from step to step, beyond what tokens that choose for themselves show: a
  // gamma factor on each expert's part, new in each step. 0: independent tokens.
  double burstiness = 0;
};

// Draws `steps` steps' counts together: Poisson for every expert (rounded normal above a mean of 1000), so sums vary a
// little. `parts` as LoadSource::Parts.
void SampleCounts(const LoadMatrix& parts, const SampleOptions& options, int64_t steps, std::mt19937_64& random,
                  LoadMatrix& counts);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SIM_STEP_H_
