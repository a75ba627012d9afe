#include "worker/step/share_chooser.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

constexpr auto kFixed = ShareForm::kFixed;
constexpr auto kPrevious = ShareForm::kPrevious;
constexpr auto kCurrent = ShareForm::kCurrent;

TEST(ChooseForm, Table) {
  const struct {
    const char* what;
    ShareForecast forecast;
    ShareCosts costs;
    ShareForm now;
    ShareForm want;
  } kCases[] = {
      {"nothing to gain", {100, 100, 100}, {1, 1, 1}, kFixed, kFixed},
      {"current gains less than it costs", {100, 100, 90}, {1, 5, 6}, kFixed, kFixed},
      {"current gains more than it costs", {100, 100, 80}, {1, 5, 6}, kFixed, kCurrent},
      {"previous gains as much and costs less", {100, 80, 80}, {1, 5, 6}, kFixed, kPrevious},
      {"current gains so much more that it pays for the exchange", {100, 90, 70}, {1, 5, 6}, kFixed, kCurrent},
      {"pairs that cost nothing gain nothing", {100, 50, 50}, {0, 1e-9, 1e-9}, kFixed, kFixed},
      {"a form that does not pay is left at once", {100, 100, 90}, {1, 5, 5.1}, kCurrent, kFixed},
      {"one that just pays stays", {100, 100, 89.8}, {1, 5, 5.1}, kCurrent, kCurrent},
      {"one that just pays is not taken up", {100, 100, 89.8}, {1, 5, 5.1}, kFixed, kFixed},
      {"another that is hardly better is not taken up", {100, 85, 79}, {1, 5, 5}, kPrevious, kPrevious},
      {"another that is clearly better is", {100, 85, 76}, {1, 5, 5}, kPrevious, kCurrent},
      {"what has become a loss gives way to what pays", {100, 110, 80}, {1, 5, 5}, kPrevious, kCurrent},
      {"an exchange that was never measured is not taken up", {100, 100, 10}, {1, 5, -1}, kFixed, kFixed},
      {"nor a solution", {100, 10, 10}, {1, -1, -1}, kFixed, kFixed},
  };
  for (const auto& c : kCases) EXPECT_EQ(ChooseForm(c.forecast, c.costs, c.now), c.want) << c.what;
}

// Whatever the numbers: the form chosen costs no more than it gains.
TEST(ChooseForm, NeverAtALoss) {
  for (double previous = 60; previous <= 120; previous += 7) {
    for (double current = 60; current <= 100; current += 5) {
      for (double solve = 0; solve < 50; solve += 3) {
        for (double exchange = 0; exchange < 50; exchange += 7) {
          for (const ShareForm now : {kFixed, kPrevious, kCurrent}) {
            const ShareForecast forecast{100, previous, current};
            const ShareCosts costs{1, solve, exchange};
            ASSERT_GE(NetGain(forecast, costs, ChooseForm(forecast, costs, now)), 0);
          }
        }
      }
    }
  }
}

