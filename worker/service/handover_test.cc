// Requests that a worker hands to a home of their task, over loopback: the home is played by the test, the worker's
// batcher runs a model whose next token is the last one plus 1.
#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "worker/decoder/kv_cache.h"
#include "worker/service/inference_service.h"
#include "worker/service/remote_call.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kVocab = 200;

// Another worker: answers as the test says, and remembers what it was asked.
class FakeHome final : public v1::Inference::Service {
 public:
  using GenerateScript = std::function<grpc::Status(grpc::ServerContext*, grpc::ServerWriter<v1::GenerateResponse>*)>;

  FakeHome() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  void Stop() {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    Remember(*context);
    {
      MutexLock lock(mu_);
      last_ = *request;
    }
    return script(context, writer);
  }
  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override {
    Remember(*context);
    *response->mutable_token_ids() = request->token_ids().ids();
    response->add_argmax(111);
    return score_status;
  }

  int asked() const { return asked_; }
  v1::GenerateRequest last() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return last_;
  }
  std::string handed_over_by() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return by_;
  }
  bool had_deadline() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    return deadline_;
  }

  // Before the request that they answer is sent.
  GenerateScript script;
  grpc::Status score_status;

 private:
  void Remember(const grpc::ServerContext& context) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    ++asked_;
    const auto by = context.client_metadata().find(kHandedOverBy);
    by_ = by == context.client_metadata().end() ? "" : std::string(by->second.data(), by->second.size());
    deadline_ = context.deadline() < std::chrono::system_clock::now() + std::chrono::hours(2);
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::atomic<int> asked_{0};
  Mutex mu_;
  v1::GenerateRequest last_ BALLAST_GUARDED_BY(mu_);
  std::string by_ BALLAST_GUARDED_BY(mu_);
  bool deadline_ BALLAST_GUARDED_BY(mu_) = false;
};

void Stream(grpc::ServerWriter<v1::GenerateResponse>* writer, std::initializer_list<int32_t> tokens) {
  for (const int32_t token : tokens) {
    v1::GenerateResponse message;
    message.add_token_ids(token);
    message.set_text(absl::StrCat(token, " "));
    writer->Write(message);
  }
}

FakeHome::GenerateScript Answers(std::initializer_list<int32_t> tokens) {
  return
      [tokens = std::vector<int32_t>(tokens)](grpc::ServerContext*, grpc::ServerWriter<v1::GenerateResponse>* writer) {
        for (const int32_t token : tokens) Stream(writer, {token});
        v1::GenerateResponse end;
        end.mutable_finish()->set_reason(v1::FINISH_REASON_STOP);
        writer->Write(end);
        return grpc::Status::OK;
      };
}

FakeHome::GenerateScript Fails(grpc::StatusCode code, const std::string& message) {
  return [=](grpc::ServerContext*, grpc::ServerWriter<v1::GenerateResponse>*) { return grpc::Status(code, message); };
}

// Runs the batcher's steps in a thread of its own.
class Steps {
 public:
  explicit Steps(Batcher& batcher) : batcher_(batcher), thread_([this] { Loop(); }) {
    batcher_.set_notify([this] { Notify(false); });
  }
  ~Steps() {
    Notify(true);
    thread_.join();
  }

 private:
  void Notify(bool stop) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    stop_ |= stop;
    notified_ = true;
    changed_.NotifyAll();
  }
  void Loop() BALLAST_EXCLUDES(mu_) {
    for (;;) {
      {
        MutexLock lock(mu_);
        while (!notified_) changed_.Wait(mu_);
        notified_ = false;
        if (stop_) return;
      }
      while (batcher_.HasWork()) {
        const StepRows rows = batcher_.Next(8);
        std::vector<float> logits(rows.input.logit_rows.size() * kVocab);
        for (size_t i = 0; i < rows.input.logit_rows.size(); ++i) {
          logits[i * kVocab + (rows.input.token_ids[rows.input.logit_rows[i]] + 1) % kVocab] = 5;
        }
        batcher_.Commit({.logits = logits.data()});
      }
    }
  }

  Batcher& batcher_;
  Mutex mu_;
  CondVar changed_;
  bool notified_ BALLAST_GUARDED_BY(mu_) = false;
  bool stop_ BALLAST_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// The worker w0; "far" is at home on w1, whom the test plays, "near" here.
