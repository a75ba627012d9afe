#include "controller/ctl/plan_text.h"

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

}  // namespace
}  // namespace ballast
