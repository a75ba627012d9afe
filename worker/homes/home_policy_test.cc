#include "worker/homes/home_policy.h"

#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace ballast {
namespace {

TEST(IsFull, Table) {
  const struct {
    const char* name;
    WorkerLoad load;
    double mean;
    bool was_full;
    bool full;
  } cases[] = {
      {"idle", {0, 0, 0}, 0, false, false},
      {"a few alone", {4, 0, .1}, 1, false, false},
      {"at the limit", {10, 0, .1}, 4, false, false},
      {"above it", {11, 0, .1}, 4, false, true},
      {"between: stays free", {8, 0, .1}, 4, false, false},
      {"between: stays full", {8, 0, .1}, 4, true, true},
      {"below: free again", {6, 0, .1}, 4, true, false},
      {"as busy as all", {100, 0, .5}, 100, false, false},
      {"requests wait", {3, 1, .1}, 3, false, true},
      {"none wait any more", {3, 0, .1}, 3, true, false},
      {"no KV cache left", {2, 0, .96}, 3, false, true},
      {"KV between: stays free", {2, 0, .9}, 3, false, false},
      {"KV between: stays full", {2, 0, .9}, 3, true, true},
      {"KV free again", {2, 0, .8}, 3, true, false},
  };
  for (const auto& c : cases) EXPECT_EQ(IsFull(c.load, c.mean, c.was_full, {}), c.full) << c.name;
}

struct Case {
  const char* name;
  std::vector<HomeTurn> homes;
  std::vector<int> requests;
  std::vector<uint8_t> full;
  int self;
  int worker;
  bool spilled;
};

TEST(ChooseWorker, Table) {
  const Case cases[] = {
      {"no homes: here", {}, {9, 0, 0}, {1, 0, 0}, 0, 0, false},
      {"its home", {{2, 1}}, {0, 0, 5}, {0, 0, 0}, 0, 2, false},
      {"this worker is its home", {{1, 1}}, {0, 7, 5}, {0, 0, 0}, 1, 1, false},
      {"the heavier home first", {{1, 1}, {2, 3}}, {0, 0, 0}, {0, 0, 0}, 0, 2, false},
      {"the home that is not full", {{1, 9}, {2, 1}}, {0, 9, 5}, {0, 1, 0}, 0, 2, false},
      {"all homes full: here", {{1, 1}}, {3, 9, 2}, {0, 1, 0}, 0, 0, true},
      {"this worker, too: fewest requests", {{1, 1}}, {8, 9, 4, 2}, {1, 1, 0, 0}, 0, 3, true},
      {"of equals the first", {{2, 1}}, {2, 2, 9}, {0, 0, 1}, 2, 0, true},
      {"everyone full: the home after all", {{1, 1}}, {3, 9, 2}, {1, 1, 1}, 0, 1, false},
  };
  for (const Case& c : cases) {
    std::vector<WorkerLoad> loads;
    for (const int requests : c.requests) loads.push_back({.requests = requests});
    std::vector<HomeTurn> homes = c.homes;
    const HomeChoice choice = ChooseWorker(homes, loads, c.full, c.self);
    EXPECT_EQ(choice.worker, c.worker) << c.name;
    EXPECT_EQ(choice.spilled, c.spilled) << c.name;
  }
}

TEST(ChooseWorker, TurnsMeetTheWeightsEvenlySpread) {
  std::vector<HomeTurn> homes = {{0, 1}, {1, 2}, {3, 4}};
  const std::vector<WorkerLoad> loads(4);
  const std::vector<uint8_t> full(4);
  std::map<int, int> given;
  for (int i = 1; i <= 70; ++i) {
    ++given[ChooseWorker(homes, loads, full, 2).worker];
    EXPECT_NEAR(given[0], i / 7., 1);
    EXPECT_NEAR(given[1], 2 * i / 7., 1);
    EXPECT_NEAR(given[3], 4 * i / 7., 1);
  }
  EXPECT_EQ(given[0], 10);
  EXPECT_EQ(given[1], 20);
  EXPECT_EQ(given[3], 40);
}

TEST(ChooseWorker, AHomeThatWasFullHasNothingToMakeUpFor) {
  std::vector<HomeTurn> homes = {{0, 1}, {1, 1}};
  const std::vector<WorkerLoad> loads(2);
  const std::vector<uint8_t> one_full = {1, 0};
  const std::vector<uint8_t> none_full = {0, 0};
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(ChooseWorker(homes, loads, one_full, 0).worker, 1);
  std::map<int, int> given;
  for (int i = 0; i < 10; ++i) ++given[ChooseWorker(homes, loads, none_full, 0).worker];
  EXPECT_EQ(given[0], 5);
  EXPECT_EQ(given[1], 5);
}

TEST(ChooseOther, Table) {
  const std::vector<WorkerLoad> loads = {{.requests = 1}, {.requests = 3}, {.requests = 2}, {.requests = 2}};
  struct Case {
    std::string name;
    std::vector<uint8_t> full, draining;
    int self, chosen;
  };
  for (const Case& c : std::vector<Case>{
           {"the least busy but for itself", {0, 0, 0, 0}, {0, 0, 0, 0}, 0, 2},
           {"not one that is to go", {0, 0, 0, 0}, {0, 0, 1, 0}, 0, 3},
           {"rather busy than full", {0, 0, 1, 1}, {0, 0, 0, 0}, 0, 1},
           {"rather full than nobody", {1, 1, 1, 1}, {0, 0, 0, 0}, 2, 0},
           {"nobody stays", {0, 0, 0, 0}, {1, 1, 0, 1}, 2, -1},
       }) {
    EXPECT_EQ(ChooseOther(loads, c.full, c.draining, c.self), c.chosen) << c.name;
  }
}

}  // namespace
}  // namespace ballast
