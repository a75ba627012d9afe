#ifndef BALLAST_WORKER_DAEMON_PEER_EXPERTS_H_
#define BALLAST_WORKER_DAEMON_PEER_EXPERTS_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "proto/base/mutex.h"
#include "worker/daemon/processor.h"
#include "worker/migrate/move_agent.h"
#include "worker/transport/fetch/expert_fetcher.h"
#include "worker/transport/fetch/expert_server.h"

namespace ballast {

// Both ends of weights on the move: pulls replicas from peers for the move agent, and serves them this worker's own.
// Into a GPU's slots they come, the first that there is:
//   1. from slots within direct reach (device_moves.h): NVLink, on a stream of the lowest priority
//   2. through UCX from slot to slot, where this worker's UCX has CUDA. Any peer that serves them, its UCX as it may be
//   3. through UCX to host memory and from there
// Out of a GPU's slots UCX takes them where it has CUDA, else from a copy in host memory.
class PeerExperts final : public ReplicaPuller {
 public:
  // `listener` and `processor` must outlive it. Errors as ExpertServer::Start.
  static absl::StatusOr<std::unique_ptr<PeerExperts>> Start(std::shared_ptr<UcxContext> context, MeshListener& listener,
                                                            const Processor& processor);

  absl::Status Pull(const std::string& address, ExpertId expert, std::span<std::byte> out, int64_t max_bytes_per_second,
                    absl::Time deadline) override BALLAST_EXCLUDES(mu_);
  void Cancel() override BALLAST_EXCLUDES(mu_);

 private:
  PeerExperts(std::shared_ptr<UcxContext> context, const GroupIdentity& identity, DeviceMoves* moves)
      : moves_(moves), ucx_has_cuda_(context->has_cuda()), fetcher_(std::move(context), identity) {}

  absl::Status Fetch(const std::string& address, ExpertId expert, std::span<std::byte> out, UcxMemory memory,
                     int64_t max_bytes_per_second, absl::Time deadline) BALLAST_EXCLUDES(mu_);

  // Null: slots are plain memory.
  DeviceMoves* const moves_;
  const bool ucx_has_cuda_;
  ExpertFetcher fetcher_;
  std::unique_ptr<ExpertServer> server_;

  Mutex mu_;
  CondVar changed_;
  std::optional<PullId> running_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_PEER_EXPERTS_H_
