// Plan sets through every verb that takes plans: made, picked from, compared, exported, simulated, refused.
#include <string>
#include <vector>

#include "controller/ctl/offline_verbs.h"
#include "controller/ctl/verb_test.h"
#include "controller/formats/plan_file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace ballast {
namespace {

using ::testing::HasSubstr;

constexpr char kPlan[] =
    "plan --policy eplb --gpus 4 --slots-per-gpu 3 --expert-bytes 1000000 --scenario chat=@chat.json --scenario "
    "code=@code.json --scenario night=@night.json --enough 0.99 --out @set.json --plans ";

class PlanSetVerbsTest : public VerbTest {
 protected:
  // Chat and night are alike; code wants the replicas of other experts. Row 0 is dense.
  PlanSetVerbsTest() : VerbTest(AddOfflineVerbs) {
    Write("chat.json", R"({"logical_count": [[0,0,0,0,0,0,0,0], [4000,3000,2000,1000,400,300,200,100]]})");
    Write("night.json", R"({"logical_count": [[0,0,0,0,0,0,0,0], [4010,3010,1990,990,400,300,200,100]]})");
    Write("code.json", R"({"logical_count": [[0,0,0,0,0,0,0,0], [100,200,300,400,1000,2000,3000,4000]]})");
  }
};

TEST_F(PlanSetVerbsTest, MakesAsManyPlansAsItTakes) {
  const auto set = Json(std::string(kPlan) + "3");
  ASSERT_EQ(set["members"].size(), 2u) << set;
  EXPECT_EQ(set["split"], "equal");
  EXPECT_EQ(set["members"][0]["name"], "chat");
  EXPECT_EQ(set["members"][0]["scenarios"], nlohmann::json({"chat", "night"}));
  EXPECT_EQ(set["members"][1]["scenarios"], nlohmann::json({"code"}));
  ASSERT_EQ(set["scenarios"].size(), 3u);
  EXPECT_EQ(set["scenarios"][2]["scenario"], "night");
  EXPECT_EQ(set["scenarios"][2]["member"], "chat");
  EXPECT_GT(set["worst_balancedness"], set["worst_balancedness_single_plan"]);
  for (const auto& s : set["scenarios"]) EXPECT_LE(s["balancedness"], s["upper_bound"].get<double>() + 1e-9);
  for (const auto& member : set["members"]) {
    EXPECT_GT(member["predicted"]["scenarios"][0]["busiest_tokens_bound"], 0);
    EXPECT_FALSE(member["predicted"].contains("change")) << "nothing is in force";
  }
  ASSERT_EQ(set["switches"].size(), 2u);
  EXPECT_EQ(set["switches"][0]["from"], "chat");
  EXPECT_EQ(set["switches"][0]["to"], "code");
  EXPECT_GT(set["switches"][0]["moves"], 0);
  EXPECT_EQ(set["switches"][0]["bytes"], set["switches"][0]["moves"].get<int64_t>() * 1'000'000);
  const auto file = ReadPlanSet(Path("set.json"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->members[0].plan.scenarios[1].name, "night");
  EXPECT_EQ(FormatPlanSet(*file), Read("set.json"));

  ASSERT_EQ(Run(std::string(kPlan) + "3"), 0) << err_.str();
  EXPECT_THAT(out_.str(), HasSubstr("SCENARIO  MEMBER  BALANCEDNESS  WITH ONE PLAN  UPPER BOUND"));
  EXPECT_THAT(out_.str(), HasSubstr("eplb: 2 of at most 3 plans for 3 scenarios; the worst has balancedness"));
  EXPECT_THAT(out_.str(), HasSubstr("balancedness is with equal split"));
  EXPECT_THAT(out_.str(), HasSubstr("FROM  TO"));
}

TEST_F(PlanSetVerbsTest, OneIsASetToo) {
  const auto set = Json(std::string(kPlan) + "1");
  ASSERT_EQ(set["members"].size(), 1u);
  EXPECT_EQ(set["worst_balancedness"], set["worst_balancedness_single_plan"]);
  EXPECT_TRUE(set["switches"].empty());
  ASSERT_EQ(Run(std::string(kPlan) + "1"), 0);
  EXPECT_THAT(out_.str(), HasSubstr("below the 0.9900 that is enough"));
  EXPECT_EQ(Run("export --plan @set.json --format sglang"), 0) << err_.str();
  EXPECT_EQ(Json("score --plan @set.json --load @code.json")["member"], "chat");
}

TEST_F(PlanSetVerbsTest, CostsAreFromTheCurrentPlan) {
  ASSERT_EQ(Run("plan --policy eplb --load @chat.json --gpus 4 --slots-per-gpu 3 --out @now.json"), 0);
  const auto set = Json(std::string(kPlan) + "3 --current @now.json");
  const auto& change = set["members"][1]["predicted"]["change"];
  EXPECT_GT(change["moves"], 0);
  EXPECT_EQ(change["transfers"]["node"]["bytes"], change["bytes"]);
  EXPECT_GT(change["gain_tokens"], 0);
  ASSERT_EQ(Run(std::string(kPlan) + "3 --current @now.json"), 0);
  EXPECT_THAT(out_.str(), HasSubstr("code:\nfrom the current placement: "));
  // And a member is a plan to go on from.
  const auto next =
      Json("plan --policy eplb --load @chat.json --gpus 4 --slots-per-gpu 3 --current @set.json#code --out @next.json");
  EXPECT_GT(next["moves"], 0);
}

TEST_F(PlanSetVerbsTest, ABudgetKeepsSwitchingCheap) {
  const auto far = Json(std::string(kPlan) + "3");
  const auto near = Json(std::string(kPlan) + "3 --max-moves 2");
  ASSERT_EQ(near["members"].size(), 2u) << near;
  EXPECT_LE(near["switches"][0]["moves"], 4);
  EXPECT_LT(near["switches"][0]["moves"], far["switches"][0]["moves"]);
  EXPECT_GT(near["worst_balancedness"], near["worst_balancedness_single_plan"]);
  EXPECT_EQ(Json(std::string(kPlan) + "3 --max-bytes 2000000")["switches"], near["switches"]);
}

TEST_F(PlanSetVerbsTest, ScorePicksTheMember) {
  ASSERT_EQ(Run(std::string(kPlan) + "3"), 0) << err_.str();
  for (const char* load : {"chat", "night", "code"}) {
    const std::string line = std::string("score --load @") + load + ".json --plan @set.json";
    const auto picked = Json(line);
    const std::string member = load == std::string("night") ? "chat" : load;
    EXPECT_EQ(picked["member"], member);
    EXPECT_THAT(picked["member_reason"].get<std::string>(), HasSubstr(member + " has balancedness"));
    EXPECT_EQ(picked["member_balancedness"].size(), 2u);
    EXPECT_EQ(picked["member_balancedness"][member], picked["balancedness_equal_split"]);
    const auto named = Json(line + "#" + member);
    EXPECT_EQ(named["member"], member);
    EXPECT_FALSE(named.contains("member_reason"));
    EXPECT_EQ(named["balancedness"], picked["balancedness"]);
    EXPECT_LT(Json(line + "#" + (member == "chat" ? "code" : "chat"))["balancedness"], picked["balancedness"]);
  }
  ASSERT_EQ(Run("score --plan @set.json --load @code.json"), 0);
  EXPECT_THAT(out_.str(), HasSubstr("MEMBER  BALANCEDNESS  PICKED"));
  EXPECT_THAT(out_.str(), HasSubstr("code has balancedness"));
  EXPECT_THAT(out_.str(), HasSubstr("the best of 2 (equal split)"));
}

TEST_F(PlanSetVerbsTest, MembersAreComparedAndExported) {
  const auto set = Json(std::string(kPlan) + "3");
  const auto diff = Json("diff --from @set.json#chat --to @set.json#code");
  EXPECT_EQ(diff["moves"], set["switches"][0]["moves"]);
  EXPECT_EQ(diff["waves"], set["switches"][0]["waves"]);
  EXPECT_EQ(diff["transfer_seconds"], set["switches"][0]["transfer_seconds"]);
  EXPECT_EQ(Json("diff --from @set.json#code --to @set.json#code")["moves"], 0);
  for (const char* member : {"chat", "code"}) {
    ASSERT_EQ(Run(std::string("export --format sglang --out @map.json --plan @set.json#") + member), 0) << err_.str();
    ASSERT_EQ(Run("import --file @map.json --gpus 4 --load @chat.json --out @back.json"), 0) << err_.str();
    EXPECT_EQ(Json(std::string("diff --to @set.json#") + member + " --from @back.json")["moves"], 0) << member;
  }
}

TEST_F(PlanSetVerbsTest, SimulationsChargeForSwitching) {
  Write("cost.json", R"({"format": "ballast.cost_model/v1"})");
  ASSERT_EQ(Run(std::string(kPlan) + "3"), 0) << err_.str();
  const std::string line =
      "simulate --cost-model @cost.json --steps 20 --top-k 2 --scenario a=@chat.json --scenario b=@code.json "
      "--scenario "
      "c=@night.json --plan @set.json";
  const auto changing = Json(line);
  ASSERT_EQ(changing["scenarios"].size(), 3u);
  EXPECT_EQ(changing["switches"], 2);
  EXPECT_EQ(changing["scenarios"][0]["member"], "chat");
  EXPECT_FALSE(changing["scenarios"][0].contains("switch"));
  EXPECT_EQ(changing["scenarios"][1]["member"], "code");
  const auto& change = changing["scenarios"][1]["switch"];
  EXPECT_EQ(change["from"], "chat");
  EXPECT_GT(change["lost_seconds"], 0.0);
  EXPECT_GT(changing["switch_bytes"], change["bytes"]);
  // What a switch loses is off the whole.
  double free = 0;
  for (const auto& s : changing["scenarios"]) free += s["tokens_per_second"].get<double>() / 3;
  EXPECT_LT(changing["tokens_per_second"], free);
  EXPECT_GT(changing["tokens_per_second"], 0.99 * free);
  // Loads that last a moment are not worth a change; one member does all.
  const auto staying = Json(line + " --horizon 0.001");
  EXPECT_EQ(staying["switches"], 0);
  EXPECT_EQ(staying["scenarios"][1]["member"], "chat");
  EXPECT_THAT(staying["scenarios"][1]["member_reason"].get<std::string>(), HasSubstr("chat, which is in force"));
  EXPECT_LT(staying["tokens_per_second"], free);
  const auto one = Json(line + "#chat");
  EXPECT_EQ(one["switches"], 0);
  EXPECT_EQ(one["tokens_per_second"], staying["tokens_per_second"]);
  ASSERT_EQ(Run(line), 0);
  EXPECT_THAT(out_.str(), HasSubstr("switched from chat: "));
  EXPECT_THAT(out_.str(), HasSubstr("3 scenarios of 600 s each; 2 switches, "));
  // One plan takes scenarios in turn, too.
  ASSERT_EQ(Run("plan --load @chat.json --gpus 4 --slots-per-gpu 3 --out @plan.json"), 0);
  const auto plain = Json(
      "simulate --plan @plan.json --cost-model @cost.json --steps 5 --top-k 2 --scenario a=@chat.json --scenario "
      "b=@code.json");
  EXPECT_EQ(plain["scenarios"].size(), 2u);
  EXPECT_FALSE(plain["scenarios"][0].contains("member"));
}

TEST_F(PlanSetVerbsTest, BadInputIsRefusedAndNothingIsWritten) {
  Write("cost.json", R"({"format": "ballast.cost_model/v1"})");
  ASSERT_EQ(Run(std::string(kPlan) + "3"), 0) << err_.str();
  ASSERT_EQ(Run("plan --load @chat.json --gpus 4 --slots-per-gpu 3 --out @plan.json"), 0);
  Write("other.json", R"({"logical_count": [[1, 2]]})");
  nlohmann::json set = nlohmann::json::parse(Read("set.json"));
  set["members"][1]["plan"]["placement"][0][0][1] = 9;
  Write("bad.json", set.dump());
  set["members"] = nlohmann::json::array();
  Write("empty.json", set.dump());
  const std::string scenarios = "plan --gpus 4 --slots-per-gpu 3 --scenario a=@chat.json --scenario b=@code.json ";
  const struct {
    std::string line;
    int status;
    const char* message;
  } cases[] = {
      {scenarios + "--plans 0 --out @x.json", 2, "--plans"},
      {scenarios + "--plans 65 --out @x.json", 2, "--plans"},
      {scenarios + "--plans two --out @x.json", 2, "--plans"},
      {scenarios + "--plans 2 --enough 1.5 --out @x.json", 2, "--enough"},
      {scenarios + "--enough 0.9 --out @x.json", 1, "--enough needs --plans"},
      {scenarios + "--plans 2 --dead w0 --current @plan.json --out @x.json", 1, "--dead is for one plan"},
      {scenarios + "--plans 2 --max-bytes 5 --out @x.json", 1, "expert_bytes must say"},
      {scenarios + "--scenario c#d=@chat.json --plans 2 --out @x.json", 1, "--scenario \"c#d\""},
      {scenarios + "--scenario c=@none.json --plans 2 --out @x.json", 1, "none.json: cannot be opened"},
      {scenarios + "--scenario c=@other.json --plans 2 --out @x.json", 1, "other.json"},
      {scenarios + "--plans 2 --current @set.json --out @x.json", 1,
       "set.json: a set of 2 plans; choose one with FILE#MEMBER from chat, code"},
      {"plan --load @chat.json --plans 2 --gpus 4 --slots-per-gpu 3 --out @x.json", 1, "--plans needs a --scenario"},
      {"export --plan @set.json --format sglang --out @x.json", 1,
       "a set of 2 plans; choose one with FILE#MEMBER from chat, code"},
      {"export --plan @set.json#maths --format sglang --out @x.json", 1,
       "set.json: no member \"maths\"; there are chat, code"},
      {"export --plan @plan.json#chat --format sglang --out @x.json", 1,
       "plan.json: is one plan, not a set with a member \"chat\""},
      {"export --plan @bad.json#chat --format sglang --out @x.json", 1,
       "bad.json: set.members[1].plan.placement: replica of layer 0 expert 0 at worker 9 slot 0: there are 4 workers"},
      {"export --plan @empty.json --format sglang --out @x.json", 1, "empty.json: set.members: 0; must be 1 to 64"},
      {"score --plan @set.json --load @other.json", 1, "other.json"},
      {"score --plan @none.json#chat --load @chat.json", 1, "none.json: cannot be opened"},
      {"diff --from @set.json --to @set.json#chat", 1, "set.json: a set of 2 plans"},
      {"diff --from @set.json#chat --to @plan.json --cost-model @plan.json", 1, "plan.json"},
      {"simulate --plan @set.json --cost-model @cost.json", 1, "give either --load FILE... or --scenario NAME=FILE..."},
      {"simulate --plan @set.json --cost-model @cost.json --scenario a", 1, "must be NAME=FILE"},
      {"simulate --plan @set.json --cost-model @cost.json --scenario a=@chat.json --horizon 0", 2, "--horizon"},
  };
  for (const auto& c : cases) {
    EXPECT_EQ(Run(c.line), c.status) << c.line;
    EXPECT_THAT(err_.str(), HasSubstr(c.message)) << c.line;
    EXPECT_EQ(out_.str(), "") << c.line;
    EXPECT_FALSE(Exists("x.json")) << c.line;
  }
}

}  // namespace
}  // namespace ballast
