// What a step is to its MoE layers, and what they say of it: the same wherever they run.
#ifndef BALLAST_WORKER_MOE_MOE_STEP_H_
#define BALLAST_WORKER_MOE_MOE_STEP_H_

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/base/ids.h"
#include "proto/placement/placement.h"
#include "worker/moe/load_counters.h"
#include "worker/moe/share_form.h"

namespace ballast {

enum class CombineMode { kFast, kExact };

// What a step is, for its messages.
struct MoeStep {
  StepId step;
  // One a row of this rank.
  std::span<const RowLabel> rows;
  // This rank knows that it will have work after this step.
  bool more_work = false;
  // Of each layer, as announced and so the same on every rank; empty: fixed ones. Valid until the step's end.
  std::span<const LayerShares> shares;
  // Every wait of the step ends here.
  absl::Time deadline = absl::InfiniteFuture();
};

// A row that needed an expert which no worker of the view holds, or whose routing weights are not finite; the latter
// only the CPU's executor finds. Its output from that layer on is zero and the row is sent nowhere any more, so what
// the step computes for it, and for later rows of its sequence, is void.
struct RowFailure {
  int row = 0;
  ExpertId expert;
  // The workers that the placement names for it, none of which is in the view.
  std::vector<std::string> workers;
  // The expert's weight is not finite: the expert is not missing.
  bool not_finite = false;
  // Unavailable, naming layer, expert and workers; Internal where the weight is not finite.
  absl::Status ToStatus() const;
};

// What one step did, summed over its layers.
struct MoeStepStats {
  // Mean over max of routed tokens over speed by worker, averaged over the layers that had any; below 0 when not known.
  // Each dispatch message to rank 0 carries how many pairs its sender sends to each rank, so the leader alone knows.
  double balancedness = -1;
  // Some rank brought prefill rows, or says that it has work after this step (own rank included). Complete on rank 0.
  bool any_prefill = false;
  bool any_more_work = false;
  // Rows that every rank has room for, as far as ranks say (own rank included). Complete on rank 0.
  int least_capacity = 0;
  // Rows of this rank sent to a rank: copies that stayed here, went to another worker of the node, left the node.
  int64_t copies_self = 0;
  int64_t copies_node = 0;
  int64_t copies_far = 0;
  // Pairs that this rank's experts computed, own and others'.
  int64_t pairs_computed = 0;
  // Layers by the form that they ran in; none where the view has one member.
  std::array<int, kShareForms> layers_by_form = {};
  // Wall time by stage. Share, dispatch and combine include the wait for peers.
  absl::Duration route, share, dispatch, experts, combine;
  // What telling each other counts cost the step, in the layers where that was done: the time of the rank that it took
  // second least, or least where there are two. The rank that comes last waits for nobody, the one before it about as
  // long as a message takes; the others wait for late ranks, which they do at the dispatch anyway.
  absl::Duration count_exchange;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_MOE_STEP_H_
