#include "worker/session/session_client.h"

#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "worker/session/fake_controller.h"

namespace ballast {
namespace {

class RecordingHandler final : public SessionHandler {
 public:
  void Do(SessionAction action) override BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    actions_.push_back(std::move(action));
    changed_.NotifyAll();
  }
  WorkerStats Stats() override { return {.step = 5}; }

  // Waits for an action of type T.
  template <typename T>
  bool Await() BALLAST_EXCLUDES(mu_) {
    const absl::Time deadline = Clock::Real().Now() + absl::Seconds(30);
    MutexLock lock(mu_);
    for (;;) {
      while (!actions_.empty()) {
        const SessionAction action = std::move(actions_.front());
        actions_.pop_front();
        if (std::holds_alternative<T>(action)) return true;
      }
      if (!Clock::Real().WaitUntil(changed_, mu_, deadline)) return false;
    }
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::deque<SessionAction> actions_ BALLAST_GUARDED_BY(mu_);
};

v1::Welcome Welcome(uint64_t incarnation) {
  v1::Welcome welcome;
  welcome.set_term(1);
  welcome.set_incarnation(incarnation);
  welcome.mutable_lease()->set_seconds(20);
  welcome.mutable_heartbeat_interval()->set_nanos(20'000'000);
  return welcome;
}

class SessionClientTest : public ::testing::Test {
 protected:
  void StartClient() {
    stub_ = v1::WorkerSession::NewStub(OpenSessionChannel(TransportSecurity(), controller_.address()));
    v1::Hello hello;
    hello.set_worker("w0");
    hello.set_group("g");
    hello.set_version("0.1.0");
    client_ = std::make_unique<SessionClient>(*stub_, hello, SessionOptions{.min_backoff = absl::Milliseconds(10)},
                                              handler_, Clock::Real());
  }
  static bool IsHello(const v1::ConnectRequest& m) { return m.has_hello(); }

  FakeController controller_;
  RecordingHandler handler_;
  std::unique_ptr<v1::WorkerSession::Stub> stub_;
  std::unique_ptr<SessionClient> client_;
};

TEST_F(SessionClientTest, GreetsAndBeats) {
  StartClient();
  const auto hello = controller_.Greet(Welcome(4));
  ASSERT_TRUE(hello.has_value());
  EXPECT_EQ(hello->worker(), "w0");
  EXPECT_TRUE(handler_.Await<ReportEvery>());
  client_->Post([](SessionCore& core) { return core.OnPlacementLoaded(Epoch(3), absl::OkStatus()); });
  const auto loaded = controller_.Await([](const v1::ConnectRequest& m) { return m.has_placement_loaded(); });
  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(loaded->placement_loaded().epoch(), 3u);
  while (controller_.heartbeats() < 3) {
    // Any message takes a while: this one waits for nothing.
    controller_.Await([](const v1::ConnectRequest&) { return true; }, absl::Milliseconds(10));
  }
}

TEST_F(SessionClientTest, ReconnectsWithItsIncarnation) {
  StartClient();
  ASSERT_TRUE(controller_.Greet(Welcome(4)).has_value());
  ASSERT_TRUE(handler_.Await<ReportEvery>());
  controller_.End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting"));
  auto hello = controller_.Greet(Welcome(4));
  ASSERT_TRUE(hello.has_value());
  EXPECT_EQ(hello->incarnation(), 4u);
}

// Welcomes, then ends each session with `status`.
class EndingController final : public v1::WorkerSession::Service {
 public:
  explicit EndingController(grpc::Status status) : status_(std::move(status)) {}
  grpc::Status Connect(grpc::ServerContext*,
                       grpc::ServerReaderWriter<v1::ConnectResponse, v1::ConnectRequest>* stream) override {
    v1::ConnectRequest hello;
    stream->Read(&hello);
    v1::ConnectResponse response;
    *response.mutable_welcome() = Welcome(4);
    stream->Write(response);
    return status_;
  }

 private:
  const grpc::Status status_;
};

TEST_F(SessionClientTest, TheControllersStatusIsHeard) {
  EndingController controller(grpc::Status(grpc::StatusCode::ABORTED, "dead"));
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&controller);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  stub_ = v1::WorkerSession::NewStub(OpenSessionChannel(TransportSecurity(), absl::StrCat("127.0.0.1:", port)));
  client_ = std::make_unique<SessionClient>(*stub_, v1::Hello(), SessionOptions{.min_backoff = absl::Milliseconds(1)},
                                            handler_, Clock::Real());
  EXPECT_TRUE(handler_.Await<LeaveView>());
  EXPECT_TRUE(handler_.Await<LeaveView>());
  client_.reset();
}

TEST_F(SessionClientTest, NoController_TriesUntilStopped) {
  stub_ = v1::WorkerSession::NewStub(OpenSessionChannel(TransportSecurity(), "127.0.0.1:1"));
  client_ = std::make_unique<SessionClient>(*stub_, v1::Hello(), SessionOptions{.min_backoff = absl::Milliseconds(1)},
                                            handler_, Clock::Real());
  client_.reset();
}

TEST_F(SessionClientTest, StopsInTheMiddleOfASession) {
  StartClient();
  ASSERT_TRUE(controller_.Greet(Welcome(4)).has_value());
  client_->Post([](SessionCore& core) { return core.OnLeaving("test"); });
  client_.reset();
}

}  // namespace
}  // namespace ballast
