#include "worker/transport/mesh_listener.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr uint64_t kListenKey = 0;
constexpr uint64_t kWakeKey = 1;
constexpr uint64_t kFirstConnection = 2;
constexpr size_t kRefusalsKept = 8;
constexpr absl::Duration kLogInterval = absl::Seconds(1);
constexpr absl::Duration kAcceptPause = absl::Milliseconds(100);
constexpr absl::Duration kFirstRetry = absl::Milliseconds(5);
constexpr absl::Duration kLastRetry = absl::Milliseconds(500);

absl::Time Now() { return Clock::Real().Now(); }

absl::Status Prefixed(std::string_view prefix, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(absl::string_view(prefix.data(), prefix.size()), status.message()));
}

}  // namespace

// The work of one Join: dials the lower ranks, takes the higher ranks' links from the listener.
class MeshListener::Joiner {
 public:
  Joiner(MeshListener& listener, Joining& joining, const MeshView& view, const std::string& payload,
         std::vector<int>* missing)
      : listener_(listener), joining_(joining), view_(view), payload_(payload), missing_(missing) {
    poller_.Add(joining_.wake.fd(), kWake, /*readable=*/true, /*writable=*/false);
    for (int rank = 0; rank < size(); ++rank) {
      links_.emplace_back();
      links_.back().dialled = rank < view_.rank;
    }
    links_[view_.rank].state = State::kLinked;
  }

  absl::StatusOr<std::vector<MeshLink>> Run(absl::Time deadline) {
    while (true) {
      const absl::Time now = Now();
      BALLAST_RETURN_IF_ERROR(TakeParked());
      absl::Time next = deadline;
      for (int rank = 0; rank < view_.rank; ++rank) {
        Link& link = links_[rank];
        if (link.state == State::kIdle && link.act_at <= now) BALLAST_RETURN_IF_ERROR(Dial(rank, now));
        if (link.state == State::kProving && link.act_at <= now) {
          BALLAST_RETURN_IF_ERROR(Retry(rank, absl::UnavailableError("no answer to the hello"), now));
        }
        if (link.state == State::kIdle || link.state == State::kProving) next = std::min(next, link.act_at);
      }
      if (std::all_of(links_.begin(), links_.end(), [](const Link& l) { return l.state == State::kLinked; })) break;
      if (now >= deadline) return Late();
      for (const Poller::Event& event : poller_.Wait(next - now)) {
        if (event.key == kWake) {
          joining_.wake.Clear();
        } else {
          BALLAST_RETURN_IF_ERROR(OnEvent(static_cast<int>(event.key - kFirstRank), event));
        }
      }
    }
    std::vector<MeshLink> out;
    for (int rank = 0; rank < size(); ++rank) {
      if (rank == view_.rank) continue;
      poller_.Remove(links_[rank].socket->fd());
      out.push_back({.rank = rank,
                     .socket = std::move(*links_[rank].socket).TakeFd(),
                     .payload = std::move(links_[rank].payload)});
    }
    return out;
  }

 private:
  static constexpr uint64_t kWake = 0;
  static constexpr uint64_t kFirstRank = 1;

  enum class State {
    // A dialled link: to be dialled at act_at. Otherwise: the peer has not come.
    kIdle,
    // Dialled, until the proof is sent; given up at act_at.
    kProving,
    // Waiting for the peer's payload.
    kSwapping,
    kLinked,
  };
  struct Link {
    bool dialled = false;
    State state = State::kIdle;
    std::optional<FrameSocket> socket;
    std::optional<Handshake> handshake;
    bool connected = false;
    absl::Time act_at = absl::InfinitePast();
    absl::Duration retry = kFirstRetry;
    std::string payload;
    // Why it is not linked yet.
    std::string trouble = "has not connected";
  };

  int size() const { return static_cast<int>(view_.members.size()); }

  std::string Name(int rank) const {
    return absl::StrCat("view ", view_.view.value(), ": rank ", rank, " at ", view_.members[rank].address, ": ");
  }

  absl::Status Dial(int rank, absl::Time now) {
    Link& link = links_[rank];
    absl::StatusOr<UniqueFd> fd = DialTcp(view_.members[rank].address);
    if (!fd.ok()) return Retry(rank, fd.status(), now);
    link.socket.emplace(*std::move(fd), kMaxHandshakeBytes);
    link.handshake = Handshake::Dialer(listener_.identity(),
                                       {.purpose = LinkPurpose::kMesh,
                                        .view = view_.view,
                                        .dialer_rank = view_.rank,
                                        .listener_rank = rank,
                                        .dialer_incarnation = view_.members[view_.rank].incarnation,
                                        .listener_incarnation = view_.members[rank].incarnation},
                                       NewLinkNonce());
    link.connected = false;
    link.state = State::kProving;
    link.act_at = now + listener_.options_.proof_timeout;
    poller_.Add(link.socket->fd(), kFirstRank + rank, /*readable=*/true, /*writable=*/true);
    return absl::OkStatus();
  }