class HandoverTest : public ::testing::Test {
 protected:
  HandoverTest() {
    cache_ = *KvCache::Create({.num_layers = 1, .attention = {.num_heads = 1, .num_kv_heads = 1, .head_dim = 16}}, 64);
    batcher_ = *Batcher::Create(
        {.max_rows = 8, .max_logit_rows = 8, .max_running = 4, .max_waiting = 4, .max_positions = 1000}, kVocab,
        *cache_, counters_, clock_);
    steps_ = std::make_unique<Steps>(*batcher_);
    router_ = std::make_unique<RequestRouter>(
        "w0", [](const std::string& address) { return v1::Inference::NewStub(Channel(address)); },
        [] { return WorkerLoad{}; });
    service_ = std::make_unique<InferenceService>(
        *batcher_, InferenceServiceOptions{.rules = {.vocab_size = kVocab},
                                           .serving = [] { return absl::OkStatus(); },
                                           .router = router_.get(),
                                           .worker = "wörker",
                                           .ended = [this](const RequestRecord& record) { Ended(record); },
                                           .clock = &clock_});
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::Inference::NewStub(Channel(absl::StrCat("127.0.0.1:", port)));
    InstallView(home_.address());
  }
  ~HandoverTest() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    router_->Close();
    EXPECT_TRUE(router_->AwaitIdle(Clock::Real(), absl::InfiniteFuture()));
    home_.Stop();
    // Its thread tells of requests that have ended.
    steps_.reset();
  }

  // Lives until the process ends, as a worker's channel to its controller does: see OpenPeerChannel.
  static std::shared_ptr<grpc::Channel> Channel(const std::string& address) {
    static auto& opened = *new std::vector<std::shared_ptr<grpc::Channel>>;
    opened.push_back(OpenPeerChannel(TransportSecurity(), address));
    return opened.back();
  }

  // Empty: w1 is not in it.
  void InstallView(const std::string& home_address) {
    v1::View view;
    for (const std::string& address : {std::string("self"), home_address}) {
      if (address.empty()) continue;
      v1::Member& member = *view.add_members();
      member.set_worker(absl::StrCat("w", view.members_size() - 1));
      member.set_incarnation(1);
      member.set_serving_address(address);
    }
    Placement placement;
    placement.workers = {"w0", "w1"};
    placement.task_homes = {{"far", {{1, 1}}}, {"near", {{0, 1}}}};
    router_->Install(view, placement);
  }

  static v1::GenerateRequest Prompt(const std::string& task) {
    v1::GenerateRequest request;
    for (const int32_t token : {5, 6, 7}) request.mutable_token_ids()->add_ids(token);
    request.set_task(task);
    request.set_max_tokens(4);
    return request;
  }

  struct Answer {
    std::vector<int32_t> tokens;
    std::string text;
    std::optional<v1::Finish> finish;
    std::optional<v1::Redirect> redirect;
    grpc::Status status;
  };
  // `meanwhile` is called after the first message.
  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext& context,
                  const std::function<void()>& meanwhile = nullptr) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::hours(1));
    const auto reader = stub_->Generate(&context, request);
    Answer answer;
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      if (answer.tokens.empty() && meanwhile) meanwhile();
      answer.tokens.insert(answer.tokens.end(), message.token_ids().begin(), message.token_ids().end());
      answer.text += message.text();
      if (message.has_finish()) answer.finish = message.finish();
      if (message.has_redirect()) answer.redirect = message.redirect();
    }
    answer.status = reader->Finish();
    return answer;
  }
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, context);
  }

  void Ended(const RequestRecord& record) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    records_.push_back(record);
    ended_.NotifyAll();
  }
  // Of the next request that has ended.
  RequestRecord NextRecord() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    while (records_.empty()) ended_.Wait(mu_);
    const RequestRecord record = records_.front();
    records_.pop_front();
    return record;
  }

  // Days ahead of the system's, which may be set at any time.
  SimulatedClock clock_{Clock::Real().Now() + absl::Hours(48)};
  FakeHome home_;
  LoadCounters counters_{1, 2, 1};
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Batcher> batcher_;
  std::unique_ptr<Steps> steps_;
  std::unique_ptr<RequestRouter> router_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  Mutex mu_;
  CondVar ended_;
  std::deque<RequestRecord> records_ BALLAST_GUARDED_BY(mu_);
};

