#include "worker/transport/ucx_transport.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/clock.h"
#include "proto/base/status_macros.h"
#include "worker/transport/poller.h"
#include "worker/transport/wait_errors.h"

namespace ballast {
namespace {

using internal::OpenRequest;
using internal::RequestKind;

constexpr int kRankBits = 12;
static_assert(kMaxRanks == 1 << kRankBits);
constexpr int kViewBits = 64 - kRankBits - kTagBits;
constexpr uint64_t kWakeKey = 0;
constexpr uint64_t kUcxKey = 1;
constexpr uint64_t kFirstLink = 2;

// How long the rest of a message that a cancelled receive has met may take.
constexpr absl::Duration kCancelLimit = absl::Seconds(1);
// The same when nothing more can come: local work.
constexpr absl::Duration kDrainLimit = absl::Milliseconds(50);

// How often a wait that cannot sleep looks at the links.
constexpr absl::Duration kPeekInterval = absl::Milliseconds(1);

class UcxTransport final : public Transport {
 public:
  UcxTransport(std::unique_ptr<UcxWorker> worker, const MeshView& view, const UcxTransportOptions& options)
      : options_(options), rank_(view.rank), view_(view.view), worker_(std::move(worker)), peers_(view.members.size()) {
    poller_.Add(wake_.fd(), kWakeKey, /*readable=*/true, /*writable=*/false);
    poller_.Add(worker_->event_fd(), kUcxKey, /*readable=*/true, /*writable=*/false);
  }

  ~UcxTransport() override { Close(); }

  // `failed` gets the rank whose link it fails for.
  absl::Status Link(std::vector<MeshLink> links, std::vector<int>* failed) {
    for (MeshLink& link : links) {
      Peer& peer = peers_[link.rank];
      peer.link = std::move(link.socket);
      poller_.Add(peer.link.get(), kFirstLink + link.rank, /*readable=*/true, /*writable=*/false);
      absl::StatusOr<std::unique_ptr<UcxEndpoint>> endpoint =
          UcxEndpoint::Create(*worker_, link.payload, [this, rank = link.rank](ucs_status_t) { Lose(rank); });
      if (!endpoint.ok()) {
        if (failed != nullptr) failed->push_back(link.rank);
        return absl::Status(endpoint.status().code(), absl::StrCat("view ", view_.value(), ": rank ", link.rank, ": ",
                                                                   endpoint.status().message()));
      }
      peer.endpoint = *std::move(endpoint);
    }
    return absl::OkStatus();
  }

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(peers_.size()); }

  RequestId Send(int peer, Tag tag, std::span<const std::byte> message) override {
    Request& request = NewRequest(RequestKind::kSend, peer, tag);
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    param.user_data = &request;
    param.cb.send = [](void* ucx, ucs_status_t status, void* user) {
      static_cast<Request*>(user)->owner->OnDone(*static_cast<Request*>(user), status, 0);
      ucp_request_free(ucx);
    };
    if (worker_ == nullptr) return request.id;
    const ucs_status_ptr_t ucx =
        ucp_tag_send_nbx(peers_[peer].endpoint->handle(), message.data(), message.size(), WireTag(rank_, tag), &param);
    if (UCS_PTR_IS_PTR(ucx)) {
      request.ucx = request.done ? nullptr : ucx;
    } else {
      OnDone(request, UCS_PTR_STATUS(ucx), 0);
    }
    return request.id;
  }

  RequestId Receive(int peer, Tag tag, std::span<std::byte> buffer) override {
    Request& request = NewRequest(RequestKind::kReceive, peer, tag);
    request.buffer_bytes = buffer.size();
    if (worker_ == nullptr) return request.id;
    ucp_request_param_t param{};
    // The callback alone tells the message's length.
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    param.user_data = &request;
    param.cb.recv = [](void* ucx, ucs_status_t status, const ucp_tag_recv_info_t* info, void* user) {
      static_cast<Request*>(user)->owner->OnDone(*static_cast<Request*>(user), status, info->length);
      ucp_request_free(ucx);
    };
    const ucs_status_ptr_t ucx =
        ucp_tag_recv_nbx(worker_->handle(), buffer.data(), buffer.size(), WireTag(peer, tag), ~ucp_tag_t{0}, &param);
    if (UCS_PTR_IS_PTR(ucx)) {
      request.ucx = request.done ? nullptr : ucx;
    } else {
      OnDone(request, UCS_PTR_STATUS(ucx), 0);
    }
    return request.id;
  }

  absl::Status Wait(std::span<const RequestId> requests, absl::Time deadline) override {
    found_done_.clear();
    BALLAST_RETURN_IF_ERROR(WaitFor(requests, /*any=*/false, deadline).status());
    for (RequestId id : requests) Retire(id);
    return absl::OkStatus();
  }

