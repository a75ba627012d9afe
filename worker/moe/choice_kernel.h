// Which replica computes each (row, expert) pair of a layer, on a GPU.
#ifndef BALLAST_WORKER_MOE_CHOICE_KERNEL_H_
#define BALLAST_WORKER_MOE_CHOICE_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "worker/moe/device_table.h"

namespace ballast {

// All pointers are device memory. The choice is that of ReferenceChoice (choice_reference.h), bit for bit.
struct ChoiceArgs {
  int rows = 0;
  int top_k = 0;
  int experts = 0;
  int ranks = 0;
  int rank = 0;
  int layer = 0;
  // [rows][top_k], distinct within a row.
  const int32_t* ids = nullptr;
  // LayOutDeviceTable and [kStepWords].
  const int32_t* table = nullptr;
  const int32_t* step = nullptr;
  // Traffic shares of the step before: [ranks][flow_stride] tokens to each replica by source, in place of the table's
  // weights for the experts that have any. Null: the weights.
  const int32_t* flows = nullptr;
  int flow_stride = 0;
  // [replicas]: the quotas themselves. Null: from the shares.
  const int32_t* quotas = nullptr;
  // What a pair of a row that has failed gets.
  int32_t none = -1;
  // Bits of ranks: the other ones of this rank's node; and [rows] homes of the row's task, null: no task has any.
  uint32_t near = 0;
  const uint32_t* homes = nullptr;

  // [rows], in and out: layer * experts + expert that the row needed and nobody holds, the least of the first layer;
  // below 0: the row goes on.
  int32_t* failed = nullptr;
  // LayOutDeviceNotes, out: counts by Count, the rest by Choose, which reads the counts.
  int32_t* notes = nullptr;
  // [rows][top_k], out: replica numbers.
  int32_t* replicas = nullptr;
  // The kernels' own. [rows]: ranks that a row visits for pairs without a choice, and for all; [rows][top_k]: pairs
  // with a choice, expert by expert.
  uint32_t* visited = nullptr;
  uint32_t* chosen = nullptr;
  int2* open = nullptr;
};

// Counts pairs and fails rows; enqueued, may be captured. At most 32 ranks.
//
// Roofline: latency. One kernel of one block for up to 2,048 pairs; for more a memset and three kernels, in which each
// expert with a choice reads all ids once (from L2) and its own pairs once a sweep.
cudaError_t LaunchCount(const ChoiceArgs& args, cudaStream_t stream);
// LaunchCount's work, unless `counted`, and the choice.
cudaError_t LaunchChoose(const ChoiceArgs& args, bool counted, cudaStream_t stream);

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_CHOICE_KERNEL_H_
