#include "controller/ctl/plan_text.h"

#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace ballast {
namespace {

v1::Plan MakePlan() {
  v1::Plan plan;
  plan.set_moves_total(5);
  plan.set_bytes_total(5'000'000);
  v1::PlanEffect& effect = *plan.mutable_effect();
  effect.set_gain_ratio(0.1234);
  effect.set_gain_microseconds(1220);
  effect.set_busiest_tokens_before(49600);
  effect.set_busiest_tokens_after(43500);
  effect.set_busiest_tokens_bound(43000);
  effect.mutable_node()->set_moves(3);
  effect.mutable_node()->set_bytes(3'000'000);
  effect.mutable_node()->mutable_time()->set_nanos(500'000'000);
  effect.mutable_checkpoint()->set_moves(2);
  effect.mutable_checkpoint()->set_bytes(2'000'000);
  effect.mutable_checkpoint()->mutable_time()->set_seconds(1);
  effect.mutable_transfer_time()->set_seconds(1);
  effect.mutable_transfer_time()->set_nanos(250'000'000);
  return plan;
}

TEST(EffectText, SaysGainCostAndBound) {
  EXPECT_EQ(
      EffectText(MakePlan()),
      "  gains         12.3 % of what the busiest workers have: 6100 tokens of the window less, 1.220 ms by the "
      "cost model\n"
      "  costs         5 moves, 5.0 MB, 1.250 s of transfers: 3 within nodes (3.0 MB, 0.500 s), 2 from host "
      "memory or checkpoint (2.0 MB, 1.000 s)\n"
      "  bound         the busiest workers keep 43500 tokens, 1.16 % above the 43000 that no placement of as many "
      "replicas can go below\n");
}

TEST(EffectText, SaysWhatIsNotKnown) {
  v1::Plan plan;
  EXPECT_EQ(EffectText(plan), "") << "as earlier releases stored it";
  EXPECT_EQ(PlanGain(plan), "-");
  EXPECT_EQ(PlanGainTime(plan), "-");
  EXPECT_EQ(PlanTransferTime(plan), "-");
  plan.mutable_effect();
  EXPECT_EQ(EffectText(plan),
            "  gains         unknown: there was no load to measure it by\n"
            "  costs         nothing: nothing moves\n"
            "  bound         unknown: there was no load to measure it by\n");
}

TEST(EffectText, ALossIsALoss) {
  v1::Plan plan = MakePlan();
  plan.mutable_effect()->set_gain_ratio(-0.05);
  plan.mutable_effect()->set_gain_microseconds(-2.5e6);
  plan.mutable_effect()->set_busiest_tokens_after(50000);
  EXPECT_NE(EffectText(plan).find("-5.0 % of what the busiest workers have: 400 tokens of the window more, 2.500 s"),
            std::string::npos)
      << EffectText(plan);
  EXPECT_EQ(PlanGain(plan), "-5.0 %");
  EXPECT_EQ(PlanGainTime(plan), "-2.500 s");
  EXPECT_EQ(PlanTransferTime(plan), "1.250 s");
}

TEST(TrafficText, MixAndTasks) {
  v1::PlanEffect effect;
  EXPECT_EQ(TrafficText(effect), "");
  v1::Traffic& before = *effect.mutable_traffic_before();
  before.set_hops_per_token(10);
  before.set_copies_per_token(12);
  before.set_maxvio(.5);
  v1::Traffic& after = *effect.mutable_traffic_after();
  after.set_hops_per_token(7.256);
  after.set_copies_per_token(9);
  after.set_cross_node_copies_per_token(4);
  after.set_maxvio(.0625);
  after.set_maxvio_worst_layer(.1);
  after.set_maxvio_solved_shares(.002);
  v1::TaskEffect& task = *effect.add_tasks();
  task.set_mix_ratio(.25);
  *task.mutable_after() = after;
  EXPECT_EQ(
      TrafficText(effect),
      "  a token       hops 10.00 -> 7.26, copies 12.00 -> 9.00 (between nodes 0.00 -> 4.00), busiest worker above "
      "the mean 0.500 -> 0.062 (worst layer 0.100; 0.002 with shares of its own)\n"
      "    of unlabelled requests, 25 % of the mix: hops 7.26, copies 9.00 (between nodes 4.00), busiest worker "
      "above the mean 0.062 (worst layer 0.100; 0.002 with shares of its own)\n");
}

TEST(ReasonsText, SaysWhyInWords) {
  std::vector<v1::ReplicaReason> reasons(2);
  reasons[0].set_layer(3);
  reasons[0].set_expert(17);
  reasons[0].set_worker("w1");
  reasons[0].set_moved(true);
  for (const auto& [expert, ratio] : {std::pair(4, .51), {40, .25}}) {
    reasons[0].add_partners()->set_expert(expert);
    reasons[0].mutable_partners()->rbegin()->set_ratio(ratio);
  }
  reasons[0].add_tasks()->set_task("code");
  reasons[0].mutable_tasks(0)->set_ratio(.9);
  reasons[0].set_hops_saved_per_token(.01234);
  reasons[1].set_worker("w0");
  reasons[1].set_hops_saved_per_token(-.001);
  EXPECT_EQ(
      ReasonsText(reasons, 9),
      "  layer 3 expert 17 moves to w1, where its tokens also choose 4 (51 % of them), 40 (25 %); they are of task "
      "code (90 %); that saves 0.0123 hops a token\n"
      "  layer 0 expert 0 is on w0, where none of its tokens' other experts are; that costs, for balance, 0.0010 "
      "hops a token\n"
      "  and 7 moves that save less; --expert LAYER/EXPERT tells of any\n");
  EXPECT_EQ(ReasonsText({}, 9), "");
}

TEST(HomesText, ALineATask) {
  v1::Placement placement;
  EXPECT_EQ(HomesText(placement), "");
  placement.add_workers("w0");
  placement.add_workers("w1");
  v1::TaskHomes& task = *placement.add_task_homes();
  task.set_task("_other");
  for (const int32_t w : {1, 0}) {
    v1::TaskHome& home = *task.add_homes();
    home.set_worker(w);
    home.set_weight(w == 1 ? 3 : 1);
    home.set_copies_saved_per_token(w + .5);
  }
  EXPECT_EQ(HomesText(placement),
            "  tasks beyond those kept apart on w1 (75 %, saves 1.50 copies a token), w0 (25 %, saves 0.50 copies a "
            "token)\n");
}

}  // namespace
}  // namespace ballast
