#include "controller/ctl/offline_verbs.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "controller/ctl/verb_test.h"
#include "controller/formats/plan_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace ballast {
namespace {

using ::testing::HasSubstr;

class OfflineVerbsTest : public VerbTest {
 protected:
  OfflineVerbsTest() : VerbTest(AddOfflineVerbs) {
    Write("load.json", R"({"logical_count": [[0, 0, 0, 0], [40, 10, 10, 20], [5, 5, 60, 10]]})");
    Write("other.json", R"({"logical_count": [[0, 0, 0, 0], [10, 40, 10, 20], [60, 5, 5, 10]]})");
  }
};

TEST_F(OfflineVerbsTest, PlansScoresAndExports) {
  ASSERT_EQ(Run("plan --policy eplb --load @load.json --gpus 2 --slots-per-gpu 3 --out @plan.json"), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("eplb: 12 replicas of 4 experts in 2 layers on 2 GPUs, 4 more than one each"));
  EXPECT_EQ(err_.str(), "");
  const auto score = Json("score --plan @plan.json --load @load.json --by-layer");
  for (const char* key :
       {"balancedness", "balancedness_equal_split", "worst_layer", "jain", "maxvio", "copies_per_token",
        "cross_node_copies_per_token", "replicas", "replica_bytes", "upper_bound", "layers"}) {
    EXPECT_TRUE(score.contains(key)) << key;
  }
  EXPECT_EQ(score["balancedness"], 1.0);
  EXPECT_EQ(score["replicas"], 4);
  EXPECT_EQ(score["layers"][1]["row"], 2);
  EXPECT_TRUE(score["copies_per_token"].is_null());
  EXPECT_LT(Json("score --plan @plan.json --load @other.json")["balancedness"], 1.0);

  ASSERT_EQ(Run("export --plan @plan.json --format sglang"), 0) << err_.str();
  const auto map = nlohmann::json::parse(out_.str())["physical_to_logical_map"];
  EXPECT_EQ(map.size(), 3u);
  EXPECT_EQ(map[0], nlohmann::json({0, 1, 2, 3, 0, 1}));
  ASSERT_EQ(Run("export --plan @plan.json --format sglang --out @sglang.json"), 0) << err_.str();
  EXPECT_TRUE(Exists("sglang.json"));
}

TEST_F(OfflineVerbsTest, SharesAreRefusedOrEqualized) {
  Write("skew.json", R"({"logical_count": [[60, 25, 10, 5]]})");
  ASSERT_EQ(Run("plan --load @skew.json --gpus 2 --slots-per-gpu 3 --out @plan.json"), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("cost-aware: 6 replicas"));
  EXPECT_GT(Json("score --plan @plan.json --load @skew.json")["balancedness"], .9999);
  EXPECT_EQ(Run("export --plan @plan.json --format sglang"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("replicas of different shares"));
  EXPECT_EQ(out_.str(), "");
  EXPECT_EQ(Run("export --plan @plan.json --format sglang --equalize"), 0);
  EXPECT_THAT(err_.str(), HasSubstr("equalized: scenario load: balancedness"));
}

TEST_F(OfflineVerbsTest, ExportsToEveryEngineAndImportsBack) {
  ASSERT_EQ(Run("plan --policy eplb --load @load.json --gpus 2 --slots-per-gpu 3 --out @plan.json"), 0) << err_.str();
  for (const std::string format : {"sglang", "trtllm", "vllm-ascend", "eplb"}) {
    ASSERT_EQ(Run("export --plan @plan.json --equalize --out @engine --format " + format), 0) << err_.str();
    ASSERT_EQ(Run("export --plan @plan.json --equalize --format " + format), 0) << err_.str();
    const std::string text = out_.str();
    const auto imported = Json("import --file @engine --gpus 2 --load @load.json --out @back.json --format " + format);
    EXPECT_EQ(imported["layers"], 2) << format;
    EXPECT_EQ(imported["merged"], 0) << format;
    EXPECT_GT(imported["balancedness"], 0.9) << format;
    ASSERT_EQ(Run("export --plan @back.json --format " + format), 0) << err_.str();
    EXPECT_EQ(out_.str(), text) << format;
  }
  ASSERT_EQ(Run("import --file @engine --gpus 2 --out @back.json"), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("3 layers of 4 experts in 6 slots on 2 GPUs"));
}

TEST_F(OfflineVerbsTest, BudgetsOfReplicas) {
  for (const char* policy : {"cost-aware", "craft"}) {
    const auto plan =
        Json(std::string("plan --load @load.json --gpus 2 --replicas-per-gpu 1 --out @plan.json --policy ") + policy);
    EXPECT_EQ(plan["extra_replicas"], 2) << policy;
    EXPECT_EQ(Json("score --plan @plan.json --load @load.json")["replicas"], 2) << policy;
  }
}

TEST_F(OfflineVerbsTest, ScoresTasksAndRoutes) {
  Write("routes.csv", "layer,sample,token,e0,e1\n0,0,0,0,1\n0,1,0,2,3\n");
  ASSERT_EQ(Run("plan --load @routes.csv --gpus 2 --slots-per-gpu 2 --out @plan.json"), 0) << err_.str();
  EXPECT_GE(Json("score --plan @plan.json --load @routes.csv")["copies_per_token"], 0.0);
  Write("counts.csv", "dataset,iteration,layer,e0,e1,e2,e3\nwiki,0,0,9,1,1,1\nwmt,0,0,0,0,0,12\n");
  const auto score = Json("score --plan @plan.json --load @counts.csv");
  EXPECT_TRUE(score["tasks"].contains("wiki"));
  EXPECT_LT(score["tasks"]["wmt"]["balancedness"], score["balancedness"]);
}

TEST_F(OfflineVerbsTest, GroupsByRoutes) {
  // One task's tokens choose 0 and 2 or 2 and 0, the other's 1 and 3.
  Write("a.csv", "layer,sample,token,e0,e1\n0,0,0,0,2\n0,1,0,2,0\n");
  Write("b.csv", "layer,sample,token,e0,e1\n0,0,0,1,3\n0,1,0,3,1\n");
  Write("counts.csv", "dataset,iteration,layer,e0,e1,e2,e3\nwiki,0,0,1,2,3,4\n");
  for (const std::string policy : {"task-aware", "tacg"}) {
    ASSERT_EQ(
        Run("plan --policy " + policy + " --load @a.csv --load @b.csv --gpus 2 --slots-per-gpu 2 --out @plan.json"), 0)
        << err_.str();
    EXPECT_THAT(out_.str(), HasSubstr(policy + ": 4 replicas"));
    const auto score = Json("score --plan @plan.json --load @a.csv --load @b.csv");
    EXPECT_EQ(score["hops_per_token"], 0.0);
    EXPECT_EQ(score["maxvio_summed"], 0.0);
    EXPECT_EQ(score["jain_summed"], 1.0);
    ASSERT_EQ(score["tasks"].size(), 2u);
    for (const auto& task : score["tasks"]) {
      EXPECT_EQ(task["hops_per_token"], 0.0);
      EXPECT_EQ(task["maxvio_summed"], 1.0);
    }
    EXPECT_FALSE(Json("score --plan @plan.json --load @counts.csv").contains("hops_per_token"));
    EXPECT_EQ(Run("plan --policy " + policy + " --load @load.json --gpus 2 --slots-per-gpu 3 --out @plan.json"), 1);
    EXPECT_THAT(err_.str(), HasSubstr("counts alone"));
    const bool replicas = policy == "task-aware";
    EXPECT_EQ(Run("plan --policy " + policy + " --load @a.csv --gpus 2 --replicas-per-gpu 1 --out @plan.json"),
              replicas ? 0 : 1);
    EXPECT_THAT(replicas ? out_.str() : err_.str(), HasSubstr(replicas ? ": 5 replicas" : "use --slots-per-gpu"));
    EXPECT_EQ(Run("plan --policy " + policy +
                  " --scenario x=@a.csv --scenario y=@b.csv --plans 2 --gpus 2 "
                  "--slots-per-gpu 2 --out @plan.json"),
              1);
    EXPECT_THAT(err_.str(), HasSubstr("makes one plan for all tasks"));
  }
  ASSERT_EQ(Run("plan --policy task-aware --scenario x=@a.csv --scenario y=@b.csv --gpus 2 --slots-per-gpu 3 "
                "--max-vio 0.2 --task-max-vio 0.1 --out @plan.json"),
            0)
      << err_.str();
  // Both pairs are apart; one exchange brings them together, if it may.
  Write("apart.csv", "layer,sample,token,e0,e1\n0,0,0,0,1\n0,1,0,2,3\n");
  ASSERT_EQ(Run("plan --policy task-aware --load @apart.csv --gpus 2 --slots-per-gpu 2 --out @now.json"), 0)
      << err_.str();
  for (const auto& [moves, hops] : {std::pair(1, 1.0), {2, 0.0}}) {
    ASSERT_EQ(
        Run("plan --policy task-aware --load @a.csv --load @b.csv --current @now.json --slots-per-gpu 2 --max-moves " +
            std::to_string(moves) + " --out @next.json"),
        0)
        << err_.str();
    EXPECT_EQ(Json("score --plan @next.json --load @a.csv --load @b.csv")["hops_per_token"], hops) << moves << " moves";
  }
  EXPECT_EQ(Run("plan --policy tacg --load @a.csv --current @now.json --max-moves 1 --out @next.json"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("tacg plans from nothing"));
}

TEST_F(OfflineVerbsTest, ScenariosAndDiff) {
  ASSERT_EQ(Run("plan --load @load.json --gpus 2 --slots-per-gpu 3 --out @a.json --expert-bytes 1000"), 0);
  const auto plan = Json(
      "plan --scenario x=@other.json --scenario y=@other.json --current @a.json --gpus 2 "
      "--slots-per-gpu 3 --expert-bytes 1000 --out @b.json");
  EXPECT_EQ(plan["scenarios"].size(), 2u);
  EXPECT_GT(plan["moves"], 0);
  EXPECT_EQ(plan["bytes"], plan["moves"].get<int>() * 1000);
  const auto diff = Json("diff --from @a.json --to @b.json --moves");
  EXPECT_EQ(diff["moves"], plan["moves"]);
  EXPECT_EQ(diff["waves"], plan["waves"]);
  EXPECT_GT(diff["predicted_gain"], 0.0);
  EXPECT_EQ(diff["by_wave"][0]["list"].size(), diff["by_wave"][0]["moves"]);
  EXPECT_EQ(diff["bytes"], plan["bytes"]);
  EXPECT_EQ(diff["transfers"], plan["transfers"]);
  EXPECT_EQ(diff["gain_tokens"], plan["gain_tokens"]);
  EXPECT_EQ(diff["gain_microseconds"], plan["gain_microseconds"]);
  EXPECT_EQ(diff["pays_reason"], plan["pays_reason"]);
  for (const char* key : {"balancedness_before", "balancedness_after", "upper_bound", "busiest_tokens_before",
                          "busiest_tokens_after", "busiest_tokens_bound", "predicted_gain"}) {
    EXPECT_TRUE(diff["scenarios"][0].contains(key)) << key;
  }
  Write("cost.json", R"({"format": "ballast.cost_model/v1", "microseconds_per_token": 2})");
  EXPECT_EQ(Json("diff --from @a.json --to @b.json --cost-model @cost.json")["gain_microseconds"],
            2 * diff["gain_tokens"].get<double>());
  EXPECT_EQ(Json("diff --from @a.json --to @a.json")["moves"], 0);
  ASSERT_EQ(Run("diff --from @a.json --to @b.json"), 0);
  EXPECT_THAT(out_.str(), HasSubstr("SCENARIO"));
  EXPECT_THAT(out_.str(), HasSubstr("lower bound"));
  EXPECT_THAT(out_.str(), HasSubstr("LINK"));
  // Slots that the other plan's GPUs have not.
  ASSERT_EQ(Run("plan --load @load.json --gpus 2 --slots-per-gpu 4 --out @large.json"), 0);
  EXPECT_EQ(Run("diff --from @large.json --to @a.json"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("large.json in the slots of "));
}

TEST_F(OfflineVerbsTest, SimulatesSteps) {
  Write("skew.json", R"({"logical_count": [[60, 25, 10, 5]]})");
  Write("cost.json", R"({"format": "ballast.cost_model/v1", "microseconds_per_step": 1000})");
  ASSERT_EQ(Run("plan --load @skew.json --gpus 2 --slots-per-gpu 3 --out @plan.json"), 0) << err_.str();
  const std::string line = "simulate --plan @plan.json --load @skew.json --cost-model @cost.json --top-k 2 --steps 20";
  const auto json = Json(line);
  EXPECT_GT(json["step_balancedness"], 0.9);
  EXPECT_EQ(json["step_microseconds"], json["plan_shares"]["step_microseconds"]);
  EXPECT_LT(json["equal_split"]["step_balancedness"], json["plan_shares"]["step_balancedness"]);
  EXPECT_GE(json["shares_per_step"]["step_balancedness"], json["plan_shares"]["step_balancedness"]);
  EXPECT_GT(json["shares_per_step"]["tokens_per_second"], json["equal_split"]["tokens_per_second"]);
  // 4096 x 2 pairs on two GPUs at 0.2 us each, and what they cost besides.
  EXPECT_GT(json["shares_per_step"]["step_microseconds"], 1000 + 0.2 * 4096);
  EXPECT_EQ(Json(line), json);
  ASSERT_EQ(Run(line), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("shares per step"));
  Write("bad.json", R"({"format": "ballast.cost_model/v1", "microseconds_per_layer": -1})");
  EXPECT_EQ(Run("simulate --plan @plan.json --load @skew.json --cost-model @bad.json"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("microseconds_per_layer"));
  EXPECT_EQ(Run(line + " --tokens-per-step 0"), 2);
}

TEST_F(OfflineVerbsTest, IncrementalPlans) {
  ASSERT_EQ(Run("plan --load @load.json --gpus 2 --slots-per-gpu 3 --out @a.json --expert-bytes 1000"), 0);
  // Its GPUs and expert bytes are the plan's in force.
  const auto one = Json("plan --load @other.json --current @a.json --max-moves 1 --out @b.json");
  EXPECT_EQ(one["moves"], 1);
  EXPECT_EQ(one["bytes"], 1000);
  EXPECT_GT(one["predicted_gain"], 0.0);
  EXPECT_GT(one["gain_tokens"], 0.0);
  EXPECT_GT(one["gain_microseconds"], 0.0);
  EXPECT_EQ(one["transfers"]["node"]["bytes"], 1000);
  EXPECT_TRUE(one.contains("pays") && one.contains("pays_reason"));
  EXPECT_GT(one["scenarios"][0]["busiest_tokens_bound"], 0.0);
  // The file says the same.
  const auto predicted = ReadPlan(Path("b.json"))->predicted;
  ASSERT_TRUE(predicted.has_value() && predicted->change.has_value());
  EXPECT_EQ(predicted->change->gain_tokens, one["gain_tokens"]);
  EXPECT_EQ(predicted->change->transfer.node.bytes, 1000);
  EXPECT_EQ(predicted->change->pays_reason, one["pays_reason"].get<std::string>());
  EXPECT_FALSE(ReadPlan(Path("a.json"))->predicted->change.has_value()) << "nothing was in force";
  EXPECT_EQ(Json("diff --from @a.json --to @b.json")["moves"], 1);
  EXPECT_EQ(Json("plan --load @other.json --current @a.json --max-bytes 1999 --out @b.json")["bytes"], 1000);
  ASSERT_EQ(Run("plan --load @other.json --current @a.json --max-moves 2 --out @b.json"), 0);
  EXPECT_THAT(out_.str(), HasSubstr("pay"));
  EXPECT_THAT(out_.str(), HasSubstr("LINK"));
  EXPECT_THAT(out_.str(), HasSubstr("above the lower bound of"));
}

TEST_F(OfflineVerbsTest, FailurePlans) {
  ASSERT_EQ(Run("plan --load @load.json --gpus 4 --slots-per-gpu 2 --out @a.json --expert-bytes 1000"), 0);
  const auto plan = Json("plan --load @load.json --current @a.json --dead w1 --out @b.json");
  EXPECT_TRUE(plan["pays"]);
  EXPECT_EQ(ReadPlan(Path("b.json"))->placement.workers, (std::vector<std::string>{"w0", "w2", "w3"}));
  EXPECT_EQ(Run("plan --policy craft --load @load.json --current @a.json --dead w1 --out @c.json"), 0) << err_.str();
  EXPECT_EQ(Run("plan --load @load.json --current @a.json --dead w1 --dead w2 --dead w3 --out @x.json"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("lost experts find no slot on the other workers: layer 0 expert"));
  EXPECT_FALSE(Exists("x.json"));
}

TEST_F(OfflineVerbsTest, MemoryForReplicas) {
  const auto plan =
      Json("plan --load @load.json --gpus 2 --hbm-bytes-for-replicas 1999 --expert-bytes 1000 --out @plan.json");
  EXPECT_EQ(plan["extra_replicas"], 2);
  // Memory for more than every GPU having every expert, or than the slots of a topology.
  const std::string plenty = " --hbm-bytes-for-replicas 1999000 --expert-bytes 1000 --out @plan.json";
  EXPECT_EQ(Json("plan --load @load.json --gpus 2" + plenty)["extra_replicas"], 8);
  EXPECT_THAT(err_.str(), HasSubstr("4 replicas a GPU, of 1999 that the memory holds"));
  Write("t.json", R"({"format": "ballast.topology/v1", "workers": [
      {"name": "a", "node": 0, "slots": 7}, {"name": "b", "node": 0, "slots": 50}]})");
  EXPECT_EQ(Json("plan --load @load.json --topology @t.json" + plenty)["extra_replicas"], 4);
  // Memory for nothing: as level as can be. Hardly any: none.
  const auto rich = Json(
      "plan --load @load.json --gpus 2 --replicas-per-gpu auto --expert-bytes 1 --kv-bytes 1000000 --out @plan.json");
  EXPECT_GT(rich["scenarios"][0]["balancedness"], 0.99);
  const auto poor = Json(
      "plan --load @load.json --gpus 2 --replicas-per-gpu auto --expert-bytes 1000 --kv-bytes 1500 --out @plan.json");
  EXPECT_EQ(poor["extra_replicas"], 0);
}

TEST_F(OfflineVerbsTest, YamlSaysTheSame) {
  ASSERT_EQ(Run("plan --load @load.json --gpus 2 --slots-per-gpu 3 --out @plan.json --output yaml"), 0);
  EXPECT_THAT(out_.str(), HasSubstr("cost-aware"));
}

TEST_F(OfflineVerbsTest, TopologyFiles) {
  Write("t.json", R"({"format": "ballast.topology/v1", "workers": [
      {"name": "a", "node": 0, "slots": 10}, {"name": "b", "node": 0, "slots": 10}]})");
  ASSERT_EQ(Run("plan --load @load.json --topology @t.json --out @plan.json"), 0) << err_.str();
  EXPECT_EQ(ReadPlan(Path("plan.json"))->placement.workers, (std::vector<std::string>{"a", "b"}));
}

TEST_F(OfflineVerbsTest, WritesThroughLinksAndIntoPipes) {
  const std::string plan = "plan --policy eplb --load @load.json --gpus 2 --slots-per-gpu 3 --out ";
  std::filesystem::create_symlink("real.json", Path("link.json"));
  EXPECT_EQ(Run(plan + "@link.json"), 1) << "a link to nowhere";
  EXPECT_THAT(err_.str(), HasSubstr("link.json: cannot be written"));
  Write("real.json", "before");
  ASSERT_EQ(Run(plan + "@link.json"), 0) << err_.str();
  EXPECT_TRUE(std::filesystem::is_symlink(Path("link.json")));
  EXPECT_TRUE(ReadPlan(Path("real.json")).ok());

  Write("kept.txt", "before\n");
  const int kept = open(Path("kept.txt").c_str(), O_WRONLY | O_APPEND);
  const int terminal = dup(STDOUT_FILENO);
  std::cout.flush();
  dup2(kept, STDOUT_FILENO);
  const int exported = Run("export --plan @real.json --format sglang --out /dev/stdout");
  dup2(terminal, STDOUT_FILENO);
  close(terminal);
  close(kept);
  ASSERT_EQ(exported, 0) << err_.str();
  std::stringstream told;
  told << std::ifstream(Path("kept.txt")).rdbuf();
  EXPECT_THAT(told.str(), ::testing::StartsWith("before\n"));
  EXPECT_THAT(told.str(), HasSubstr("physical_to_logical_map"));

  ASSERT_EQ(mkfifo(Path("pipe").c_str(), 0600), 0);
  const int reader = open(Path("pipe").c_str(), O_RDWR | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  ASSERT_EQ(Run("export --plan @real.json --format sglang --out @pipe"), 0) << err_.str();
  std::string text(4096, '\0');
  text.resize(std::max<ssize_t>(0, read(reader, text.data(), text.size())));
  close(reader);
  EXPECT_THAT(text, HasSubstr("physical_to_logical_map"));
  EXPECT_TRUE(std::filesystem::is_fifo(Path("pipe")));
}

TEST_F(OfflineVerbsTest, LimitsOfWhatIsWrittenAreThoseOfWhatIsRead) {
  ASSERT_EQ(Run("plan --load @load.json --gpus 3 --slots-per-gpu 4 --policy eplb --out @plan.json "
                "--expert-bytes 1125899906842624"),
            0)
      << err_.str();
  EXPECT_EQ(ReadPlan(Path("plan.json"))->expert_bytes, int64_t{1} << 50);
  EXPECT_EQ(Json("score --plan @plan.json --load @load.json")["replica_bytes"], int64_t{16} << 50);
  EXPECT_EQ(Run("diff --from @plan.json --to @plan.json"), 0) << err_.str();
}

TEST_F(OfflineVerbsTest, RoutesShowExpertsThatWereUsed) {
  Write("routes.csv", "layer,sample,token,e0\n0,0,0,0\n0,0,1,2\n");
  for (const char* policy : {"cost-aware", "task-aware"}) {
    const std::string plan = absl::StrCat("plan --load @routes.csv --gpus 2 --slots-per-gpu 3 --policy ", policy);
    ASSERT_EQ(Run(plan + " --out @used.json"), 0) << err_.str();
    EXPECT_EQ(ReadPlan(Path("used.json"))->placement.num_experts, 3);
    ASSERT_EQ(Run(plan + " --experts 5 --out @all.json"), 0) << err_.str();
    EXPECT_EQ(ReadPlan(Path("all.json"))->placement.num_experts, 5);
  }
}

TEST_F(OfflineVerbsTest, FilesMayHaveAHashInTheirName) {
  Write("day#1.json", Read("load.json"));
  Write("parts.json", R"({"format": "ballast.load/v1", "parts": [{"name": "a", "tokens": [[1, 2]]},
                          {"name": "b", "tokens": [[1, 2, 3]]}]})");
  EXPECT_EQ(Run("plan --load @day#1.json --gpus 2 --slots-per-gpu 3 --out @plan#1.json"), 0) << err_.str();
  EXPECT_EQ(Run("score --plan @plan#1.json --load @day#1.json"), 0) << err_.str();
  EXPECT_EQ(Run("plan --load @parts.json#b --gpus 2 --slots-per-gpu 2 --out @plan.json"), 0) << err_.str();
  EXPECT_EQ(ReadPlan(Path("plan.json"))->placement.num_experts, 3);
}

TEST_F(OfflineVerbsTest, WhatAFileCanSayIsNotEqualized) {
  // For equal split another placement would be more level than EPLB's.
  Write("skew.json", R"({"logical_count": [[60, 25, 10, 5, 31, 17]]})");
  ASSERT_EQ(Run("plan --policy eplb --load @skew.json --gpus 2 --slots-per-gpu 4 --out @plan.json"), 0) << err_.str();
  ASSERT_EQ(Run("export --plan @plan.json --format sglang"), 0) << err_.str();
  const std::string said = out_.str();
  ASSERT_EQ(Run("export --plan @plan.json --format sglang --equalize"), 0) << err_.str();
  EXPECT_EQ(out_.str(), said);
  EXPECT_THAT(err_.str(), HasSubstr("nothing to equalize"));
}

TEST_F(OfflineVerbsTest, ErrorsGoToStderrAndNothingIsWritten) {
  Write("bad.json", R"({"logical_count": [[1, -2]]})");
  Write("nan.json", R"({"logical_count": [[1, NaN]]})");
  Write("ragged.json", R"({"logical_count": [[1, 2], [3]]})");
  Write("text.json", "what is this?");
  Write("twice.json", R"({"format": "ballast.topology/v1", "workers": [
      {"name": "a", "node": 0, "slots": 10}, {"name": "a", "node": 0, "slots": 10}]})");
  Write("format.json", R"({"format": "ballast.topology/v9", "workers": []})");
  ASSERT_EQ(Run("plan --load @load.json --gpus 2 --slots-per-gpu 3 --out @good.json"), 0) << err_.str();
  Write("other_rows.json", R"({"logical_count": [[40, 10, 10, 20], [0, 0, 0, 0], [5, 5, 60, 10]]})");
  ASSERT_EQ(Run("plan --load @other_rows.json --gpus 2 --slots-per-gpu 3 --out @other_rows.json"), 0) << err_.str();
  Write("routes.csv", "layer,sample,token,e0\n0,0,0,0\n0,0,1,2\n");
  Write("engine.json", R"({"physical_to_logical_map": [[0, 1, 2, 3]]})");
  Write("ragged.json", R"({"physical_to_logical_map": [[0, 1], [0]]})");
  Write("all.json", R"({"logical_count": [[0, 7, 0, 0], [40, 10, 10, 20], [5, 5, 60, 10]]})");
  Write("wide.json", R"({"logical_count": [[1, 2, 3, 4, 5]]})");
  Write("parts.json", R"({"format": "ballast.load/v1", "parts": [{"name": "a", "tokens": [[1, 2]]}]})");
  Write("topology.json", R"({"format": "ballast.topology/v1", "workers": [{"name": "a", "node": 0, "slots": 20}]})");
  Write("cost.json", R"({"format": "ballast.cost_model/v1"})");
  Write("torch.pt", "PK");
  const struct {
    const char* line;
    int status;
    const char* message;
  } cases[] = {
      {"plan --load @bad.json --gpus 2 --slots-per-gpu 3 --out @x.json", 1, "row 0 expert 1: -2; must be 0 to 1e18"},
      {"plan --load @none.json --gpus 2 --slots-per-gpu 3 --out @x.json", 1, "none.json: cannot be opened"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 1 --out @x.json", 1, "2 workers; a layer has 4 experts"},
      {"plan --load @load.json --gpus 2 --nodes 3 --slots-per-gpu 2 --out @x.json", 1, "--nodes 3: there are 2 GPUs"},
      {"plan --load @load.json --gpus 1048576 --slots-per-gpu 1000 --out @x.json", 1,
       "slots in all; the limit is 16777216"},
      {"plan --load @load.json --slots-per-gpu 2 --out @x.json", 1, "--gpus or --topology"},
      {"plan --load @load.json --gpus 2 --out @x.json", 1, "give either --slots-per-gpu or --replicas-per-gpu"},
      {"plan --gpus 2 --slots-per-gpu 2 --out @x.json", 1, "give either --load FILE... or --scenario NAME=FILE..."},
      {"plan --scenario @load.json --gpus 2 --slots-per-gpu 2 --out @x.json", 1, "must be NAME=FILE"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 2 --policy best --out @x.json", 1,
       "\"best\": there are cost-aware, craft, eplb, tacg and task-aware"},
      {"plan --load @load.json --gpus 2 --replicas-per-gpu 2 --policy eplb --out @x.json", 1, "use --slots-per-gpu"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 2 --policy craft --out @x.json", 1, "needs --replicas-per-gpu"},
      {"plan --load @load.json --gpus 0 --slots-per-gpu 2 --out @x.json", 2, "--gpus"},
      {"plan --load @nan.json --gpus 2 --slots-per-gpu 3 --out @x.json", 1, "nan.json"},
      {"plan --load @ragged.json --gpus 2 --slots-per-gpu 3 --out @x.json", 1, "ragged.json"},
      {"plan --load @text.json --gpus 2 --slots-per-gpu 3 --out @x.json", 1, "text.json"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu -3 --out @x.json", 2, "--slots-per-gpu"},
      {"plan --load @load.json --gpus 2 --replicas-per-gpu -1 --out @x.json", 2, "-1; must be auto, or 0 to"},
      {"plan --load @load.json --gpus 2 --replicas-per-gpu few --out @x.json", 2, "few; must be auto, or 0 to"},
      {"plan --load @load.json --gpus 2 --hbm-bytes-for-replicas -1 --out @x.json", 2, "--hbm-bytes-for-replicas"},
      {"plan --load @load.json --gpus 2 --hbm-bytes-for-replicas 5 --out @x.json", 1, "needs --expert-bytes"},
      {"plan --load @load.json --gpus 2 --replicas-per-gpu auto --out @x.json", 1, "needs --kv-bytes"},
      {"plan --load @load.json --gpus 2 --replicas-per-gpu auto --kv-bytes 9 --out @x.json", 1, "needs --expert-bytes"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --kv-bytes 9 --out @x.json", 1, "are for --replicas-per-gpu"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --max-moves 3 --out @x.json", 1,
       "--max-moves needs --current"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --max-moves -3 --out @x.json", 2, "--max-moves"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --max-bytes 0 --out @x.json", 2, "--max-bytes"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --dead w0 --out @x.json", 1, "--dead needs --current"},
      {"plan --load @load.json --current @good.json --dead w9 --out @x.json", 1, "\"w9\": there is no such worker"},
      {"plan --load @load.json --current @good.json --dead w0 --dead w0 --out @x.json", 1, "or no more"},
      {"plan --load @load.json --current @good.json --dead w0 --dead w1 --out @x.json", 1, "no worker is left"},
      {"plan --load @load.json --current @good.json --max-bytes 5 --out @x.json", 1, "expert_bytes must say"},
      {"plan --load @load.json --topology @twice.json --out @x.json", 1, "worker 'a': named twice"},
      {"plan --load @load.json --topology @format.json --out @x.json", 1, "format.json"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --horizon 0 --out @x.json", 2, "--horizon"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --horizon nan --out @x.json", 2, "nan not in range"},
      {"plan --scenario a= --gpus 2 --slots-per-gpu 3 --out @x.json", 1, "must be NAME=FILE"},
      {"plan --scenario caf\xe9=@load.json --gpus 2 --slots-per-gpu 3 --out @x.json", 1, "NAME must be UTF-8"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --expert-bytes 1125899906842625 --out @x.json", 2,
       "--expert-bytes"},
      {"import --file @engine.json --gpus 2 --expert-bytes 1125899906842625 --out @x.json", 2, "--expert-bytes"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --experts 5 --out @x.json", 1,
       "load.json has 4 experts a layer"},
      {"plan --load @routes.csv --gpus 2 --slots-per-gpu 3 --experts 2 --out @x.json", 1,
       "routes.csv has 3 experts a layer"},
      {"diff --from @good.json --to @other_rows.json", 1, "its layers are other rows of the load (2 of 3) than those"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --out @none/x.json", 1, "cannot be written: No such file"},
      {"plan --load @load.json --dead w0 --out @x.json", 1, "--dead needs --current"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 2", 2, "--out is required"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 2 --out @x.json --output xml", 2,
       "xml not in {table,json,yaml}"},
      {"plan --load @load.json --topology @topology.json --gpus 2 --out @x.json", 1, "either it or --gpus and --nodes"},
      {"plan --load @load.json --topology @topology.json --nodes 1 --out @x.json", 1, "either it or --gpus and"},
      {"plan --load @load.json --current @good.json --nodes 2 --out @x.json", 1, "--nodes needs --gpus"},
      {"plan --load @load.json --gpus 2 --replicas-per-gpu 5 --out @x.json", 1,
       "--replicas-per-gpu 5; must be at most 4: then every GPU has every expert"},
      {"plan --load @load.json --topology @topology.json --replicas-per-gpu 1 --out @x.json", 1,
       "--replicas-per-gpu 1; must be at most 0: the slots hold no more"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --groups 2 --out @x.json", 1, "is for --policy eplb"},
      {"plan --load @load.json --gpus 2 --slots-per-gpu 3 --max-vio 1 --out @x.json", 1, "are for --policy task-aware"},
      {"plan --load @load.json --load @parts.json --gpus 2 --slots-per-gpu 3 --out @x.json", 1,
       "parts.json: part \"a\" has 1 layers of 2 experts; 3 of 4 are expected"},
      {"score --plan @good.json --load @wide.json", 1, "wide.json has 1 layers of 5 experts; 3 of 4 are expected"},
      {"score --plan @good.json --load @all.json", 1, "all.json: row 0 expert 1: 7 tokens; the plan takes that row"},
      {"diff --from @good.json --to @good.json --load @all.json", 1, "all.json: row 0 expert 1: 7 tokens"},
      {"simulate --plan @good.json --load @all.json --cost-model @cost.json --top-k 2", 1,
       "all.json: row 0 expert 1: 7"},
      {"simulate --plan @good.json --load @load.json --cost-model @cost.json", 1, "--top-k 8: a layer has 4 experts"},
      {"export --plan @good.json --format sglang --first-layer 3 --out @x.json", 1, "is for trtllm files, not sglang"},
      {"import --file @engine.json --gpus 2 --first-layer 3 --out @x.json", 1, "is for trtllm files, not sglang"},
      {"import --file @engine.json --topology @topology.json --nodes 1 --out @x.json", 1, "either it or --gpus and"},
      {"import --file @torch.pt --gpus 2 --out @x.json", 1, "torch.pt: zip archive: is cut: it has no end"},
      {"score --plan @load.json --load @load.json", 1, "plan.format"},
      {"export --plan @load.json --format fancy", 2, "--format"},
      {"export --plan @load.json --format sglang --out @x.json", 1, "load.json: plan.format"},
      {"import --file @load.json --gpus 2 --out @x.json", 1,
       "load.json: logical_count: this is a load, not a placement"},
      {"import --file @none.json --gpus 2 --out @x.json", 1, "none.json: cannot be opened"},
      {"import --file @ragged.json --gpus 2 --out @x.json", 1, "ragged.json: physical_to_logical_map row 1: 1 slots"},
      {"import --file @engine.json --gpus 3 --out @x.json", 1, "row 0: 4 slots do not divide by 3 GPUs"},
      {"import --file @engine.json --gpus 2 --nodes 3 --out @x.json", 1, "--nodes 3: there are 2 GPUs"},
      {"import --file @engine.json --gpus 2 --load @load.json --out @x.json", 1, "engine.json: row 1 of the load has"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Run(c.line), c.status) << c.line;
    EXPECT_THAT(err_.str(), HasSubstr(c.message)) << c.line;
    EXPECT_EQ(out_.str(), "") << c.line;
    EXPECT_FALSE(Exists("x.json")) << c.line;
  }
  EXPECT_EQ(Run("plan --load @load.json --gpus 2 --slots-per-gpu 3 --out @no/such/folder.json"), 1);
  EXPECT_THAT(err_.str(), HasSubstr("cannot be written"));
}

TEST_F(OfflineVerbsTest, HelpTeaches) {
  for (const char* verb : {"plan", "score", "diff", "export", "import", "simulate"}) {
    EXPECT_EQ(Run(std::string(verb) + " --help"), 0);
    EXPECT_THAT(out_.str(), HasSubstr("Example")) << verb;
  }
}

}  // namespace
}  // namespace ballast
