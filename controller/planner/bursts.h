// Bursts: what single steps put on the busiest worker beyond what the mean of many steps shows, and how bursty a load
// is.
//
// Pure. Of a step each expert's tokens are taken as independent, with the deviation theta of their mean; `burstiness`
// is theta squared. A worker whose replicas have the tokens p then has a mean of m = sum p and a variance of v =
// theta^2 sum p^2. For any t, by Jensen's inequality and for normal variables,
//
//   E max_w load_w <= 1/t ln sum_w E exp(t load_w) = 1/t ln sum_w exp(t (m_w + t/2 v_w)),
//
// which is least near t = sqrt(2 ln D) / sigma for D workers of deviation sigma. So a replica's load is p + t/2 theta^2
// p^2, which adds up over a worker, and the workers' loads are taken together by a soft maximum: that a worker holds a
// hot expert whole costs more than as many tokens of cool ones, and so do many workers that are nearly the busiest.
#ifndef BALLAST_CONTROLLER_PLANNER_BURSTS_H_
#define BALLAST_CONTROLLER_PLANNER_BURSTS_H_

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "controller/planner/load.h"
#include "proto/placement/quotas.h"

namespace ballast {

// The model above of one layer and load, for one t.
class StepLoad {
 public:
  // `squares`: the sum over workers of their replicas' squared tokens over speed, of a placement like those that are to
  // be judged; `level`: tokens over all speeds. Where there are (next to) no bursts it is nearly the maximum.
  StepLoad(double burstiness, double squares, double level, int32_t workers);

  // What a replica with `part` tokens (over its worker's speed) adds to its worker's load.
  double Load(double part) const { return part + per_square_ * part * part; }
  double t() const { return t_; }
  // The bound on what the busiest worker of a step is expected to have, from the sums of Load, [workers].
  double Busiest(std::span<const double> loads) const;

 private:
  double t_;
  double per_square_;
};

// The sum over workers of their replicas' squared tokens over speed, split by the table's weights or equally.
// `speed` [workers].
double SumOfSquares(const DispatchTable& layer, std::span<const double> tokens, std::span<const double> speed,
                    bool equal);

// StepLoad::Busiest of a placement, with t from its own deviations and tokens split by its weights.
double BusiestInStep(const DispatchTable& layer, std::span<const double> tokens, std::span<const double> speed,
                     double burstiness);

// Measures burstiness from the counts of single steps, layer by layer. Not thread-safe.
//
// Of three steps a, b, c in a row and an expert's parts of them, (b - a)(b - c) has the variance of b as its
// expectation: drift and sudden changes that stay, which plans follow, cancel out. Of that the binomial variance of a
// part is what tokens show that choose for themselves. Over the experts of a layer, what is left is theta^2 sum p^2;
// sum p^2 is known from the products a c.
class BurstMeter {
 public:
  struct Options {
    // Steps that are remembered: older ones fade.
    double memory_steps = 1000;
    // How many deviations what is measured must be above nothing, by what sampling shows; and by how much the steps
    // differ in it (a single odd step is no burst).
    double least_by_sampling = 5;
    double least_by_steps = 3;
  };
  explicit BurstMeter(const Options& options) : options_(options) {}
  BurstMeter() : BurstMeter(Options()) {}

  // One step's tokens, [layers][experts], of the same shape every time. Layers without tokens are left out.
  void Add(const LoadMatrix& step);

  // [layers]; 0: none that could be told from sampling. Empty before the first step.
  std::vector<double> Burstiness() const;

 private:
  struct Layer {
    double excess = 0;   // of three steps: what is left
    double squares = 0;  // the same, squared
    double parts = 0;    // a c
    double noise = 0;    // variance of `excess` where there are no bursts
  };

  const Options options_;
  std::deque<LoadMatrix> steps_;  // the last two
  std::vector<Layer> layers_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_BURSTS_H_
