// The communicator of two processes that a test or a benchmark runs as.
#ifndef BALLAST_WORKER_TRANSPORT_NCCL_PEER_COMMUNICATOR_H_
#define BALLAST_WORKER_TRANSPORT_NCCL_PEER_COMMUNICATOR_H_

#include <cuda_runtime_api.h>

#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "kernels/cuda/test_support.h"
#include "proto/base/check.h"
#include "worker/transport/nccl/communicator.h"
#include "worker/transport/nccl/peer_process.h"

namespace ballast {

// Rank 0, which makes the id, or rank 1, on the GPU of that number. Fails loudly.
inline std::unique_ptr<NcclCommunicator> ConnectPeers(int rank, const PeerLink& link) {
  constexpr int kRanks = 2;
  int gpus = 0;
  CheckCuda(cudaGetDeviceCount(&gpus));
  BALLAST_CHECK(gpus >= kRanks) << gpus << " GPUs, two are needed";
  CheckCuda(cudaSetDevice(rank));
  NcclId id;
  if (rank == 0) {
    const absl::StatusOr<NcclId> made = NewNcclId();
    BALLAST_CHECK(made.ok()) << made.status().ToString();
    id = *made;
    link.Write(id.data(), id.size());
  } else {
    link.Read(id.data(), id.size());
  }
  auto communicator = NcclCommunicator::Create(id, rank, kRanks, absl::Now() + absl::Seconds(60));
  BALLAST_CHECK(communicator.ok()) << communicator.status().ToString();
  return *std::move(communicator);
}

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_NCCL_PEER_COMMUNICATOR_H_
