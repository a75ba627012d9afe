// Invariant 4, fast: teacher-forced over real text, the same argmax as exact at every position where no router decision
// of its context is a near tie and the two best logits are apart.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "worker/model/safetensors.h"
#include "worker/step/group_test_util.h"

namespace ballast {
namespace {

constexpr char kTrained[] = "testdata/olmoe-9m";

// The k-th and the next router logit are a near tie when they are no further apart than this: what the other order of
// sums does to a router logit (the final logits, which are larger, differ by 2e-5 at most, printed below) cannot swap
// two that are further apart.
constexpr float kRouterBound = 1e-5f;
// The two best logits count as apart when they differ by more.
constexpr float kMarginBound = 1e-4f;
constexpr double kMostLeftOut = 0.02;

struct Text {
  std::vector<int32_t> tokens;
  std::vector<float> logits;
  // By position: the narrowest gap between the k-th and the next router logit over all layers and earlier positions.
  std::vector<float> narrowest;
};

TEST(FastTest, TeacherForced_SameArgmaxAwayFromTies) {
  TestModel model(kTrained, /*threads=*/1, /*max_rows=*/64);
  const int experts = model.config().num_experts;
  const int k = model.config().experts_per_token;
  const size_t vocab = model.config().vocab_size;
  const auto reference = SafetensorsFile::Open(std::string(kTrained) + "/reference.safetensors");
  ASSERT_EQ(reference.status(), absl::OkStatus());
  std::vector<Text> texts;
  for (const TensorView& tensor : (*reference)->tensors()) {
    if (tensor.name != "input_ids") continue;
    const auto ids = tensor.as<int32_t>();
    const auto length = static_cast<size_t>(tensor.shape[1]);
    for (size_t at = 0; at < ids.size(); at += length) {
      texts.push_back({.tokens = {ids.begin() + at, ids.begin() + at + length}});
    }
  }
  ASSERT_FALSE(texts.empty());
  for (Text& text : texts) {
    text.narrowest.assign(text.tokens.size(), std::numeric_limits<float>::infinity());
    model.moe->set_trace([&](const LocalMoe::Trace& trace) {
      std::vector<float> sorted(experts);
      for (int row = 0; row < trace.rows; ++row) {
        std::copy_n(trace.router_logits.data() + static_cast<size_t>(row) * experts, experts, sorted.begin());
        std::partial_sort(sorted.begin(), sorted.begin() + k + 1, sorted.end(), std::greater<>());
        text.narrowest[row] = std::min(text.narrowest[row], sorted[k - 1] - sorted[k]);
      }
    });
    text.logits = model.Logits(text.tokens, static_cast<int>(text.tokens.size()));
    for (size_t i = 1; i < text.tokens.size(); ++i) {
      text.narrowest[i] = std::min(text.narrowest[i], text.narrowest[i - 1]);
    }
  }

  int64_t positions = 0;
  int64_t left_out = 0;
  int64_t differ = 0;
  double largest_error = 0;
  for (const int workers : {2, 4}) {
    TestGroup group(kTrained, workers, {.combine = CombineMode::kFast, .capacity = 64}, workers);
    for (int placement = 0; placement < 4; ++placement) {
      ASSERT_NO_FATAL_FAILURE(
          group.Install(RandomPlacement(group.checkpoint(), group.names(), nullptr, placement + 1, group.random()),
                        group.LedBy(placement % workers)));
      std::vector<int> numbers;
      for (size_t t = 0; t < texts.size(); ++t) {
        numbers.push_back(group.worker(t % workers)->source->Submit({.tokens = texts[t].tokens}));
      }
      for (size_t t = 0; t < texts.size(); ++t) {
        const Text& text = texts[t];
        const auto result = group.worker(t % workers)->source->Await(numbers[t]);
        ASSERT_NE(result, nullptr);
        ASSERT_EQ(result->status, absl::OkStatus());
        for (size_t i = 0; i < text.tokens.size(); ++i) {
          const std::span<const float> exact(text.logits.data() + i * vocab, vocab);
          const std::span<const float> fast(result->logits.data() + i * vocab, vocab);
          const int32_t best = ArgMax(exact);
          float second = -std::numeric_limits<float>::infinity();
          for (size_t v = 0; v < vocab; ++v) {
            if (static_cast<int32_t>(v) != best) second = std::max(second, exact[v]);
          }
          ++positions;
          if (text.narrowest[i] <= kRouterBound || exact[best] - second <= kMarginBound) {
            ++left_out;
            continue;
          }
          if (ArgMax(fast) != best) ++differ;
          for (size_t v = 0; v < vocab; ++v) {
            largest_error = std::max(largest_error, std::abs(static_cast<double>(exact[v]) - fast[v]));
          }
        }
      }
    }
  }
  const double share = static_cast<double>(left_out) / static_cast<double>(positions);
  std::printf(
      "fast: %lld positions, %.3f %% left out (router bound %g, margin bound %g), largest difference of a logit "
      "elsewhere %.2e\n",
      static_cast<long long>(positions), share * 100, kRouterBound, kMarginBound, largest_error);
  EXPECT_EQ(differ, 0);
  EXPECT_LE(share, kMostLeftOut);
  // What the margin's bound has to cover twice over.
  EXPECT_LT(largest_error, kMarginBound / 2);
}

}  // namespace
}  // namespace ballast
