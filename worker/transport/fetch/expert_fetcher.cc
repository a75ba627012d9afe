#include "worker/transport/fetch/expert_fetcher.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/clock.h"
#include "proto/base/status_macros.h"
#include "worker/transport/fetch/expert_link.h"
#include "worker/transport/frame_socket.h"

namespace ballast {
namespace {

constexpr uint64_t kWakeKey = 0;
constexpr uint64_t kUcxKey = 1;
constexpr uint64_t kSocketKey = 2;
// Chunks asked for ahead: one is on its way while the other's request travels.
constexpr size_t kChunksAhead = 2;
static_assert(kChunksAhead < internal::kMaxPullsInFlight);
// How long the library may take to let go of cancelled chunks; those cut off in the middle are freed with the worker.
constexpr absl::Duration kDrainLimit = absl::Milliseconds(50);
// How often to try again when the peer has no room: the background's work must not take the serving's cores.
constexpr absl::Duration kRoomInterval = absl::Milliseconds(1);
// Waits end up to 2 ms late, which what may go ahead of the rate makes up for.
constexpr int64_t kWaitsPerSecond = 500;
// For the connection and the handshake.
constexpr absl::Duration kOpenLimit = absl::Seconds(5);

absl::Time Now() { return Clock::Real().Now(); }

}  // namespace

// A link to one peer, with a UCX worker of its own: what the peer still sends when the link is given up goes with it.
class ExpertFetcher::Link {
 public:
  Link(std::string address, std::unique_ptr<UcxWorker> worker, FrameSocket socket, const GroupIdentity& identity,
       int wake_fd)
      : address_(std::move(address)),
        worker_(std::move(worker)),
        socket_(std::move(socket)),
        handshake_(Handshake::Dialer(identity, {.purpose = LinkPurpose::kExpertPull}, NewLinkNonce())),
        open_by_(Now() + kOpenLimit) {
    poller_.Add(wake_fd, kWakeKey, /*readable=*/true, /*writable=*/false);
    poller_.Add(worker_->event_fd(), kUcxKey, /*readable=*/true, /*writable=*/false);
    poller_.Add(socket_.fd(), kSocketKey, /*readable=*/true, /*writable=*/true);
  }

  ~Link() {
    for (Chunk& chunk : chunks_) {
      if (chunk.ucx != nullptr) ucp_request_cancel(worker_->handle(), chunk.ucx);
    }
    const absl::Time limit = Now() + kDrainLimit;
    while (receiving_ > 0 && Now() < limit) worker_->Progress();
    // Before the chunks, which its callbacks write to.
    worker_.reset();
  }

  const std::string& address() const { return address_; }
  // Proven, and the peer knows where to send to.
  bool open() const { return open_; }
  absl::Time open_by() const { return open_by_; }
  bool can_ask() const { return chunks_.size() < kChunksAhead; }
  // Bytes of the chunks that arrived since the last call.
  size_t TakeArrived() { return std::exchange(arrived_, 0); }

  // What the peer has said that it sends at once.
  size_t max_chunk_bytes() const { return max_chunk_bytes_; }

  absl::Status Ask(ExpertId expert, size_t offset, std::span<std::byte> buffer, UcxMemory memory) {
    Chunk& chunk = chunks_.emplace_back();
    chunk.tag = ++last_tag_;
    chunk.bytes = buffer.size();
    chunk.link = this;
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
    param.user_data = &chunk;
    SetMemory(memory, param);
    param.cb.recv = [](void* ucx, ucs_status_t status, const ucp_tag_recv_info_t* info, void* user) {
      Chunk& done = *static_cast<Chunk*>(user);
      done.ucx = nullptr;
      done.here = true;
      done.status = status == UCS_OK && info->length != done.bytes ? UCS_ERR_MESSAGE_TRUNCATED : status;
      --done.link->receiving_;
      ucp_request_free(ucx);
    };
    ++receiving_;
    const ucs_status_ptr_t ucx =
        ucp_tag_recv_nbx(worker_->handle(), buffer.data(), buffer.size(), chunk.tag, ~ucp_tag_t{0}, &param);
    if (UCS_PTR_IS_ERR(ucx)) {
      --receiving_;
      chunks_.pop_back();
      return UcxError("receive", UCS_PTR_STATUS(ucx));
    }
    chunk.ucx = chunk.here ? nullptr : ucx;
    return socket_.Send(
        internal::EncodeChunkRequest({.tag = chunk.tag, .expert = expert, .offset = offset, .length = buffer.size()}));
  }

  // Does what there is to do without waiting. `replica_bytes`: what the buffer holds.
  absl::Status Advance(size_t replica_bytes) {
    busy_ = worker_->Progress();
    if (!connected_) return absl::OkStatus();
    BALLAST_RETURN_IF_ERROR(socket_.Flush());
    while (true) {
      BALLAST_ASSIGN_OR_RETURN(const std::optional<Frame> frame, socket_.Read());
      if (!frame) break;
      BALLAST_RETURN_IF_ERROR(OnFrame(*frame, replica_bytes));
    }
    while (!chunks_.empty() && chunks_.front().promised && chunks_.front().here) {
      BALLAST_RETURN_IF_ERROR(UcxError("chunk", chunks_.front().status));
      arrived_ += chunks_.front().bytes;
      chunks_.pop_front();
    }
    return absl::OkStatus();
  }

