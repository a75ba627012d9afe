// A controller's end of WorkerSession on a loopback port, driven by a test. Useful for: a worker, or its session,
// without a real controller.
#ifndef BALLAST_WORKER_SESSION_FAKE_CONTROLLER_H_
#define BALLAST_WORKER_SESSION_FAKE_CONTROLLER_H_

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "ballast/v1/worker_session.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"

namespace ballast {

// Acknowledges heartbeats and reports by itself; everything else is the test's. Serves one session at a time: the
// newest. Thread-safe.
class FakeController final : public v1::WorkerSession::Service {
 public:
  FakeController() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeController() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  // The next message that is no heartbeat or report and that `wanted` accepts; others are dropped. Nothing: none came
  // within `timeout`.
  std::optional<v1::ConnectRequest> Await(const std::function<bool(const v1::ConnectRequest&)>& wanted,
                                          absl::Duration timeout = absl::Seconds(30)) BALLAST_EXCLUDES(mu_) {
    const absl::Time deadline = Clock::Real().Now() + timeout;
    MutexLock lock(mu_);
    for (;;) {
      while (!received_.empty()) {
        v1::ConnectRequest message = std::move(received_.front());
        received_.pop_front();
        if (wanted(message)) return message;
      }
      if (!Clock::Real().WaitUntil(changed_, mu_, deadline)) return std::nullopt;
    }
  }

  // Waits for a Hello and welcomes it.
  std::optional<v1::Hello> Greet(const v1::Welcome& welcome) BALLAST_EXCLUDES(mu_) {
    const auto hello = Await([](const v1::ConnectRequest& m) { return m.has_hello(); });
    if (!hello.has_value()) return std::nullopt;
    v1::ConnectResponse response;
    *response.mutable_welcome() = welcome;
    Send(response);
    return hello->hello();
  }

  // False: there is no session.
  bool Send(const v1::ConnectResponse& message) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return stream_ != nullptr && stream_->Write(message);
  }

  // Ends the session with `status`.
  void End(const grpc::Status& status) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    end_status_ = status;
    if (context_ != nullptr) context_->TryCancel();
    changed_.NotifyAll();
  }

  // Reports received so far, acknowledged.
  std::deque<v1::LoadReport> reports() const BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return reports_;
  }
  int heartbeats() const BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return heartbeats_;
  }

  grpc::Status Connect(grpc::ServerContext* context,
                       grpc::ServerReaderWriter<v1::ConnectResponse, v1::ConnectRequest>* stream) override {
    {
      MutexLock lock(mu_);
      stream_ = stream;
      context_ = context;
      end_status_.reset();
    }
    v1::ConnectRequest message;
    while (stream->Read(&message)) {
      MutexLock lock(mu_);
      if (end_status_.has_value()) break;
      v1::ConnectResponse response;
      if (message.has_heartbeat()) {
        ++heartbeats_;
        response.mutable_heartbeat_ack()->set_number(message.heartbeat().number());
        stream->Write(response);
      } else if (message.has_load_report()) {
        reports_.push_back(message.load_report());
        response.mutable_reports_stored()->set_report_stream(report_stream_);
        response.mutable_reports_stored()->set_sequence(message.load_report().sequence());
        stream->Write(response);
      } else {
        if (message.has_hello()) report_stream_ = message.hello().report_stream();
        received_.push_back(message);
      }
      changed_.NotifyAll();
    }
    MutexLock lock(mu_);
    if (stream_ == stream) {
      stream_ = nullptr;
      context_ = nullptr;
    }
    return end_status_.value_or(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the stream ended"));
  }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  mutable Mutex mu_;
  CondVar changed_;
  grpc::ServerReaderWriter<v1::ConnectResponse, v1::ConnectRequest>* stream_ BALLAST_GUARDED_BY(mu_) = nullptr;
  grpc::ServerContext* context_ BALLAST_GUARDED_BY(mu_) = nullptr;
  std::deque<v1::ConnectRequest> received_ BALLAST_GUARDED_BY(mu_);
  std::deque<v1::LoadReport> reports_ BALLAST_GUARDED_BY(mu_);
  std::optional<grpc::Status> end_status_ BALLAST_GUARDED_BY(mu_);
  uint64_t report_stream_ BALLAST_GUARDED_BY(mu_) = 0;
  int heartbeats_ BALLAST_GUARDED_BY(mu_) = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_SESSION_FAKE_CONTROLLER_H_
