#include "controller/formats/task_routes.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

LoadFile Csv(const char* name, const char* rows) {
  auto file = ParseLoad(std::string("layer,sample,token,e0,e1\n") + rows, name);
  EXPECT_TRUE(file.ok()) << file.status();
  return *std::move(file);
}

TEST(MakeTaskRoutes, FilesOfOneLoadAreTasks) {
  const std::vector<NamedLoads> loads = {
      {"load", {Csv("a.csv", "1,0,0,0,1\n2,0,0,2,3\n"), Csv("b.csv", "1,0,0,3,1\n"), Csv("a.csv", "1,1,0,2,0\n")}}};
  const auto routes = MakeTaskRoutes(loads, std::vector<int32_t>{1, 2}, 4);
  ASSERT_TRUE(routes.ok()) << routes.status();
  EXPECT_EQ(routes->top_k, 2);
  ASSERT_EQ(routes->tasks.size(), 2u);
  EXPECT_EQ(routes->tasks[0].name, loads[0].files[0].parts[0].name);
  EXPECT_THAT(routes->tasks[0].experts[0], ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(routes->tasks[0].experts[1], ElementsAre(2, 3));
  EXPECT_THAT(routes->tasks[1].experts[0], ElementsAre(3, 1));
  EXPECT_THAT(routes->tasks[1].experts[1], IsEmpty());
}

TEST(MakeTaskRoutes, ScenariosAreTasks) {
  const std::vector<NamedLoads> loads = {{"code", {Csv("a.csv", "0,0,0,0,1\n"), Csv("b.csv", "0,0,0,1,2\n")}},
                                         {"law", {Csv("c.csv", "0,0,0,2,3\n")}}};
  const auto routes = MakeTaskRoutes(loads, std::vector<int32_t>{0}, 4);
  ASSERT_TRUE(routes.ok()) << routes.status();
  EXPECT_EQ(routes->tasks[0].name, "code");
  EXPECT_THAT(routes->tasks[0].experts[0], ElementsAre(0, 1, 1, 2));
  EXPECT_THAT(routes->tasks[1].experts[0], ElementsAre(2, 3));
}

TEST(MakeTaskRoutes, CountsAloneAreRefused) {
  const auto counts = ParseLoad("dataset,iteration,layer,e0,e1\nx,0,0,1,2\n", "counts.csv");
  ASSERT_TRUE(counts.ok()) << counts.status();
  const std::vector<NamedLoads> loads = {{"load", {*counts}}};
  const auto routes = MakeTaskRoutes(loads, std::vector<int32_t>{0}, 2);
  EXPECT_EQ(routes.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(routes.status().message(), HasSubstr("counts alone"));
}

TEST(MakeTaskRoutes, AsManyExpertsAToken) {
  auto three = ParseLoad("layer,sample,token,e0,e1,e2\n0,0,0,0,1,2\n", "three.csv");
  ASSERT_TRUE(three.ok()) << three.status();
  const std::vector<NamedLoads> loads = {{"load", {Csv("a.csv", "0,0,0,0,1\n"), *three}}};
  EXPECT_THAT(MakeTaskRoutes(loads, std::vector<int32_t>{0}, 3).status().message(),
              HasSubstr("3 experts a token; others have 2"));
}

}  // namespace
}  // namespace ballast
