#include "worker/transport/inproc.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "proto/base/check.h"
#include "proto/base/mutex.h"
#include "worker/transport/wait_errors.h"

namespace ballast {

using internal::OpenRequest;
using internal::RequestKind;

// Everything of a mesh under one mutex: tests want certainty, not speed.
class InProcessMesh::State {
 public:
  State(int ranks, const Options& options) : options_(options), ranks_(ranks) {
    BALLAST_CHECK(ranks >= 1 && ranks <= kMaxRanks) << "ranks=" << ranks;
  }

  int size() const { return static_cast<int>(ranks_.size()); }

  void Join(int rank) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    BALLAST_CHECK(rank >= 0 && rank < size() && !ranks_[rank].joined) << "rank=" << rank;
    ranks_[rank].joined = true;
  }

  // The rank's transport is destroyed: its buffers are no longer to be touched.
  void Leave(int rank) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    KillLocked(rank);
    Rank& me = ranks_[rank];
    me.requests.clear();
    me.open_receives.clear();
    me.arrived.clear();
    for (Rank& other : ranks_) {
      for (auto& [key, messages] : other.arrived) {
        if (key.first == rank) std::erase_if(messages, [](const Message& m) { return !m.copied; });
      }
    }
  }

  void Kill(int rank) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    BALLAST_CHECK(rank >= 0 && rank < size()) << "rank=" << rank;
    KillLocked(rank);
  }

  void SetHook(std::function<MessageFate(const InProcessMessage&)> hook) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    hook_ = std::move(hook);
  }

  void ReleaseHeld() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    for (Held& held : std::exchange(held_, {})) {
      if (!ranks_[held.to].dead) Deliver(held.to, held.from, std::move(held.message));
    }
  }

  RequestId Send(int rank, int peer, Tag tag, std::span<const std::byte> bytes) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    CheckArguments(rank, peer, tag);
    const RequestId id = NewRequest(rank, Request{.kind = RequestKind::kSend, .peer = peer, .tag = tag});
    MessageFate fate = MessageFate::kDeliver;
    if (ranks_[rank].dead) {
      fate = MessageFate::kDrop;
    } else if (hook_) {
      fate = hook_({.from = rank, .to = peer, .tag = tag, .bytes = bytes.size(), .index = next_message_++});
    }
    if (fate == MessageFate::kKillSender) KillLocked(rank);
    if (fate == MessageFate::kKillReceiver) KillLocked(peer);
    Request& request = ranks_[rank].requests.at(id);
    if (fate == MessageFate::kKillSender) return id;
    if (fate == MessageFate::kDrop || ranks_[peer].dead) {
      request.done = true;
      return id;
    }
    Message message{.tag = tag};
    if (bytes.size() <= options_.eager_limit || fate == MessageFate::kHold) {
      message.copied = true;
      message.copy.assign(bytes.begin(), bytes.end());
      request.done = true;
    } else {
      message.source = bytes;
      message.send = id;
    }
    if (fate == MessageFate::kHold) {
      held_.push_back({.from = rank, .to = peer, .message = std::move(message)});
    } else {
      Deliver(peer, rank, std::move(message));
    }
    return id;
  }

  RequestId Receive(int rank, int peer, Tag tag, std::span<std::byte> buffer) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    CheckArguments(rank, peer, tag);
    const RequestId id =
        NewRequest(rank, Request{.kind = RequestKind::kReceive, .peer = peer, .tag = tag, .buffer = buffer});
    Rank& me = ranks_[rank];
    auto arrived = me.arrived.find({peer, tag});
    if (arrived != me.arrived.end() && !arrived->second.empty()) {
      const Message message = std::move(arrived->second.front());
      arrived->second.pop_front();
      if (arrived->second.empty()) me.arrived.erase(arrived);
      Finish(rank, id, message);
    } else {
      me.open_receives[{peer, tag}].push_back(id);
    }
    return id;
  }

  // The index that WaitAny returns, with `any`; else 0.
  absl::StatusOr<int> Wait(int rank, std::span<const RequestId> ids, bool any, absl::Time deadline)
      BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    Rank& me = ranks_[rank];
    me.found_done.clear();
    while (true) {
      if (me.interrupted) return internal::InterruptedError();
      std::vector<OpenRequest> open;
      for (size_t i = 0; i < ids.size(); ++i) {
        BALLAST_CHECK(ids[i].value() > 0 && ids[i].value() <= me.last_request) << "unknown request " << ids[i];
        const auto it = me.requests.find(ids[i]);
        if (it == me.requests.end()) {
          if (any) return static_cast<int>(i);
          continue;
        }
        const Request& request = it->second;
        if (!request.error.ok()) return request.error;
        if (!request.done) {
          open.push_back({.kind = request.kind, .peer = request.peer, .tag = request.tag});
        } else if (any) {
          Retire(rank, ids[i]);
          return static_cast<int>(i);
        }
      }
      if (!any && open.empty()) {
        for (RequestId id : ids) Retire(rank, id);
        return 0;
      }
      if (any && std::exchange(me.woken, false)) return internal::WokenError();
      if (me.dead) return internal::LostPeersError(std::span<const int>(&rank, 1));
      if (const std::vector<int> lost = LostPeersLocked(rank); !lost.empty()) return internal::LostPeersError(lost);
      if (deadline <= options_.clock->Now()) return internal::LateError(open);
      options_.clock->WaitUntil(me.changed, mu_, deadline);
    }
  }

  size_t ReceivedBytes(int rank, RequestId id) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    const auto it = ranks_[rank].found_done.find(id);
    BALLAST_CHECK(it != ranks_[rank].found_done.end()) << "request " << id << " was not finished by the last wait";
    return it->second;
  }

  void Cancel(int rank, RequestId id) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    Rank& me = ranks_[rank];
    const auto it = me.requests.find(id);
    if (it == me.requests.end()) return;
    BALLAST_CHECK(it->second.kind == RequestKind::kReceive) << "request " << id << " is a send";
    const auto open = me.open_receives.find({it->second.peer, it->second.tag});
    if (open != me.open_receives.end()) std::erase(open->second, id);
    me.requests.erase(it);
  }

  void Wake(int rank) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    ranks_[rank].woken = true;
    ranks_[rank].changed.NotifyAll();
  }

  void Interrupt(int rank) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    ranks_[rank].interrupted = true;
    ranks_[rank].changed.NotifyAll();
  }

  std::vector<int> LostPeers(int rank) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return LostPeersLocked(rank);
  }

 private:
  using Key = std::pair<int, Tag>;
  struct Message {
    Tag tag = 0;
    bool copied = false;
    std::vector<std::byte> copy;
    // Not copied yet: where it lies, and the sender's open request.
    std::span<const std::byte> source;
    RequestId send;
  };
  struct Held {
    int from = 0;
    int to = 0;
    Message message;
  };
  struct Request {
    RequestKind kind = RequestKind::kSend;
    int peer = 0;
    Tag tag = 0;
    std::span<std::byte> buffer;
    bool done = false;
    size_t received = 0;
    absl::Status error;
  };
  struct Rank {
    bool joined = false;
    bool dead = false;
    bool woken = false;
    bool interrupted = false;
    uint64_t last_request = 0;
    std::map<RequestId, Request> requests;
    std::map<Key, std::deque<RequestId>> open_receives;
    std::map<Key, std::deque<Message>> arrived;
    // What the last wait found done, with the bytes received.
    std::map<RequestId, size_t> found_done;
    CondVar changed;
  };

  void CheckArguments(int rank, int peer, Tag tag) const {
    BALLAST_CHECK(peer >= 0 && peer < size() && peer != rank) << "peer=" << peer << " rank=" << rank;
    BALLAST_CHECK(tag <= kMaxTag) << "tag=" << tag;
  }

  RequestId NewRequest(int rank, Request request) BALLAST_REQUIRES(mu_) {
    const RequestId id(++ranks_[rank].last_request);
    ranks_[rank].requests.emplace(id, std::move(request));
    return id;
  }

  void Retire(int rank, RequestId id) BALLAST_REQUIRES(mu_) {
    const auto it = ranks_[rank].requests.find(id);
    if (it == ranks_[rank].requests.end()) return;
    ranks_[rank].found_done.emplace(id, it->second.received);
    ranks_[rank].requests.erase(it);
  }

  void Deliver(int to, int from, Message message) BALLAST_REQUIRES(mu_) {
    Rank& receiver = ranks_[to];
    const auto open = receiver.open_receives.find({from, message.tag});
    if (open == receiver.open_receives.end() || open->second.empty()) {
      receiver.arrived[{from, message.tag}].push_back(std::move(message));
      return;
    }
    const RequestId id = open->second.front();
    open->second.pop_front();
    if (open->second.empty()) receiver.open_receives.erase(open);
    Finish(to, id, message);
  }

  // The receive `id` of `rank` meets its message.
  void Finish(int rank, RequestId id, const Message& message) BALLAST_REQUIRES(mu_) {
    Request& receive = ranks_[rank].requests.at(id);
    const std::span<const std::byte> bytes = message.copied ? std::span<const std::byte>(message.copy) : message.source;
    if (bytes.size() > receive.buffer.size()) {
      receive.error = internal::OversizeError(receive.peer, receive.tag, bytes.size(), receive.buffer.size());
    } else {
      if (!bytes.empty()) std::memcpy(receive.buffer.data(), bytes.data(), bytes.size());
      receive.received = bytes.size();
      receive.done = true;
    }
    ranks_[rank].changed.NotifyAll();
    if (!message.copied) {
      Rank& sender = ranks_[receive.peer];
      if (const auto it = sender.requests.find(message.send); it != sender.requests.end()) it->second.done = true;
      sender.changed.NotifyAll();
    }
  }

  void KillLocked(int rank) BALLAST_REQUIRES(mu_) {
    ranks_[rank].dead = true;
    for (Rank& other : ranks_) other.changed.NotifyAll();
  }

  std::vector<int> LostPeersLocked(int rank) const BALLAST_REQUIRES(mu_) {
    std::vector<int> lost;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer != rank && ranks_[peer].dead) lost.push_back(peer);
    }
    return lost;
  }

  const Options options_;
  Mutex mu_;
  std::function<MessageFate(const InProcessMessage&)> hook_ BALLAST_GUARDED_BY(mu_);
  std::vector<Held> held_ BALLAST_GUARDED_BY(mu_);
  int64_t next_message_ BALLAST_GUARDED_BY(mu_) = 0;
  // The vector itself never changes; its elements are guarded by mu_.
  std::vector<Rank> ranks_;
};

