// Each layer's quotas in a step, from the traffic shares of whatever form the step was announced with; and the counts
// that they need.
//
// Every rank of a view keeps the same counts of the same steps and computes the same bits from them: it enters the view
// without any, and what it learns in a step counts from the next one on. A rank that misses a step is in the view no
// more.
#ifndef BALLAST_WORKER_MOE_STEP_SHARES_H_
#define BALLAST_WORKER_MOE_STEP_SHARES_H_

#include <cstdint>
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
  // Pairs on the busiest rank, roundings aside.
  double fixed = 0;
  // As fixed when there was no step before.
  double previous = 0;
  double current = 0;
  // The busiest rank by the fixed shares.
  int busiest = 0;
};

// Used by the step thread alone. Allocates in Enter and SetTables only.
class StepShares {
 public:
  StepShares(int num_layers, int num_experts);

  // A new view: forgets all counts. SetTables follows.
  void Enter(int num_ranks, int rank);
  // A placement or shares come into force between two steps, one table a layer. Counts are by expert, not by replica,
  // and so stay.
  void SetTables(std::vector<DispatchTable> tables);
  const DispatchTable& table(int layer) const { return layers_[layer].table; }
  // Some expert of the layer has more than one live replica, so that forms differ.
  bool shared(int layer) const { return layers_[layer].solver != nullptr; }

  // Whether the counts of the step before are known, in which kPrevious is what it says; it is kFixed otherwise.
  bool has_previous(int layer) const { return layers_[layer].previous_known; }

  // Counts of the open step, [experts] of one rank; when all ranks' are there, say so.
  std::span<int32_t> counts(int layer, int rank);
  void Counted(int layer) { layers_[layer].open_known = true; }
  // The open step has ended here: its counts are those of the step before, from now on.
  void EndStep();

  // This rank's quotas [replicas] for its counts of the open step, counts(layer, rank). kCurrent needs all ranks'.
  // `rotation`: see SolveQuotas.
  void Quotas(int layer, ShareForm form, uint32_t rotation, std::span<int32_t> quotas);

  // How the forms compare for the counts of the open step; nothing when they are not known or the layer has nothing to
  // share. Costs two solutions.
  std::optional<ShareComparison> Compare(int layer);

 private:
  struct Layer {
    DispatchTable table;
    DispatchTable solved;                     // the table with weights solved for the step before
    std::unique_ptr<StepQuotaSolver> solver;  // null: nothing to share
    std::vector<int32_t> open, previous;      // [ranks][experts]
    bool open_known = false;
    bool previous_known = false;
  };

  void SolvePrevious(Layer& layer);
  double Busiest(const DispatchTable& table, std::span<const int32_t> counts, int* rank);

  const int num_experts_;
  int num_ranks_ = 0;
  int rank_ = 0;
  std::vector<Layer> layers_;
  // Scratch of Busiest.
  std::vector<int64_t> totals_;
  std::vector<double> loads_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_STEP_SHARES_H_
