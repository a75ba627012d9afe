// The engines' own parsing rules are written down here as checks on what we export, from reading their code:
//   SGLang        python/sglang/srt/eplb/expert_location.py (ExpertLocationMetadata)
//   TensorRT-LLM  tensorrt_llm/llmapi/llm_args.py (MoeLoadBalancerConfig), moeLoadBalancer.cpp
//   vLLM-Ascend   vllm_ascend/eplb/core/eplb_utils.py (expert_file_to_tensor, init_eplb_config)
//   EPLB          eplb.py (rebalance_experts)
#include "controller/formats/engine_file.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "controller/planner/score.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "yaml-cpp/yaml.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr int32_t kRows = 4;
constexpr int32_t kExperts = 6;
constexpr int32_t kGpus = 4;
constexpr int32_t kSlots = 2;
// Rows 0 and 2 are dense.
constexpr char kLoad[] = R"({"logical_count": [[0,0,0,0,0,0], [90,40,9,30,2,5], [0,0,0,0,0,0], [1,2,3,40,50,60]]})";

LoadSet Load() {
  const NamedLoads loads[] = {{"day", {*ParseLoad(kLoad, "f")}}};
  return *MakeLoadSet(loads);
}

PlanFile MakeFile(const PlannerPolicy& policy) {
  const LoadSet set = Load();
  PlanRequest request;
  request.scenarios = set.scenarios;
  request.topology = UniformTopology(kGpus, 2, kSlots * static_cast<int32_t>(set.row_of_layer.size()));
  PlanFile plan;
  plan.placement = MakePlan(policy, request)->placement;
  plan.policy = policy.name();
  plan.topology = request.topology;
  plan.rows = set.rows;
  plan.row_of_layer = set.row_of_layer;
  plan.scenarios = set.scenarios;
  return plan;
}
PlanFile EqualPlan() { return MakeFile(EplbPolicy(1, EplbPolicy::Split::kEqual)); }
PlanFile SharesPlan() { return MakeFile(CostAwarePolicy()); }

std::string Export(const PlanFile& plan, EngineFormat format, const EngineFileOptions& options = {}) {
  return FormatEngineFile(format, *ToSlotMap(plan), options);
}

// What the plan has in each layer on each GPU, in slot order.
std::vector<int32_t> Slots(const PlanFile& plan, int32_t layer) { return ToSlotMap(plan)->expert_of_slot[layer]; }

TEST(Export, KeepsSglangsRules) {
  const PlanFile plan = EqualPlan();
  const Json json = Json::parse(Export(plan, EngineFormat::kSglang));
  // The keys are passed on as arguments: a key beside the one would be an error.
  ASSERT_EQ(json.size(), 1u);
  const Json& map = json["physical_to_logical_map"];
  // Made a tensor [layers of the model][slots] and looked up by the model's layer number.
  ASSERT_EQ(map.size(), static_cast<size_t>(kRows));
  for (const Json& row : map) {
    // A tensor cannot be ragged; slots divide by the GPUs.
    ASSERT_EQ(row.size(), static_cast<size_t>(kGpus * kSlots));
    std::set<int> experts;
    for (const Json& slot : row) {
      ASSERT_TRUE(slot.is_number_integer());
      ASSERT_TRUE(slot >= 0 && slot < kExperts);
      experts.insert(slot.get<int>());
    }
    // An expert without a slot could not be dispatched to.
    EXPECT_EQ(experts.size(), static_cast<size_t>(kExperts));
  }
  // Dense rows: slot mod experts, as --init-expert-location trivial has it.
  EXPECT_EQ(map[0], Json({0, 1, 2, 3, 4, 5, 0, 1}));
  EXPECT_EQ(map[2], map[0]);
  EXPECT_EQ(map[1].get<std::vector<int32_t>>(), Slots(plan, 0));
  EXPECT_EQ(map[3].get<std::vector<int32_t>>(), Slots(plan, 1));
}

