#include "worker/transport/fetch/expert_server.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/clock.h"
#include "proto/base/status_macros.h"
#include "worker/transport/fetch/expert_link.h"
#include "worker/transport/handshake.h"

namespace ballast {
namespace {

constexpr uint64_t kWakeKey = 0;
// Of a link: its socket. One more: its UCX worker.
constexpr uint64_t kFirstLink = 2;
constexpr uint64_t kKeysOfLink = 2;
constexpr size_t kMaxLinks = 256;
// How often to try again when a peer has no room: the background's work must not take the serving's cores.
constexpr absl::Duration kRoomInterval = absl::Milliseconds(1);
// A peer that stops in mid-pull holds its replica's slot no longer than this.
constexpr absl::Duration kPinLimit = absl::Seconds(60);

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertServer>> ExpertServer::Start(std::shared_ptr<UcxContext> context,
                                                                  MeshListener& listener, PinReplica pin_replica) {
  // Whether it can be done at all is found here and not with the first pull.
  BALLAST_RETURN_IF_ERROR(UcxWorker::Create(context).status());
  return std::unique_ptr<ExpertServer>(new ExpertServer(std::move(context), listener, std::move(pin_replica)));
}

ExpertServer::ExpertServer(std::shared_ptr<UcxContext> context, MeshListener& listener, PinReplica pin_replica)
    : context_(std::move(context)), listener_(listener), pin_replica_(std::move(pin_replica)), next_id_(kFirstLink) {
  poller_.Add(wake_.fd(), kWakeKey, /*readable=*/true, /*writable=*/false);
  thread_ = std::thread([this] { Loop(); });
  listener_.SetPullHandler([this](FrameSocket link) {
    MutexLock lock(mu_);
    incoming_.push_back(std::move(link));
    wake_.Signal();
  });
}

ExpertServer::~ExpertServer() {
  listener_.SetPullHandler({});
  {
    MutexLock lock(mu_);
    stopping_ = true;
  }
  wake_.Signal();
  thread_.join();
}

void ExpertServer::Loop() {
  while (true) {
    std::vector<FrameSocket> incoming;
    {
      MutexLock lock(mu_);
      if (stopping_) break;
      incoming = std::exchange(incoming_, {});
    }
    for (FrameSocket& socket : incoming) AddLink(std::move(socket));
    const absl::Duration timeout = Advance();
    for (const Poller::Event& event : poller_.Wait(timeout)) {
      if (event.key == kWakeKey) wake_.Clear();
      if (event.key < kFirstLink || event.key % kKeysOfLink != 0) continue;
      Link& link = links_.at(event.key);
      if (event.writable && !link.socket.Flush().ok()) link.broken = true;
      if (event.readable || event.hung_up) ReadFrames(event.key, link);
    }
  }
  for (auto& [id, link] : links_) link.broken = true;
  DropBroken();
}

absl::Duration ExpertServer::Advance() {
  for (auto& [id, link] : links_) link.busy = link.worker != nullptr && link.worker->Progress();
  const absl::Time idle = ReleaseIdlePins();
  DropBroken();
  absl::Duration timeout = idle - Clock::Real().Now();
  for (auto& [id, link] : links_) {
    if (link.worker == nullptr || link.worker->Arm()) continue;
    timeout = std::min(timeout, link.busy ? absl::ZeroDuration() : kRoomInterval);
  }
  return timeout;
}

void ExpertServer::AddLink(FrameSocket socket) {
  if (links_.size() >= kMaxLinks) {
    static_cast<void>(socket.Send(EncodeRefusal(Refusal::kBusy, absl::StrCat(kMaxLinks, " pulls are open"))));
    return;
  }
  const uint64_t id = next_id_;
  next_id_ += kKeysOfLink;
  socket.set_max_payload(internal::kMaxPullFrame);
  poller_.Add(socket.fd(), id, /*readable=*/true, /*writable=*/false);
  links_.emplace(id, Link(std::move(socket)));
}

void ExpertServer::ReadFrames(uint64_t id, Link& link) {
  while (!link.broken) {
    const absl::StatusOr<std::optional<Frame>> frame = link.socket.Read();
    if (frame.ok() && !frame->has_value()) break;
    if (!frame.ok() || !OnFrame(id, link, **frame).ok()) link.broken = true;
  }
  if (!link.broken) poller_.Change(link.socket.fd(), id, /*readable=*/true, link.socket.has_unsent());
}

absl::Status ExpertServer::OnFrame(uint64_t id, Link& link, const Frame& frame) {
  if (link.endpoint != nullptr) return Serve(link, frame);
  if (frame.type != static_cast<uint8_t>(LinkFrame::kPullAddress)) {
    return absl::InvalidArgumentError("a request before the address");
  }
  BALLAST_ASSIGN_OR_RETURN(link.worker, UcxWorker::Create(context_));
  poller_.Add(link.worker->event_fd(), id + 1, /*readable=*/true, /*writable=*/false);
  BALLAST_ASSIGN_OR_RETURN(
      link.endpoint, UcxEndpoint::Create(*link.worker, frame.payload, [&link](ucs_status_t) { link.broken = true; }));
  return absl::OkStatus();
}

absl::Status ExpertServer::Serve(Link& link, const Frame& frame) {
  BALLAST_ASSIGN_OR_RETURN(const internal::ChunkRequest request, internal::DecodeChunkRequest(frame));
  if (link.sends.size() >= internal::kMaxPullsInFlight) return absl::ResourceExhaustedError("too much at once");
  // Longer than from any memory: nothing is pinned for it.
  if (request.length > internal::kMaxCudaChunkBytes) return absl::ResourceExhaustedError("too much at once");
  link.last_request = Clock::Real().Now();
  if (!link.replica || link.expert != request.expert) {
    link.replica.reset();
    absl::StatusOr<PinnedReplica> replica = pin_replica_(request.expert);
    if (!replica.ok()) return link.socket.Send(internal::EncodeChunkReply({request.tag, replica.status()}));
    link.expert = request.expert;
    link.replica = *std::move(replica);
  }
  const UcxMemory memory = link.replica->memory;
  const uint64_t max_chunk = memory == UcxMemory::kCuda ? internal::kMaxCudaChunkBytes : internal::kMaxChunkBytes;
  if (request.length > max_chunk) return absl::ResourceExhaustedError("too much at once");
  const std::span<const std::byte> weights = link.replica->weights;
  if (request.offset > weights.size() || request.length > weights.size() - request.offset) {
    return link.socket.Send(internal::EncodeChunkReply(
        {request.tag, absl::OutOfRangeError("a chunk past the end of the replica"), weights.size()}));
  }
  BALLAST_RETURN_IF_ERROR(
      link.socket.Send(internal::EncodeChunkReply({request.tag, absl::OkStatus(), weights.size(), max_chunk})));
  link.sends.push_front({.link = &link, .pin = link.replica->pin});
  const auto send = link.sends.begin();
  send->self = send;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.user_data = &*send;
  SetMemory(memory, param);
  param.cb.send = [](void* ucx, ucs_status_t status, void* user) {
    OnSent(*static_cast<ChunkSend*>(user), status);
    ucp_request_free(ucx);
  };
  const std::span<const std::byte> chunk = weights.subspan(request.offset, request.length);
  // The last chunk's own pin is enough.
  if (request.offset + request.length == weights.size()) link.replica.reset();
  const ucs_status_ptr_t ucx =
      ucp_tag_send_nbx(link.endpoint->handle(), chunk.data(), chunk.size(), request.tag, &param);
  if (!UCS_PTR_IS_PTR(ucx)) OnSent(*send, UCS_PTR_STATUS(ucx));
  return absl::OkStatus();
}

void ExpertServer::OnSent(ChunkSend& send, ucs_status_t status) {
  Link& link = *send.link;
  if (status != UCS_OK) link.broken = true;
  link.sends.erase(send.self);
}

void ExpertServer::DropBroken() {
  for (auto it = links_.begin(); it != links_.end();) {
    Link& link = it->second;
    if (!link.broken) {
      ++it;
      continue;
    }
    poller_.Remove(link.socket.fd());
    if (link.worker != nullptr) poller_.Remove(link.worker->event_fd());
    // Before the sends, which the library's callbacks write to, and with them the pins of what it reads.
    link.endpoint.reset();
    link.worker.reset();
    it = links_.erase(it);
  }
}

absl::Time ExpertServer::ReleaseIdlePins() {
  const absl::Time now = Clock::Real().Now();
  absl::Time next = absl::InfiniteFuture();
  for (auto& [id, link] : links_) {
    if (!link.replica) continue;
    if (link.last_request + kPinLimit <= now) {
      link.broken = true;
    } else {
      next = std::min(next, link.last_request + kPinLimit);
    }
  }
  return next;
}

}  // namespace ballast
