#include "controller/telemetry/task_profiles.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// One layer of two experts.
struct Said {
  std::string task;
  int64_t prefill = 0, decode = 0;
  bool classified = false;
  int expert = 0;
};
v1::LoadReport Report(const std::vector<Said>& all) {
  v1::LoadReport report;
  for (const Said& said : all) {
    for (const auto& [phase, tokens] : {std::pair(v1::PHASE_PREFILL, said.prefill), {v1::PHASE_DECODE, said.decode}}) {
      v1::LoadCount& count = *report.add_counts();
      count.set_expert(said.expert);
      count.set_phase(phase);
      count.set_task(report.task_tokens_size());
      count.set_tokens(tokens);
    }
    v1::TaskTokens& task = *report.add_task_tokens();
    task.set_task(said.task);
    task.set_prefill_tokens(said.prefill);
    task.set_decode_tokens(said.decode);
    task.set_classified(said.classified);
  }
  return report;
}

std::vector<std::string> Show(const TaskProfiles& profiles) {
  std::vector<std::string> out;
  const v1::TaskProfiles shown = profiles.ToProto();
  for (const v1::TaskProfile& task : shown.tasks()) {
    out.push_back(task.task() + " " + std::to_string(task.tokens(0)) + " " + std::to_string(task.tokens(1)));
  }
  return out;
}

TEST(TaskProfiles, LearnsFromLabelledPromptsAlone) {
  TaskProfiles profiles("g", 1, 2, {.min_task_tokens = 0});
  profiles.Add(Report({{.task = "law", .prefill = 7, .decode = 100, .expert = 1},
                       {.task = "code", .prefill = 5},
                       {.task = "code", .prefill = 50, .classified = true, .expert = 1},
                       {.task = "", .prefill = 60},
                       {.task = "_other", .prefill = 70},
                       {.task = "maths", .decode = 80}}));
  profiles.Add(Report({{.task = "code", .prefill = 2, .expert = 1}}));
  EXPECT_THAT(Show(profiles), ElementsAre("code 5 2", "law 0 7"));
}

TEST(TaskProfiles, AVersionForEveryHalfMore) {
  TaskProfiles profiles("g", 1, 2, {.min_tokens = 100});
  std::vector<uint64_t> versions;
  for (int i = 0; i < 30; ++i) {
    profiles.Add(Report({{.task = "code", .prefill = 10}}));
    versions.push_back(profiles.version());
  }
  // After 100, 150, 230 tokens.
  EXPECT_EQ(versions[8], 0u);
  EXPECT_EQ(versions[9], 1u);
  EXPECT_EQ(versions[13], 1u);
  EXPECT_EQ(versions[14], 2u);
  EXPECT_EQ(versions[21], 2u);
  EXPECT_EQ(versions[22], 3u);
  EXPECT_EQ(versions.back(), 3u);
  EXPECT_THAT(Show(TaskProfiles("g", 1, 2, {})), IsEmpty());
}

TEST(TaskProfiles, OlderTokensCountLess_AndTasksHeardOfLastAreKept) {
  TaskProfiles profiles("g", 1, 2, {.max_tasks = 2, .max_tokens = 1000, .min_task_tokens = 0});
  profiles.Add(Report({{.task = "code", .prefill = 900}}));
  profiles.Add(Report({{.task = "code", .prefill = 300, .expert = 1}}));
  EXPECT_THAT(Show(profiles), ElementsAre("code 450 150"));
  profiles.Add(Report({{.task = "law", .prefill = 10}}));
  profiles.Add(Report({{.task = "code", .prefill = 1}}));
  profiles.Add(Report({{.task = "maths", .prefill = 20}}));
  EXPECT_THAT(Show(profiles), ElementsAre("code 451 150", "maths 20 0"));
}

TEST(TaskProfiles, TasksOfFewTokensAreNotTold) {
  TaskProfiles profiles("g", 1, 2, {.min_task_tokens = 10});
  profiles.Add(Report({{.task = "code", .prefill = 9}, {.task = "law", .prefill = 10}}));
  EXPECT_THAT(Show(profiles), ElementsAre("law 10 0"));
  profiles.Add(Report({{.task = "code", .prefill = 1}}));
  EXPECT_THAT(Show(profiles), ElementsAre("code 10 0", "law 10 0"));
}

// Writes by key; "-" deletes.
std::vector<std::string> Keys(const std::vector<StoreWrite>& writes) {
  std::vector<std::string> out;
  for (const StoreWrite& write : writes) out.push_back((write.value.has_value() ? "" : "-") + write.key);
  return out;
}

void LoadAll(const Store& store, TaskProfiles& profiles) {
  const auto stored = store.List(TaskProfiles::StorePrefix("g"));
  ASSERT_TRUE(stored.ok()) << stored.status();
  for (const auto& [key, value] : *stored) profiles.Load(key, value);
}