TEST_F(HandoverTest, TheHomeAnswersThroughThisWorker) {
  home_.script = Answers({101, 102, 103});
  const Answer answer = Generate(Prompt("far"));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_THAT(answer.tokens, ElementsAre(101, 102, 103));
  EXPECT_EQ(answer.text, "101 102 103 ");
  ASSERT_TRUE(answer.finish.has_value());
  EXPECT_EQ(answer.finish->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.finish->prompt_tokens(), 3);
  EXPECT_EQ(answer.finish->generated_tokens(), 3);
  EXPECT_EQ(home_.asked(), 1);
  EXPECT_EQ(home_.handed_over_by(), "wörker");
  EXPECT_TRUE(home_.had_deadline());
  EXPECT_EQ(home_.last().task(), "far");
  EXPECT_EQ(home_.last().max_tokens(), 4);
  EXPECT_NE(home_.last().seed(), 0u) << "both workers sample with one seed";
  const RequestRecord record = NextRecord();
  EXPECT_EQ(record.route, RequestRoute::kHome);
  EXPECT_FALSE(record.came_back);
  EXPECT_EQ(record.generated_tokens, 3);
  EXPECT_GE(record.time_to_first_token, absl::ZeroDuration());
}

TEST_F(HandoverTest, RequestsOfHereAndWithoutHomes_AreRunHere) {
  for (const char* task : {"near", "unknown", ""}) {
    const Answer answer = Generate(Prompt(task));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_THAT(answer.tokens, ElementsAre(8, 9, 10, 11));
  }
  EXPECT_EQ(home_.asked(), 0);
  EXPECT_EQ(NextRecord().route, RequestRoute::kHere);
  EXPECT_EQ(NextRecord().route, RequestRoute::kNone);
}

TEST_F(HandoverTest, ARequestThatWasHandedOver_IsNotHandedOn) {
  grpc::ClientContext context;
  context.AddMetadata(kHandedOverBy, "w7");
  const Answer answer = Generate(Prompt("far"), context);
  EXPECT_THAT(answer.tokens, ElementsAre(8, 9, 10, 11));
  EXPECT_EQ(home_.asked(), 0);
  EXPECT_TRUE(NextRecord().handed_in);
}

TEST_F(HandoverTest, AClientThatFollowsRedirects_IsToldOfTheHome) {
  // Where its load is heard: of these requests the router is not told the end.
  v1::HeartbeatAck heard;
  heard.add_loads()->set_worker("w1");
  router_->SetLoads(heard);
  v1::GenerateRequest request = Prompt("far");
  request.set_follows_redirects(true);
  const Answer answer = Generate(request);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_TRUE(answer.redirect.has_value());
  EXPECT_EQ(answer.redirect->worker(), "w1");
  EXPECT_EQ(answer.redirect->address(), home_.address());
  EXPECT_THAT(answer.tokens, ElementsAre());
  EXPECT_FALSE(answer.finish.has_value()) << "nothing was run";
  EXPECT_EQ(home_.asked(), 0) << "the client does that";
  const RequestRecord record = NextRecord();
  EXPECT_TRUE(record.redirected);
  EXPECT_EQ(record.route, RequestRoute::kHome);
  EXPECT_TRUE(router_->AwaitIdle(Clock::Real(), absl::InfinitePast()));
  // What is wrong with it is told by the first worker.
  request.mutable_token_ids()->add_ids(kVocab);
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_FALSE(NextRecord().redirected);
  // Requests of here are answered here.
  request = Prompt("near");
  request.set_follows_redirects(true);
  EXPECT_THAT(Generate(request).tokens, ElementsAre(8, 9, 10, 11));
}

TEST_F(HandoverTest, ARequestThatFollowsARedirect_IsRunWhereItComesIn) {
  v1::HeartbeatAck heard;
  heard.add_loads()->set_worker("w1");
  router_->SetLoads(heard);
  v1::GenerateRequest request = Prompt("far");
  request.set_follows_redirects(true);
  request.set_redirected(true);
  const Answer answer = Generate(request);
  EXPECT_THAT(answer.tokens, ElementsAre(8, 9, 10, 11)) << "whatever the homes are by now";
  RequestRecord record = NextRecord();
  EXPECT_EQ(record.route, RequestRoute::kNone);
  EXPECT_FALSE(record.handed_in) << "this worker counts it";
  // A worker that is to go hands it on, and sends nobody in circles.
  router_->SetAway(true);
  home_.script = Answers({101, 102});
  const Answer handed = Generate(request);
  EXPECT_THAT(handed.tokens, ElementsAre(101, 102));
  EXPECT_FALSE(handed.redirect.has_value());
  EXPECT_EQ(NextRecord().route, RequestRoute::kAway);
}

