#include "controller/console/views.h"

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using json = nlohmann::ordered_json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int> Thousandths(const std::string& packed) {
  std::string bytes;
  EXPECT_TRUE(absl::Base64Unescape(packed, &bytes));
  std::vector<int> out;
  for (size_t i = 0; i + 1 < bytes.size(); i += 2) {
    out.push_back(static_cast<unsigned char>(bytes[i]) + 256 * static_cast<unsigned char>(bytes[i + 1]));
  }
  return out;
}

// Two GPUs, one layer of three experts with 60, 30 and 30 tokens: expert 0 on both (2 to 1), 1 and 2 on the first.
GroupView Small() {
  GroupView view;
  view.at = absl::FromUnixSeconds(7);
  view.group.set_name("g");
  v1::Placement placement;
  placement.set_num_layers(1);
  placement.set_num_experts(3);
  placement.add_workers("a");
  placement.add_workers("b");
  for (const auto& [expert, worker, weight] :
       {std::tuple(0, 0, 2), std::tuple(0, 1, 1), std::tuple(1, 0, 1), std::tuple(2, 0, 1)}) {
    v1::Replica& replica = *placement.add_replicas();
    replica.set_expert(expert);
    replica.set_worker(worker);
    replica.set_weight(weight);
  }
  view.placement = std::make_shared<v1::Placement>(placement);
  v1::LayerLoad& layer = *view.load.add_layers();
  for (const double tokens : {60, 30, 30}) layer.add_tokens(tokens);
  layer.set_balancedness(0.6);
  layer.add_worker_tokens(100);
  layer.add_worker_tokens(20);
  for (const char* name : {"spare", "b"}) {
    v1::Worker& worker = view.workers.emplace_back();
    worker.set_name(name);
    worker.set_state(v1::WORKER_STATE_SERVING);
  }
  return view;
}

TEST(Views, RatiosArePackedAsThousandths) {
  EXPECT_THAT(Thousandths(PackRatios({0, 1, 1.2345, -1, 1e9})), ElementsAre(0, 1000, 1235, 0, 65535));
}

TEST(Views, TheOverviewHasWorkersAndTheirLoadInThePlacementsOrder) {
  const json view = OverviewJson(Small());
  EXPECT_EQ(view["at_ms"], 7000);
  ASSERT_EQ(view["workers"].size(), 3u);
  EXPECT_EQ(view["workers"][0], (json{{"name", "a"}, {"state", "GONE"}}));
  EXPECT_EQ(view["workers"][1]["name"], "b");
  EXPECT_EQ(view["workers"][1]["state"], "SERVING");
  EXPECT_EQ(view["workers"][2]["name"], "spare");
  EXPECT_THAT(Thousandths(view["load"]), ElementsAre(1667, 333));
  EXPECT_EQ(view["balancedness"], json::array({0.6}));
  ASSERT_EQ(view["hottest"].size(), 3u);
  EXPECT_EQ(view["hottest"][0]["expert"], 0);
  EXPECT_EQ(view["hottest"][0]["ratio"], 1.5);
  EXPECT_EQ(view["hottest"][0]["workers"], json::array({"a", "b"}));
}

