#include "controller/service/session_server.h"

#include <deque>
#include <optional>
#include <utility>

#include "proto/base/grpc_status.h"
#include "proto/base/tsan.h"

namespace ballast {
namespace {

// A worker that does not read this many messages is cut off; it reconnects and is brought up to date.
constexpr size_t kMaxQueued = 4096;

}  // namespace

// Lives as long as an operation on it is under way or the runtime knows its session.
class SessionServer::Stream final : public SessionSink, public std::enable_shared_from_this<Stream> {
 public:
  explicit Stream(SessionServer& server) : server_(server), stream_(&context_) {
    MutexLock lock(server_.mu_);
    ++server_.streams_;
  }
  ~Stream() override {
    MutexLock lock(server_.mu_);
    --server_.streams_;
    server_.ended_.NotifyAll();
  }

  // The tag of one operation; keeps the stream alive until it is done.
  struct Operation {
    std::shared_ptr<Stream> stream;
    void (Stream::*done)(bool ok);
  };

  void Request() {
    server_.service_.RequestConnect(&context_, &stream_, server_.queue_.get(), server_.queue_.get(),
                                    Begin(&Stream::OnConnected));
  }

  void Send(v1::ConnectResponse message) override {
    MutexLock lock(mu_);
    if (closing_.has_value()) return;
    if (outgoing_.size() >= kMaxQueued) {
      context_.TryCancel();
      return;
    }
    outgoing_.push_back(std::move(message));
    Advance();
  }

  void Close(absl::Status status) override {
    MutexLock lock(mu_);
    if (closing_.has_value()) return;
    closing_ = std::move(status);
    Advance();
  }

 private:
  Operation* Begin(void (Stream::*done)(bool)) {
    auto* operation = new Operation{shared_from_this(), done};
    // An operation begins before the queue gives its tag.
    TsanRelease(operation);
    return operation;
  }

  void OnConnected(bool ok) {
    if (!ok) return;
    server_.Listen();
    session_ = server_.runtime_.Open(shared_from_this());
    stream_.Read(&incoming_, Begin(&Stream::OnRead));
  }

  void OnRead(bool ok) {
    if (!ok) {
      // The worker has ended the stream, or the connection is lost, or we have ended it.
      server_.runtime_.Lost(session_);
      Close(absl::OkStatus());
      return;
    }
    server_.runtime_.Receive(session_, std::move(incoming_));
    incoming_.Clear();
    {
      MutexLock lock(mu_);
      if (finishing_) return;
    }
    stream_.Read(&incoming_, Begin(&Stream::OnRead));
  }

  void OnWritten(bool ok) {
    MutexLock lock(mu_);
    writing_ = false;
    // A broken stream: the read notices too.
    if (!ok) outgoing_.clear();
    Advance();
  }

  void OnFinished(bool ok) {}

  // One write at a time, then the end.
  void Advance() BALLAST_REQUIRES(mu_) {
    if (writing_ || finishing_) return;
    if (!outgoing_.empty()) {
      writing_ = true;
      stream_.Write(outgoing_.front(), Begin(&Stream::OnWritten));
      outgoing_.pop_front();
    } else if (closing_.has_value()) {
      finishing_ = true;
      stream_.Finish(ToGrpc(*closing_), Begin(&Stream::OnFinished));
    }
  }

  SessionServer& server_;
  grpc::ServerContext context_;
  grpc::ServerAsyncReaderWriter<v1::ConnectResponse, v1::ConnectRequest> stream_;
  SessionId session_ = 0;
  v1::ConnectRequest incoming_;
  Mutex mu_;
  std::deque<v1::ConnectResponse> outgoing_ BALLAST_GUARDED_BY(mu_);
  bool writing_ BALLAST_GUARDED_BY(mu_) = false;
  bool finishing_ BALLAST_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> closing_ BALLAST_GUARDED_BY(mu_);
};

SessionServer::~SessionServer() { Stop(); }

void SessionServer::Register(grpc::ServerBuilder& builder) {
  builder.RegisterService(&service_);
  queue_ = builder.AddCompletionQueue();
}

void SessionServer::Start() {
  thread_ = std::thread([this] { Poll(); });
  Listen();
}

void SessionServer::Listen() { std::make_shared<Stream>(*this)->Request(); }

void SessionServer::Poll() {
  void* tag = nullptr;
  bool ok = false;
  while (queue_->Next(&tag, &ok)) {
    TsanAcquire(tag);
    const std::unique_ptr<Stream::Operation> operation(static_cast<Stream::Operation*>(tag));
    (operation->stream.get()->*operation->done)(ok);
  }
}

void SessionServer::Stop() {
  if (!thread_.joinable()) return;
  {
    // No operation may begin on a queue that is shut down.
    MutexLock lock(mu_);
    while (streams_ > 0) ended_.Wait(mu_);
  }
  queue_->Shutdown();
  thread_.join();
}

}  // namespace ballast
