// What a worker knows of its group for handing requests to the homes of their tasks, and which worker is to run the
// next one.
//
// Homes come with the placement in force. How busy the others are is what they told the controller with their last
// heartbeats, corrected by what this worker has handed them since; nothing is sent for it but a few numbers in the
// controller's answers to heartbeats. Without a controller what was heard last goes on to be corrected.
#ifndef BALLAST_WORKER_HOMES_REQUEST_ROUTER_H_
#define BALLAST_WORKER_HOMES_REQUEST_ROUTER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "ballast/v1/common.pb.h"
#include "ballast/v1/inference.grpc.pb.h"
#include "ballast/v1/worker_session.pb.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "proto/placement/placement.h"
#include "worker/homes/home_policy.h"

namespace ballast {

// Who wants to know that a peer is lost. Called once at most, from any thread, holding no lock; must not block.
class PeerWatcher {
 public:
  virtual ~PeerWatcher() = default;
  virtual void OnPeerLost() = 0;
};

// Another worker of the view. Thread-safe.
class Peer {
 public:
  Peer(const v1::Member& member, std::shared_ptr<v1::Inference::StubInterface> stub)
      : member_(member), stub_(std::move(stub)) {}

  const std::string& name() const { return member_.worker(); }
  const v1::Member& member() const { return member_; }
  v1::Inference::StubInterface& stub() const { return *stub_; }

  // The watcher, while it exists, is told when the peer leaves the view; at once if it has left.
  void Watch(const std::shared_ptr<PeerWatcher>& watcher) BALLAST_EXCLUDES(mu_);
  void MarkLost() BALLAST_EXCLUDES(mu_);

 private:
  const v1::Member member_;
  const std::shared_ptr<v1::Inference::StubInterface> stub_;
  Mutex mu_;
  bool lost_ BALLAST_GUARDED_BY(mu_) = false;
  std::vector<std::weak_ptr<PeerWatcher>> watchers_ BALLAST_GUARDED_BY(mu_);
};

// Thread-safe.
class RequestRouter {
 public:
  using MakeStub = std::function<std::shared_ptr<v1::Inference::StubInterface>(const std::string& address)>;

  // `own_load` must not block.
  RequestRouter(std::string own_name, MakeStub make_stub, std::function<WorkerLoad()> own_load,
                const SpillLimits& limits = {}, Clock& clock = Clock::Real());

  // The members, and the placement's homes, are these from now on. Members that are gone, or came back as another
  // incarnation, are lost to those who watch them.
  void Install(const v1::View& view, const Placement& placement) BALLAST_EXCLUDES(mu_);
  // There is no view: every peer is lost.
  void Clear() BALLAST_EXCLUDES(mu_);
  // As the controller tells them; workers that it does not name keep what was known.
  void SetLoads(const v1::HeartbeatAck& ack) BALLAST_EXCLUDES(mu_);

  struct Target {
    RequestRoute route = RequestRoute::kNone;
    // Null: this worker. Otherwise the request counts as on its way there until Ended.
    std::shared_ptr<Peer> peer;
    // The client is to be sent to `peer`; that the request ends there is not told to anyone here, and not to be told to
    // Ended.
    bool redirect = false;
  };
  // A task without homes of its own goes to those of the tasks that telemetry pools, if there are any; unlabelled
  // requests (an empty task) are a task of their own. A client that `follows_redirects` is sent to the other worker
  // while its load is heard: until then what clients were sent there counts as there.
  Target Route(std::string_view task, bool follows_redirects = false) BALLAST_EXCLUDES(mu_);
  // Whether this worker is to go: then every request is handed to another, if there is one that stays, and one that
  // another hands over is not for this worker.
  void SetAway(bool away) BALLAST_EXCLUDES(mu_);
  bool away() const BALLAST_EXCLUDES(mu_);
  // A request that Route gave to `peer` has ended there, or came back.
  void Ended(const Peer& peer) BALLAST_EXCLUDES(mu_);

  // From now on every request is this worker's; those on their way go on.
  void Close() BALLAST_EXCLUDES(mu_);
  // Blocks until no request is with a peer or `deadline` comes; whether none is.
  bool AwaitIdle(Clock& clock, absl::Time deadline) BALLAST_EXCLUDES(mu_);

 private:
  struct Known {
    std::shared_ptr<Peer> peer;  // null: this worker
    // As heard last; whether it is to be spared.
    WorkerLoad heard;
    bool full = false;
    // It is to go.
    bool draining = false;
    // Requests of this worker that are there now, and that were when its load was heard.
    int handed = 0;
    int handed_when_heard = 0;
    // When it was, and the clients that were sent there since.
    absl::Time heard_at = absl::InfinitePast();
    int redirected = 0;
  };

  bool IsHeard(const Known& worker) const BALLAST_REQUIRES(mu_);
  WorkerLoad LoadOf(const Known& worker) const BALLAST_REQUIRES(mu_);
  Target HandTo(Known& worker, RequestRoute route, bool follows_redirects) BALLAST_REQUIRES(mu_);

  const std::string own_name_;
  const MakeStub make_stub_;
  const std::function<WorkerLoad()> own_load_;
  const SpillLimits limits_;
  Clock& clock_;

  mutable Mutex mu_;
  CondVar idle_;
  bool away_ BALLAST_GUARDED_BY(mu_) = false;
  bool closed_ BALLAST_GUARDED_BY(mu_) = false;
  // By rank.
  std::vector<Known> workers_ BALLAST_GUARDED_BY(mu_);
  int self_ BALLAST_GUARDED_BY(mu_) = -1;
  // By task; homes in the view alone, which may be none.
  std::map<std::string, std::vector<HomeTurn>, std::less<>> homes_ BALLAST_GUARDED_BY(mu_);
  int handed_ BALLAST_GUARDED_BY(mu_) = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_HOMES_REQUEST_ROUTER_H_
