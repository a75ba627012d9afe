#include "worker/transport/nccl/communicator.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/cuda/status.h"
#include "proto/base/status_macros.h"
#include "worker/transport/nccl/window_kernel.h"

namespace ballast {
namespace {

constexpr absl::Duration kPollInterval = absl::Microseconds(50);

}  // namespace

absl::StatusOr<NcclId> NewNcclId() {
  BALLAST_ASSIGN_OR_RETURN(const NcclLibrary* const nccl, NcclLibrary::Get());
  ncclUniqueId unique;
  BALLAST_RETURN_IF_ERROR(nccl->Check(nccl->GetUniqueId(&unique), "ncclGetUniqueId"));
  NcclId id;
  std::memcpy(id.data(), unique.internal, id.size());
  return id;
}

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Create(const NcclId& id, int rank, int ranks,
                                                                           absl::Time deadline,
                                                                           const std::atomic<bool>* interrupted) {
  if (rank < 0 || rank >= ranks) {
    return absl::InvalidArgumentError(absl::StrCat("rank is ", rank, ", not between 0 and ranks - 1 = ", ranks - 1));
  }
  BALLAST_ASSIGN_OR_RETURN(const NcclLibrary* const nccl, NcclLibrary::Get());
  ncclUniqueId unique;
  std::memcpy(unique.internal, id.data(), id.size());
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  // Calls return at once and are polled, so that none outlasts its deadline.
  config.blocking = 0;
  std::unique_ptr<NcclCommunicator> communicator(new NcclCommunicator(*nccl, rank, ranks, interrupted));
  BALLAST_RETURN_IF_ERROR(
      communicator->Settle(nccl->CommInitRankConfig(&communicator->comm_, ranks, unique, rank, &config),
                           "setting up a communicator", deadline));
  return communicator;
}

absl::Status NcclCommunicator::Settle(ncclResult_t result, const char* what, absl::Time deadline) {
  BALLAST_RETURN_IF_ERROR(state_);
  absl::Status status = nccl_.Check(result, what);
  const absl::Time start = absl::Now();
  while (status.ok() && comm_ != nullptr) {
    ncclResult_t pending = ncclSuccess;
    status = nccl_.Check(nccl_.CommGetAsyncError(comm_, &pending), what);
    if (status.ok()) status = nccl_.Check(pending, what);
    if (!status.ok() || pending != ncclInProgress) break;
    if (interrupted_ != nullptr && *interrupted_) {
      status = absl::CancelledError(absl::StrCat(what, ": interrupted"));
      break;
    }
    const absl::Time now = absl::Now();
    if (now > deadline) {
      status = absl::DeadlineExceededError(
          absl::StrCat(what, ": not every one of ", ranks_, " ranks has taken part by the deadline"));
      break;
    }
    // Enqueuing takes NCCL microseconds, a peer that is not there yet much longer.
    if (now - start > kPollInterval) absl::SleepFor(kPollInterval);
  }
  if (status.ok()) return status;
  Abort();
  state_ = status;
  return status;
}

absl::StatusOr<NcclMemory> NcclMemory::Allocate(size_t bytes) {
  BALLAST_ASSIGN_OR_RETURN(const NcclLibrary* const nccl, NcclLibrary::Get());
  void* data = nullptr;
  if (nccl->MemAlloc(&data, bytes) != ncclSuccess) {
    return absl::ResourceExhaustedError(absl::StrCat("no device memory for ", bytes, " bytes to share"));
  }
  return NcclMemory(nccl, static_cast<std::byte*>(data), bytes);
}

NcclMemory::~NcclMemory() {
  if (data_ != nullptr) nccl_->MemFree(data_);
}

absl::StatusOr<NcclCommunicator::Memory> NcclCommunicator::AllocateShared(size_t bytes, absl::Time deadline) {
  BALLAST_RETURN_IF_ERROR(state_);
  if (bytes == 0) return absl::InvalidArgumentError("bytes is 0, has to be at least 1");
  windows_.push_back(std::make_unique<Window>());
  void*& memory = windows_.back()->memory;
  if (nccl_.MemAlloc(&memory, bytes) != ncclSuccess) {
    return absl::ResourceExhaustedError(absl::StrCat("no device memory for ", bytes, " bytes that are shared"));
  }
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemset(memory, 0, bytes), "zeroing shared memory"));
  // Before any peer can write to it.
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaDeviceSynchronize(), "zeroing shared memory"));
  return ShareLast({static_cast<std::byte*>(memory), bytes}, deadline);
}

