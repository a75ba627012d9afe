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
// Into a GPU's slots they come from GPUs within direct reach, and else, as out of them, by way of host memory.
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
      : moves_(moves), fetcher_(std::move(context), identity) {}

  absl::Status Fetch(const std::string& address, ExpertId expert, std::span<std::byte> out,
                     int64_t max_bytes_per_second, absl::Time deadline) BALLAST_EXCLUDES(mu_);

  // Null: slots are plain memory.
  DeviceMoves* const moves_;
  ExpertFetcher fetcher_;
  std::unique_ptr<ExpertServer> server_;

  Mutex mu_;
  CondVar changed_;
  std::optional<PullId> running_ BALLAST_GUARDED_BY(mu_);
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DAEMON_PEER_EXPERTS_H_