TEST(Export, KeepsTensorRtLlmsRules) {
  const PlanFile plan = EqualPlan();
  const YAML::Node yaml = YAML::Load(Export(plan, EngineFormat::kTensorRtLlm, {.first_layer = 3}));
  // The model of the configuration forbids other keys.
  std::set<std::string> keys;
  for (const auto& entry : yaml) keys.insert(entry.first.as<std::string>());
  EXPECT_EQ(keys, (std::set<std::string>{"num_slots", "layer_updates_per_iter", "initial_global_assignments"}));
  const int slots = yaml["num_slots"].as<int>();
  EXPECT_EQ(slots % kGpus, 0);
  EXPECT_GE(slots, kExperts);
  EXPECT_EQ(yaml["layer_updates_per_iter"].as<int>(), 0);
  // Keys are integers, the model's layer numbers; each list is num_slots long, of ids of experts.
  const auto layers = yaml["initial_global_assignments"].as<std::map<int, std::vector<int32_t>>>();
  ASSERT_EQ(layers.size(), 2u);
  EXPECT_EQ(layers.at(1 + 3), Slots(plan, 0));
  EXPECT_EQ(layers.at(3 + 3), Slots(plan, 1));
  for (const auto& [layer, experts] : layers) {
    EXPECT_EQ(experts.size(), static_cast<size_t>(slots));
    for (const int32_t e : experts) EXPECT_TRUE(e >= 0 && e < kExperts);
  }
}

TEST(Export, KeepsVllmAscendsRules) {
  const PlanFile plan = EqualPlan();
  const Json json = Json::parse(Export(plan, EngineFormat::kVllmAscend));
  // Layers are found by their place among the MoE layers.
  ASSERT_EQ(json["moe_layer_count"], 2);
  ASSERT_EQ(json["layer_list"].size(), 2u);
  for (size_t l = 0; l < 2; ++l) {
    const Json& layer = json["layer_list"][l];
    EXPECT_EQ(layer["layer_id"], l);
    EXPECT_EQ(layer["device_count"], kGpus);
    std::vector<int32_t> all;
    for (size_t d = 0; d < layer["device_list"].size(); ++d) {
      const Json& device = layer["device_list"][d];
      EXPECT_EQ(device["device_id"], d);
      const auto experts = device["device_expert"].get<std::vector<int32_t>>();
      // Devices are stacked into one tensor: as many experts on each. An expert's slot on a device is one number, so a
      // second copy there would hide the first.
      EXPECT_EQ(experts.size(), static_cast<size_t>(kSlots));
      EXPECT_EQ(std::set<int32_t>(experts.begin(), experts.end()).size(), experts.size());
      all.insert(all.end(), experts.begin(), experts.end());
    }
    EXPECT_EQ(all, Slots(plan, static_cast<int32_t>(l)));
  }
}

TEST(Export, KeepsEplbsShapes) {
  const PlanFile plan = EqualPlan();
  const Json json = Json::parse(Export(plan, EngineFormat::kEplb));
  ASSERT_EQ(json.size(), 3u);
  const auto phy2log = json["phy2log"].get<std::vector<std::vector<int>>>();
  const auto log2phy = json["log2phy"].get<std::vector<std::vector<std::vector<int>>>>();
  const auto logcnt = json["logcnt"].get<std::vector<std::vector<int>>>();
  ASSERT_EQ(phy2log.size(), static_cast<size_t>(kRows));
  int most = 0;
  for (const auto& row : logcnt) most = std::max(most, *std::max_element(row.begin(), row.end()));
  for (size_t l = 0; l < phy2log.size(); ++l) {
    ASSERT_EQ(logcnt[l].size(), static_cast<size_t>(kExperts));
    for (int e = 0; e < kExperts; ++e) {
      ASSERT_EQ(log2phy[l][e].size(), static_cast<size_t>(most));
      for (int copy = 0; copy < most; ++copy) {
        const int slot = log2phy[l][e][copy];
        EXPECT_EQ(slot >= 0, copy < logcnt[l][e]) << "padded with -1 at the end";
        EXPECT_TRUE(slot < 0 || phy2log[l][slot] == e) << slot;
      }
    }
  }
  EXPECT_EQ(phy2log[1], Slots(plan, 0));
}

