#include "controller/ctl/route_recorder.h"

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

TEST(ParsePrompts, LinesOfATask) {
  const std::string kLines =
      "\r\n \t\r\n"
      R"({"task": "a", "text": "one"}

{"task": "b", "text": "two", "source": "x"}
{"text": "three"}
)";
  const auto of_a = ParsePrompts(kLines, "f", "a");
  ASSERT_TRUE(of_a.ok()) << of_a.status();
  ASSERT_EQ(of_a->size(), 2u);
  EXPECT_EQ((*of_a)[0].text, "one");
  EXPECT_EQ((*of_a)[1].text, "three");
  EXPECT_EQ((*of_a)[1].task, "a");
  EXPECT_THAT(ParsePrompts(kLines, "f", "").status().message(), HasSubstr("f:6:"));
  EXPECT_THAT(ParsePrompts(R"({"task": "a", "text": "one"})", "f", "c").status().message(),
              HasSubstr("no prompts of task c"));
  EXPECT_THAT(ParsePrompts("[]", "f", "c").status().message(), HasSubstr("f:1:"));
}

// A worker whose tokens are the text's bytes and choose experts byte and byte + 1 in layer 0, twice that in layer 1.
class ByteWorker final : public v1::Inference::Service {
 public:
  ByteWorker() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  std::unique_ptr<v1::Inference::Stub> Stub() const {
    return v1::Inference::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port_), grpc::InsecureChannelCredentials()));
  }
  // What the next calls are answered with; OK: with routes.
  void Answer(std::deque<grpc::Status> answers) { answers_ = std::move(answers); }
  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override {
    if (request->task() == "old") {
      response->add_token_ids(1);
      return grpc::Status::OK;
    }
    if (!answers_.empty()) {
      const grpc::Status answer = answers_.front();
      answers_.pop_front();
      if (!answer.ok()) return answer;
    }
    if (request->task() == "hangs") {
      while (!context->IsCancelled()) std::this_thread::yield();
      return grpc::Status::CANCELLED;
    }
    response->mutable_expert_routes()->set_moe_layers(2);
    response->mutable_expert_routes()->set_experts_per_token(2);
    for (const char c : request->text()) {
      response->add_token_ids(c);
      const int e = c - 'a';
      for (const int expert : {e, e + 1, 2 * e, 2 * e + 2}) response->mutable_expert_routes()->add_experts(expert);
    }
    return grpc::Status::OK;
  }

 private:
  int port_ = 0;
  // Calls come one after the other.
  std::deque<grpc::Status> answers_;
  std::unique_ptr<grpc::Server> server_;
};

constexpr RecordingOptions kAll{.max_tokens = 1000, .max_prompt_bytes = 1000};
constexpr auto kNobody = [](size_t, int64_t) {};

TEST(RecordRoutes, SampleBySample) {
  ByteWorker worker;
  const auto stub = worker.Stub();
  const RecordedPrompt prompts[] = {{"t", "ac"}, {"t", "bbbb"}, {"t", "d"}};
  std::vector<std::pair<size_t, int64_t>> told;
  const auto recording =
      RecordRoutes(*stub, prompts, {.max_tokens = 3, .max_prompt_bytes = 2},
                   [&](size_t prompts_done, int64_t tokens) { told.emplace_back(prompts_done, tokens); });
  ASSERT_TRUE(recording.ended.ok()) << recording.ended;
  const RouteTrace& routes = recording.file.routes;
  EXPECT_EQ(routes.top_k, 2);
  ASSERT_EQ(routes.experts.size(), 2u);
  // The second prompt is cut to two bytes; the third comes after the three tokens asked for.
  EXPECT_THAT(routes.experts[0], ElementsAre(0, 1, 2, 3, 1, 2, 1, 2));
  EXPECT_THAT(routes.experts[1], ElementsAre(0, 2, 4, 6, 2, 4, 2, 4));
  EXPECT_THAT(routes.samples[1], ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(routes.tokens[0], ElementsAre(0, 1, 0, 1));
  EXPECT_EQ(recording.prompts, 2);
  EXPECT_EQ(recording.tokens, 4);
  EXPECT_THAT(told, ElementsAre(Pair(1, 2), Pair(2, 4))) << "prompts and tokens so far";
  const RecordedPrompt old[] = {{"old", "a"}};
  EXPECT_EQ(RecordRoutes(*stub, old, kAll, kNobody).ended.code(), absl::StatusCode::kUnimplemented);
}

TEST(RecordRoutes, KeepsWhatItHasWhateverAPromptEndsWith) {
  ByteWorker worker;
  const auto stub = worker.Stub();
  const RecordedPrompt prompts[] = {{"t", "a"}, {"t", "b"}, {"t", "c"}, {"t", "d"}, {"t", "e"}};
  const auto ok = grpc::Status::OK;
  const grpc::Status too_long(grpc::StatusCode::INVALID_ARGUMENT, "too long");
  const grpc::Status full(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  const grpc::Status away(grpc::StatusCode::UNAVAILABLE, "away");
  worker.Answer({ok, too_long, too_long, away, ok, ok});
  Recording recording = RecordRoutes(*stub, prompts, kAll, kNobody);
  EXPECT_TRUE(recording.ended.ok()) << recording.ended;
  EXPECT_THAT(recording.file.routes.samples[0], ElementsAre(0, 3, 4));
  EXPECT_EQ(recording.prompts, 3);
  EXPECT_THAT(recording.refused, ElementsAre("prompt 1 is left out: too long", "prompt 2 is left out: too long"));
  // Away for longer, a full queue, and other errors: what came before is there.
  for (const grpc::Status& last : {away, full, grpc::Status(grpc::StatusCode::INTERNAL, "not finite")}) {
    worker.Answer({ok, ok, last, last});
    recording = RecordRoutes(*stub, prompts, kAll, kNobody);
    EXPECT_EQ(recording.ended.message(), last.error_message());
    EXPECT_THAT(recording.file.routes.samples[0], ElementsAre(0, 1));
    EXPECT_THAT(recording.refused, IsEmpty());
  }
}

TEST(RecordRoutes, EndsWhereAWorkerDoesNotAnswer) {
  ByteWorker worker;
  const auto stub = worker.Stub();
  const RecordedPrompt prompts[] = {{"hangs", "a"}};
  // The call cannot end in another way, whichever side notices the deadline first.
  RecordingOptions options = kAll;
  options.timeout = absl::Milliseconds(1);
  EXPECT_EQ(RecordRoutes(*stub, prompts, options, kNobody).ended.code(), absl::StatusCode::kDeadlineExceeded);
}

}  // namespace
}  // namespace ballast
