// Code and dashboards/metrics.md say the same.
#include <fstream>
#include <sstream>

#include "controller/service/gauges.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(MetricsTable, HoldsTheControllersMetrics) {
  std::ifstream file("dashboards/metrics.md");
  ASSERT_TRUE(file.good());
  std::stringstream markdown;
  markdown << file.rdbuf();
  EXPECT_THAT(CompareWithTable(markdown.str(), "Controller", ControllerMetrics()), testing::IsEmpty())
      << "the table should be:\n"
      << MetricsTable(ControllerMetrics());
}

}  // namespace
}  // namespace ballast
