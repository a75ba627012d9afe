#include "controller/formats/cost_model_file.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using testing::HasSubstr;

TEST(CostModelFile, ComesBackAsItWas) {
  CostModel model;
  model.microseconds_per_token = 0.123;
  model.microseconds_per_step = 4500;
  const auto back = ParseCostModel(FormatCostModel(model), "c.json");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(*back, model);
}

TEST(CostModelFile, AbsentFieldsKeepTheirDefaults) {
  const auto model = ParseCostModel(R"({"format": "ballast.cost_model/v1", "microseconds_per_layer": 5})", "c.json");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->microseconds_per_layer, 5);
  EXPECT_EQ(model->microseconds_per_token, CostModel().microseconds_per_token);
}

TEST(CostModelFile, SaysWhatIsWrong) {
  const struct {
    const char* text;
    const char* says;
  } cases[] = {
      {"{", "c.json"},
      {"[]", "object"},
      {"{}", "format"},
      {R"({"format": "ballast.plan/v1"})", "ballast.cost_model/v1"},
      {R"({"format": "ballast.cost_model/v1", "microseconds": 1})", "unknown key \"microseconds\""},
      {R"({"format": "ballast.cost_model/v1", "microseconds_per_token": "1"})", "microseconds_per_token"},
      {R"({"format": "ballast.cost_model/v1", "microseconds_per_token": 0})", "microseconds_per_token: 0"},
      {R"({"format": "ballast.cost_model/v1", "microseconds_per_copy_node": -1})", "microseconds_per_copy_node"},
  };
  for (const auto& c : cases) {
    const auto model = ParseCostModel(c.text, "c.json");
    EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(std::string(model.status().message()), HasSubstr("c.json")) << c.text;
    EXPECT_THAT(std::string(model.status().message()), HasSubstr(c.says)) << c.text;
  }
  EXPECT_EQ(ReadCostModel("/nowhere/c.json").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace ballast