TEST(Import, ReadsWhatExportWrites) {
  const PlanFile plan = EqualPlan();
  const LoadSet load = Load();
  for (const std::string& name : EngineFormatNames()) {
    const EngineFormat format = EngineFormatOf(name);
    for (const int32_t first_layer : {0, 3}) {
      const EngineFileOptions options{.first_layer = first_layer};
      if (first_layer != 0 && format != EngineFormat::kTensorRtLlm) {
        EXPECT_THAT(CheckOptions(format, options).message(), HasSubstr("--first-layer 3: is for trtllm files"));
        continue;
      }
      const std::string text = Export(plan, format, options);
      // Recognised, too.
      for (const auto& wanted : {std::optional<EngineFormat>(format), std::optional<EngineFormat>()}) {
        const auto map = ParseEngineFile(text, "f", wanted, kGpus, options);
        ASSERT_TRUE(map.ok()) << name << ": " << map.status();
        const auto imported = FromSlotMap(*map, plan.topology, &load);
        ASSERT_TRUE(imported.ok()) << name << ": " << imported.status();
        EXPECT_TRUE(imported->merged.empty());
        EXPECT_EQ(*ToSlotMap(imported->plan), *ToSlotMap(plan)) << name;
        EXPECT_EQ(imported->plan.placement, plan.placement) << name;
        EXPECT_EQ(Export(imported->plan, format, options), text) << name;
      }
    }
  }
  // As editors of other systems leave it.
  for (const std::string& name : EngineFormatNames()) {
    const std::string text = Export(plan, EngineFormatOf(name));
    const std::string edited = absl::StrCat("\xEF\xBB\xBF", absl::StrReplaceAll(text, {{"\n", "\r\n"}}));
    const auto map = ParseEngineFile(edited, "f", std::nullopt, kGpus);
    ASSERT_TRUE(map.ok()) << name << ": " << map.status();
    EXPECT_EQ(*map, *ParseEngineFile(text, "f", std::nullopt, kGpus)) << name;
  }
  // Only vLLM-Ascend's file says how many GPUs there are.
  EXPECT_EQ(ParseEngineFile(Export(plan, EngineFormat::kVllmAscend), "f", std::nullopt, 0)->gpus, kGpus);
  EXPECT_THAT(ParseEngineFile(Export(plan, EngineFormat::kSglang), "f", std::nullopt, 0).status().ToString(),
              HasSubstr("give --gpus or --topology"));
}

TEST(Import, WithoutALoadEveryListedRowIsALayer) {
  const auto map = ParseEngineFile(R"({"physical_to_logical_map": [[0,1,2,0],[1,2,0,1]]})", "f", std::nullopt, 2);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(map->experts, 3);
  EXPECT_THAT(map->row_of_layer, ElementsAre(0, 1));
  const auto imported = FromSlotMap(*map, UniformTopology(2, 1, 4), nullptr);
  ASSERT_TRUE(imported.ok()) << imported.status();
  EXPECT_EQ(imported->plan.placement.num_layers, 2);
  EXPECT_EQ(*ToSlotMap(imported->plan), *map);
}

TEST(Import, TwoCopiesOnOneGpuBecomeOneOfTheirWeight) {
  const auto map = ParseEngineFile(R"({"physical_to_logical_map": [[0,0,1,0,2,1]]})", "f", std::nullopt, 2);
  ASSERT_TRUE(map.ok()) << map.status();
  const auto imported = FromSlotMap(*map, UniformTopology(2, 1, 3), nullptr);
  ASSERT_TRUE(imported.ok()) << imported.status();
  ASSERT_EQ(imported->merged.size(), 1u);
  EXPECT_EQ(imported->merged[0].expert, 0);
  EXPECT_EQ(imported->merged[0].worker, "w0");
  const Replica& first = imported->plan.placement.replicas[0];
  EXPECT_EQ(first.expert.expert, 0);
  EXPECT_EQ(first.weight, 2u);
  EXPECT_EQ(imported->plan.placement.replicas[1].weight, 1u);
  EXPECT_FALSE(ToSlotMap(imported->plan).ok());
}