TEST(Views, ALayerSplitsItsTokensByShares) {
  const auto view = LayerJson(Small(), 0);
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ((*view)["expert"], json::array({0, 0, 1, 2}));
  EXPECT_EQ((*view)["worker"], json::array({0, 1, 0, 0}));
  // Over the mean of 60 a GPU: 40, 20, 30 and 30 tokens.
  EXPECT_EQ((*view)["load"], json::array({0.667, 0.333, 0.5, 0.5}));
  for (const int32_t layer : {-1, 1}) {
    EXPECT_EQ(LayerJson(Small(), layer).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(Views, AGroupWithoutPlacementAndLoadHasAnEmptyView) {
  GroupView view;
  view.placement = std::make_shared<v1::Placement>();
  const json overview = OverviewJson(view);
  EXPECT_EQ(overview["layers"], 0);
  EXPECT_EQ(overview["load"], "");
  EXPECT_EQ(LayerJson(view, 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Views, APlanSaysWhyAndWhatTheLoadWouldBe) {
  const GroupView view = Small();
  v1::GetPlanResponse plan;
  plan.mutable_plan()->set_id("g-1");
  plan.mutable_plan()->set_state(v1::PLAN_STATE_PREPARING);
  plan.mutable_plan()->set_waves_done(1);
  plan.mutable_plan()->set_moves_total(3);
  plan.mutable_plan()->mutable_effect()->set_gain_ratio(0.4);
  plan.mutable_plan()->mutable_effect()->set_busiest_tokens_before(100);
  plan.mutable_plan()->mutable_effect()->set_busiest_tokens_after(60);
  *plan.mutable_placement() = *view.placement;
  // Workers in another order, expert 1 moved to b.
  plan.mutable_placement()->set_workers(0, "b");
  plan.mutable_placement()->set_workers(1, "a");
  for (v1::Replica& replica : *plan.mutable_placement()->mutable_replicas()) {
    replica.set_worker(replica.expert() == 1 ? 0 : 1 - replica.worker());
  }
  for (int i = 0; i < 3; ++i) plan.add_moves()->set_slot(i);
  plan.add_wave_moves(1);
  plan.add_wave_moves(2);

  const json shown = PlanJson(plan, view);
  EXPECT_EQ(shown["moves_total"], 3);
  ASSERT_EQ(shown["moves"].size(), 2u) << "those of the second wave, which is under way";
  EXPECT_EQ(shown["moves"][0]["slot"], 1);
  EXPECT_THAT(shown["explanation"][0].get<std::string>(), HasSubstr("gains         40.0 % of what the busiest"));
  EXPECT_THAT(Thousandths(shown["after"]), ElementsAre(1167, 833));

  plan.mutable_plan()->set_state(v1::PLAN_STATE_DONE);
  plan.mutable_placement()->set_workers(0, "stranger");
  EXPECT_EQ(PlanJson(plan, view)["moves"].size(), 3u);
  EXPECT_FALSE(PlanJson(plan, view).contains("after"));
}

TEST(History, KeepsASampleASecondForAnHour) {
  History history;
  v1::Group group;
  const absl::Time start = absl::FromUnixSeconds(100);
  for (int i = 0; i < 4000; ++i) {
    group.set_balancedness(i / 4000.0);
    group.set_epoch(i / 1000);
    history.Add(start + absl::Seconds(i), group);
    history.Add(start + absl::Seconds(i) + absl::Milliseconds(999), group);
  }
  const json all = history.ToJson(absl::InfinitePast());
  ASSERT_EQ(all["at_ms"].size(), History::kSamples);
  EXPECT_EQ(all["at_ms"].front(), (100 + 400) * 1000);
  const json news = history.ToJson(start + absl::Seconds(3998));
  EXPECT_EQ(news["at_ms"], json::array({(100 + 3999) * 1000}));
  EXPECT_EQ(news["balancedness"], json::array({1.0}));
  EXPECT_EQ(news["epoch"], json::array({3}));
}

TEST(EnginesJson, SaysWhatEachEngineIsAndHowLevel) {
  std::vector<v1::EngineStatus> engines(2);
  engines[0].mutable_engine()->set_name("sgl");
  engines[0].mutable_engine()->set_num_layers(3);
  for (const char* node : {"a", "a", "b"}) engines[0].mutable_engine()->add_workers()->set_node(node);
  engines[0].mutable_planned()->set_seconds(5);
  engines[0].mutable_planned()->set_nanos(7'000'000);
  engines[0].set_balancedness(0.81239);
  engines[0].set_predicted_balancedness(0.97);
  const json out = EnginesJson(engines, absl::FromUnixSeconds(60));
  EXPECT_EQ(out["at_ms"], 60'000);
  ASSERT_EQ(out["engines"].size(), 2u);
  const json& sgl = out["engines"][0];
  EXPECT_EQ(sgl["name"], "sgl");
  EXPECT_EQ(sgl["layers"], 3);
  EXPECT_EQ(sgl["gpus"], 3);
  EXPECT_EQ(sgl["nodes"], 2);
  EXPECT_EQ(sgl["planned_ms"], 5007);
  EXPECT_EQ(sgl["balancedness"], 0.812);
  EXPECT_EQ(sgl["predicted_balancedness"], 0.97);
  EXPECT_EQ(out["engines"][1]["planned_ms"], 0) << "nothing is planned yet";
}

}  // namespace
}  // namespace ballast