TEST(NetGain, UnmeasuredCosts) {
  const ShareForecast forecast{100, 50, 50};
  EXPECT_EQ(NetGain(forecast, {1, -1, -1}, kFixed), 0);
  EXPECT_EQ(NetGain(forecast, {1, -1, -1}, kPrevious), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(NetGain(forecast, {1, 2, -1}, kPrevious), 48);
  EXPECT_EQ(NetGain(forecast, {1, 2, -1}, kCurrent), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(NetGain(forecast, {1, 2, 3}, kCurrent), 45);
}

TEST(ParseShareMode, KnowsItsFour) {
  EXPECT_EQ(ParseShareMode("auto"), ShareMode::kAuto);
  EXPECT_EQ(ParseShareMode("current"), ShareMode::kCurrent);
  EXPECT_EQ(ParseShareMode("previous"), ShareMode::kPrevious);
  EXPECT_EQ(ParseShareMode("fixed"), ShareMode::kFixed);
  EXPECT_EQ(ParseShareMode("Auto"), std::nullopt);
}

bool All(int) { return true; }
bool None(int) { return false; }
bool OnlyOne(int layer) { return layer == 1; }

constexpr TokenPhase kDecode = TokenPhase::kDecode;
constexpr TokenPhase kPrefill = TokenPhase::kPrefill;

std::vector<LayerShares> Choose(ShareChooser& chooser, TokenPhase phase, int layers = 3) {
  std::vector<LayerShares> shares(layers, {kPrevious, true});
  chooser.Choose(phase, All, shares);
  return shares;
}

TEST(ProbeSchedule, IntervalsDoubleUpToABound) {
  int64_t interval = 0;
  std::vector<int64_t> intervals;
  for (int i = 0; i < 9; ++i) intervals.push_back(interval = ProbeSchedule::Next(interval, false));
  EXPECT_THAT(intervals, ElementsAre(15, 31, 63, 127, 255, 511, 1023, 1023, 1023));
  EXPECT_EQ(ProbeSchedule::Next(interval, true), ProbeSchedule::kLeast);
  for (const int64_t i : intervals) EXPECT_EQ(i % 2, 1);
}

TEST(ProbeSchedule, TheLayerDueLongestComesFirst) {
  ProbeSchedule schedule(3);
  EXPECT_EQ(schedule.Due(1, All), 0);
  EXPECT_EQ(schedule.Due(1, OnlyOne), 1);
  EXPECT_EQ(schedule.Due(1, None), -1);
  schedule.Looked(0, 10, false);
  EXPECT_EQ(schedule.Due(10, All), 1);
  schedule.Looked(1, 11, false);
  schedule.Looked(2, 12, true);
  EXPECT_EQ(schedule.Due(24, All), -1);
  EXPECT_EQ(schedule.Due(25, All), 0);
  EXPECT_EQ(schedule.Due(27, All), 0);
  schedule.Looked(0, 27, false);
  EXPECT_EQ(schedule.Due(27, All), 1);
  schedule.Looked(1, 27, false);
  EXPECT_EQ(schedule.Due(27, All), 2);
}

TEST(ShareChooser, OtherModesAreTheOneForm) {
  ShareChooser fixed(ShareMode::kFixed, 3);
  EXPECT_THAT(Choose(fixed, kDecode), Each(LayerShares{kFixed, false}));
  ShareChooser previous(ShareMode::kPrevious, 3);
  EXPECT_THAT(Choose(previous, kDecode), Each(LayerShares{kPrevious, true}));
  ShareChooser current(ShareMode::kCurrent, 3);
  EXPECT_THAT(Choose(current, kDecode), Each(LayerShares{kCurrent, false}));
  EXPECT_EQ(current.probe(), -1);
  std::vector<LayerShares> shares(3);
  previous.Choose(kDecode, OnlyOne, shares);
  EXPECT_THAT(shares, ElementsAre(LayerShares{}, LayerShares{kPrevious, true}, LayerShares{}));
}

TEST(ShareChooser, NothingSharedIsLeftAlone) {
  ShareChooser chooser(ShareMode::kAuto, 3);
  std::vector<LayerShares> shares(3, {kPrevious, true});
  chooser.Choose(kDecode, None, shares);
  EXPECT_THAT(shares, Each(LayerShares{}));
  EXPECT_EQ(chooser.probe(), -1);
}

// A group in which layers gain what `gains` says (pairs of 100, by the counts of the step before and by the step's),
// for `steps` steps of one phase; the layer's counts are known where they were told.
struct Sim {
  struct Gain {
    double previous = 0;
    double current = 0;
  };
  explicit Sim(int layers) : chooser(ShareMode::kAuto, layers), gains(layers), known(layers) {}

  void Step(TokenPhase phase) {
    shares = Choose(chooser, phase, static_cast<int>(gains.size()));
    ShareObservation seen{.phase = phase};
    steps_with_counts +=
        std::any_of(shares.begin(), shares.end(), [](const LayerShares& l) { return l.counts || l.form == kCurrent; });
    for (const LayerShares& layer : shares) {
      layers_with_counts += layer.counts || layer.form == kCurrent;
      if (layer.form == kCurrent) seen.exchange = exchange;
    }
    if (const int layer = chooser.probe(); layer >= 0) {
      ++compared;
      // Counts of the step are there whenever it is to be compared.
      EXPECT_TRUE(shares[layer].counts || shares[layer].form == kCurrent);
      seen.layer = layer;
      seen.solve = solve;
      seen.per_pair = 1;
      seen.comparison = {.fixed = 100,
                         .previous = known[layer] ? 100 - gains[layer].previous : 100,
                         .previous_known = known[layer],
                         .current = 100 - gains[layer].current};
    }
    for (size_t l = 0; l < known.size(); ++l) known[l] = shares[l].counts || shares[l].form == kCurrent;
    chooser.Observe(seen);
  }
  void Run(int64_t steps, TokenPhase phase = kDecode) {
    steps_with_counts = layers_with_counts = compared = 0;
    for (int64_t i = 0; i < steps; ++i) Step(phase);
  }
  std::vector<ShareForm> forms() const {
    std::vector<ShareForm> out;
    for (const LayerShares& l : shares) out.push_back(l.form);
    return out;
  }

  ShareChooser chooser;
  std::vector<Gain> gains;
  std::vector<bool> known;
  double solve = 4;
  double exchange = 6;
  std::vector<LayerShares> shares;
  int64_t steps_with_counts = 0, layers_with_counts = 0, compared = 0;
};

TEST(ShareChooser, WhereNothingPaysLooksBecomeRare) {
  Sim sim(6);
  sim.Run(2000);
  EXPECT_THAT(sim.forms(), Each(kFixed));
  // Two steps in about a thousand for each layer.
  sim.Run(10 * ProbeSchedule::kMost);
  EXPECT_LE(sim.steps_with_counts, 11 * 2 * 6);
  EXPECT_GE(sim.steps_with_counts, 9 * 2 * 6);
  EXPECT_EQ(sim.layers_with_counts, sim.steps_with_counts) << "one layer at a time";
  EXPECT_EQ(sim.compared, sim.steps_with_counts);
}

TEST(ShareChooser, AGainLessThanItsCostMakesLooksNoMoreFrequent) {
  Sim sim(6);
  for (Sim::Gain& gain : sim.gains) gain = {3.9, 9.5};
  sim.Run(2000);
  sim.Run(10 * ProbeSchedule::kMost);
  EXPECT_THAT(sim.forms(), Each(kFixed));
  EXPECT_LE(sim.steps_with_counts, 11 * 2 * 6);
}

TEST(ShareChooser, WhatBeginsToPayIsFoundWithinTheBound) {
  Sim sim(3);
  sim.Run(5000);
  EXPECT_THAT(sim.forms(), Each(kFixed));
  sim.gains[1] = {0, 40};
  sim.gains[2] = {30, 31};
  sim.Run(ProbeSchedule::kMost + 8 * ProbeSchedule::kLeast);
  EXPECT_THAT(sim.shares,
              ElementsAre(LayerShares{kFixed, false}, LayerShares{kCurrent, false}, LayerShares{kPrevious, true}));
  // And what ends to pay is left soon.
  sim.gains.assign(3, {});
  int64_t steps = 0;
  do {
    sim.Step(kDecode);
    ASSERT_LT(++steps, 16 * ProbeSchedule::kLeast);
  } while (sim.shares[1].form != kFixed || sim.shares[2].form != kFixed);
}

TEST(ShareChooser, TheExchangeIsMeasuredWhereItCouldPayAndSeldomAgain) {
  Sim sim(1);
  sim.gains[0] = {0, 50};
  // Too dear.
  sim.exchange = 60;
  int64_t exchanges = 0;
  for (int i = 0; i < 5000; ++i) {
    sim.Step(kDecode);
    exchanges += sim.shares[0].form == kCurrent;
  }
  EXPECT_GE(exchanges, 3);
  EXPECT_LE(exchanges, 20);
  // Then it has become cheap, which the median of its samples says after a few.
  sim.exchange = 2;
  sim.Run(10 * ProbeSchedule::kMost);
  EXPECT_THAT(sim.forms(), ElementsAre(kCurrent));
}

TEST(ShareChooser, PhasesThatTakeTurnsAreBothSeenAndSeldomLookedAt) {
  Sim sim(2);
  sim.gains[0] = {0, 50};
  for (int i = 0; i < 4000; ++i) sim.Step(i % 2 == 0 ? kDecode : kPrefill);
  EXPECT_EQ(Choose(sim.chooser, kDecode, 2)[0].form, kCurrent);
  EXPECT_EQ(Choose(sim.chooser, kPrefill, 2)[0].form, kCurrent);
  sim.gains[0] = {};
  for (int i = 0; i < 4000; ++i) sim.Step(i % 2 == 0 ? kDecode : kPrefill);
  sim.steps_with_counts = 0;
  for (int i = 0; i < 10 * ProbeSchedule::kMost; ++i) sim.Step(i % 2 == 0 ? kDecode : kPrefill);
  EXPECT_THAT(sim.forms(), Each(kFixed));
  // Two phases, two layers, two steps a look.
  EXPECT_LE(sim.steps_with_counts, 11 * 2 * 2 * 2);
}

TEST(ShareChooser, PreviousSharesHaveTheCountsOfTheOtherPhasesStepsToo) {
  Sim sim(1);
  sim.gains[0] = {50, 50};
  sim.Run(100, kPrefill);
  ASSERT_THAT(sim.shares, ElementsAre(LayerShares{kPrevious, true}));
  sim.gains[0] = {};
  sim.Step(kDecode);
  EXPECT_TRUE(sim.shares[0].counts) << "the next step may be of the other phase again";
  // But not for ever.
  sim.Run(8000, kDecode);
  sim.Run(ProbeSchedule::kMost, kDecode);
  EXPECT_LE(sim.steps_with_counts, 4);
}

TEST(ShareChooser, ANewViewKnowsNothing) {
  Sim sim(3);
  for (Sim::Gain& gain : sim.gains) gain = {0, 50};
  sim.Run(200);
  ASSERT_THAT(sim.forms(), Each(kCurrent));
  sim.chooser.Enter();
  const auto shares = Choose(sim.chooser, kDecode);
  EXPECT_THAT(shares, ElementsAre(LayerShares{kFixed, true}, LayerShares{}, LayerShares{}));
}

TEST(ShareChooser, Flip_ForgetsGainsAndKeepsCosts) {
  Sim sim(3);
  for (Sim::Gain& gain : sim.gains) gain = {0, 50};
  sim.Run(200);
  ASSERT_THAT(sim.forms(), Each(kCurrent));
  sim.chooser.Flip();
  sim.gains = {{0, 50}, {40, 42}, {}};
  sim.Step(kDecode);
  EXPECT_THAT(sim.forms(), Each(kFixed));
  // The first comparison of the new placement counts in full, and the costs are known.
  sim.Step(kDecode);
  EXPECT_THAT(sim.forms(), ElementsAre(kCurrent, kFixed, kFixed));
  for (int i = 0; i < 4; ++i) sim.Step(kDecode);
  sim.Step(kDecode);
  EXPECT_THAT(sim.forms(), ElementsAre(kCurrent, kPrevious, kFixed));
}

TEST(ShareChooser, Auto_NoiseDoesNotMakeItOscillate) {
  Sim sim(1);
  sim.solve = 20;
  int changes = 0;
  ShareForm last = kFixed;
  for (int i = 0; i < 1000; ++i) {
    // Gains of previous and current about equal after costs, and a cost that varies by a twentieth.
    const double wobble = (i * 7919 % 13 - 6) / 6.0;
    sim.gains[0] = {80 - wobble, 100 + wobble};
    sim.exchange = 20 + wobble;
    sim.Step(kDecode);
    changes += sim.shares[0].form != last;
    last = sim.shares[0].form;
  }
  EXPECT_LE(changes, 12);
}

}  // namespace
}  // namespace ballast