TEST(TaskProfiles, WhatIsTold_IsStoredAndGoesOn) {
  const TaskProfiles::Options options = {.min_tokens = 100, .min_task_tokens = 0};
  MemoryStore store;
  TaskProfiles profiles("g", 1, 2, options);
  profiles.Add(Report({{.task = "code", .prefill = 99}}));
  EXPECT_THAT(profiles.TakeWrites(), IsEmpty()) << "nothing is told yet";
  profiles.Add(Report({{.task = "law", .prefill = 3, .expert = 1}}));
  std::vector<StoreWrite> writes = profiles.TakeWrites();
  EXPECT_THAT(Keys(writes), ElementsAre("profile/g/code", "profile/g/law"));
  ASSERT_EQ(store.Apply(writes), absl::OkStatus());
  EXPECT_THAT(profiles.TakeWrites(), IsEmpty()) << "once for a version";
  profiles.Add(Report({{.task = "law", .prefill = 50}}));
  EXPECT_THAT(profiles.TakeWrites(), IsEmpty());

  TaskProfiles again("g", 1, 2, options);
  LoadAll(store, again);
  EXPECT_THAT(Show(again), ElementsAre("code 99 0", "law 0 3"));
  EXPECT_EQ(again.version(), 1u) << "workers are told at once";
  EXPECT_THAT(again.TakeWrites(), IsEmpty());
  again.Add(Report({{.task = "law", .prefill = 50}}));
  EXPECT_EQ(again.version(), 1u);
  again.Add(Report({{.task = "law", .prefill = 1}}));
  EXPECT_EQ(again.version(), 2u) << "half as much as there was";
  EXPECT_THAT(Keys(again.TakeWrites()), ElementsAre("profile/g/law"));
}

TEST(TaskProfiles, WhatIsNotKept_GoesFromTheStore) {
  const TaskProfiles::Options options = {.max_tasks = 2, .min_tokens = 1, .min_task_tokens = 0};
  MemoryStore store;
  TaskProfiles profiles("g", 1, 2, options);
  for (const char* task : {"law", "code"}) profiles.Add(Report({{.task = task, .prefill = 10}}));
  ASSERT_EQ(store.Apply(profiles.TakeWrites()), absl::OkStatus());
  TaskProfiles again("g", 1, 2, options);
  LoadAll(store, again);
  again.Add(Report({{.task = "maths", .prefill = 10}}));
  EXPECT_THAT(Show(again), ElementsAre("code 10 0", "maths 10 0")) << "law was heard of before code";
  const std::vector<StoreWrite> writes = again.TakeWrites();
  EXPECT_THAT(Keys(writes), ElementsAre("-profile/g/law", "profile/g/maths"));
  ASSERT_EQ(store.Apply(writes), absl::OkStatus());

  // Of another shape, or damaged.
  ASSERT_EQ(store.Apply(std::vector<StoreWrite>{{"profile/g/maths", "\xff"}}), absl::OkStatus());
  TaskProfiles other("g", 2, 2, options);
  LoadAll(store, other);
  EXPECT_THAT(Show(other), IsEmpty());
  EXPECT_EQ(other.version(), 0u);
  other.Add(Report({{.task = "law", .prefill = 10}}));
  EXPECT_THAT(Keys(other.TakeWrites()), ElementsAre("-profile/g/code", "-profile/g/maths", "profile/g/law"));
}

// Of DeepSeek-V3's shape: 58 layers of 256 experts.
TEST(TaskProfiles, RecordsAreSmall) {
  TaskProfiles profiles("g", 58, 256, {.max_tokens = 1 << 17, .min_tokens = 1});
  v1::LoadReport report = Report({{.task = "code", .prefill = 1 << 17}});
  report.clear_counts();
  for (int layer = 0; layer < 58; ++layer) {
    for (int expert = 0; expert < 256; ++expert) {
      v1::LoadCount& count = *report.add_counts();
      count.set_layer(layer);
      count.set_expert(expert);
      count.set_phase(v1::PHASE_PREFILL);
      count.set_tokens(1 << 17);
    }
  }
  profiles.Add(report);
  const std::vector<StoreWrite> writes = profiles.TakeWrites();
  ASSERT_EQ(writes.size(), 1u);
  EXPECT_LE(writes[0].value->size(), 58u * 256 * 3 + 30);
}

// More new tasks in one report than there is room for.
TEST(TaskProfiles, OneReportOfManyTasks) {
  TaskProfiles profiles("g", 1, 2, {.max_tasks = 2, .min_task_tokens = 0});
  profiles.Add(Report({{.task = "a", .prefill = 1}, {.task = "b", .prefill = 2}, {.task = "c", .prefill = 3}}));
  EXPECT_EQ(profiles.ToProto().tasks_size(), 2);
  // No task's tokens went to another.
  for (const std::string& shown : Show(profiles)) {
    EXPECT_THAT((std::vector<std::string>{"a 1 0", "b 2 0", "c 3 0"}), ::testing::Contains(shown));
  }
}

}  // namespace
}  // namespace ballast
