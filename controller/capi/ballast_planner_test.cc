#include "controller/capi/ballast_planner.h"

#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::StrEq;

struct Call {
  explicit Call(unsigned seed) : weight(3 * 24) {
    std::mt19937 random(seed);
    for (double& t : weight) t = static_cast<double>(random() % 1000);
    request.num_layers = 3;
    request.num_experts = 24;
    request.num_replicas = 32;
    request.num_groups = 4;
    request.num_nodes = 2;
    request.num_gpus = 8;
    request.weight = weight.data();
    request.proposals = 1000;
  }
  int32_t Make() {
    return ballast_planner_rebalance(&request, phy2log.data(), rank.data(), logcnt.data(), shares.data());
  }
  std::vector<double> weight;
  ballast_planner_request request = {sizeof(ballast_planner_request)};
  std::vector<int64_t> phy2log = std::vector<int64_t>(3 * 32, -7);
  std::vector<int64_t> rank = std::vector<int64_t>(3 * 32, -7);
  std::vector<int64_t> logcnt = std::vector<int64_t>(3 * 24, -7);
  std::vector<double> shares = std::vector<double>(3 * 32, -7);
};

TEST(BallastPlanner, SharesAreThoseOfThePlacement) {
  Call call(1);
  call.request.split = BALLAST_PLANNER_SHARES;
  ASSERT_EQ(call.Make(), BALLAST_PLANNER_OK) << ballast_planner_last_error();
  std::vector<double> solved(3 * 32);
  ASSERT_EQ(ballast_planner_solve_shares(3, 24, 32, 8, call.weight.data(), call.phy2log.data(), solved.data()),
            BALLAST_PLANNER_OK);
  EXPECT_EQ(call.shares, solved);
}

TEST(BallastPlanner, OutputsMayBeMissing) {
  Call call(2);
  ASSERT_EQ(call.Make(), BALLAST_PLANNER_OK);
  std::vector<int64_t> alone(3 * 32);
  EXPECT_EQ(ballast_planner_rebalance(&call.request, alone.data(), nullptr, nullptr, nullptr), BALLAST_PLANNER_OK);
  EXPECT_EQ(alone, call.phy2log);
}

TEST(BallastPlanner, FailuresWriteNothingAndSayWhy) {
  const auto refused = [](auto&& change) {
    Call call(3);
    change(call.request);
    EXPECT_EQ(call.Make(), BALLAST_PLANNER_INVALID_ARGUMENT);
    EXPECT_THAT(call.phy2log, Each(-7));
    EXPECT_THAT(call.rank, Each(-7));
    EXPECT_THAT(call.logcnt, Each(-7));
    EXPECT_THAT(call.shares, Each(-7));
    return std::string(ballast_planner_last_error());
  };
  using R = ballast_planner_request;
  EXPECT_THAT(refused([](R& r) { r.struct_size = 8; }), HasSubstr("struct_size: 8; must be at least"));
  EXPECT_THAT(refused([](R& r) { r.weight = nullptr; }), StrEq("weight: NULL"));
  EXPECT_THAT(refused([](R& r) { r.policy = 2; }), HasSubstr("policy: 2; must be 0 (cost-aware) or 1 (EPLB)"));
  EXPECT_THAT(refused([](R& r) { r.split = -1; }), HasSubstr("split: -1; must be"));
  EXPECT_THAT(refused([](R& r) { r.proposals = -1; }), HasSubstr("proposals: -1; must lie in 0 .. 1000000000"));
  EXPECT_THAT(refused([](R& r) { r.num_gpus = 0; }), HasSubstr("num_gpus: 0"));
  const std::vector<int64_t> previous(3 * 32, 24);
  EXPECT_THAT(refused([&](R& r) { r.previous = previous.data(); }),
              HasSubstr("previous[0][0]: 24; must lie in -1 .. 23"));
  EXPECT_EQ(ballast_planner_rebalance(nullptr, nullptr, nullptr, nullptr, nullptr), BALLAST_PLANNER_INVALID_ARGUMENT);
  EXPECT_STREQ(ballast_planner_last_error(), "request: NULL");
  std::vector<int64_t> log2phy(24);
  const std::vector<int64_t> phy2log(32);
  EXPECT_EQ(ballast_planner_log2phy(1, 24, 32, phy2log.data(), nullptr, 0, log2phy.data()),
            BALLAST_PLANNER_INVALID_ARGUMENT);
  EXPECT_THAT(ballast_planner_last_error(), HasSubstr("width: 0; must lie in 1 .. num_replicas, 32"));
}

TEST(BallastPlanner, LaterStructsAreReadAsFarAsTheyAreKnown) {
  Call call(4);
  ASSERT_EQ(call.Make(), BALLAST_PLANNER_OK);
  struct Later {
    ballast_planner_request known;
    int64_t unknown;
  } later = {call.request, 0};
  later.known.struct_size = sizeof later;
  std::vector<int64_t> phy2log(3 * 32);
  ASSERT_EQ(ballast_planner_rebalance(&later.known, phy2log.data(), nullptr, nullptr, nullptr), BALLAST_PLANNER_OK);
  EXPECT_EQ(phy2log, call.phy2log);
  later.unknown = 1;
  EXPECT_EQ(ballast_planner_rebalance(&later.known, phy2log.data(), nullptr, nullptr, nullptr),
            BALLAST_PLANNER_INVALID_ARGUMENT);
  EXPECT_THAT(ballast_planner_last_error(), HasSubstr("is set, but this library"));
}

TEST(BallastPlanner, ThreadsDoNotShareAnything) {
  Call expected(5);
  ASSERT_EQ(expected.Make(), BALLAST_PLANNER_OK);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      EXPECT_STREQ(ballast_planner_last_error(), "");
      for (int i = 0; i < 10; ++i) {
        Call call(5);
        EXPECT_EQ(call.Make(), BALLAST_PLANNER_OK);
        EXPECT_EQ(call.phy2log, expected.phy2log);
        call.request.num_groups = -1 - t;
        EXPECT_EQ(call.Make(), BALLAST_PLANNER_INVALID_ARGUMENT);
        EXPECT_THAT(ballast_planner_last_error(), HasSubstr("num_groups: " + std::to_string(-1 - t)));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace ballast
