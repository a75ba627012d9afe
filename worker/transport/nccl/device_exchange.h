// Dispatch and combine of MoE layers among the GPUs of one node.
//
// A layer of a step goes, all on one stream of each rank, and every rank takes part whether it has tokens or not:
//
//   Dispatch   each token's row, once, to every rank that has one of its replicas, with its groups and weights
//   grouping   received_groups() sorted by replica (kernels/cuda/tokens.h, GroupPairs): pair s * top_k + k is choice k
//   of
//              received row s, so the experts' kernel takes received_rows() as x, and top_k as pairs_per_token
//   experts    one output row for each received pair (kernels/cuda/experts.h)
//   Combine    weighted sums of a token's outputs here, back to its own rank, and there added up
//
// Implementations: LsaExchange (kernels write into the other GPUs' memory; nothing waits for the host, and a graph of
// any number of layers may be captured) and SendRecvExchange (NCCL's grouped sends and receives, the portable one:
// every row goes to every rank). The results have the same bits.
#ifndef BALLAST_WORKER_TRANSPORT_NCCL_DEVICE_EXCHANGE_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_DEVICE_EXCHANGE_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/transport/nccl/communicator.h"
#include "worker/transport/nccl/exchange_layout.h"

namespace ballast {

// All pointers are device memory, 16-byte aligned where they lead to rows, and read by the device alone.
struct DispatchArgs {
  // [capacity][hidden_size] bf16, of which the first *num_tokens are read. May be own_rows(): no copy is made then.
  const void* x = nullptr;
  // *num_tokens is at most the capacity.
  const int32_t* num_tokens = nullptr;
  // [capacity][top_k], of which the first *num_tokens count: replica numbers (see ExchangeShape), -1 for none, and
  // their weights.
  const int32_t* replicas = nullptr;
  const float* weights = nullptr;
  // [note_words]; null where that is 0.
  const int32_t* notes = nullptr;
};

struct CombineSumsArgs {
  // [rows][hidden_size] bf16: the experts' outputs.
  const void* outputs = nullptr;
  // [ranks * capacity][top_k]: each received pair's row of `outputs`, -1 where it is not for this rank.
  const int32_t* row_of = nullptr;
  // [capacity][hidden_size] bf16, of which the first *num_tokens of the dispatch are written: the sum by ascending
  // rank, in float32, of each rank's sum of weight * output, made in the order of choices by fused multiply-adds and
  // rounded to bf16. Zeros where a token has no replica.
  void* out = nullptr;
};

// One rank's end, for one view; every rank has one of the same shape. Dispatch and Combine alternate, and belong with
// Finish to one thread; Abort may be called by any. After an error the view is of no use any more.
class DeviceExchange {
 public:
  virtual ~DeviceExchange() = default;

  virtual const ExchangeShape& shape() const = 0;

  // What this rank has received, by source rank: valid from Dispatch to Combine, on the stream. Rows that were not sent
  // hold anything.
  virtual void* received_rows() const = 0;             // [ranks * capacity][hidden_size] bf16
  virtual const int32_t* received_groups() const = 0;  // [ranks * capacity][top_k], groups_per_rank: not for this rank
  virtual const float* received_weights() const = 0;   // [ranks * capacity][top_k], where there is a group
  virtual const int32_t* received_notes() const = 0;   // [ranks][note_words]
  // This rank's section of received_rows().
  virtual void* own_rows() const = 0;

  // Enqueue on the stream and do not wait; may be captured. Errors: FailedPrecondition when out of turn; what Finish
  // has said before; what the launch says.
  virtual absl::Status Dispatch(const DispatchArgs& args, cudaStream_t stream) = 0;
  virtual absl::Status Combine(const CombineSumsArgs& args, cudaStream_t stream) = 0;

  // Waits on the device end by themselves, within the limit for one wait. Otherwise Finish alone ends them: nothing
  // else may wait for the stream.
  virtual bool bounded() const = 0;

  // Waits for what is enqueued. Errors:
  //   Unavailable        ranks that have not come within the limit for one wait; names them
  //   DeadlineExceeded   `deadline` came; what was under way has been ended
  //   Cancelled          Abort() was called
  //   Internal           a fault on the device, which this process can use no more; without windows a peer's death may
  //                      be one, for NCCL's kernels read memory that was the peer's
  // and what was combined since the last Finish counts for nothing.
  virtual absl::Status Finish(cudaStream_t stream, absl::Time deadline) = 0;

  // Ranks that have not come in time so far, ascending.
  virtual std::vector<int> late_ranks() const = 0;

  // Any thread: ends the waits under way, and all that come.
  virtual void Abort() = 0;
};

struct ExchangeOptions {
  // The longest that the device waits for a rank in one exchange; bounds how long a dead peer goes unnoticed.
  absl::Duration wait_limit = absl::Seconds(1);
  // For the set-up.
  absl::Time deadline = absl::InfiniteFuture();
  // The same on every rank: the least of what MostExchangeBlocks says there. 0: as here, for GPUs of one kind.
  int blocks = 0;
};

// Blocks of the exchange's kernels that the current GPU runs at once.
absl::StatusOr<int> MostExchangeBlocks();

// Every rank of the communicator calls it, with the same shape; `communicator` outlives the exchange. Errors: as
// LayOutExchange and NcclCommunicator::AllocateShared; InvalidArgument: more blocks than the GPU runs at once.
absl::StatusOr<std::unique_ptr<DeviceExchange>> MakeLsaExchange(NcclCommunicator& communicator,
                                                                const ExchangeShape& shape,
                                                                const ExchangeOptions& options);
absl::StatusOr<std::unique_ptr<DeviceExchange>> MakeSendRecvExchange(NcclCommunicator& communicator,
                                                                     const ExchangeShape& shape,
                                                                     const ExchangeOptions& options);

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_DEVICE_EXCHANGE_H_