TEST(Import, NamesWhatIsWrong) {
  const struct {
    const char* text;
    const char* message;
  } cases[] = {
      {"", "f: is empty"},
      {"hello", "f: not a placement that is known"},
      {"{}", "f: not a placement that is known"},
      {"{\"logical_count\": [[1]]}", "f: logical_count: this is a load, not a placement"},
      {"\x80\x02.", "f: a pickle outside of an archive"},
      {R"({"physical_to_logical_map": [[0,1]], "x": 1})", "f: \"x\": SGLang takes no key beside physical_to_log"},
      {"{", "f: not JSON"},
      {"a: [", "f: not YAML"},
      {R"({"physical_to_logical_map": []})", "f: physical_to_logical_map: must be a list of layers"},
      {R"({"physical_to_logical_map": [[0,1],[0]]})", "row 1: 1 slots; layers before it have 2"},
      {R"({"physical_to_logical_map": [[0,1,2]]})", "row 0: 3 slots do not divide by 2 GPUs"},
      {R"({"physical_to_logical_map": [[0,-1]]})", "row 0 slot 1: -1; must be an expert, 0 to 65535"},
      {R"({"physical_to_logical_map": [[0,1.5]]})", "row 0 slot 1: 1.5; must be an expert"},
      {R"({"physical_to_logical_map": [[0,70000]]})", "row 0 slot 1: 70000; must be an expert"},
      {R"({"physical_to_logical_map": [[0,2]]})", "f: layer 0: expert 1 of 3 has no slot"},
      {R"({"physical_to_logical_map": [[0,1],[0,0]]})", "f: layer 1: expert 1 of 2 has no slot"},
      {R"({"moe_layer_count": 2, "layer_list": []})", "layer_list: must be a list of 2 layers"},
      {R"({"moe_layer_count": 1, "layer_list": [{"device_list": [{"device_expert": [0]}]}]})", "1 devices, want 2"},
      {R"({"moe_layer_count": 1, "layer_list": [{"layer_id": 1, "device_list": [{"device_expert": [0]}]}]})",
       "layer_list[0].layer_id: 1, want 0"},
      {R"({"moe_layer_count": 1, "layer_list": [{"device_list": [{"device_expert": [0]}, {"device_expert": [1,0]}]}]})",
       "layer_list[0].device_list[1]: 2 experts, device 0 has 1"},
      {R"({"moe_layer_count": 1, "layer_list": [{"device_count": 3, "device_list": [{"device_expert": [0]}]}]})",
       "device_count: 3; there are 1"},
      {R"({"phy2log": [[0,1]]})", "f: log2phy: is missing"},
      {R"({"phy2log": [[0,1]], "log2phy": [[[0],[1]]], "logcnt": [[1,2]]})", "logcnt row 0 expert 1: 2; phy2log has 1"},
      {R"({"phy2log": [[0,1]], "log2phy": [[[1],[0]]], "logcnt": [[1,1]]})",
       "log2phy row 0 expert 0: other slots than in phy2log"},
      {R"({"phy2log": [[0,1]], "log2phy": [[[0]]], "logcnt": [[1,1]]})", "log2phy row 0: is an array of 1"},
      {"num_slots: 4\n", "initial_global_assignments: must be a map"},
      {"initial_global_assignments: {0: [0, 1]}\n", "num_slots: is missing"},
      {"num_slots: x\ninitial_global_assignments: {0: [0, 1]}\n", "num_slots: \"x\"; must be a whole number"},
      {"num_slots: 4\ninitial_global_assignments: {0: [0, 1]}\n",
       "layer 0: must be a list of num_slots, 4 experts; has 2"},
      {"num_slots: 2\ninitial_global_assignments: {0: [0, e]}\n", "layer 0 slot 1: \"e\"; must be a whole number"},
      {"num_slots: 3\ninitial_global_assignments: {0: [0, 1, 2]}\n", "3 slots do not divide by 2 GPUs"},
      {"num_slots: 2\ninitial_global_assignments: {-1: [0, 1]}\n", "initial_global_assignments: \"-1\"; must be"},
  };
  std::string aliases = "num_slots: 1048576\ninitial_global_assignments: {0: &a [0]";
  for (int layer = 1; layer < 65; ++layer) absl::StrAppend(&aliases, ", ", layer, ": *a");
  EXPECT_THAT(ParseEngineFile(aliases + "}\n", "f", std::nullopt, 2).status().ToString(),
              HasSubstr("65 layers of 1048576 slots; the limit is 67108864 slots in all"));
  for (const auto& c : cases) {
    EXPECT_THAT(ParseEngineFile(c.text, "f", std::nullopt, 2).status().ToString(), HasSubstr(c.message)) << c.text;
  }
  EXPECT_THAT(ParseEngineFile(R"({"physical_to_logical_map": [[0]]})", "f", EngineFormat::kEplb, 1).status().ToString(),
              HasSubstr("f: is a sglang file, not eplb"));
}