TEST_F(HandoverTest, OfAWorkerThatIsToGo_EveryRequestIsAnothers) {
  router_->SetAway(true);
  for (const char* task : {"far", "near", "unknown"}) {
    home_.script = Answers({101, 102});
    const Answer answer = Generate(Prompt(task));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_THAT(answer.tokens, ElementsAre(101, 102));
    EXPECT_EQ(NextRecord().route, RequestRoute::kAway);
  }
  home_.script = Fails(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  EXPECT_THAT(Generate(Prompt("near")).tokens, ElementsAre(8, 9, 10, 11)) << "rather here than refused";
  EXPECT_TRUE(NextRecord().came_back);
  grpc::ClientContext context;
  context.AddMetadata(kHandedOverBy, "w7");
  const Answer refused = Generate(Prompt("near"), context);
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE) << "w7 stays, and runs it";
  EXPECT_THAT(refused.status.error_message(), HasSubstr("worker wörker is to go"));
}

TEST_F(HandoverTest, WhatOthersHandOver_IsCountedUntilItIsAnswered) {
  // No step is run, so requests end when they are cancelled and not before.
  steps_.reset();
  batcher_->set_notify(nullptr);
  for (const bool handed_in : {true, false}) {
    grpc::ClientContext context;
    if (handed_in) context.AddMetadata(kHandedOverBy, "w7");
    std::thread client([&] { Generate(Prompt("near"), context); });
    while (batcher_->AwaitIdle(absl::InfinitePast())) std::this_thread::yield();
    EXPECT_EQ(service_->handed_in(), handed_in ? 1 : 0);
    context.TryCancel();
    client.join();
    while (service_->handed_in() > 0) std::this_thread::yield();
    if (handed_in) batcher_->NoView(absl::UnavailableError("the test goes on"));
  }
}

TEST_F(HandoverTest, WhatTheHomeDoesNotRun_IsRunHereOnce) {
  for (const auto& [code, message] : {std::pair(grpc::StatusCode::UNAVAILABLE, "this worker is leaving"),
                                      {grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full"},
                                      {grpc::StatusCode::CANCELLED, "the server stops"}}) {
    SCOPED_TRACE(message);
    const int asked = home_.asked();
    home_.script = Fails(code, message);
    const Answer answer = Generate(Prompt("far"));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_THAT(answer.tokens, ElementsAre(8, 9, 10, 11));
    EXPECT_EQ(home_.asked(), asked + 1);
    const RequestRecord record = NextRecord();
    EXPECT_EQ(record.route, RequestRoute::kHome);
    EXPECT_TRUE(record.came_back);
    EXPECT_EQ(record.code, absl::StatusCode::kOk);
  }
}

TEST_F(HandoverTest, WhereNobodyListens_ItIsRunHere) {
  home_.Stop();
  InstallView("");
  InstallView(home_.address());
  const Answer answer = Generate(Prompt("far"));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_THAT(answer.tokens, ElementsAre(8, 9, 10, 11));
  EXPECT_TRUE(NextRecord().came_back);
}

TEST_F(HandoverTest, WhatIsWrongWithTheRequest_IsToldAndNotTriedAgain) {
  home_.script = Fails(grpc::StatusCode::INVALID_ARGUMENT, "max_tokens is 4; no");
  const Answer answer = Generate(Prompt("far"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), AllOf(HasSubstr("w1"), HasSubstr("max_tokens is 4; no")));
  EXPECT_EQ(NextRecord().code, absl::StatusCode::kInvalidArgument);
  // Not even asked about what this worker can tell.
  v1::GenerateRequest malformed = Prompt("far");
  malformed.mutable_token_ids()->add_ids(kVocab);
  EXPECT_EQ(Generate(malformed).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(home_.asked(), 1);
}

TEST_F(HandoverTest, LostAfterTheFirstToken_UnavailableAndNotRunAgain) {
  home_.script = [](grpc::ServerContext*, grpc::ServerWriter<v1::GenerateResponse>* writer) {
    Stream(writer, {101, 102});
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "socket closed");
  };
  const Answer answer = Generate(Prompt("far"));
  EXPECT_THAT(answer.tokens, ElementsAre(101, 102));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(),
              AllOf(HasSubstr("w1"), HasSubstr("after 2 tokens"), HasSubstr("socket closed")));
  EXPECT_FALSE(NextRecord().came_back);
}