  absl::StatusOr<int> WaitAny(std::span<const RequestId> requests, absl::Time deadline) override {
    found_done_.clear();
    BALLAST_ASSIGN_OR_RETURN(const int index, WaitFor(requests, /*any=*/true, deadline));
    Retire(requests[index]);
    return index;
  }

  size_t ReceivedBytes(RequestId receive) const override {
    const auto it = found_done_.find(receive.value());
    BALLAST_CHECK(it != found_done_.end()) << "request " << receive << " was not finished by the last wait";
    return it->second;
  }

  void Cancel(RequestId receive) override {
    const auto it = requests_.find(receive.value());
    if (it == requests_.end()) return;
    Request& request = *it->second;
    BALLAST_CHECK(request.kind == RequestKind::kReceive) << "request " << receive << " is a send";
    if (!request.done && worker_ != nullptr) {
      ucp_request_cancel(worker_->handle(), request.ucx);
      // A receive that has met its message is finished first: until then the library may write to the buffer.
      const bool lost = std::binary_search(lost_.begin(), lost_.end(), request.peer);
      const absl::Time limit = clock_.Now() + (lost ? kDrainLimit : kCancelLimit);
      while (!request.done && clock_.Now() < limit) worker_->Progress();
      if (!request.done) {
        // The peer stopped in mid-message, and only the worker's end makes sure that nothing is written any more.
        Lose(request.peer);
        Close();
      }
    }
    requests_.erase(it);
  }

  void Wake() override {
    woken_.store(true);
    wake_.Signal();
  }

  void Interrupt() override {
    interrupted_.store(true);
    wake_.Signal();
  }

  std::vector<int> lost_peers() const override { return lost_; }

 private:
  struct Request {
    UcxTransport* owner = nullptr;
    RequestId id;
    RequestKind kind = RequestKind::kSend;
    int peer = 0;
    Tag tag = 0;
    size_t buffer_bytes = 0;
    // UCX's, until done.
    void* ucx = nullptr;
    bool done = false;
    ucs_status_t status = UCS_INPROGRESS;
    size_t received = 0;
  };
  struct Peer {
    UniqueFd link;
    std::unique_ptr<UcxEndpoint> endpoint;
  };

  ucp_tag_t WireTag(int sender, Tag tag) const {
    const uint64_t view = view_.value() & ((uint64_t{1} << kViewBits) - 1);
    return view << (kRankBits + kTagBits) | uint64_t(sender) << kTagBits | tag;
  }

  Request& NewRequest(RequestKind kind, int peer, Tag tag) {
    BALLAST_CHECK(peer >= 0 && peer < size() && peer != rank_) << "peer=" << peer << " rank=" << rank_;
    BALLAST_CHECK(tag <= kMaxTag) << "tag=" << tag;
    auto request = std::make_unique<Request>();
    request->owner = this;
    request->id = RequestId(++last_request_);
    request->kind = kind;
    request->peer = peer;
    request->tag = tag;
    return *requests_.emplace(last_request_, std::move(request)).first->second;
  }

  void OnDone(Request& request, ucs_status_t status, size_t received) {
    request.done = true;
    request.ucx = nullptr;
    request.status = status;
    request.received = received;
  }

  // Ends all communication. Requests that are open stay so.
  void Close() {
    if (worker_ == nullptr) return;
    for (auto& [id, request] : requests_) {
      if (request->kind == RequestKind::kReceive && request->ucx != nullptr) {
        ucp_request_cancel(worker_->handle(), request->ucx);
      }
    }
    for (Peer& peer : peers_) peer.endpoint.reset();
    // No progress from here on: over TCP a closed endpoint that has still to send lives on to receive, and UCX 1.13
    // touches it after it was freed when the peer closes its end, too. The worker's end frees all of it.
    poller_.Remove(worker_->event_fd());
    worker_.reset();
    for (Peer& peer : peers_) peer.link.Reset();
  }

  void Lose(int rank) {
    const auto at = std::lower_bound(lost_.begin(), lost_.end(), rank);
    if (at == lost_.end() || *at != rank) lost_.insert(at, rank);
  }

  void Retire(RequestId id) {
    const auto it = requests_.find(id.value());
    if (it == requests_.end()) return;
    found_done_.emplace(id.value(), it->second->received);
    requests_.erase(it);
  }

  // The state of a wait: an error, the index of a finished request (`any`) or 0 (all done), or nullopt.
  absl::StatusOr<std::optional<int>> Look(std::span<const RequestId> ids, bool any) {
    if (interrupted_.load(std::memory_order_acquire)) return internal::InterruptedError();
    bool all = true;
    absl::Status failed;
    for (size_t i = 0; i < ids.size(); ++i) {
      BALLAST_CHECK(ids[i].value() > 0 && ids[i].value() <= last_request_) << "unknown request " << ids[i];
      const auto it = requests_.find(ids[i].value());
      const bool done = it == requests_.end() || it->second->done;
      const bool good = done && (it == requests_.end() || it->second->status == UCS_OK);
      if (good && any) return static_cast<int>(i);
      if (done && !good) NoteFailure(*it->second, &failed);
      all &= good;
    }
    if (all && !any) return 0;
    if (absl::IsResourceExhausted(failed)) return failed;
    if (any && woken_.exchange(false)) return internal::WokenError();
    if (!lost_.empty()) return internal::LostPeersError(lost_);
    if (!failed.ok()) return failed;
    return std::optional<int>();
  }