std::string TestFile(const std::string& name) {
  std::ifstream in("controller/formats/testdata/" + name, std::ios::binary);
  EXPECT_TRUE(in) << name;
  std::ostringstream bytes;
  bytes << in.rdbuf();
  return bytes.str();
}

TEST(Import, ReadsSglangsTorchFiles) {
  // Written by torch.save: a tensor, lists, and what recorders keep of the placement in force.
  for (const char* name : {"refused_placement.pt", "placement_int32.torch113.pt", "placement_list.torch113.pt",
                           "per_pass.pt", "per_token.pt"}) {
    for (const auto& format : {std::optional<EngineFormat>(), std::optional(EngineFormat::kSglang)}) {
      const auto map = ParseEngineFile(TestFile(name), name, format, 3);
      ASSERT_TRUE(map.ok()) << name << ": " << map.status();
      EXPECT_EQ(map->experts, 4);
      EXPECT_EQ(map->gpus, 3);
      EXPECT_THAT(map->row_of_layer, ElementsAre(0, 1, 2));
      EXPECT_THAT(map->expert_of_slot, ElementsAre(ElementsAre(0, 1, 2, 3, 0, 1), ElementsAre(0, 1, 2, 3, 3, 2),
                                                   ElementsAre(3, 2, 1, 0, 1, 0)))
          << name;
    }
  }
  const struct {
    const char* name;
    const char* message;
  } cases[] = {
      {"placement_float.torch113.pt",
       "physical_to_logical_map: is a tensor [3, 6] of floats, want integers [layers, slots]"},
      {"placement_flat.torch113.pt", "physical_to_logical_map: is a tensor [6] of integers, want"},
      {"placement_negative.torch113.pt", "physical_to_logical_map row 1 slot 2: -1; must be an expert, 0 to 65535"},
      {"placement_missing.torch113.pt", "layer 1: expert 3 of 4 has no slot"},
      {"placement_ragged.torch113.pt", "physical_to_logical_map row 1: 5 slots; layers before it have 6"},
      {"placement_text.torch113.pt", "physical_to_logical_map row 0 slot 1: str \"one\"; must be an expert"},
      {"placement_number.torch113.pt", "physical_to_logical_map: is int 7, want a tensor, or a list of layers"},
      {"placement_more.torch113.pt", "\"policy\": SGLang takes no key beside physical_to_logical_map"},
      {"stat.pt", "logical_count: this is a load, not a placement"},
      {"refused_command.pt", "wants to use \"posix system\""},
      {"refused_legacy.pt", "a pickle outside of an archive"},
  };
  for (const auto& c : cases) {
    const std::string message(ParseEngineFile(TestFile(c.name), c.name, std::nullopt, 3).status().message());
    EXPECT_THAT(message, HasSubstr(c.message)) << c.name;
    EXPECT_THAT(message, HasSubstr(absl::StrCat(c.name, ": ")));
  }
  EXPECT_THAT(ParseEngineFile(TestFile("per_pass.pt"), "f", std::nullopt, 4).status().ToString(),
              HasSubstr("row 0: 6 slots do not divide by 4 GPUs"));
  EXPECT_THAT(ParseEngineFile(TestFile("per_pass.pt"), "f", EngineFormat::kEplb, 3).status().ToString(),
              HasSubstr("f: is a sglang file, not eplb"));
}