  // Sleeps until something happens or `timeout` has passed.
  absl::Status Wait(absl::Duration timeout, WakeFd& wake) {
    if (!worker_->Arm()) timeout = busy_ ? absl::ZeroDuration() : std::min(timeout, kRoomInterval);
    for (const Poller::Event& event : poller_.Wait(timeout)) {
      if (event.key == kWakeKey) wake.Clear();
      if (event.key != kSocketKey || connected_) continue;
      BALLAST_RETURN_IF_ERROR(ConnectResult(socket_.fd()));
      connected_ = true;
      BALLAST_RETURN_IF_ERROR(socket_.Send(handshake_.Start()));
    }
    if (connected_) poller_.Change(socket_.fd(), kSocketKey, /*readable=*/true, socket_.has_unsent());
    return absl::OkStatus();
  }

 private:
  struct Chunk {
    Link* link = nullptr;
    uint64_t tag = 0;
    size_t bytes = 0;
    // UCX's, until it is here.
    void* ucx = nullptr;
    // The peer has said that it sends it.
    bool promised = false;
    bool here = false;
    ucs_status_t status = UCS_OK;
  };

  absl::Status OnFrame(const Frame& frame, size_t replica_bytes) {
    if (!open_) {
      const Handshake::Progress progress = handshake_.OnFrame(frame);
      const absl::Status sent = socket_.Send(progress.send);
      BALLAST_RETURN_IF_ERROR(progress.error);
      BALLAST_RETURN_IF_ERROR(sent);
      if (!progress.done) return absl::OkStatus();
      open_ = true;
      socket_.set_max_payload(internal::kMaxPullFrame);
      return socket_.Send(EncodeFrame(static_cast<uint8_t>(LinkFrame::kPullAddress), worker_->address()));
    }
    if (frame.type == static_cast<uint8_t>(LinkFrame::kRefuse)) return DecodeRefusal(frame);
    BALLAST_ASSIGN_OR_RETURN(const internal::ChunkReply reply, internal::DecodeChunkReply(frame));
    const auto chunk = std::find_if(chunks_.begin(), chunks_.end(), [&](const Chunk& c) { return c.tag == reply.tag; });
    if (chunk == chunks_.end()) return absl::InvalidArgumentError("the peer answers what was not asked");
    if (reply.replica_bytes != 0 && reply.replica_bytes != replica_bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat("the peer's replica has ", reply.replica_bytes, " bytes, the buffer ", replica_bytes));
    }
    BALLAST_RETURN_IF_ERROR(reply.status);
    chunk->promised = true;
    max_chunk_bytes_ = reply.max_chunk_bytes;
    return absl::OkStatus();
  }

  const std::string address_;
  std::unique_ptr<UcxWorker> worker_;
  FrameSocket socket_;
  Handshake handshake_;
  const absl::Time open_by_;
  Poller poller_;
  bool busy_ = false;
  bool connected_ = false;
  bool open_ = false;
  uint64_t last_tag_ = 0;
  size_t max_chunk_bytes_ = internal::kMaxChunkBytes;
  int receiving_ = 0;
  // In the order they were asked for. A deque: their addresses stay.
  std::deque<Chunk> chunks_;
  size_t arrived_ = 0;
};

ExpertFetcher::ExpertFetcher(std::shared_ptr<UcxContext> context, GroupIdentity identity, Options options)
    : context_(std::move(context)),
      identity_(std::move(identity)),
      options_(options),
      bytes_per_second_(options.bytes_per_second),
      bucket_(options.bytes_per_second, options.chunk_bytes) {
  BALLAST_CHECK(options.chunk_bytes > 0 && options.chunk_bytes <= static_cast<int64_t>(internal::kMaxChunkBytes))
      << "chunk_bytes=" << options.chunk_bytes;
  thread_ = std::thread([this] { Loop(); });
}

ExpertFetcher::~ExpertFetcher() {
  {
    MutexLock lock(mu_);
    stopping_ = true;
    for (Job& job : jobs_) job.cancelled = true;
    changed_.NotifyAll();
  }
  wake_.Signal();
  thread_.join();
}

PullId ExpertFetcher::Start(ExpertPull pull) {
  MutexLock lock(mu_);
  last_id_ = last_id_.next();
  jobs_.push_back({.id = last_id_, .pull = std::move(pull)});
  changed_.NotifyAll();
  return last_id_;
}

void ExpertFetcher::Cancel(PullId id) {
  MutexLock lock(mu_);
  for (Job& job : jobs_) {
    if (job.id == id) job.cancelled = true;
  }
  wake_.Signal();
}

void ExpertFetcher::SetBytesPerSecond(int64_t bytes_per_second) {
  MutexLock lock(mu_);
  bytes_per_second_ = bytes_per_second;
  wake_.Signal();
}