class InProcessMesh::End final : public Transport {
 public:
  End(std::shared_ptr<State> state, int rank) : state_(std::move(state)), rank_(rank) { state_->Join(rank); }
  ~End() override { state_->Leave(rank_); }

  int rank() const override { return rank_; }
  int size() const override { return state_->size(); }
  RequestId Send(int peer, Tag tag, std::span<const std::byte> message) override {
    return state_->Send(rank_, peer, tag, message);
  }
  RequestId Receive(int peer, Tag tag, std::span<std::byte> buffer) override {
    return state_->Receive(rank_, peer, tag, buffer);
  }
  absl::Status Wait(std::span<const RequestId> requests, absl::Time deadline) override {
    return state_->Wait(rank_, requests, /*any=*/false, deadline).status();
  }
  absl::StatusOr<int> WaitAny(std::span<const RequestId> requests, absl::Time deadline) override {
    return state_->Wait(rank_, requests, /*any=*/true, deadline);
  }
  size_t ReceivedBytes(RequestId receive) const override { return state_->ReceivedBytes(rank_, receive); }
  void Cancel(RequestId receive) override { state_->Cancel(rank_, receive); }
  void Wake() override { state_->Wake(rank_); }
  void Interrupt() override { state_->Interrupt(rank_); }
  std::vector<int> lost_peers() const override { return state_->LostPeers(rank_); }

 private:
  const std::shared_ptr<State> state_;
  const int rank_;
};

InProcessMesh::InProcessMesh(int ranks, Options options) : state_(std::make_shared<State>(ranks, options)) {}
InProcessMesh::~InProcessMesh() = default;

std::unique_ptr<Transport> InProcessMesh::Join(int rank) { return std::make_unique<End>(state_, rank); }
void InProcessMesh::SetHook(std::function<MessageFate(const InProcessMessage&)> hook) {
  state_->SetHook(std::move(hook));
}
void InProcessMesh::ReleaseHeld() { state_->ReleaseHeld(); }
void InProcessMesh::Kill(int rank) { state_->Kill(rank); }

}  // namespace ballast
