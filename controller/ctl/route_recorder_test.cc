#include "controller/ctl/route_recorder.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

TEST(ParsePrompts, LinesOfATask) {
  constexpr char kLines[] = R"({"task": "a", "text": "one"}

{"task": "b", "text": "two", "source": "x"}
{"text": "three"}
)";
  const auto of_a = ParsePrompts(kLines, "f", "a");
  ASSERT_TRUE(of_a.ok()) << of_a.status();
  ASSERT_EQ(of_a->size(), 2u);
  EXPECT_EQ((*of_a)[0].text, "one");
  EXPECT_EQ((*of_a)[1].text, "three");
  EXPECT_EQ((*of_a)[1].task, "a");
  EXPECT_THAT(ParsePrompts(kLines, "f", "").status().message(), HasSubstr("f:4:"));
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
  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest* request, v1::ScoreResponse* response) override {
    if (request->task() == "old") {
      response->add_token_ids(1);
      return grpc::Status::OK;
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
  std::unique_ptr<grpc::Server> server_;
};

TEST(RecordRoutes, SampleBySample) {
  ByteWorker worker;
  const auto stub = worker.Stub();
  const RecordedPrompt prompts[] = {{"t", "ac"}, {"t", "bbbb"}, {"t", "d"}};
  std::vector<std::pair<size_t, int64_t>> told;
  const auto file = RecordRoutes(*stub, prompts, 3, 2,
                                 [&](size_t prompts_done, int64_t tokens) { told.emplace_back(prompts_done, tokens); });
  ASSERT_TRUE(file.ok()) << file.status();
  const RouteTrace& routes = file->routes;
  EXPECT_EQ(routes.top_k, 2);
  ASSERT_EQ(routes.experts.size(), 2u);
  // The second prompt is cut to two bytes; the third comes after the three tokens asked for.
  EXPECT_THAT(routes.experts[0], ElementsAre(0, 1, 2, 3, 1, 2, 1, 2));
  EXPECT_THAT(routes.experts[1], ElementsAre(0, 2, 4, 6, 2, 4, 2, 4));
  EXPECT_THAT(routes.samples[1], ElementsAre(0, 0, 1, 1));
  EXPECT_THAT(routes.tokens[0], ElementsAre(0, 1, 0, 1));
  EXPECT_THAT(told, ElementsAre(Pair(1, 2), Pair(2, 4))) << "prompts and tokens so far";
  const RecordedPrompt old[] = {{"old", "a"}};
  EXPECT_EQ(RecordRoutes(*stub, old, 3, 2, [](size_t, int64_t) {}).status().code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace ballast