absl::StatusOr<NcclCommunicator::Memory> NcclCommunicator::Share(std::span<std::byte> shared, absl::Time deadline) {
  BALLAST_RETURN_IF_ERROR(state_);
  windows_.push_back(std::make_unique<Window>());
  return ShareLast(shared, deadline);
}

absl::StatusOr<NcclCommunicator::Memory> NcclCommunicator::ShareLast(std::span<std::byte> shared, absl::Time deadline) {
  Window& window = *windows_.back();
  BALLAST_RETURN_IF_ERROR(
      Settle(nccl_.CommWindowRegister(comm_, shared.data(), shared.size(), &window.window, NCCL_WIN_COLL_SYMMETRIC),
             "sharing memory", deadline));
  // Without direct reach the window is nothing, or (NCCL 2.28) a handle in the host's memory, which a kernel would
  // fault on.
  cudaPointerAttributes kind = {};
  if (window.window == nullptr || cudaPointerGetAttributes(&kind, window.window) != cudaSuccess ||
      kind.type == cudaMemoryTypeUnregistered || kind.type == cudaMemoryTypeHost) {
    return absl::FailedPreconditionError("NCCL gives no symmetric windows for these GPUs");
  }
  std::byte** resolved = nullptr;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMalloc(reinterpret_cast<void**>(&resolved), sizeof(std::byte*) * ranks_),
                                     "resolving shared memory"));
  Memory memory = {shared.data(), shared.size(), std::vector<std::byte*>(ranks_)};
  cudaError_t error = internal::LaunchResolveWindow(window.window, ranks_, resolved, nullptr);
  if (error == cudaSuccess) {
    error = cudaMemcpy(memory.peers.data(), resolved, sizeof(std::byte*) * ranks_, cudaMemcpyDeviceToHost);
  }
  cudaFree(resolved);
  BALLAST_RETURN_IF_ERROR(CudaStatus(error, "resolving shared memory"));
  for (int r = 0; r < ranks_; ++r) {
    cudaPointerAttributes attributes = {};
    error = cudaPointerGetAttributes(&attributes, memory.peers[r]);
    if (error != cudaSuccess || attributes.type != cudaMemoryTypeDevice) {
      return absl::FailedPreconditionError(absl::StrCat("the memory of rank ", r, " is not within direct reach"));
    }
  }
  return memory;
}

absl::Status NcclCommunicator::Exchange(const std::vector<Transfer>& transfers, absl::Time deadline,
                                        cudaStream_t stream) {
  BALLAST_RETURN_IF_ERROR(state_);
  BALLAST_RETURN_IF_ERROR(nccl_.Check(nccl_.GroupStart(), "starting a group of transfers"));
  absl::Status status;
  for (const Transfer& t : transfers) {
    if (t.bytes == 0) continue;
    if (status.ok()) {
      status = nccl_.Check(nccl_.Send(t.send, t.bytes, ncclInt8, t.peer, comm_, stream),
                           absl::StrCat("a send to rank ", t.peer));
    }
    if (status.ok()) {
      status = nccl_.Check(nccl_.Recv(t.receive, t.bytes, ncclInt8, t.peer, comm_, stream),
                           absl::StrCat("a receive from rank ", t.peer));
    }
  }
  const absl::Status ended = Settle(nccl_.GroupEnd(), "a group of transfers", deadline);
  return status.ok() ? ended : status;
}

void NcclCommunicator::Abort() {
  if (comm_ != nullptr) nccl_.CommAbort(comm_);
  comm_ = nullptr;
  if (state_.ok()) state_ = absl::CancelledError("the communicator was aborted");
}

NcclCommunicator::~NcclCommunicator() {
  // Not CommDestroy: it waits for the peers.
  for (const std::unique_ptr<Window>& window : windows_) {
    if (comm_ != nullptr && window->window != nullptr) nccl_.CommWindowDeregister(comm_, window->window);
  }
  Abort();
  for (const std::unique_ptr<Window>& window : windows_) {
    if (window->memory != nullptr) nccl_.MemFree(window->memory);
  }
}

}  // namespace ballast
