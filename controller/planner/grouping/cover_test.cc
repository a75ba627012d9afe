#include "controller/planner/grouping/cover.h"

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "controller/planner/grouping/grouping_test_util.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;

struct Counts {
  std::vector<int64_t> visits, pairs;
  Counts(int32_t tasks, int32_t workers) : visits(tasks * workers), pairs(tasks * workers) {}
};

// The rule of cover.h word for word: token by token. `shared_only` leaves experts with one replica out of the pairs.
Counts TokenByToken(const LayerRoutes& layer, int32_t workers, const Assignment& assignment, int32_t of,
                    int32_t without, bool shared_only) {
  Counts out(static_cast<int32_t>(layer.tasks.size()), workers);
  for (size_t f = 0; f < layer.tasks.size(); ++f) {
    for (int64_t t = 0; t < layer.tasks[f].tokens; ++t) {
      const auto span = layer.tasks[f].experts.subspan(t * layer.top_k, layer.top_k);
      std::vector<int32_t> token(span.begin(), span.end());
      std::erase(token, -1);
      const auto chooses = [&](int32_t e) { return std::find(token.begin(), token.end(), e) != token.end(); };
      if ((of != Cover::kAll && !chooses(of)) || (without != Cover::kNone && chooses(without))) continue;
      std::sort(token.begin(), token.end(), [&](int32_t a, int32_t b) {
        const size_t n = assignment.experts[a].workers.size(), m = assignment.experts[b].workers.size();
        return n != m ? n < m : a < b;
      });
      std::set<int32_t> visited;
      for (const int32_t e : token) {
        const Assignment::Expert& expert = assignment.experts[e];
        int32_t to = -1;
        for (const int32_t w : expert.workers) {
          if (to < 0 && visited.count(w) > 0) to = w;
        }
        if (to < 0) to = expert.workers.size() == 1 ? expert.workers[0] : expert.aim[t % Assignment::kClasses];
        visited.insert(to);
        if (!shared_only || expert.workers.size() > 1) ++out.pairs[f * workers + to];
      }
      for (const int32_t w : visited) ++out.visits[f * workers + w];
    }
  }
  return out;
}

// Some experts with one replica and some with up to all workers.
Assignment RandomAssignment(int32_t experts, int32_t workers, std::mt19937& random) {
  Assignment out;
  out.experts.resize(experts);
  for (Assignment::Expert& expert : out.experts) {
    std::vector<int32_t> order(workers);
    for (int32_t w = 0; w < workers; ++w) order[w] = w;
    for (int32_t w = workers - 1; w > 0; --w) std::swap(order[w], order[random() % (w + 1)]);
    const int32_t replicas = random() % 2 == 0 ? 1 : 1 + static_cast<int32_t>(random() % workers);
    expert.workers.assign(order.begin(), order.begin() + replicas);
    for (int32_t& aim : expert.aim) aim = expert.workers[random() % replicas];
  }
  return out;
}

TEST(Cover, AgreesWithTheRuleTokenByToken) {
  std::mt19937 random(1);
  for (uint32_t round = 0; round < 12; ++round) {
    const int32_t workers = 2 + static_cast<int32_t>(random() % 6);
    Routes routes = RandomRoutes({.experts = 20, .top_k = 5, .tasks = 3, .tokens = 700, .together = .6}, round);
    // Tasks of several sizes, and tokens with fewer experts.
    routes.tasks[1].experts[0].resize(35);
    for (size_t i = 0; i < 300; i += 7) routes.tasks[0].experts[0][i] = -1;
    const LayerRoutes layer = LayerOf(routes, 0);
    const Cover cover(layer, workers);
    const Assignment assignment = RandomAssignment(20, workers, random);
    Cover::Program program;
    cover.Compile(assignment, program);
    for (const auto& [of, without] : {std::pair<int32_t, int32_t>{Cover::kAll, Cover::kNone},
                                      {3, Cover::kNone},
                                      {3, 4},
                                      {19, 0},
                                      {Cover::kAll, 7}}) {
      const Counts expected = TokenByToken(layer, workers, assignment, of, without, true);
      Counts counts(3, workers);
      cover.Evaluate(program, of, without, 1, counts.visits, counts.pairs);
      EXPECT_EQ(counts.visits, expected.visits) << of << " without " << without;
      EXPECT_EQ(counts.pairs, expected.pairs) << of << " without " << without;
      cover.Evaluate(program, of, without, -1, counts.visits, counts.pairs);
      EXPECT_EQ(counts.visits, Counts(3, workers).visits);
      EXPECT_EQ(counts.pairs, Counts(3, workers).pairs);
    }
    // Flows by replica, and with Count for the rest, all pairs.
    Counts counts = Counts(3, workers);
    const std::vector<int64_t> flows = cover.Flows(program);
    for (int32_t f = 0; f < 3; ++f) {
      for (size_t r = 0; r < program.worker.size(); ++r) {
        counts.pairs[f * workers + program.worker[r]] += flows[f * program.worker.size() + r];
      }
      for (int32_t e = 0; e < 20; ++e) {
        const auto& at = assignment.experts[e].workers;
        if (at.size() == 1) counts.pairs[f * workers + at[0]] += cover.Count(e, f);
      }
    }
    EXPECT_EQ(counts.pairs, TokenByToken(layer, workers, assignment, Cover::kAll, Cover::kNone, false).pairs);
  }
}

TEST(Cover, CountsTokensAndPairs) {
  const Routes routes{1, 4, 2, {{"a", 1, {{0, 1, 2, -1, -1, -1}}}, {"b", 1, {{}}}}};
  const Cover cover(LayerOf(routes, 0), 2);
  EXPECT_THAT(cover.tokens(), ElementsAre(2, 0));
  EXPECT_THAT(cover.pairs(), ElementsAre(3, 0));
  EXPECT_EQ(cover.Count(2, 0), 1);
  EXPECT_EQ(cover.Count(3, 0), 0);
  EXPECT_EQ(cover.Blocks(0), 1);
  EXPECT_EQ(cover.Blocks(3), 0);
  EXPECT_EQ(cover.Blocks(Cover::kAll), 1);
}

TEST(Assign, ClassesTakeTurns) {
  const Assignment a = Assign({{0, 1}, {1}, {1, 2}}, 3);
  EXPECT_THAT(a.experts[0].workers, ElementsAre(0));
  EXPECT_THAT(a.experts[1].workers, ElementsAre(0, 1, 2));
  EXPECT_THAT(a.experts[1].aim, ElementsAre(0, 1, 2, 0));
  EXPECT_THAT(a.experts[2].aim, ElementsAre(2, 2, 2, 2));
}

}  // namespace
}  // namespace ballast
