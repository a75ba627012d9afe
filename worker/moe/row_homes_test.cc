#include "worker/moe/row_homes.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(RowHomes, ByTheTaskOfTheRow) {
  LoadCounters counters(1, 1, 1);
  const int32_t unlabelled = counters.InternTask(""), code = counters.InternTask("code"),
                law = counters.InternTask("law"), guessed = counters.InternTask("code", /*classified=*/true);
  RowHomes homes(&counters);
  EXPECT_TRUE(homes.empty());
  EXPECT_EQ(homes.Of(code), -1);

  homes.Install(std::vector<TaskHomes>{{.task = "code"}, {.task = "math"}});
  EXPECT_FALSE(homes.empty());
  EXPECT_EQ(homes.Of(code), 0);
  EXPECT_EQ(homes.Of(guessed), 0);
  EXPECT_EQ(homes.Of(law), -1);
  EXPECT_EQ(homes.Of(unlabelled), -1);
  // A task that is first seen later.
  EXPECT_EQ(homes.Of(counters.InternTask("math")), 1);

  homes.Install({});
  EXPECT_TRUE(homes.empty());
  EXPECT_EQ(homes.Of(code), -1);
}

TEST(RowHomes, TasksWithoutHomesHaveThePooledOnes_UnlabelledRowsHaveNot) {
  LoadCounters counters(1, 1, 1);
  const int32_t unlabelled = counters.InternTask(""), code = counters.InternTask("code");
  RowHomes homes(&counters);
  homes.Install(std::vector<TaskHomes>{{.task = "_other"}, {.task = "code"}});
  EXPECT_EQ(homes.Of(code), 1);
  EXPECT_EQ(homes.Of(counters.InternTask("law")), 0);
  EXPECT_EQ(homes.Of(unlabelled), -1);
  // Nor do labels beyond those that are counted apart go without.
  int32_t last = 0;
  for (int i = 0; i <= LoadCounters::kMaxTasks; ++i) last = counters.InternTask("t" + std::to_string(i));
  EXPECT_EQ(last, LoadCounters::kMaxTasks);
  EXPECT_EQ(homes.Of(last), 0);
  homes.Install(std::vector<TaskHomes>{{.task = ""}, {.task = "_other"}});
  EXPECT_EQ(homes.Of(unlabelled), 0);
}

}  // namespace
}  // namespace ballast