  void Close(int rank) {
    Link& link = links_[rank];
    if (link.socket) poller_.Remove(link.socket->fd());
    link.socket.reset();
    link.handshake.reset();
    link.state = State::kIdle;
  }

  // A dialled link failed. What may pass is tried again later, the rest is the Join's error.
  absl::Status Retry(int rank, const absl::Status& why, absl::Time now) {
    if (why.code() != absl::StatusCode::kUnavailable) {
      if (missing_ != nullptr) missing_->push_back(rank);
      return Prefixed(Name(rank), why);
    }
    Close(rank);
    Link& link = links_[rank];
    link.trouble = std::string(why.message());
    link.act_at = now + link.retry;
    link.retry = std::min(link.retry * 2, kLastRetry);
    return absl::OkStatus();
  }

  absl::Status OnEvent(int rank, const Poller::Event& event) {
    Link& link = links_[rank];
    if (!link.socket) return absl::OkStatus();
    if (link.state == State::kLinked) {
      // It may have left because of one that this rank waits for, too.
      link.state = State::kIdle;
      TellMissing();
      return absl::UnavailableError(absl::StrCat(Name(rank), "left while the view was forming"));
    }
    const absl::Status status = Advance(rank, event);
    if (status.ok()) return status;
    if (link.dialled) return Retry(rank, status, Now());
    // The peer may come again.
    link.trouble = std::string(status.message());
    Close(rank);
    return absl::OkStatus();
  }

  absl::Status Advance(int rank, const Poller::Event& event) {
    Link& link = links_[rank];
    if (link.dialled && !link.connected) {
      if (!event.writable && !event.hung_up) return absl::OkStatus();
      BALLAST_RETURN_IF_ERROR(ConnectResult(link.socket->fd()));
      link.connected = true;
      BALLAST_RETURN_IF_ERROR(link.socket->Send(link.handshake->Start()));
    }
    BALLAST_RETURN_IF_ERROR(link.socket->Flush());
    while (link.state != State::kLinked) {
      BALLAST_ASSIGN_OR_RETURN(const std::optional<Frame> frame, link.socket->Read());
      if (!frame) break;
      BALLAST_RETURN_IF_ERROR(OnFrame(rank, *frame));
    }
    poller_.Change(link.socket->fd(), kFirstRank + rank, /*readable=*/true, link.socket->has_unsent());
    return absl::OkStatus();
  }

  absl::Status OnFrame(int rank, const Frame& frame) {
    Link& link = links_[rank];
    const auto type = static_cast<LinkFrame>(frame.type);
    if (link.state == State::kProving) {
      const Handshake::Progress progress = link.handshake->OnFrame(frame);
      const absl::Status sent = link.socket->Send(progress.send);
      BALLAST_RETURN_IF_ERROR(progress.error);
      BALLAST_RETURN_IF_ERROR(sent);
      if (progress.done) {
        link.state = State::kSwapping;
        link.socket->set_max_payload(kMaxMeshPayload);
        link.trouble = "has not been told of the view";
      }
      return absl::OkStatus();
    }
    if (type == LinkFrame::kRefuse) return DecodeRefusal(frame);
    if (type != (link.dialled ? LinkFrame::kMeshAccept : LinkFrame::kMeshReady)) {
      return absl::InvalidArgumentError(absl::StrCat("unexpected frame of type ", frame.type));
    }
    link.payload = frame.payload;
    if (link.dialled) {
      BALLAST_RETURN_IF_ERROR(link.socket->Send(EncodeFrame(static_cast<uint8_t>(LinkFrame::kMeshReady), payload_)));
    }
    link.state = State::kLinked;
    return absl::OkStatus();
  }

