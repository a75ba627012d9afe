#include "worker/session/session_client.h"

#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "grpcpp/client_context.h"
#include "proto/base/grpc_status.h"
#include "proto/base/mutex.h"

namespace ballast {

std::shared_ptr<grpc::Channel> OpenSessionChannel(const TransportSecurity& security, const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 250);
  // Task profiles of a large model are more than gRPC's 4 MB.
  arguments.SetMaxReceiveMessageSize(-1);
  static Mutex& mu = *new Mutex;
  static auto& opened = *new std::vector<std::shared_ptr<grpc::Channel>>;
  MutexLock lock(mu);
  opened.push_back(security.Connect(address, arguments));
  return opened.back();
}

class SessionClient::Impl {
 public:
  Impl(v1::WorkerSession::StubInterface& stub, v1::Hello hello, const SessionOptions& options, SessionHandler& handler,
       Clock& clock)
      : stub_(stub), handler_(handler), clock_(clock), core_(std::move(hello), options), thread_([this] { Loop(); }) {}

  ~Impl() {
    {
      MutexLock lock(mu_);
      stopping_ = true;
      changed_.NotifyAll();
    }
    thread_.join();
    // The last stream's callbacks use this object until its OnDone.
    MutexLock lock(mu_);
    while (streams_ > 0) changed_.Wait(mu_);
  }

  void Post(std::function<SessionActions(SessionCore&)> event) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    inbox_.push_back(std::move(event));
    changed_.NotifyAll();
  }

 private:
  // One call. Owns itself: gRPC's threads use it until OnDone.
  class Stream final : public grpc::ClientBidiReactor<v1::ConnectRequest, v1::ConnectResponse> {
   public:
    Stream(Impl& owner, uint64_t number) : owner_(owner), number_(number) {}

    void Start(v1::WorkerSession::StubInterface& stub, v1::ConnectRequest first) {
      stub.async()->Connect(&context_, this);
      // Writes begin outside of reactions; without the hold OnDone could come between two of them.
      AddHold();
      StartRead(&incoming_);
      Write(std::move(first));
      StartCall();
    }

    // Session thread. What is written reaches the wire in this order; the queue is bounded by the lease, after which an
    // unread stream is given up.
    void Write(v1::ConnectRequest message) BALLAST_EXCLUDES(mu_) {
      MutexLock lock(mu_);
      if (broken_) return;
      queue_.push_back(std::move(message));
      if (queue_.size() == 1) StartWrite(&queue_.front());
    }

    // Session thread; the stream must not be used any more. It has ended: its status is to be heard.
    void Release() { RemoveHold(); }

    // As Release, but of a stream that is under way.
    void Close() {
      context_.TryCancel();
      RemoveHold();
    }

    void OnWriteDone(bool ok) override {
      MutexLock lock(mu_);
      queue_.pop_front();
      if (!ok) {
        broken_ = true;
        queue_.clear();
        return;
      }
      if (!queue_.empty()) StartWrite(&queue_.front());
    }

    void OnReadDone(bool ok) override {
      if (!ok) {
        // The status comes with OnDone, which the hold keeps back until the session thread is done with it.
        owner_.OnStreamBroken(number_);
        return;
      }
      owner_.OnStreamMessage(number_, std::move(incoming_));
      incoming_.Clear();
      StartRead(&incoming_);
    }

    void OnDone(const grpc::Status& status) override {
      owner_.OnStreamDone(number_, FromGrpc(status));
      delete this;
    }

   private:
    Impl& owner_;
    const uint64_t number_;
    grpc::ClientContext context_;
    v1::ConnectResponse incoming_;
    Mutex mu_;
    std::deque<v1::ConnectRequest> queue_ BALLAST_GUARDED_BY(mu_);
    bool broken_ BALLAST_GUARDED_BY(mu_) = false;
  };

  // An event of stream `number` that counts only while that is the one in use.
  void PostFromStream(uint64_t number, std::function<SessionActions(SessionCore&)> event) BALLAST_EXCLUDES(mu_) {
    Post([this, number, event = std::move(event)](SessionCore& core) {
      return number == stream_number_ ? event(core) : SessionActions{};
    });
  }

  void OnStreamMessage(uint64_t number, v1::ConnectResponse message) {
    PostFromStream(number, [this, message = std::move(message)](SessionCore& core) {
      return core.OnMessage(message, clock_.Now());
    });
  }

  void OnStreamBroken(uint64_t number) {
    Post([this, number](SessionCore&) {
      if (number == stream_number_ && stream_ != nullptr) std::exchange(stream_, nullptr)->Release();
      return SessionActions{};
    });
  }

  void OnStreamDone(uint64_t number, absl::Status status) {
    // The controller ends a session with an error alone.
    if (status.ok()) status = absl::UnavailableError("the controller ended the session");
    PostFromStream(number, [this, status](SessionCore& core) { return core.OnClosed(status, clock_.Now()); });
    MutexLock lock(mu_);
    --streams_;
    changed_.NotifyAll();
  }

  void Loop() {
    for (;;) {
      std::function<SessionActions(SessionCore&)> event;
      {
        MutexLock lock(mu_);
        while (inbox_.empty() && !stopping_ && clock_.Now() < core_.next_tick()) {
          clock_.WaitUntil(changed_, mu_, core_.next_tick());
        }
        if (stopping_) break;
        if (!inbox_.empty()) {
          event = std::move(inbox_.front());
          inbox_.pop_front();
        }
      }
      Do(event ? event(core_) : core_.OnTick(clock_.Now(), handler_.Stats()));
    }
    if (stream_ != nullptr) std::exchange(stream_, nullptr)->Close();
  }

  void Do(SessionActions actions) {
    for (SessionAction& action : actions) {
      if (auto* open = std::get_if<OpenStream>(&action)) {
        if (stream_ != nullptr) std::exchange(stream_, nullptr)->Close();
        {
          MutexLock lock(mu_);
          ++streams_;
        }
        v1::ConnectRequest first;
        *first.mutable_hello() = std::move(open->hello);
        stream_ = new Stream(*this, ++stream_number_);
        stream_->Start(stub_, std::move(first));
      } else if (std::holds_alternative<CloseStream>(action)) {
        // What the stream still says is of no interest.
        ++stream_number_;
        if (stream_ != nullptr) std::exchange(stream_, nullptr)->Close();
      } else if (auto* send = std::get_if<SendMessage>(&action)) {
        if (stream_ != nullptr) stream_->Write(std::move(send->message));
      } else {
        handler_.Do(std::move(action));
      }
    }
  }

  v1::WorkerSession::StubInterface& stub_;
  SessionHandler& handler_;
  Clock& clock_;

  // The session thread's alone.
  SessionCore core_;
  Stream* stream_ = nullptr;
  uint64_t stream_number_ = 0;

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<SessionActions(SessionCore&)>> inbox_ BALLAST_GUARDED_BY(mu_);
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;
  // Calls whose OnDone has not come.
  int streams_ BALLAST_GUARDED_BY(mu_) = 0;

  // Last: it uses everything above.
  std::thread thread_;
};

SessionClient::SessionClient(v1::WorkerSession::StubInterface& stub, v1::Hello hello, const SessionOptions& options,
                             SessionHandler& handler, Clock& clock)
    : impl_(std::make_unique<Impl>(stub, std::move(hello), options, handler, clock)) {}

SessionClient::~SessionClient() = default;

void SessionClient::Post(std::function<SessionActions(SessionCore&)> event) { impl_->Post(std::move(event)); }

}  // namespace ballast
