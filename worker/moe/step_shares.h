// Each layer's quotas in a step, from the traffic shares of whatever form the step was announced with; and the counts
// that they need.
//
// Every rank of a view keeps the same counts of the same steps and computes the same bits from them: it enters the view
// without any, and what it learns in a step counts from the next one on. A rank that misses a step is in the view no
// more.
#ifndef BALLAST_WORKER_MOE_STEP_SHARES_H_
#define BALLAST_WORKER_MOE_STEP_SHARES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "proto/placement/quotas.h"
#include "proto/placement/step_quotas.h"
#include "worker/moe/share_form.h"

namespace ballast {

// What a step's pairs make the busiest rank's load by each form: what to choose a form by.
struct ShareComparison {
  // Pairs on the busiest rank, roundings aside; where speeds differ each rank's pairs count as many as the fastest
  // would get through in the same time.
  double fixed = 0;
  // As fixed when the counts of the step before are not known.
  double previous = 0;
  bool previous_known = false;
  double current = 0;
  // The busiest rank by the fixed shares, and how fast it is relative to the fastest.
  int busiest = 0;
  double busiest_speed = 1;
};

// Used by the step thread alone. Holds what forms have needed so far: two numbers an expert of each layer that was
// counted, and one table of all ranks' counts, of the layer counted last. Allocates in Enter and SetTables, and in a
// layer when it is first counted or solved.
class StepShares {
 public:
  // Whether shares of a step can be solved for a layer over so many ranks: the same on every rank. Empty: always.
  using CanSolve = std::function<bool(const DispatchTable& table, int num_ranks)>;
  StepShares(int num_layers, int num_experts, CanSolve can_solve = {});

  // A new view: forgets all counts. SetTables follows. `speeds` [ranks]: relative, 1 to 2^10; empty: all alike.
  void Enter(int num_ranks, int rank, std::span<const uint32_t> speeds = {});
  // A placement or shares come into force between two steps, one table a layer. Counts are by expert, not by replica,
  // and so stay.
  void SetTables(std::vector<DispatchTable> tables);
  const DispatchTable& table(int layer) const { return layers_[layer].table; }
  // Some expert of the layer has more than one live replica, so that forms differ, and shares can be solved for it.
  bool shared(int layer) const { return layers_[layer].shared; }

  // Whether the counts of the step before are known, in which kPrevious is what it says; it is kFixed otherwise.
  bool has_previous(int layer) const { return layers_[layer].previous_known; }

  // One layer at a time: the counts [experts] of each rank in the open step, own ones too, in any order; then they are
  // the counts of `layer`.
  void Take(int rank, std::span<const int32_t> counts);
  void Counted(int layer);
  // The open step has ended here: its counts are those of the step before, from now on.
  void EndStep();

  // This rank's quotas [replicas] for its counts `own` [experts] in the open step. kCurrent needs the layer Counted, as
  // the last one. `rotation`: see SolveQuotas.
  void Quotas(int layer, ShareForm form, std::span<const int32_t> own, uint32_t rotation, std::span<int32_t> quotas);

  // How the forms compare for the counts of the open step; nothing when they are not known or the layer has nothing to
  // share. Costs one solution, and another where the counts of the step before are known.
  std::optional<ShareComparison> Compare(int layer);

 private:
  struct Layer {
    DispatchTable table;
    bool shared = false;
    // From when they are needed.
    DispatchTable solved;                     // the table with weights solved for the step before
    std::unique_ptr<StepQuotaSolver> solver;  // refers to the table
    std::vector<int32_t> open, previous;      // [experts], all ranks together
    bool open_known = false;
    bool previous_known = false;
  };

  StepQuotaSolver& Solver(Layer& layer);
  void SolvePrevious(Layer& layer);
  double Busiest(const DispatchTable& table, std::span<const int32_t> totals, int* rank);
  double RelativeSpeed(int rank) const;

  const int num_experts_;
  const CanSolve can_solve_;
  int num_ranks_ = 0;
  int rank_ = 0;
  std::vector<uint32_t> speeds_;  // [ranks]; empty: all alike
  std::vector<Layer> layers_;
  std::vector<int32_t> taken_;  // [ranks][experts]
  int taken_layer_ = -1;        // whose they are
  std::vector<double> loads_;   // scratch of Busiest
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_STEP_SHARES_H_