absl::Status ExpertFetcher::Fetch(ExpertPull pull) {
  struct {
    Mutex mu;
    CondVar ended;
    std::optional<absl::Status> status;
  } result;
  pull.done = [&result](const absl::Status& status) {
    MutexLock lock(result.mu);
    result.status = status;
    result.ended.NotifyAll();
  };
  Start(std::move(pull));
  MutexLock lock(result.mu);
  while (!result.status) result.ended.Wait(result.mu);
  return *result.status;
}

void ExpertFetcher::Loop() {
  while (true) {
    const Job* job = nullptr;
    {
      MutexLock lock(mu_);
      while (jobs_.empty() && !stopping_) {
        // Nothing to pull: no link is kept. Closing it can take a moment, but nobody else needs the mutex for long.
        link_.reset();
        changed_.Wait(mu_);
      }
      if (jobs_.empty()) break;
      // A deque's elements stay when others are added.
      job = &jobs_.front();
    }
    const absl::Status status = Run(*job);
    const std::function<void(const absl::Status&)> done = job->pull.done;
    {
      MutexLock lock(mu_);
      jobs_.pop_front();
    }
    if (done) done(status);
  }
  link_.reset();
}

absl::Status ExpertFetcher::Run(const Job& job) {
  const absl::Status status = Transfer(job);
  if (status.ok()) return status;
  link_.reset();
  return absl::Status(status.code(),
                      absl::StrCat("expert ", job.pull.expert.expert, " of layer ", job.pull.expert.layer, " from ",
                                   job.pull.address, ": ", status.message()));
}

absl::Status ExpertFetcher::Transfer(const Job& job) {
  const ExpertPull& pull = job.pull;
  if (pull.buffer.empty()) return absl::InvalidArgumentError("an empty buffer");
  BALLAST_CHECK(pull.memory == UcxMemory::kHost || context_->has_cuda());
  size_t asked = 0, arrived = 0;
  const auto check = [&](absl::Time now) {
    const absl::Status status = CheckGoingOn(job, now);
    if (!absl::IsDeadlineExceeded(status)) return status;
    return absl::DeadlineExceededError(
        absl::StrCat(status.message(), " with ", arrived, " of ", pull.buffer.size(), " bytes here"));
  };
  BALLAST_RETURN_IF_ERROR(check(Now()));
  if (link_ == nullptr || link_->address() != pull.address) {
    link_.reset();
    BALLAST_ASSIGN_OR_RETURN(UniqueFd fd, DialTcp(pull.address));
    BALLAST_ASSIGN_OR_RETURN(std::unique_ptr<UcxWorker> worker, UcxWorker::Create(context_));
    link_ = std::make_unique<Link>(pull.address, std::move(worker), FrameSocket(std::move(fd), kMaxHandshakeBytes),
                                   identity_, wake_.fd());
  }
  while (true) {
    BALLAST_RETURN_IF_ERROR(link_->Advance(pull.buffer.size()));
    if (const size_t more = link_->TakeArrived(); more > 0) {
      arrived += more;
      if (pull.on_progress) pull.on_progress(arrived);
    }
    if (arrived == pull.buffer.size()) return absl::OkStatus();
    const absl::Time now = Now();
    BALLAST_RETURN_IF_ERROR(check(now));
    absl::Time next = pull.deadline;
    if (!link_->open()) {
      if (now >= link_->open_by()) return absl::UnavailableError("no answer to the hello");
      next = std::min(next, link_->open_by());
    }
    if (link_->open() && link_->can_ask() && asked < pull.buffer.size()) {
      if (bucket_.ReadyAt() <= now) {
        const size_t bytes = ChunkBytes(pull.memory, pull.buffer.size() - asked);
        BALLAST_RETURN_IF_ERROR(link_->Ask(pull.expert, asked, pull.buffer.subspan(asked, bytes), pull.memory));
        bucket_.Spend(static_cast<int64_t>(bytes), now);
        asked += bytes;
        continue;
      }
      next = std::min(next, bucket_.ReadyAt());
    }
    BALLAST_RETURN_IF_ERROR(link_->Wait(next - now, wake_));
  }
}

size_t ExpertFetcher::ChunkBytes(UcxMemory memory, size_t left) {
  size_t bytes = options_.chunk_bytes;
  if (memory == UcxMemory::kCuda && link_->max_chunk_bytes() > internal::kMaxChunkBytes) {
    MutexLock lock(mu_);
    bytes = std::min(MoveChunkBytes(bytes_per_second_), link_->max_chunk_bytes());
  }
  return std::min(bytes, left);
}

absl::Status ExpertFetcher::CheckGoingOn(const Job& job, absl::Time now) {
  MutexLock lock(mu_);
  if (job.cancelled) return absl::CancelledError("cancelled");
  if (now >= job.pull.deadline) return absl::DeadlineExceededError("deadline passed");
  bucket_.SetRate(bytes_per_second_, std::max(options_.chunk_bytes, bytes_per_second_ / kWaitsPerSecond));
  return absl::OkStatus();
}

}  // namespace ballast