  // Takes the links that the listener keeps for this view.
  absl::Status TakeParked() {
    MutexLock lock(listener_.mu_);
    if (joining_.abandoned) {
      return absl::CancelledError(
          absl::StrCat("view ", view_.view.value(), " is over before it formed; missing:", Missing()));
    }
    for (auto it = listener_.connections_.begin(); it != listener_.connections_.end();) {
      const uint64_t id = it->first;
      Connection& connection = it->second;
      ++it;
      const LinkHello& hello = connection.handshake.hello();
      if (!connection.parked || hello.view != view_.view) continue;
      if (const std::string objection = Objection(hello); !objection.empty()) {
        listener_.Refuse(id, Refusal::kWrongMember, objection);
        continue;
      }
      const int rank = hello.dialer_rank;
      Link& link = links_[rank];
      if (link.state == State::kLinked) {
        listener_.Refuse(id, Refusal::kWrongMember, absl::StrCat("rank ", rank, " is linked already"));
        continue;
      }
      // A peer that comes again has given up its former link.
      Close(rank);
      listener_.poller_.Remove(connection.socket.fd());
      link.socket.emplace(std::move(connection.socket));
      listener_.connections_.erase(id);
      link.state = State::kSwapping;
      link.trouble = "does not answer";
      link.socket->set_max_payload(kMaxMeshPayload);
      poller_.Add(link.socket->fd(), kFirstRank + rank, /*readable=*/true, /*writable=*/true);
      // A failure shows as an event.
      static_cast<void>(link.socket->Send(EncodeFrame(static_cast<uint8_t>(LinkFrame::kMeshAccept), payload_)));
    }
    return absl::OkStatus();
  }

  // Why a dialer is not the member of this view that it says it is; empty if it is.
  std::string Objection(const LinkHello& hello) const {
    if (hello.dialer_rank <= view_.rank || hello.dialer_rank >= size()) {
      return absl::StrCat("rank ", hello.dialer_rank, " does not dial rank ", view_.rank, " in view ",
                          view_.view.value(), " of ", size());
    }
    if (hello.listener_rank != view_.rank) {
      return absl::StrCat("rank ", hello.listener_rank, " was dialled, this is rank ", view_.rank);
    }
    const Incarnation theirs = view_.members[hello.dialer_rank].incarnation;
    if (hello.dialer_incarnation != theirs) {
      return absl::StrCat("rank ", hello.dialer_rank, " has incarnation ", hello.dialer_incarnation.value(), ", view ",
                          view_.view.value(), " says ", theirs.value());
    }
    const Incarnation mine = view_.members[view_.rank].incarnation;
    if (hello.listener_incarnation != mine) {
      return absl::StrCat("incarnation ", hello.listener_incarnation.value(), " of rank ", view_.rank,
                          " was dialled, this is ", mine.value());
    }
    return "";
  }

  void TellMissing() const {
    for (int rank = 0; rank < size() && missing_ != nullptr; ++rank) {
      if (links_[rank].state != State::kLinked) missing_->push_back(rank);
    }
  }

  absl::Status Late() const {
    TellMissing();
    MutexLock lock(listener_.mu_);
    return absl::DeadlineExceededError(
        absl::StrCat("view ", view_.view.value(), " did not form by its deadline:", Missing()));
  }

  // The members that are not linked and why not, and who was refused.
  std::string Missing() const BALLAST_REQUIRES(listener_.mu_) {
    std::string text;
    for (int rank = 0; rank < size(); ++rank) {
      if (links_[rank].state == State::kLinked) continue;
      absl::StrAppend(&text, " rank ", rank, " at ", view_.members[rank].address, " (", links_[rank].trouble, ")");
    }
    for (const auto& [view, refusal] : listener_.refusals_) {
      if (view == view_.view) absl::StrAppend(&text, "; refused ", refusal);
    }
    return text;
  }

  MeshListener& listener_;
  Joining& joining_;
  const MeshView& view_;
  const std::string& payload_;
  std::vector<int>* const missing_;
  Poller poller_;
  std::vector<Link> links_;
};

absl::StatusOr<std::unique_ptr<MeshListener>> MeshListener::Start(Options options) {
  for (const auto& [name, value] : {std::pair<std::string, const std::string&>{"group", options.identity.group},
                                    {"fingerprint", options.identity.fingerprint}}) {
    if (value.size() > 253) {
      return absl::InvalidArgumentError(absl::StrCat(name, ": ", value.size(), " characters, the limit is 253"));
    }
  }
  int port = options.port;
  BALLAST_ASSIGN_OR_RETURN(UniqueFd listen, ListenTcp(options.host, &port));
  return std::unique_ptr<MeshListener>(new MeshListener(std::move(options), std::move(listen), port));
}

MeshListener::MeshListener(Options options, UniqueFd listen, int port)
    : options_(std::move(options)), port_(port), listen_(std::move(listen)), next_id_(kFirstConnection) {
  poller_.Add(listen_.get(), kListenKey, /*readable=*/true, /*writable=*/false);
  poller_.Add(wake_.fd(), kWakeKey, /*readable=*/true, /*writable=*/false);
  thread_ = std::thread([this] { Loop(); });
}

