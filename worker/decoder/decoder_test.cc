#include "worker/decoder/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/decoder/model_test_util.h"

namespace ballast {
namespace {

using testing::HasSubstr;

constexpr char kModel[] = "testdata/olmoe-9m";
constexpr char kTinyModel[] = "testdata/qwen3moe-tiny";

// A MoE layer that only counts.
class CountingMoe final : public MoeLayer {
 public:
  absl::Status Run(int moe_layer, const float* hidden, int rows, float* out) override {
    calls.push_back({moe_layer, rows});
    if (static_cast<int>(calls.size()) == fail_at) return absl::UnavailableError("layer 0 expert 3 on worker b");
    std::fill_n(out, static_cast<size_t>(rows) * width, 0.0f);
    return absl::OkStatus();
  }
  std::vector<std::pair<int, int>> calls;
  int fail_at = 0;
  int width = 0;
};

TEST(DecoderTest, EveryChunkingOfAPromptGivesTheSameBits) {
  const std::vector<int32_t> tokens = RandomTokens(150, 4096, 1);
  TestModel one(kModel, 1, 150), three(kModel, 3, 150);
  ASSERT_TRUE(one.decoder->row_invariant());
  const std::vector<float> whole = one.Logits(tokens, 150);
  EXPECT_TRUE(SameBits(whole, three.Logits(tokens, 150)));
  for (int chunk : {1, 2, 3, 5, 16, 17, 31, 64, 149}) {
    EXPECT_TRUE(SameBits(whole, one.Logits(tokens, chunk))) << "chunks of " << chunk;
    EXPECT_TRUE(SameBits(whole, three.Logits(tokens, chunk))) << "chunks of " << chunk << ", three threads";
  }
}

// Sequences in random steps: some prefill in chunks of random length, others decode, in random order.
TEST(DecoderTest, StepCompositionChangesNoBit) {
  for (const char* dir : {kModel, kTinyModel, "testdata/mixtral-tiny", "testdata/olmoe-tiny"}) {
    const int max_rows = 48;
    TestModel model(dir, 2, max_rows);
    const int vocab = model.config().vocab_size, count = 6;
    std::vector<std::vector<int32_t>> tokens;
    std::vector<std::vector<float>> expected;
    for (int s = 0; s < count; ++s) {
      tokens.push_back(RandomTokens(20 + 7 * s, vocab, s));
      expected.push_back(model.Logits(tokens[s], max_rows));
    }
    for (uint32_t seed = 0; seed < 3; ++seed) {
      std::mt19937 random(seed);
      const auto got = ShuffledLogits(
          *model.cache, vocab, tokens, max_rows, random, [] { return 13; }, model.forward());
      for (int s = 0; s < count; ++s) EXPECT_TRUE(SameBits(expected[s], got[s])) << dir << " sequence " << s;
    }
  }
}

TEST(DecoderTest, ADiscardedStepLeavesNoTrace) {
  TestModel model(kModel, 1, 64);
  const std::vector<int32_t> tokens = RandomTokens(40, 4096, 1), other = RandomTokens(30, 4096, 2);
  const std::vector<float> expected = model.Logits(tokens, 40);
  const size_t vocab = 4096;
  KvSequence kv(*model.cache);
  ASSERT_TRUE(kv.Reserve(40).ok());
  std::vector<float> logits(vocab);
  const auto step = [&](std::span<const int32_t> ids) {
    const StepSequence sequence = {&kv, 0, static_cast<int>(ids.size()), kv.committed()};
    const int32_t last = static_cast<int32_t>(ids.size()) - 1;
    return model.decoder->Forward({ids, {&sequence, 1}, {&last, 1}}, *model.moe, logits.data());
  };
  ASSERT_TRUE(step(std::span(tokens).first(15)).ok());
  kv.Commit(15);
  ASSERT_TRUE(step(std::span(other).first(23)).ok());  // not committed
  // A step that fails in the middle has written some layers.
  CountingMoe failing;
  failing.fail_at = 3;
  failing.width = 192;
  const StepSequence sequence = {&kv, 0, 9, 15};
  EXPECT_EQ(model.decoder->Forward({std::span(other).first(9), {&sequence, 1}, {}}, failing, nullptr).code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(failing.calls.size(), 3u);
  ASSERT_TRUE(step(std::span(tokens).subspan(15)).ok());
  EXPECT_EQ(std::memcmp(logits.data(), &expected[39 * vocab], vocab * sizeof(float)), 0);
}

TEST(DecoderTest, AnEmptyStepStillRunsEveryMoeLayer) {
  TestModel model(kTinyModel, 1, 8);
  CountingMoe moe;
  ASSERT_TRUE(model.decoder->Forward({}, moe, nullptr).ok());
  EXPECT_THAT(moe.calls, testing::ElementsAre(std::pair(0, 0), std::pair(1, 0)));
}

TEST(DecoderTest, LogitRowsMayRepeatAndOutnumberTheStep) {
  TestModel model(kTinyModel, 1, 3);
  const std::vector<int32_t> tokens = {5, 6, 7};
  const std::vector<float> expected = model.Logits(tokens, 3);
  KvSequence kv(*model.cache);
  ASSERT_TRUE(kv.Reserve(3).ok());
  const StepSequence sequence = {&kv, 0, 3, 0};
  const std::vector<int32_t> wanted = {2, 0, 2, 1, 2, 2, 0};
  std::vector<float> logits(7 * 100);
  ASSERT_TRUE(model.decoder->Forward({tokens, {&sequence, 1}, wanted}, *model.moe, logits.data()).ok());
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(std::memcmp(&logits[i * 100], &expected[wanted[i] * 100], 400), 0) << i;
  }
}

TEST(DecoderTest, BadInputsAreNamedBeforeAnythingRuns) {
  TestModel model(kTinyModel, 1, 8);
  KvSequence kv(*model.cache), long_kv(*model.cache);
  ASSERT_TRUE(kv.Reserve(4).ok());
  ASSERT_TRUE(long_kv.Reserve(80).ok());
  long_kv.Commit(60);
  const std::vector<int32_t> ids = {1, 2, 3, 4}, nine(9, 1), bad = {1, 100}, negative = {-1};
  const StepSequence four = {&kv, 0, 4, 0}, shifted = {&kv, 1, 3, 0}, ahead = {&kv, 0, 4, 2}, none = {&kv, 0, 0, 0},
                     over = {&long_kv, 0, 8, 60};
  const std::vector<int32_t> five = {5}, row_four = {4};
  const std::vector<int32_t> eight(8, 1);
  struct Case {
    StepInput input;
    absl::StatusCode code;
    const char* message;
  };
  const auto invalid = absl::StatusCode::kInvalidArgument, precondition = absl::StatusCode::kFailedPrecondition;
  KvSequence empty(*model.cache);
  const StepSequence unreserved = {&empty, 0, 4, 0};
  for (const Case& c : std::vector<Case>{
           {{nine, {}, {}}, invalid, "rows=9 is over the step's limit of 8"},
           {{bad, {}, {}}, invalid, "token_ids[1]=100 must lie in [0, 100)"},
           {{negative, {}, {}}, invalid, "token_ids[0]=-1 must lie in [0, 100)"},
           {{ids, {&shifted, 1}, {}}, invalid, "sequences[0] has rows [1, 4), want at least one from 0"},
           {{ids, {&none, 1}, {}}, invalid, "sequences[0] has rows [0, 0), want at least one from 0"},
           {{ids, {}, {}}, invalid, "sequences cover 0 of 4 rows"},
           {{ids, {&ahead, 1}, {}}, precondition, "start_position=2, the sequence has committed 0"},
           {{eight, {&over, 1}, {}}, invalid, "ends at position 68, the model has 64"},
           {{ids, {&unreserved, 1}, {}}, precondition, "ends at position 4, its KV blocks at 0"},
           {{ids, {&four, 1}, row_four}, invalid, "logit_rows[0]=4 must lie in [0, 4)"},
       }) {
    CountingMoe moe;
    const absl::Status status = model.decoder->Forward(c.input, moe, nullptr);
    EXPECT_EQ(status.code(), c.code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
    EXPECT_TRUE(moe.calls.empty());
  }
}

TEST(DecoderTest, RefusesALimitOfNoRows) {
  ThreadPool pool(1);
  auto checkpoint = Checkpoint::Open(kTinyModel);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(std::string(Decoder::Create(**checkpoint, pool, {.max_rows = 0}).status().message()),
              HasSubstr("max_rows=0 must lie in [1, "));
}

TEST(DecoderTest, FingerprintNamesLibraryTileAndKernel) {
  TestModel model(kTinyModel, 1, 8);
  EXPECT_THAT(model.decoder->fingerprint(), HasSubstr("onednn-"));
  EXPECT_THAT(model.decoder->fingerprint(), HasSubstr("-t4-"));
}

// OpenMP in the library would start a thread a core, and these spin.
TEST(DecoderTest, TheLibraryStartsNoThreads) {
  const auto threads = [] {
    std::set<std::string> ids;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) ids.insert(task.path().filename());
    return ids;
  };
  const std::set<std::string> before = threads();
  TestModel model(kModel, 2, 64);
  model.Logits(RandomTokens(100, 4096, 1), 64);
  // Those of the tests before may still be listed for a moment after they were joined.
  std::set<std::string> started = threads();
  for (const std::string& id : before) started.erase(id);
  EXPECT_EQ(started.size(), 1u);
}

}  // namespace
}  // namespace ballast
