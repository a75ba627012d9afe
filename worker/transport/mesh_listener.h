// The data port of a worker: where its peers open links, and how the ranks of a view find each other.
//
// One listener serves all of a worker's life, view after view. Its thread takes connections, runs their handshakes and
// keeps ("parks") proven links until this worker is told of their view. Connections that are silent, slow, garbled or
// not of the group cost a bounded number of descriptors for a bounded time and hold up nobody: when there are too many,
// the oldest unproven one goes.
#ifndef BALLAST_WORKER_TRANSPORT_MESH_LISTENER_H_
#define BALLAST_WORKER_TRANSPORT_MESH_LISTENER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/ids.h"
#include "proto/base/mutex.h"
#include "worker/transport/frame_socket.h"
#include "worker/transport/handshake.h"
#include "worker/transport/poller.h"

namespace ballast {

struct MeshMember {
  // "host:port" of the member's data port.
  std::string address;
  Incarnation incarnation;
};

// A view as one of its members sees it.
struct MeshView {
  ViewId view;
  // This worker's place.
  int rank = 0;
  // By rank.
  std::vector<MeshMember> members;
};

// A link to another rank of a view.
struct MeshLink {
  int rank = 0;
  // Nothing more is sent on it: it becomes readable when the peer dies or leaves.
  UniqueFd socket;
  // What the peer gave to Join.
  std::string payload;
};

struct MeshListenerOptions {
  // A numeric address; "" listens on every one.
  std::string host;
  // 0: any free one.
  int port = 0;
  GroupIdentity identity;
  // Connections that have not proven themselves, and for how long.
  int max_unproven = 64;
  absl::Duration proof_timeout = absl::Seconds(5);
  // Proven links of views not joined yet, and for how long.
  int max_parked = 256;
  absl::Duration park_timeout = absl::Seconds(60);
};

// Thread-safe, but for one Join at a time.
class MeshListener {
 public:
  using Options = MeshListenerOptions;
  // Takes a proven link of purpose kExpertPull; called by the listener's thread, must not block or call the listener.
  using PullHandler = std::function<void(FrameSocket link)>;

  // InvalidArgument names the option: host not an address, group or fingerprint too long. Unavailable: the port cannot
  // be had.
  static absl::StatusOr<std::unique_ptr<MeshListener>> Start(Options options);
  // No Join may be running. Parked links close.
  ~MeshListener();
  MeshListener(const MeshListener&) = delete;
  MeshListener& operator=(const MeshListener&) = delete;

  int port() const { return port_; }
  const GroupIdentity& identity() const { return options_.identity; }

  // Links this rank with every other member of the view and swaps payloads (at most kMaxMeshPayload bytes) with them;
  // blocks. Each rank dials the lower ones and waits for the higher ones; members that cannot be reached yet are tried
  // again until `deadline`. Links of older views that wait here are refused. Returns the links by rank. Every error
  // names view, rank and address:
  //   InvalidArgument    the view is malformed: no members, too many, the rank not among them, an address unusable
  //   FailedPrecondition this or a newer view was joined or abandoned before; or a peer refused, or was refused,
  //   because
  //                      group, fingerprint, protocol, view, rank or incarnation differ
  //   PermissionDenied   a dialled peer holds another secret. (One that dials with another secret is refused, logged
  //   and
  //                      waited for: it may be a stranger)
  //   Unavailable        a peer left while the view formed
  //   DeadlineExceeded   names the members that are missing and the last refusals
  //   Cancelled          Abandon was called; names what DeadlineExceeded would name
  // `missing` gets, ascending, the ranks that were missing at the deadline; or the one that left and those that had not
  // come by then, as it may have left because of them; or the dialled one whose link failed for good. Otherwise it
  // stays as it is.
  absl::StatusOr<std::vector<MeshLink>> Join(const MeshView& view, const std::string& payload, absl::Time deadline,
                                             std::vector<int>* missing = nullptr);

  // Views up to this one are over: a Join of one ends with Cancelled, links of one are refused from now on.
  void Abandon(ViewId through) BALLAST_EXCLUDES(mu_);

  // An empty handler refuses pulls. Once it returns the former handler is not running and never called again.
  void SetPullHandler(PullHandler handler) BALLAST_EXCLUDES(mu_);

 private:
  struct Connection {
    FrameSocket socket;
    Handshake handshake;
    absl::Time expires;
    std::string name;
    bool parked = false;
  };
  // The Join that is running.
  struct Joining {
    ViewId view;
    WakeFd wake;
    bool abandoned = false;
  };
  class Joiner;

  MeshListener(Options options, UniqueFd listen, int port);
  void Loop() BALLAST_EXCLUDES(mu_);
  void Accept(absl::Time now) BALLAST_REQUIRES(mu_);
  void OnReadable(uint64_t id, absl::Time now) BALLAST_REQUIRES(mu_);
  void OnProven(uint64_t id, absl::Time now) BALLAST_REQUIRES(mu_);
  void Refuse(uint64_t id, Refusal reason, std::string_view text) BALLAST_REQUIRES(mu_);
  void Drop(uint64_t id) BALLAST_REQUIRES(mu_);
  void DropOldest(bool parked) BALLAST_REQUIRES(mu_);
  // Remembers why `connection` was turned away, and logs it now and then.
  void Note(const Connection& connection, const absl::Status& why) BALLAST_REQUIRES(mu_);
  bool IsOver(ViewId view) const BALLAST_REQUIRES(mu_);
  void RefuseOver() BALLAST_REQUIRES(mu_);

  const Options options_;
  const int port_;
  UniqueFd listen_;
  Poller poller_;
  WakeFd wake_;

  Mutex mu_;
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;
  // In the order of their arrival.
  std::map<uint64_t, Connection> connections_ BALLAST_GUARDED_BY(mu_);
  uint64_t next_id_ BALLAST_GUARDED_BY(mu_);
  // The newest view that was joined or abandoned.
  ViewId latest_ BALLAST_GUARDED_BY(mu_);
  Joining* joining_ BALLAST_GUARDED_BY(mu_) = nullptr;
  PullHandler pull_handler_ BALLAST_GUARDED_BY(mu_);
  std::deque<std::pair<ViewId, std::string>> refusals_ BALLAST_GUARDED_BY(mu_);
  absl::Time next_log_ BALLAST_GUARDED_BY(mu_) = absl::InfinitePast();
  // Accepting is paused until then: the process is out of descriptors.
  absl::Time accept_again_ BALLAST_GUARDED_BY(mu_) = absl::InfinitePast();

  // Last: it uses everything above.
  std::thread thread_;
};

inline constexpr size_t kMaxMeshPayload = 65536;

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_MESH_LISTENER_H_
