// Fetcher and server of experts in two processes, each with slots on a GPU of its own where there are two: for tests
// and benchmarks. The process that a user has started pulls, the other one serves.
#ifndef BALLAST_WORKER_TRANSPORT_FETCH_DEVICE_FETCH_PEER_H_
#define BALLAST_WORKER_TRANSPORT_FETCH_DEVICE_FETCH_PEER_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/test_support.h"
#include "proto/base/check.h"
#include "worker/experts/device_slots.h"
#include "worker/transport/fetch/expert_server.h"
#include "worker/transport/mesh_listener.h"
#include "worker/transport/nccl/communicator.h"
#include "worker/transport/nccl/peer_process.h"

namespace ballast {

inline GroupIdentity FetchIdentity() { return {.group = "g", .secret = "s3cret", .fingerprint = "f00d"}; }

// The GPU of the process that pulls (rank 0) or serves (rank 1).
inline int FetchGpu(int rank) {
  int gpus = 0;
  CheckCuda(cudaGetDeviceCount(&gpus));
  return rank % gpus;
}

// A context as a worker on that GPU makes it.
inline std::shared_ptr<UcxContext> FetchContext(int rank) {
  return UcxContext::Create([gpu = FetchGpu(rank)] { CheckCuda(cudaSetDevice(gpu)); }).value();
}

inline std::vector<std::byte> FetchWeights(size_t bytes) {
  std::vector<std::byte> out(bytes);
  uint32_t x = static_cast<uint32_t>(bytes);
  for (std::byte& b : out) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<std::byte>(x >> 24);
  }
  return out;
}

// One slot, in memory of cudaMalloc or, as a worker's in a group, of NCCL.
class FetchSlot {
 public:
  FetchSlot(size_t bytes, bool of_nccl) {
    DeviceSlotsOptions options{.slots = 1, .slot_bytes = bytes};
    if (of_nccl) {
      memory_.emplace(NcclMemory::Allocate(DeviceSlots::StrideBytes(bytes)).value());
      options.memory = memory_->bytes().data();
    }
    slots_ = DeviceSlots::Create(std::move(options)).value();
  }
  std::span<std::byte> bytes() const { return slots_->Slot(0); }
  Checksum Sum() const { return slots_->Sum(0).value(); }

 private:
  std::optional<NcclMemory> memory_;
  std::unique_ptr<DeviceSlots> slots_;
};

// What the other process is to serve.
struct FetchService {
  uint64_t bytes = 0;
  // Else from host memory.
  bool from_gpu = true;
  bool of_nccl = false;
};

// The serving process: any expert is the same FetchWeights. Until it is killed or the other process is gone.
inline void ServeFetches(const PeerLink& link) {
  FetchService service;
  link.Read(&service, sizeof service);
  CheckCuda(cudaSetDevice(FetchGpu(1)));
  const std::vector<std::byte> weights = FetchWeights(service.bytes);
  const FetchSlot slot(service.bytes, service.of_nccl);
  CheckCuda(cudaMemcpy(slot.bytes().data(), weights.data(), weights.size(), cudaMemcpyHostToDevice));
  const auto listener = MeshListener::Start({.host = "127.0.0.1", .identity = FetchIdentity()}).value();
  const auto server = ExpertServer::Start(FetchContext(1), *listener, [&](ExpertId) -> absl::StatusOr<PinnedReplica> {
                        if (!service.from_gpu) return PinnedReplica{.weights = weights};
                        return PinnedReplica{.weights = slot.bytes(), .memory = UcxMemory::kCuda};
                      }).value();
  const int port = listener->port();
  link.Write(&port, sizeof port);
  char c;
  link.Read(&c, 1);
}

// The other process, serving.
class FetchPeer {
 public:
  // The address that pulls are made from. `tls`: UCX_TLS of this process's contexts and the other's from now on; empty:
  // the choice is UCX's.
  explicit FetchPeer(const FetchService& service, const std::string& tls = "") {
    if (tls.empty()) {
      unsetenv("UCX_TLS");
    } else {
      setenv("UCX_TLS", tls.c_str(), 1);
    }
    child_.emplace("serve");
    child_->link().Write(&service, sizeof service);
    int port = 0;
    child_->link().Read(&port, sizeof port);
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  ~FetchPeer() {
    if (child_.has_value()) End();
  }

  const std::string& address() const { return address_; }
  void Kill() {
    child_->Kill();
    child_.reset();
  }

 private:
  void End() {
    const char c = 0;
    child_->link().Write(&c, 1);
    BALLAST_CHECK(child_->Wait() == 0) << "the serving process failed";
  }

  std::optional<ChildProcess> child_;
  std::string address_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_FETCH_DEVICE_FETCH_PEER_H_