TEST(Import, LoadAndTopologyMustFit) {
  const SlotMap map = *ToSlotMap(EqualPlan());
  const LoadSet load = Load();
  EXPECT_THAT(FromSlotMap(map, UniformTopology(2, 1, 8), &load).status().ToString(),
              HasSubstr("the topology has 2 GPUs, the file 4"));
  const auto import_with = [&](const char* text) {
    const NamedLoads loads[] = {{"day", {*ParseLoad(text, "f")}}};
    const LoadSet other = *MakeLoadSet(loads);
    return FromSlotMap(map, UniformTopology(kGpus, 1, 8), &other).status().ToString();
  };
  EXPECT_THAT(import_with(R"({"logical_count": [[1,2]]})"), HasSubstr("the load has 2 experts, the file 6"));
  EXPECT_THAT(import_with(R"({"logical_count": [[1,2,3,4,5,6,7]]})"), HasSubstr("row 0 of the load has tokens"));
  EXPECT_THAT(import_with(R"({"logical_count": [[0,0,0,0,0,0],[1,2,3,4,5,6]]})"),
              HasSubstr("the file lists layer 3, the load has 2"));
  EXPECT_THAT(FromSlotMap(map, UniformTopology(kGpus, 1, 2), nullptr).status().ToString(), HasSubstr("slot"));
}

TEST(Export, RefusesWhatFilesCannotSay) {
  PlanFile plan = SharesPlan();
  EXPECT_THAT(ToSlotMap(plan).status().ToString(), HasSubstr("has replicas of different shares"));
  const auto equal = Equalize(plan);
  ASSERT_TRUE(equal.ok()) << equal.status();
  EXPECT_TRUE(ToSlotMap(equal->plan).ok());
  EXPECT_EQ(equal->slots, kSlots);
  ASSERT_EQ(equal->losses.size(), 1u);
  EXPECT_EQ(equal->losses[0].scenario, "day");
  EXPECT_LE(equal->losses[0].after, equal->losses[0].before);
  // No worse than EPLB, which also splits equally.
  const PlanFile eplb = EqualPlan();
  EXPECT_GE(equal->losses[0].after, ScoreLoad(eplb.placement, eplb.scenarios[0], eplb.topology).balancedness - 1e-3);
}

TEST(Equalize, FillsUnequalSlots) {
  PlanFile plan = SharesPlan();
  // A replica less: slots are no longer equal, and too few on average.
  for (size_t i = 1; i < plan.placement.replicas.size(); ++i) {
    if (plan.placement.replicas[i].expert == plan.placement.replicas[i - 1].expert) {
      plan.placement.replicas.erase(plan.placement.replicas.begin() + static_cast<std::ptrdiff_t>(i));
      break;
    }
  }
  for (Replica& r : plan.placement.replicas) r.weight = 1;
  EXPECT_THAT(ToSlotMap(plan).status().ToString(), HasSubstr("and the engine wants as many everywhere"));
  const auto equal = Equalize(plan);
  ASSERT_TRUE(equal.ok()) << equal.status();
  EXPECT_TRUE(equal->planned_anew);
  EXPECT_EQ(equal->slots, 2);
  EXPECT_TRUE(ToSlotMap(equal->plan).ok());
  plan.scenarios.clear();
  EXPECT_THAT(Equalize(plan).status().ToString(), HasSubstr("the plan has no load to make equal ones for"));
}

TEST(Equalize, KeepsAPlacementThatIsGoodEnough) {
  PlanFile plan = EqualPlan();
  const auto equal = Equalize(Equalize(plan)->plan);
  ASSERT_TRUE(equal.ok()) << equal.status();
  EXPECT_FALSE(equal->planned_anew);
  plan.scenarios.clear();
  const auto same = Equalize(plan);
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->plan.placement, plan.placement);
}

}  // namespace
}  // namespace ballast
