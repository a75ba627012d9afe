#include "controller/ctl/output.h"

#include <sstream>

#include "ballast/v1/common.pb.h"
#include "gtest/gtest.h"
#include "yaml-cpp/yaml.h"

namespace ballast {
namespace {

TEST(Table, AlignsNumbersRightAndTextLeft) {
  Table table({"NAME", "TOKENS", "NOTE"});
  table.AddRow({"a", "7", "x"});
  table.AddRow({"größe", "1234", ""});
  std::ostringstream out;
  table.Print(out);
  EXPECT_EQ(out.str(),
            "NAME   TOKENS  NOTE\n"
            "a           7  x\n"
            "größe    1234\n");
}

TEST(EnumText, IsTheNameWithoutItsTypes) {
  EXPECT_EQ(EnumText(v1::COMBINE_MODE_EXACT), "exact");
  EXPECT_EQ(EnumText(v1::PHASE_UNSPECIFIED), "unspecified");
  // From a newer controller.
  EXPECT_EQ(EnumText(static_cast<v1::Phase>(77)), "77");
}

TEST(HumanBytes, UsesDecimalUnits) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(999), "999 B");
  EXPECT_EQ(HumanBytes(1500), "1.5 kB");
  EXPECT_EQ(HumanBytes(999'999), "1.0 MB");
  EXPECT_EQ(HumanBytes(88'080'384), "88.1 MB");
}

TEST(PrintDocument, YamlKeepsTextText) {
  v1::Placement placement;
  placement.add_workers("1");
  placement.set_num_layers(2);
  const nlohmann::ordered_json json = ToJson(placement);
  EXPECT_EQ(json["num_layers"], 2);
  EXPECT_EQ(json["num_experts"], 0);
  std::ostringstream out;
  PrintDocument(OutputFormat::kYaml, json, out);
  const YAML::Node yaml = YAML::Load(out.str());
  EXPECT_EQ(yaml["num_layers"].as<int>(), 2);
  EXPECT_EQ(yaml["workers"][0].as<std::string>(), "1");
  EXPECT_EQ(yaml["workers"][0].Tag(), "!");
  EXPECT_EQ(yaml["replicas"].size(), 0u);
}

}  // namespace
}  // namespace ballast
