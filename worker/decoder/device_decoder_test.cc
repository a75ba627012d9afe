#include "worker/decoder/device_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/status.h"
#include "worker/decoder/device_model_test_util.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

constexpr char kTrained[] = "testdata/olmoe-9m";
constexpr char kTinyModel[] = "testdata/qwen3moe-tiny";

TEST(DeviceDecoderTest, Exact_EveryChunkingOfAPromptGivesTheSameBits) {
  DeviceModel model(kTrained, {.max_rows = 600, .exact = true});
  const std::vector<int32_t> tokens = RandomTokens(600, model.vocab(), 1);
  const std::vector<float> whole = model.Logits(tokens, 600);
  for (const int chunk : {1, 7, 16, 64, 65, 257}) {
    EXPECT_TRUE(SameBits(whole, model.Logits(tokens, chunk))) << "chunks of " << chunk;
  }
}

// Sequences in random steps: some prefill in chunks of random length, others decode, in random order. `fast` runs the
// same steps, and is compared by its error.
TEST(DeviceDecoderTest, StepComposition) {
  const int max_rows = 96, count = 9;
  for (const char* dir : {kTrained, kTinyModel, "testdata/mixtral-tiny", "testdata/olmoe-tiny"}) {
    for (const bool exact : {true, false}) {
      DeviceModel model(dir, {.max_rows = max_rows, .exact = exact});
      const size_t vocab = model.vocab();
      const int longest = std::min(400, model.decoder->config().max_positions);
      std::vector<std::vector<int32_t>> tokens;
      std::vector<std::vector<float>> expected;
      for (int s = 0; s < count; ++s) {
        tokens.push_back(RandomTokens(std::min(longest, 20 + s * s * 5), static_cast<int>(vocab), s));
        expected.push_back(model.Logits(tokens[s], max_rows));
      }
      std::mt19937 random(1);
      // Every other step is decode alone.
      const auto got = ShuffledLogits(
          *model.cache, vocab, tokens, max_rows, random, [&] { return random() % 2 == 0 ? 1 : 59; },
          model.forward(*model.moe));
      for (int s = 0; s < count; ++s) {
        if (exact) {
          EXPECT_TRUE(SameBits(expected[s], got[s])) << dir << " sequence " << s;
        } else {
          EXPECT_LT(MedianRowError(got[s], expected[s], vocab), 0.02) << dir << " sequence " << s;
        }
      }
    }
  }
}

// A MoE layer that only counts.
class CountingMoe final : public DeviceMoeLayer {
 public:
  absl::Status Run(int moe_layer, const void* hidden, int rows, void* out, cudaStream_t stream) override {
    calls.push_back({moe_layer, rows});
    if (static_cast<int>(calls.size()) == fail_at) return absl::UnavailableError("layer 0 expert 3 on worker b");
    return CudaStatus(cudaMemsetAsync(out, 0, static_cast<size_t>(rows) * width * 2, stream), "zeros");
  }
  std::vector<std::pair<int, int>> calls;
  int fail_at = 0;
  int width = 0;
};

TEST(DeviceDecoderTest, ADiscardedStepLeavesNoTrace) {
  DeviceModel model(kTrained, {.max_rows = 64, .exact = true});
  const std::vector<int32_t> tokens = RandomTokens(40, 4096, 1), other = RandomTokens(30, 4096, 2);
  const std::vector<float> expected = model.Logits(tokens, 40);
  const size_t vocab = 4096;
  KvSequence kv(*model.cache);
  ASSERT_TRUE(kv.Reserve(40).ok());
  std::vector<float> logits(vocab);
  const auto step = [&](std::span<const int32_t> ids, DeviceMoeLayer& moe) {
    const StepSequence sequence = {&kv, 0, static_cast<int>(ids.size()), kv.committed()};
    const int32_t last = static_cast<int32_t>(ids.size()) - 1;
    return model.decoder->Forward({ids, {&sequence, 1}, {&last, 1}}, moe, logits.data(), model.stream);
  };
  ASSERT_TRUE(step(std::span(tokens).first(15), *model.moe).ok());
  kv.Commit(15);
  ASSERT_TRUE(step(std::span(other).first(23), *model.moe).ok());  // not committed
  // A step that fails in the middle has written some layers.
  CountingMoe failing;
  failing.fail_at = 3;
  failing.width = 192;
  EXPECT_EQ(step(std::span(other).first(9), failing).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(failing.calls.size(), 3u);
  ASSERT_TRUE(step(std::span(tokens).subspan(15), *model.moe).ok());
  EXPECT_EQ(std::memcmp(logits.data(), &expected[39 * vocab], vocab * sizeof(float)), 0);
}

TEST(DeviceDecoderTest, AnEmptyStepStillRunsEveryMoeLayer) {
  DeviceModel model(kTinyModel, {.max_rows = 8});
  CountingMoe moe;
  ASSERT_TRUE(model.decoder->Forward({}, moe, nullptr, model.stream).ok());
  ASSERT_EQ(static_cast<int>(moe.calls.size()), model.decoder->config().num_moe_layers());
  for (size_t i = 0; i < moe.calls.size(); ++i) EXPECT_EQ(moe.calls[i], (std::pair<int, int>(static_cast<int>(i), 0)));
}

TEST(DeviceDecoderTest, BadInputsAreNamedBeforeAnythingRuns) {
  DeviceModel model(kTinyModel, {.max_rows = 8});
  KvSequence kv(*model.cache);
  ASSERT_TRUE(kv.Reserve(8).ok());
  const std::vector<int32_t> bad = {1, 100}, nine(9, 0);
  const StepSequence one = {&kv, 0, 1, 0};
  CountingMoe moe;
  EXPECT_THAT(std::string(model.decoder->Forward({bad, {}, {}}, moe, nullptr, model.stream).message()),
              HasSubstr("token_ids[1]=100 must lie in [0, 100)"));
  EXPECT_THAT(
      std::string(
          model.decoder->Forward({std::span(bad).first(1), {&one, 1}, nine}, moe, nullptr, model.stream).message()),
      HasSubstr("logit_rows has 9 rows, the step's limit is 8"));
  EXPECT_TRUE(moe.calls.empty());
  auto checkpoint = Checkpoint::Open(kTinyModel);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT(std::string(DeviceDecoder::Create(**checkpoint, {.max_rows = 0}).status().message()),
              HasSubstr("max_rows=0 must lie in [1, "));
}

TEST(DeviceDecoderTest, FingerprintsOfExactAndFastDiffer) {
  const DeviceModel exact(kTinyModel, {.max_rows = 8, .exact = true}), fast(kTinyModel, {.max_rows = 8});
  std::printf("%s, %s\n", exact.decoder->fingerprint().c_str(), fast.decoder->fingerprint().c_str());
  EXPECT_THAT(exact.decoder->fingerprint(), HasSubstr("cuda-r1-sm"));
  EXPECT_THAT(fast.decoder->fingerprint(), HasSubstr("-cublaslt-"));
}

}  // namespace
}  // namespace ballast
