#include "worker/daemon/model_parts.h"

#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/base/clock.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

TEST(OpenModelTest, TokenizerWithMoreIdsThanTheModel_IsRefused) {
  const std::filesystem::path model = std::filesystem::path(::testing::TempDir()) / "larger_tokenizer";
  std::filesystem::create_directories(model);
  for (const char* file : {"config.json", "model.safetensors"}) {
    std::filesystem::copy_file(std::filesystem::path("testdata/qwen3moe-tiny") / file, model / file,
                               std::filesystem::copy_options::overwrite_existing);
  }
  WorkerConfig config{.model = "testdata/qwen3moe-tiny", .group = "g"};
  config.name = "w";
  config.compute_threads = 1;
  EXPECT_EQ(OpenModel(config, Clock::Real(), {}).status(), absl::OkStatus());
  std::filesystem::copy_file("testdata/tokenizer/metaspace.json", model / "tokenizer.json",
                             std::filesystem::copy_options::overwrite_existing);
  config.model = model;
  const absl::Status status = OpenModel(config, Clock::Real(), {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the tokenizer has ids up to 639, the model's vocab_size is 100"));
}

// A prompt that is scored is cut into as many rows as the logits' memory has.
TEST(OpenModelTest, MemoryOfLogitsDoesNotGrowWithTheCapacity) {
  WorkerConfig config{.model = "testdata/qwen3moe-tiny", .group = "g"};
  config.name = "w";
  config.compute_threads = 1;
  config.capacity = 1024;
  const auto parts = OpenModel(config, Clock::Real(), {});
  ASSERT_TRUE(parts.ok()) << parts.status();
  EXPECT_EQ((*parts)->batcher->limits().max_rows, 1024);
  EXPECT_EQ((*parts)->batcher->limits().max_logit_rows, 256);
  EXPECT_EQ((*parts)->processor.logits.size(), 256u * 100);
}

}  // namespace
}  // namespace ballast