TEST_F(HandoverTest, LostBehindItsEnd_TheAnswerIsWhole) {
  home_.script = [this](grpc::ServerContext*, grpc::ServerWriter<v1::GenerateResponse>* writer) {
    if (home_.asked() == 1) Stream(writer, {101, 102});
    v1::GenerateResponse end;
    end.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
    writer->Write(end);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "socket closed");
  };
  for (const bool any_tokens : {true, false}) {
    const Answer answer = Generate(Prompt("far"));
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.tokens.size(), any_tokens ? 2u : 0u) << "not run a second time";
    ASSERT_TRUE(answer.finish.has_value());
    EXPECT_EQ(answer.finish->reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_FALSE(NextRecord().came_back);
  }
}

// A peer that hangs is given up when the controller takes it out of the view.
TEST_F(HandoverTest, LeftTheViewBeforeTheFirstToken_RunHere) {
  home_.script = [this](grpc::ServerContext* context, grpc::ServerWriter<v1::GenerateResponse>*) {
    InstallView("");
    while (!context->IsCancelled()) std::this_thread::yield();
    return grpc::Status::CANCELLED;
  };
  const Answer answer = Generate(Prompt("far"));
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_THAT(answer.tokens, ElementsAre(8, 9, 10, 11));
  EXPECT_TRUE(NextRecord().came_back);
}

TEST_F(HandoverTest, LeftTheViewAfterTheFirstToken_Unavailable) {
  home_.script = [](grpc::ServerContext* context, grpc::ServerWriter<v1::GenerateResponse>* writer) {
    Stream(writer, {101});
    while (!context->IsCancelled()) std::this_thread::yield();
    return grpc::Status::CANCELLED;
  };
  grpc::ClientContext context;
  const Answer answer = Generate(Prompt("far"), context, [this] { InstallView(""); });
  EXPECT_THAT(answer.tokens, ElementsAre(101));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), AllOf(HasSubstr("w1"), HasSubstr("left the group's view")));
}

TEST_F(HandoverTest, CancellationGoesToTheHome) {
  std::atomic<bool> cancelled{false};
  home_.script = [&](grpc::ServerContext* context, grpc::ServerWriter<v1::GenerateResponse>* writer) {
    Stream(writer, {101});
    while (!context->IsCancelled()) std::this_thread::yield();
    cancelled = true;
    return grpc::Status::CANCELLED;
  };
  grpc::ClientContext context;
  const Answer answer = Generate(Prompt("far"), context, [&] { context.TryCancel(); });
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(NextRecord().code, absl::StatusCode::kCancelled);
  while (!cancelled) std::this_thread::yield();
  EXPECT_TRUE(router_->AwaitIdle(Clock::Real(), absl::InfiniteFuture()));
  EXPECT_TRUE(batcher_->AwaitIdle(absl::InfinitePast())) << "it was not run here";
}

TEST_F(HandoverTest, Scores) {
  v1::ScoreRequest request;
  for (const int32_t token : {5, 6, 7}) request.mutable_token_ids()->add_ids(token);
  request.set_task("far");
  const auto score = [&] {
    grpc::ClientContext context;
    v1::ScoreResponse response;
    const grpc::Status status = stub_->Score(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  };
  v1::ScoreResponse response = score();
  EXPECT_THAT(response.argmax(), ElementsAre(111));
  EXPECT_THAT(response.token_ids(), ElementsAre(5, 6, 7));
  EXPECT_EQ(NextRecord().route, RequestRoute::kHome);
  home_.score_status = grpc::Status(grpc::StatusCode::UNAVAILABLE, "leaving");
  response = score();
  EXPECT_THAT(response.argmax(), ElementsAre(6, 7, 8));
  EXPECT_THAT(response.token_ids(), ElementsAre(5, 6, 7));
  EXPECT_TRUE(NextRecord().came_back);
}

}  // namespace
}  // namespace ballast
