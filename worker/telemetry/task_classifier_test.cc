#include "worker/telemetry/task_classifier.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

// Two layers of four experts, two a token.
constexpr int32_t kLayers = 2, kExperts = 4, kTopK = 2;

void AddTask(const std::string& name, std::vector<uint32_t> tokens, v1::TaskProfiles& profiles) {
  v1::TaskProfile& profile = *profiles.add_tasks();
  profile.set_task(name);
  profile.mutable_tokens()->Assign(tokens.begin(), tokens.end());
}

// "low" chooses experts 0 and 1 nine times of ten, "high" 2 and 3, and "split" changes from the one to the other.
v1::TaskProfiles Three() {
  v1::TaskProfiles profiles;
  AddTask("high", {50, 50, 450, 450, 50, 50, 450, 450}, profiles);
  AddTask("low", {450, 450, 50, 50, 450, 450, 50, 50}, profiles);
  AddTask("split", {450, 450, 50, 50, 50, 50, 450, 450}, profiles);
  return profiles;
}

std::vector<int32_t> Repeat(const std::vector<int32_t>& token, int times) {
  std::vector<int32_t> routes;
  for (int i = 0; i < times; ++i) routes.insert(routes.end(), token.begin(), token.end());
  return routes;
}

const std::vector<int32_t> kLow = {0, 1, 1, 0}, kHigh = {2, 3, 3, 2}, kSplit = {0, 1, 2, 3}, kAnything = {0, 2, 1, 3};

TEST(ProfileTable, NearestTask) {
  const auto table = ProfileTable::Create(Three(), kLayers, kExperts);
  ASSERT_EQ(table.status(), absl::OkStatus());
  struct Case {
    std::string name;
    std::vector<int32_t> token;
    int times;
    std::string task;
  };
  for (const Case& c : {Case{"low", kLow, 8, "low"}, Case{"high", kHigh, 8, "high"}, Case{"split", kSplit, 8, "split"},
                        // One token says too little.
                        Case{"short", kLow, 1, ""},
                        // What fits none better than their mean does is of none.
                        Case{"anything", kAnything, 8, ""}, Case{"much of anything", kAnything, 200, ""}}) {
    const Classification got = table->Classify(Repeat(c.token, c.times), kTopK, .9);
    EXPECT_EQ(got.task, c.task) << c.name << " " << got.confidence;
  }
}

TEST(ProfileTable, MoreTokensMakeMoreCertain_AndTheThresholdDecides) {
  const auto table = ProfileTable::Create(Three(), kLayers, kExperts);
  double before = 1.0 / 4;
  for (const int tokens : {1, 2, 4, 8, 16}) {
    const Classification got = table->Classify(Repeat(kSplit, tokens), kTopK, 0);
    EXPECT_EQ(got.task, "split");
    EXPECT_GT(got.confidence, before);
    EXPECT_LE(got.confidence, 1);
    EXPECT_EQ(table->Classify(Repeat(kSplit, tokens), kTopK, got.confidence).task, "split");
    EXPECT_EQ(table->Classify(Repeat(kSplit, tokens), kTopK, got.confidence + 1e-9).task, "");
    before = got.confidence;
  }
}

// One observation a token: a model of twice as many layers that all say the same is as certain, not more.
TEST(ProfileTable, LayersThatSayTheSameAddNoCertainty) {
  v1::TaskProfiles twice = Three();
  for (v1::TaskProfile& profile : *twice.mutable_tasks()) {
    const auto once = profile.tokens();
    profile.mutable_tokens()->MergeFrom(once);
  }
  const auto table = ProfileTable::Create(Three(), kLayers, kExperts);
  const auto deep = ProfileTable::Create(twice, 2 * kLayers, kExperts);
  ASSERT_EQ(deep.status(), absl::OkStatus());
  std::vector<int32_t> token = kSplit;
  token.insert(token.end(), kSplit.begin(), kSplit.end());
  EXPECT_NEAR(table->Classify(Repeat(kSplit, 5), kTopK, 0).confidence,
              deep->Classify(Repeat(token, 5), kTopK, 0).confidence, 1e-5);
}

TEST(ProfileTable, OneTaskAlone_OrOneThatIsHardlyKnown_IsNotTold) {
  v1::TaskProfiles one;
  AddTask("low", {450, 450, 50, 50, 450, 450, 50, 50}, one);
  const auto alone = ProfileTable::Create(one, kLayers, kExperts);
  EXPECT_EQ(alone->Classify(Repeat(kLow, 200), kTopK, .9).task, "");

  v1::TaskProfiles unknown = Three();
  AddTask("new", std::vector<uint32_t>(8), unknown);
  const auto table = ProfileTable::Create(unknown, kLayers, kExperts);
  ASSERT_EQ(table.status(), absl::OkStatus());
  EXPECT_EQ(table->Classify(Repeat(kAnything, 200), kTopK, .9).task, "");
  EXPECT_EQ(table->Classify(Repeat(kHigh, 8), kTopK, .9).task, "high");
  EXPECT_TRUE(ProfileTable::Create({}, kLayers, kExperts)->empty());
}

TEST(ProfileTable, OfAnotherShape_IsRefused) {
  EXPECT_THAT(std::string(ProfileTable::Create(Three(), 3, kExperts).status().message()),
              HasSubstr("task_profiles.tasks.tokens: 8 of task 'high', not 3 layers of 4"));
}

TEST(TaskClassifier, TellsOfEachRequest_AndKeepsItsProfilesWhereNewOnesAreMalformed) {
  std::vector<std::string> told;
  TaskClassifier classifier(kLayers, kExperts, kTopK, .9, [&](const Classification& c) { told.push_back(c.task); });
  EXPECT_FALSE(classifier.ready());
  EXPECT_EQ(classifier.SetProfiles(Three()), absl::OkStatus());
  v1::TaskProfiles malformed;
  AddTask("short", {1}, malformed);
  EXPECT_EQ(classifier.SetProfiles(malformed).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(classifier.ready());
  EXPECT_EQ(classifier.Classify(Repeat(kLow, 8)).task, "low");
  EXPECT_EQ(classifier.Classify(Repeat(kLow, 1)).task, "");
  EXPECT_THAT(told, ::testing::ElementsAre("low", ""));
}

}  // namespace
}  // namespace ballast
