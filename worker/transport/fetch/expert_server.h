// Serves this worker's replicas to peers that bring experts in. In the background: a thread of its own, asleep while
// nobody pulls, and a UCX worker for each peer that does.
#ifndef BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_SERVER_H_
#define BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_SERVER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/base/mutex.h"
#include "proto/placement/placement.h"
#include "worker/transport/frame_socket.h"
#include "worker/transport/mesh_listener.h"
#include "worker/transport/poller.h"
#include "worker/transport/ucx.h"

namespace ballast {

// A replica that stays where it is, unchanged, as long as `pin` lives.
struct PinnedReplica {
  // In the slot layout: gate, up, down.
  std::span<const std::byte> weights;
  std::shared_ptr<const void> pin;
  // Of the weights. kCuda needs a context with CUDA.
  UcxMemory memory = UcxMemory::kHost;
};

// Thread-safe.
class ExpertServer {
 public:
  // Finds and pins a replica; called by the server's thread. NotFound when this worker holds none that is verified. Any
  // error is passed to the puller with its code and text.
  using PinReplica = std::function<absl::StatusOr<PinnedReplica>(ExpertId expert)>;

  // Serves the pull links that reach `listener`, which must outlive the server. Internal: UCX cannot make a worker.
  static absl::StatusOr<std::unique_ptr<ExpertServer>> Start(std::shared_ptr<UcxContext> context,
                                                             MeshListener& listener, PinReplica pin_replica);
  // Ends the pulls under way; every pin has been released when it returns.
  ~ExpertServer();
  ExpertServer(const ExpertServer&) = delete;
  ExpertServer& operator=(const ExpertServer&) = delete;

 private:
  struct Link;
  // A chunk under way: keeps its replica pinned.
  struct ChunkSend {
    Link* link = nullptr;
    std::shared_ptr<const void> pin;
    std::list<ChunkSend>::iterator self;
  };
  struct Link {
    explicit Link(FrameSocket socket_in) : socket(std::move(socket_in)) {}
    FrameSocket socket;
    bool broken = false;
    // The last progress found something to do.
    bool busy = false;
    // The replica last asked for.
    ExpertId expert;
    std::optional<PinnedReplica> replica;
    absl::Time last_request;
    std::list<ChunkSend> sends;
    // From the peer's address on. Of this link alone: when it ends so does the worker, without any more progress. Over
    // TCP a closed endpoint that has still to send lives on to receive, and UCX 1.13 touches it after it was freed when
    // the peer closes its end, too.
    std::unique_ptr<UcxWorker> worker;
    std::unique_ptr<UcxEndpoint> endpoint;
  };

  ExpertServer(std::shared_ptr<UcxContext> context, MeshListener& listener, PinReplica pin_replica);
  void Loop();
  // Progress on every link; how long the thread may sleep.
  absl::Duration Advance();
  void AddLink(FrameSocket socket);
  void ReadFrames(uint64_t id, Link& link);
  absl::Status OnFrame(uint64_t id, Link& link, const Frame& frame);
  absl::Status Serve(Link& link, const Frame& frame);
  static void OnSent(ChunkSend& send, ucs_status_t status);
  void DropBroken();
  // Breaks links that hold a pin without asking for more; returns when to look again.
  absl::Time ReleaseIdlePins();

  const std::shared_ptr<UcxContext> context_;
  MeshListener& listener_;
  const PinReplica pin_replica_;
  WakeFd wake_;

  Mutex mu_;
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;
  std::vector<FrameSocket> incoming_ BALLAST_GUARDED_BY(mu_);

  // The thread's own.
  Poller poller_;
  uint64_t next_id_;
  // Nodes of an unordered_map stay where they are.
  std::unordered_map<uint64_t, Link> links_;

  // Last: it uses everything above.
  std::thread thread_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_SERVER_H_