  void NoteFailure(const Request& request, absl::Status* failed) {
    if (request.status == UCS_ERR_MESSAGE_TRUNCATED) {
      *failed = internal::OversizeError(request.peer, request.tag, request.received, request.buffer_bytes);
      return;
    }
    absl::Status error = UcxError(absl::StrCat("rank ", request.peer), request.status);
    if (absl::IsUnavailable(error) || request.status == UCS_ERR_CANCELED) {
      Lose(request.peer);
    } else if (failed->ok()) {
      *failed = std::move(error);
    }
  }

  absl::StatusOr<int> WaitFor(std::span<const RequestId> ids, bool any, absl::Time deadline) {
    std::optional<absl::Time> spin_until;
    absl::Time next_peek = absl::InfinitePast();
    bool looked_at_links = false;
    while (true) {
      if (worker_ != nullptr) worker_->Progress();
      absl::StatusOr<std::optional<int>> found = Look(ids, any);
      if (absl::IsUnavailable(found.status())) {
        // Ranks that died together are named together, and not only the first that somebody else gave up.
        TakeEvents(absl::ZeroDuration());
        return internal::LostPeersError(lost_);
      }
      if (!found.ok()) return found.status();
      if (found->has_value()) return **found;
      const absl::Time now = clock_.Now();
      if (now >= deadline) {
        if (looked_at_links) return Late(ids);
        TakeEvents(absl::ZeroDuration());
        looked_at_links = true;
        continue;
      }
      if (!spin_until) spin_until = now + options_.spin;
      if (now < *spin_until) {
        sched_yield();
        continue;
      }
      // Between a false look and the sleep anything may happen: Arm is false if it concerned UCX, and the other
      // descriptors stay readable.
      if (worker_->Arm()) {
        TakeEvents(deadline - now);
      } else {
        // UCX waits for room at a peer, which needs a core to make it; or for ever, at a peer that is dead.
        sched_yield();
        if (now >= next_peek) {
          TakeEvents(absl::ZeroDuration());
          next_peek = now + kPeekInterval;
        }
      }
    }
  }

  void TakeEvents(absl::Duration timeout) {
    for (const Poller::Event& event : poller_.Wait(timeout)) {
      if (event.key == kWakeKey) {
        wake_.Clear();
      } else if (event.key >= kFirstLink) {
        // Nothing is ever sent on a link: the peer is gone. What it sent through UCX before is still taken.
        const int peer = static_cast<int>(event.key - kFirstLink);
        poller_.Remove(peers_[peer].link.get());
        if (worker_ != nullptr) worker_->Progress();
        Lose(peer);
      }
    }
  }

  absl::Status Late(std::span<const RequestId> ids) const {
    std::vector<OpenRequest> open;
    for (RequestId id : ids) {
      const auto it = requests_.find(id.value());
      if (it == requests_.end() || it->second->done) continue;
      open.push_back({.kind = it->second->kind, .peer = it->second->peer, .tag = it->second->tag});
    }
    return internal::LateError(open);
  }

  const UcxTransportOptions options_;
  const int rank_;
  const ViewId view_;
  Clock& clock_ = Clock::Real();
  std::atomic<bool> woken_{false};
  std::atomic<bool> interrupted_{false};
  WakeFd wake_;
  Poller poller_;
  uint64_t last_request_ = 0;
  std::unordered_map<uint64_t, std::unique_ptr<Request>> requests_;
  // What the last wait found done, with the bytes received.
  std::unordered_map<uint64_t, size_t> found_done_;
  std::vector<int> lost_;
  // Before the endpoints, which use it.
  std::unique_ptr<UcxWorker> worker_;
  std::vector<Peer> peers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> ConnectUcx(std::shared_ptr<UcxContext> context, MeshListener& listener,
                                                      const MeshView& view, absl::Time deadline,
                                                      UcxTransportOptions options, std::vector<int>* missing) {
  BALLAST_ASSIGN_OR_RETURN(std::unique_ptr<UcxWorker> worker, UcxWorker::Create(std::move(context)));
  const std::string address = worker->address();
  BALLAST_ASSIGN_OR_RETURN(std::vector<MeshLink> links, listener.Join(view, address, deadline, missing));
  auto transport = std::make_unique<UcxTransport>(std::move(worker), view, options);
  BALLAST_RETURN_IF_ERROR(transport->Link(std::move(links), missing));
  return transport;
}

}  // namespace ballast
