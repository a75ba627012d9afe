// The decoder with all experts in this process against what transformers computes: reference.safetensors and
// training_report.json of each model.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/test_data.h"
#include "nlohmann/json.hpp"
#include "proto/base/test_data.h"
#include "worker/decoder/model_test_util.h"
#include "worker/decoder/sampling.h"
#include "worker/model/mapped_file.h"
#include "worker/model/safetensors.h"

namespace ballast {
namespace {

// Relative to the reference's norm. The requirement is 2e-2; f32 sums in another order reach this.
constexpr double kTolerance = 1e-5;

class Reference {
 public:
  explicit Reference(const std::string& dir) {
    auto file = SafetensorsFile::Open(dir + "/reference.safetensors");
    BALLAST_CHECK(file.ok()) << file.status().ToString();
    file_ = *std::move(file);
  }
  template <typename T>
  std::span<const T> Get(const std::string& name) const {
    for (const TensorView& tensor : file_->tensors()) {
      if (tensor.name == name) return tensor.as<T>();
    }
    return {};
  }

 private:
  std::unique_ptr<SafetensorsFile> file_;
};

// Sequences of the reference are `length` tokens; the logits of the last `last` positions are there.
void ExpectReference(const std::string& dir, int length, int last) {
  TestModel model(dir, 2, 64);
  const Reference reference(dir);
  const ModelConfig& config = model.config();
  const size_t hidden = config.hidden_size, experts = config.num_experts, vocab = config.vocab_size;
  const std::span<const int32_t> tokens = reference.Get<int32_t>("input_ids");
  ASSERT_EQ(tokens.size() % length, 0u);
  const size_t count = tokens.size() / length;
  const std::string logits_name = absl::StrCat("logits_last", last);
  std::map<std::string, double> worst;
  for (size_t s = 0; s < count; ++s) {
    model.moe->set_trace([&](const LocalMoe::Trace& trace) {
      const auto compare = [&](const std::string& what, std::span<const float> got, size_t width) {
        const std::string name = absl::StrCat("layers.", trace.moe_layer, ".", what);
        std::span<const float> all = reference.Get<float>(name);
        // Inputs and outputs are kept for the first sequences alone.
        if ((s + 1) * length * width > all.size()) return;
        const double error = internal::RelativeError(got, all.subspan(s * length * width, length * width));
        worst[what] = std::max(worst[what], error);
      };
      compare("mlp.input", trace.hidden, hidden);
      compare("router.logits", trace.router_logits, experts);
      compare("mlp.output", trace.output, hidden);
    });
    const std::vector<float> logits = model.Logits(tokens.subspan(s * length, length), length);
    const std::span<const float> all = reference.Get<float>(logits_name);
    const double error =
        internal::RelativeError(std::span(logits).last(last * vocab), all.subspan(s * last * vocab, last * vocab));
    worst["logits"] = std::max(worst["logits"], error);
  }
  for (const char* what : {"mlp.input", "router.logits", "mlp.output", "logits"}) {
    ASSERT_TRUE(worst.contains(what)) << "the reference has no " << what;
    std::printf("%s %s: relative error %.2e\n", dir.c_str(), what, worst[what]);
    EXPECT_LT(worst[what], kTolerance) << what;
  }
}

TEST(ReferenceTest, Olmoe) { ExpectReference("testdata/olmoe-9m", 64, 8); }

TEST(ReferenceTest, Qwen3Moe) {
  BALLAST_REQUIRE_SHARED(model, "model/qwen3moe-28m");
  ExpectReference(model, 64, 8);
}

// Random weights; what the trained models do not have: Mixtral's names, dense layers, biases, clipping, grouped
// queries.
TEST(ReferenceTest, MixtralTiny) { ExpectReference("testdata/mixtral-tiny", 24, 8); }
TEST(ReferenceTest, Qwen3MoeTiny) { ExpectReference("testdata/qwen3moe-tiny", 24, 8); }
TEST(ReferenceTest, OlmoeTiny) { ExpectReference("testdata/olmoe-tiny", 24, 8); }

// The held-out loss of training_report.json: the mean over up to 64 sequences of 512 tokens of each task's file, every
// position but a sequence's last predicting the next token. The requirement is 0.5 %; this asserts a tenth of it.
void ExpectLosses(const std::string& model_dir, size_t num_tasks) {
  constexpr int kLength = 512;
  BALLAST_REQUIRE_SHARED(text, "data/text");
  TestModel model(model_dir, 2, 256);
  std::ifstream stream(model_dir + "/training_report.json");
  const nlohmann::json report = nlohmann::json::parse(stream);
  const size_t vocab = model.config().vocab_size;
  std::vector<std::string> tasks = report.at("tasks");
  tasks.resize(num_tasks);
  for (const std::string& task : tasks) {
    const std::string path = absl::StrCat(text, "/valid_", task, ".bin");
    auto file = MappedFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    const std::span<const uint16_t> ids(reinterpret_cast<const uint16_t*>(file->bytes().data()),
                                        file->bytes().size() / 2);
    const size_t sequences = std::min<size_t>(64, ids.size() / kLength);
    double nats = 0;
    for (size_t s = 0; s < sequences; ++s) {
      std::vector<int32_t> tokens(ids.begin() + s * kLength, ids.begin() + (s + 1) * kLength);
      const std::vector<float> logits = model.Logits(tokens, 256);
      for (int i = 0; i + 1 < kLength; ++i) {
        nats -= LogProbability(std::span(logits).subspan(i * vocab, vocab), tokens[i + 1]);
      }
    }
    nats /= static_cast<double>(sequences * (kLength - 1));
    const double expected = report.at("valid_nats_per_token_fp32").at(task).get<double>();
    std::printf("%s %s: %.5f nats a token, report %.5f (%+.4f %%)\n", model_dir.c_str(), task.c_str(), nats, expected,
                (nats / expected - 1) * 100);
    EXPECT_NEAR(nats, expected, 0.0005 * expected) << task;
  }
}

TEST(LossTest, Olmoe) { ExpectLosses("testdata/olmoe-9m", 8); }

TEST(LossTest, Qwen3Moe) {
  BALLAST_REQUIRE_SHARED(model, "model/qwen3moe-28m");
  ExpectLosses(model, RunsLong() ? 8 : 2);
}

}  // namespace
}  // namespace ballast
