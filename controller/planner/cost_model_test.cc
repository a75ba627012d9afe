#include "controller/planner/cost_model.h"

#include <cmath>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(CostModel, DefaultsFollowTheMeasuredLayers) {
  ASSERT_TRUE(Validate(CostModel()).ok());
  // Pairs, experts of 8 that a draw of as many pairs hits on average, microseconds measured on one H200.
  const struct {
    double pairs, experts, measured;
  } cases[] = {{1, 1, 113},    {8, 5.25, 259},  {32, 7.9, 359},  {128, 8, 358},
               {1024, 8, 495}, {4096, 8, 1182}, {16384, 8, 3735}};
  for (const auto& c : cases) {
    const double model = LayerMicroseconds({}, {.busiest_tokens = c.pairs, .experts = c.experts});
    EXPECT_NEAR(model / c.measured, 1, 0.15) << c.pairs;
  }
}

TEST(CostModel, RefusesWhatIsNoTime) {
  for (const double bad : {-1.0, std::nan(""), std::numeric_limits<double>::infinity(), 2e9}) {
    CostModel model;
    model.microseconds_per_copy_node = bad;
    const absl::Status status = Validate(model);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("microseconds_per_copy_node"));
  }
  CostModel model;
  model.microseconds_per_token = 0;
  EXPECT_FALSE(Validate(model).ok());
}

TEST(CostModel, NodesMayHaveAnyNumbers) {
  const DispatchTable layer{.begin = {0, 1, 2}, .rank = {0, 1}, .weight = {1, 1}};
  Topology near = UniformTopology(2, 1, 1), far = near;
  near.workers[1].node = 1;
  far.workers[1].node = std::numeric_limits<int32_t>::max();
  const std::vector<double> pairs = {30, 10};
  const std::vector<LayerWork> expected = WorkByWorker(layer, pairs, near), work = WorkByWorker(layer, pairs, far);
  for (size_t w = 0; w < 2; ++w) {
    EXPECT_EQ(work[w].copies_node, expected[w].copies_node);
    EXPECT_EQ(work[w].copies_cross_node, expected[w].copies_cross_node);
  }
}

TEST(CostModel, WorkOfEveryWorker) {
  Topology topology = UniformTopology(4, 2, 4);
  topology.workers[3].speed = 2;
  // Expert 0 on w0 and w1, 1 on w3, 2 on w3 without pairs.
  const DispatchTable layer{.begin = {0, 2, 3, 4}, .rank = {0, 1, 3, 3}, .weight = {1, 1, 1, 1}};
  const std::vector<LayerWork> work = WorkByWorker(layer, std::vector<double>{40, 20, 80, 0}, topology);
  ASSERT_EQ(work.size(), 4u);
  EXPECT_EQ(work[0].busiest_tokens, 40);
  EXPECT_EQ(work[0].experts, 1);
  // A quarter of the pairs is at home here, a quarter on the other worker of the node, half on the other node.
  EXPECT_EQ(work[0].copies_node, 10);
  EXPECT_EQ(work[0].copies_cross_node, 20);
  EXPECT_EQ(work[2].busiest_tokens, 0);
  EXPECT_EQ(work[3].busiest_tokens, 40);
  EXPECT_EQ(work[3].experts, 1);
  EXPECT_EQ(work[3].copies_cross_node, 40);
  const CostModel model{.microseconds_per_token = 1,
                        .microseconds_per_expert = 10,
                        .microseconds_per_layer = 100,
                        .microseconds_per_copy_node = 0.5,
                        .microseconds_per_copy_cross_node = 2,
                        .microseconds_per_step = 1000};
  EXPECT_DOUBLE_EQ(SlowestMicroseconds(model, work), 100 + 40 + 10 + 10 + 80);
  EXPECT_DOUBLE_EQ(StepMicroseconds(model, 240), 1240);
}

}  // namespace
}  // namespace ballast