MeshListener::~MeshListener() {
  {
    MutexLock lock(mu_);
    BALLAST_CHECK(joining_ == nullptr) << "destroyed during a Join";
    stopping_ = true;
  }
  wake_.Signal();
  thread_.join();
}

absl::StatusOr<std::vector<MeshLink>> MeshListener::Join(const MeshView& view, const std::string& payload,
                                                         absl::Time deadline, std::vector<int>* missing) {
  BALLAST_CHECK(payload.size() <= kMaxMeshPayload) << "payload of " << payload.size() << " bytes";
  const size_t size = view.members.size();
  if (size == 0 || size > 4096 || view.rank < 0 || static_cast<size_t>(view.rank) >= size) {
    return absl::InvalidArgumentError(absl::StrCat("view ", view.view.value(), ": rank ", view.rank, " of ", size,
                                                   " members, want 1 to 4096 and a rank among them"));
  }
  Joining joining{.view = view.view};
  {
    MutexLock lock(mu_);
    BALLAST_CHECK(joining_ == nullptr) << "two Joins at once";
    if (view.view <= latest_) {
      return absl::FailedPreconditionError(
          absl::StrCat("view ", view.view.value(), ": this worker has reached view ", latest_.value(), " before"));
    }
    latest_ = view.view;
    joining_ = &joining;
    RefuseOver();
  }
  Joiner joiner(*this, joining, view, payload, missing);
  absl::StatusOr<std::vector<MeshLink>> links = joiner.Run(deadline);
  MutexLock lock(mu_);
  joining_ = nullptr;
  RefuseOver();
  return links;
}

void MeshListener::Abandon(ViewId through) {
  MutexLock lock(mu_);
  latest_ = std::max(latest_, through);
  if (joining_ != nullptr && joining_->view <= through) {
    joining_->abandoned = true;
    joining_->wake.Signal();
  }
  RefuseOver();
}

void MeshListener::SetPullHandler(PullHandler handler) {
  MutexLock lock(mu_);
  pull_handler_ = std::move(handler);
}

void MeshListener::Loop() {
  absl::Duration timeout = absl::InfiniteDuration();
  while (true) {
    const std::vector<Poller::Event>& events = poller_.Wait(timeout);
    MutexLock lock(mu_);
    if (stopping_) return;
    const absl::Time now = Now();
    for (const Poller::Event& event : events) {
      if (event.key == kListenKey) {
        Accept(now);
      } else if (event.key == kWakeKey) {
        wake_.Clear();
      } else {
        OnReadable(event.key, now);
      }
    }
    if (accept_again_ != absl::InfinitePast() && accept_again_ <= now) {
      accept_again_ = absl::InfinitePast();
      poller_.Change(listen_.get(), kListenKey, /*readable=*/true, /*writable=*/false);
    }
    absl::Time next = accept_again_ == absl::InfinitePast() ? absl::InfiniteFuture() : accept_again_;
    for (auto it = connections_.begin(); it != connections_.end();) {
      const auto [id, connection] = std::pair<uint64_t, Connection*>(it->first, &it->second);
      ++it;
      if (connection->expires > now) {
        next = std::min(next, connection->expires);
      } else if (connection->parked) {
        Refuse(id, Refusal::kBusy, "this worker has not been told of the view");
      } else {
        Note(*connection, absl::DeadlineExceededError("no proof in time"));
        Drop(id);
      }
    }
    timeout = next == absl::InfiniteFuture() ? absl::InfiniteDuration() : next - now;
  }
}

void MeshListener::Accept(absl::Time now) {
  while (true) {
    UniqueFd fd(accept4(listen_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) {
        // Out of descriptors or memory: those that wait keep until some are free.
        accept_again_ = now + kAcceptPause;
        poller_.Change(listen_.get(), kListenKey, /*readable=*/false, /*writable=*/false);
      }
      return;
    }
    ConfigureLink(fd.get());
    const int64_t unproven =
        std::count_if(connections_.begin(), connections_.end(), [](const auto& entry) { return !entry.second.parked; });
    if (unproven >= options_.max_unproven) DropOldest(/*parked=*/false);
    const uint64_t id = next_id_++;
    poller_.Add(fd.get(), id, /*readable=*/true, /*writable=*/false);
    std::string name = PeerName(fd.get());
    connections_.emplace(id, Connection{.socket = FrameSocket(std::move(fd), kMaxHandshakeBytes),
                                        .handshake = Handshake::Listener(options_.identity, NewLinkNonce()),
                                        .expires = now + options_.proof_timeout,
                                        .name = std::move(name)});
  }
}

