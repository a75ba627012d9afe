// The ranks of a view that share a node, and memory that each of their GPUs reaches directly.
#ifndef BALLAST_WORKER_TRANSPORT_NCCL_COMMUNICATOR_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_COMMUNICATOR_H_

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/transport/nccl/nccl_library.h"

namespace ballast {

// What the members of a communicator have in common, made by one of them (NewNcclId) and told to the others.
using NcclId = std::array<std::byte, NCCL_UNIQUE_ID_BYTES>;
absl::StatusOr<NcclId> NewNcclId();

// Device memory that communicators can share one after the other, not zeroed. NotFound, FailedPrecondition: as
// NcclLibrary::Get; ResourceExhausted.
class NcclMemory {
 public:
  static absl::StatusOr<NcclMemory> Allocate(size_t bytes);
  NcclMemory(NcclMemory&& other) noexcept
      : nccl_(other.nccl_), data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  NcclMemory& operator=(NcclMemory&&) = delete;
  ~NcclMemory();
  std::span<std::byte> bytes() const { return {data_, bytes_}; }

 private:
  NcclMemory(const NcclLibrary* nccl, std::byte* data, size_t bytes) : nccl_(nccl), data_(data), bytes_(bytes) {}
  const NcclLibrary* nccl_;
  std::byte* data_;
  size_t bytes_;
};

// One rank's end. Made for one view and thrown away with it. One thread, and one device: the one that was current at
// Create, which has to be current in every call.
//
// No call waits longer than its deadline. One that fails leaves the communicator broken: everything after fails too,
// and its end does not wait for the peers. Errors: DeadlineExceeded (a rank did not take part in time), Unavailable (a
// rank is lost), Cancelled (it was interrupted), FailedPrecondition, Internal (NCCL's own).
class NcclCommunicator {
 public:
  // Every rank calls it. `interrupted`, which outlives the communicator and may be null, ends a call that waits for
  // other ranks once any thread has set it, and every later one, with Cancelled.
  static absl::StatusOr<std::unique_ptr<NcclCommunicator>> Create(const NcclId& id, int rank, int ranks,
                                                                  absl::Time deadline,
                                                                  const std::atomic<bool>* interrupted = nullptr);
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }

  // Every rank calls it with the same number, in the same order as other calls: device memory, zeroed, that kernels and
  // copies of every rank reach. `peers` [ranks] leads to each rank's, the own one for the own rank. Lives as long as
  // this object, also where a peer has died: its memory stays until all who reach it let go.
  //   FailedPrecondition   a rank's memory is not within direct reach (another node, or no link between the GPUs)
  struct Memory {
    std::byte* own = nullptr;
    size_t bytes = 0;
    std::vector<std::byte*> peers;
  };
  absl::StatusOr<Memory> AllocateShared(size_t bytes, absl::Time deadline);
  // The same with memory of the caller's, of NcclMemory, as it is; it outlives this object. Peers reach it as long as
  // this object, or theirs, lives.
  absl::StatusOr<Memory> Share(std::span<std::byte> memory, absl::Time deadline);

  // Sends to a peer and receives from it, `bytes` each.
  struct Transfer {
    int peer = 0;
    const void* send = nullptr;
    void* receive = nullptr;
    size_t bytes = 0;
  };
  // Enqueues the transfers as one group; may be captured. Every rank has to enqueue its counterparts. The deadline is
  // for enqueuing: on the device a transfer waits for its peer until Abort().
  absl::Status Exchange(const std::vector<Transfer>& transfers, absl::Time deadline, cudaStream_t stream);

  // Ends what is under way, on the device too; the communicator is broken.
  void Abort();

 private:
  NcclCommunicator(const NcclLibrary& nccl, int rank, int ranks, const std::atomic<bool>* interrupted)
      : nccl_(nccl), rank_(rank), ranks_(ranks), interrupted_(interrupted) {}

  // Of the last window's memory.
  absl::StatusOr<Memory> ShareLast(std::span<std::byte> memory, absl::Time deadline);
  // Until NCCL is done with what was just started.
  absl::Status Settle(ncclResult_t result, const char* what, absl::Time deadline);

  const NcclLibrary& nccl_;
  const int rank_;
  const int ranks_;
  const std::atomic<bool>* const interrupted_;
  ncclComm_t comm_ = nullptr;
  // Once not OK, the communicator is gone.
  absl::Status state_;
  struct Window {
    // Where this object owns it.
    void* memory = nullptr;
    ncclWindow_t window = nullptr;
  };
  // NCCL writes into the last one while it registers it.
  std::vector<std::unique_ptr<Window>> windows_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_COMMUNICATOR_H_
