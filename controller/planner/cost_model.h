// What a placement costs in time: a linear model of one MoE layer on its busiest worker, for plans that have to say
// what balance is worth, and for the simulator.
//
// Pure. Any thread.
#ifndef BALLAST_CONTROLLER_PLANNER_COST_MODEL_H_
#define BALLAST_CONTROLLER_PLANNER_COST_MODEL_H_

#include <span>
#include <vector>

#include "absl/status/status.h"
#include "controller/planner/topology.h"
#include "proto/placement/quotas.h"

namespace ballast {

// All times in microseconds. Work is counted in pairs, as load files count it: one (token, expert) pair of a layer is
// one row of the experts' grouped GEMM, so a token counts top_k times.
//
// The defaults are one H200 with experts of DeepSeek-V3's shape (hidden 7168, intermediate 2048) in bf16, a layer of
// PyTorch's grouped GEMMs as users write it; the comment at each says what it was fitted to. Measured layers of 8
// experts took 113, 259, 359, 358, 495, 1182 and 3735 us for 1, 8, 32, 128, 1024, 4096 and 16384 pairs; the model gives
// 113, 264, 364, 384, 563, 1177 and 3635. Give a model of your own for anything else.
struct CostModel {
  // Each pair on the busiest worker. From 16384 against 128 pairs: 0.208.
  double microseconds_per_token = 0.2;
  // Each expert that has work on the busiest worker: its weights are read once. From 32 against 1 pairs: 246 us for
  // seven experts, 88 MB each at the 2.5 TB/s that these kernels reach.
  double microseconds_per_expert = 35;
  // A layer whatever it does: launches, and the collectives' latency where it is not hidden. 113 us for one pair, less
  // one expert.
  double microseconds_per_layer = 78;
  // Each vector that the busiest worker receives and its result that goes back, from a peer on its node and on another.
  // 2 x 14.3 KB at the measured 396 GB/s between GPUs; at the nominal 50 GB/s of a 400 Gb/s network port.
  double microseconds_per_copy_node = 0.072;
  double microseconds_per_copy_cross_node = 0.573;
  // A step's work outside MoE layers: attention, norms, sampling. 0 unless it is known: times and throughput are then
  // of the MoE layers alone.
  double microseconds_per_step = 0;
  friend bool operator==(const CostModel&, const CostModel&) = default;
};

// The most that a field may be.
inline constexpr double kMaxCostMicroseconds = 1e9;

// InvalidArgument names the field, the value and the limit unless all are finite, at least 0 and at most
// kMaxCostMicroseconds, and microseconds_per_token is above 0.
absl::Status Validate(const CostModel& model);

// One layer of one step, on the worker that takes longest.
struct LayerWork {
  // Pairs that the worker executes, over its speed.
  double busiest_tokens = 0;
  // Experts that have pairs there.
  double experts = 0;
  // Vectors received there, from its own node and from others.
  double copies_node = 0;
  double copies_cross_node = 0;
};

double LayerMicroseconds(const CostModel& model, const LayerWork& work);

// The work of every worker of one layer for `pairs` [replicas] of `layer`: what LayerMicroseconds is largest for is the
// layer's time. Copies are an upper estimate from pairs alone: sources are spread evenly over the workers, and no two
// pairs of a token share a destination. `topology` has the workers that `layer` names.
std::vector<LayerWork> WorkByWorker(const DispatchTable& layer, std::span<const double> pairs,
                                    const Topology& topology);
double SlowestMicroseconds(const CostModel& model, std::span<const LayerWork> work);

// A step of layers that take `layers_microseconds` together.
double StepMicroseconds(const CostModel& model, double layers_microseconds);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_COST_MODEL_H_