void MeshListener::OnReadable(uint64_t id, absl::Time now) {
  const auto it = connections_.find(id);
  // A Join may have taken it since.
  if (it == connections_.end()) return;
  Connection& connection = it->second;
  while (true) {
    const absl::StatusOr<std::optional<Frame>> frame = connection.socket.Read();
    if (frame.ok() && !frame->has_value()) return;
    if (connection.parked || !frame.ok()) {
      // A parked dialer has nothing to say: it has given up.
      if (!connection.parked && !absl::IsUnavailable(frame.status())) Note(connection, frame.status());
      return Drop(id);
    }
    const Handshake::Progress progress = connection.handshake.OnFrame(**frame);
    // The handshake's frames fit any socket's buffer.
    const absl::Status sent = connection.socket.Send(progress.send);
    if (!progress.error.ok()) Note(connection, progress.error);
    if (!progress.error.ok() || !sent.ok() || connection.socket.has_unsent()) return Drop(id);
    if (progress.done) return OnProven(id, now);
  }
}

void MeshListener::OnProven(uint64_t id, absl::Time now) {
  Connection& connection = connections_.at(id);
  const LinkHello& hello = connection.handshake.hello();
  if (hello.purpose == LinkPurpose::kExpertPull) {
    if (!pull_handler_) return Refuse(id, Refusal::kBusy, "this worker serves no experts now");
    poller_.Remove(connection.socket.fd());
    pull_handler_(std::move(connection.socket));
    connections_.erase(id);
    return;
  }
  if (IsOver(hello.view)) {
    return Refuse(
        id, Refusal::kStaleView,
        absl::StrCat("view ", hello.view.value(), " is over or formed, this worker is at view ", latest_.value()));
  }
  int parked = 0;
  for (auto it = connections_.begin(); it != connections_.end();) {
    const auto [other_id, other] = std::pair<uint64_t, const Connection*>(it->first, &it->second);
    ++it;
    if (!other->parked) continue;
    const LinkHello& theirs = other->handshake.hello();
    if (theirs.view == hello.view && theirs.dialer_rank == hello.dialer_rank) {
      Drop(other_id);
    } else {
      ++parked;
    }
  }
  if (parked >= options_.max_parked) DropOldest(/*parked=*/true);
  connection.parked = true;
  connection.expires = now + options_.park_timeout;
  if (joining_ != nullptr && joining_->view == hello.view) joining_->wake.Signal();
}

void MeshListener::Refuse(uint64_t id, Refusal reason, std::string_view text) {
  Connection& connection = connections_.at(id);
  static_cast<void>(connection.socket.Send(EncodeRefusal(reason, text)));
  Note(connection, RefusalError(reason, text));
  Drop(id);
}

void MeshListener::Drop(uint64_t id) {
  const auto it = connections_.find(id);
  poller_.Remove(it->second.socket.fd());
  connections_.erase(it);
}

void MeshListener::DropOldest(bool parked) {
  const auto it = std::find_if(connections_.begin(), connections_.end(),
                               [parked](const auto& entry) { return entry.second.parked == parked; });
  if (it != connections_.end()) Refuse(it->first, Refusal::kBusy, "too many connections");
}

void MeshListener::Note(const Connection& connection, const absl::Status& why) {
  const LinkHello& hello = connection.handshake.hello();
  std::string who = connection.name;
  if (hello.purpose == LinkPurpose::kMesh && hello.view != ViewId()) {
    absl::StrAppend(&who, ", rank ", hello.dialer_rank, " of view ", hello.view.value());
  }
  refusals_.emplace_back(hello.view, absl::StrCat(who, ": ", why.message()));
  if (refusals_.size() > kRefusalsKept) refusals_.pop_front();
  const absl::Time now = Now();
  if (now < next_log_) return;
  next_log_ = now + kLogInterval;
  Log(Severity::kWarning, "data link refused", {{"peer", who}, {"reason", why.message()}});
}

bool MeshListener::IsOver(ViewId view) const {
  return view < latest_ || (view == latest_ && (joining_ == nullptr || joining_->abandoned));
}

void MeshListener::RefuseOver() {
  for (auto it = connections_.begin(); it != connections_.end();) {
    const uint64_t id = it->first;
    const Connection& connection = it->second;
    ++it;
    if (!connection.parked || !IsOver(connection.handshake.hello().view)) continue;
    Refuse(id, Refusal::kStaleView, absl::StrCat("this worker is at view ", latest_.value()));
  }
}

}  // namespace ballast
