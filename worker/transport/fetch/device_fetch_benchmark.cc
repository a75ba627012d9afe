// Pulls of one DeepSeek-V3 expert (88 MB) into a GPU's slot out of another process's, on another GPU where there are
// two: through UCX, over whatever it picks and over TCP, as fast as it goes and at 10 GB/s; beside the same from host
// memory to host memory, and beside the move over NVLink (device_moves.h), in one run. Medians.
//
// Useful for: whether UCX with CUDA is worth giving to a worker (docs/toolchain.md).
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "proto/base/clock.h"
#include "worker/experts/device_copier.h"
#include "worker/experts/expert_mover.h"
#include "worker/transport/fetch/device_fetch_peer.h"
#include "worker/transport/fetch/expert_fetcher.h"
#include "worker/transport/nccl/peer_communicator.h"

namespace ballast {
namespace {

constexpr size_t kBytes = size_t{3} * 7168 * 2048 * 2;
constexpr int64_t kRate = 10'000'000'000;
constexpr int kRounds = 9;

void CheckOk(const absl::Status& status) { BALLAST_CHECK(status.ok()) << status.ToString(); }

// GB/s of `move`, the first time not counted.
double Rate(const std::function<void()>& move) {
  std::vector<double> seconds;
  for (int i = 0; i <= kRounds; ++i) {
    const absl::Time start = absl::Now();
    move();
    if (i > 0) seconds.push_back(absl::ToDoubleSeconds(absl::Now() - start));
  }
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  return kBytes / seconds[kRounds / 2] / 1e9;
}

void Print(const std::string& what, double unlimited, double limited) {
  std::printf("%-52s %8.1f GB/s, at 10 GB/s %6.2f\n", what.c_str(), unlimited, limited);
  std::fflush(stdout);
}

void Fetches(const std::string& name, const std::string& tls, const FetchService& service) {
  FetchPeer peer(service, tls);
  CheckCuda(cudaSetDevice(FetchGpu(0)));
  const FetchSlot slot(kBytes, service.of_nccl);
  auto host = PinnedMemory::Allocate(kBytes);
  CheckOk(host.status());
  const std::shared_ptr<UcxContext> context = FetchContext(0);
  ExpertFetcher fetcher(context, FetchIdentity());
  // A pull every now and then would connect anew each time; in a rollout one follows the other.
  const auto pull = [&] {
    CheckOk(fetcher.Fetch({.address = peer.address(),
                           .expert = {0, 1},
                           .buffer = service.from_gpu ? slot.bytes() : host->bytes(),
                           .memory = service.from_gpu ? UcxMemory::kCuda : UcxMemory::kHost}));
  };
  const double unlimited = Rate(pull);
  fetcher.SetBytesPerSecond(kRate);
  const double limited = Rate(pull);
  Print(name, unlimited, limited);
  if (service.from_gpu) BALLAST_CHECK(slot.Sum() == ComputeExpertChecksum(FetchWeights(kBytes))) << name;
}

void OverNvlink() {
  ChildProcess child("nvlink");
  const auto communicator = ConnectPeers(0, child.link());
  const auto memory = communicator->AllocateShared(kBytes, absl::Now() + absl::Seconds(60));
  CheckOk(memory.status());
  const auto copier = DeviceCopier::Create();
  CheckOk(copier.status());
  ExpertMover mover(**copier, Clock::Real());
  double rates[2];
  for (int limited = 0; limited < 2; ++limited) {
    rates[limited] = Rate([&] {
      CheckOk(mover.Move({memory->peers[1], kBytes}, memory->own, limited ? kRate : 0, absl::InfiniteFuture()));
    });
  }
  Print("NVLink, this worker's copies", rates[0], rates[1]);
  child.link().Meet();
}

void Run() {
  std::printf("UCX %s\n", ucp_get_version_string());
  int gpus = 0;
  CheckCuda(cudaGetDeviceCount(&gpus));
  if (gpus > 1) OverNvlink();
  for (const std::string tls : {"", "tcp,cuda_copy,self"}) {
    const std::string name = tls.empty() ? "UCX's choice" : "TCP";
    if (FetchContext(0)->has_cuda()) {
      Fetches(name + ", slot to slot", tls, {.bytes = kBytes});
      Fetches(name + ", slot to slot, memory of NCCL", tls, {.bytes = kBytes, .of_nccl = true});
    }
    Fetches(name + ", host memory to host memory", tls, {.bytes = kBytes, .from_gpu = false});
  }
}

void RunNvlinkChild(const PeerLink& link) {
  const auto communicator = ConnectPeers(1, link);
  CheckOk(communicator->AllocateShared(kBytes, absl::Now() + absl::Seconds(60)).status());
  link.Meet();
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  std::string what;
  if (const auto link = ballast::PeerLink::OfChild(argc, argv, &what)) {
    if (what == "nvlink") {
      ballast::RunNvlinkChild(*link);
    } else {
      ballast::ServeFetches(*link);
    }
    return 0;
  }
  ballast::Run();
  return 0;
}
