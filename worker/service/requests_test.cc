#include "worker/service/requests.h"

#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<int32_t> kEos = {2, 5};

RequestRules Rules() { return {.vocab_size = 100, .eos_token_ids = kEos}; }

v1::GenerateRequest Generate() {
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(7);
  request.mutable_token_ids()->add_ids(8);
  return request;
}

absl::StatusOr<BatchedRequest> Convert(const v1::GenerateRequest& request) {
  return ToBatched(request, Rules(), absl::FromUnixSeconds(9), /*fresh_seed=*/77);
}

TEST(RequestsTest, Generate_Defaults) {
  const auto batched = Convert(Generate());
  ASSERT_EQ(batched.status(), absl::OkStatus());
  EXPECT_THAT(batched->spec.tokens, ElementsAre(7, 8));
  EXPECT_THAT(batched->spec.stop_tokens, ElementsAre(2, 5));
  EXPECT_EQ(batched->spec.deadline, absl::FromUnixSeconds(9));
  EXPECT_EQ(batched->sampling.temperature, 0);
  EXPECT_EQ(batched->sampling.top_p, 1);
  EXPECT_EQ(batched->sampling.seed, 77u);
}

TEST(RequestsTest, Generate_Options) {
  v1::GenerateRequest request = Generate();
  request.set_task("chat.v1");
  request.set_temperature(0.5);
  request.set_top_p(0.9);
  request.set_seed(3);
  request.add_stop_token_ids(9);
  request.set_ignore_eos(true);
  request.set_logprobs(true);
  const auto batched = Convert(request);
  ASSERT_EQ(batched.status(), absl::OkStatus());
  EXPECT_EQ(batched->spec.task, "chat.v1");
  EXPECT_THAT(batched->spec.stop_tokens, ElementsAre(9));
  EXPECT_FLOAT_EQ(batched->sampling.top_p, 0.9);
  EXPECT_EQ(batched->sampling.seed, 3u);
  EXPECT_TRUE(batched->logprobs);
}

TEST(RequestsTest, Generate_RefusesAndNamesTheField) {
  struct Case {
    const char* text;
    std::function<void(v1::GenerateRequest&)> change;
  };
  const Case cases[] = {
      {"prompt is not set", [](auto& r) { r.clear_prompt(); }},
      {"ids only", [](auto& r) { r.set_text("hello"); }},
      {"token_ids.ids[2] is 100; the vocabulary has 100", [](auto& r) { r.mutable_token_ids()->add_ids(100); }},
      {"token_ids.ids[2] is -1", [](auto& r) { r.mutable_token_ids()->add_ids(-1); }},
      {"stop_token_ids[0] is 100", [](auto& r) { r.add_stop_token_ids(100); }},
      {"stop_token_ids has 65 entries; the limit is 64",
       [](auto& r) {
         for (int i = 0; i < 65; ++i) r.add_stop_token_ids(1);
       }},
      {"task has 65 characters; the limit is 64", [](auto& r) { r.set_task(std::string(65, 'a')); }},
      {"task is \"a b\"", [](auto& r) { r.set_task("a b"); }},
      {"temperature", [](auto& r) { r.set_temperature(-1); }},
      {"top_p", [](auto& r) { r.set_top_p(1.5); }},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest request = Generate();
    c.change(request);
    const absl::Status status = Convert(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.text));
  }
}

TEST(RequestsTest, Score) {
  v1::ScoreRequest request;
  EXPECT_THAT(std::string(ToBatched(request, Rules(), absl::InfiniteFuture()).status().message()),
              HasSubstr("input is not set"));
  request.mutable_token_ids()->add_ids(100);
  EXPECT_FALSE(ToBatched(request, Rules(), absl::InfiniteFuture()).ok());
  request.mutable_token_ids()->set_ids(0, 1);
  request.set_logits_digest(true);
  const auto batched = ToBatched(request, Rules(), absl::InfiniteFuture());
  ASSERT_EQ(batched.status(), absl::OkStatus());
  EXPECT_EQ(batched->spec.kind, SequenceKind::kScore);
  EXPECT_TRUE(batched->digests);
}

}  // namespace
}  // namespace ballast
