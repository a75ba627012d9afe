#include "worker/step/share_chooser.h"

#include <cmath>
#include <limits>

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
bool OnlyOne(int layer) { return layer == 1; }

std::vector<ShareForm> Choose(ShareChooser& chooser, TokenPhase phase, bool* carry = nullptr) {
  std::vector<ShareForm> forms(3, kPrevious);
  const bool carried = chooser.Choose(phase, All, forms);
  if (carry != nullptr) *carry = carried;
  return forms;
}

TEST(ShareChooser, OtherModesAreTheOneForm) {
  bool carry = false;
  ShareChooser fixed(ShareMode::kFixed, 3);
  EXPECT_THAT(Choose(fixed, TokenPhase::kDecode, &carry), Each(kFixed));
  EXPECT_FALSE(carry);
  ShareChooser previous(ShareMode::kPrevious, 3);
  EXPECT_THAT(Choose(previous, TokenPhase::kDecode, &carry), Each(kPrevious));
  EXPECT_TRUE(carry);
  ShareChooser current(ShareMode::kCurrent, 3);
  EXPECT_THAT(Choose(current, TokenPhase::kDecode, &carry), Each(kCurrent));
  EXPECT_FALSE(carry);
  EXPECT_EQ(current.LayerToCompare(All), -1);
  std::vector<ShareForm> forms(3);
  EXPECT_FALSE(fixed.Choose(TokenPhase::kDecode, OnlyOne, forms));
  EXPECT_FALSE(current.Choose(TokenPhase::kDecode, OnlyOne, forms));
  EXPECT_THAT(forms, ElementsAre(kFixed, kCurrent, kFixed));
}

TEST(ShareChooser, NothingSharedCarriesNothing) {
  ShareChooser chooser(ShareMode::kAuto, 3);
  std::vector<ShareForm> forms(3, kPrevious);
  EXPECT_FALSE(chooser.Choose(
      TokenPhase::kDecode, [](int) { return false; }, forms));
  EXPECT_THAT(forms, Each(kFixed));
  EXPECT_EQ(chooser.LayerToCompare([](int) { return false; }), -1);
}

TEST(ShareChooser, LayersAreComparedInTurn) {
  ShareChooser chooser(ShareMode::kAuto, 3);
  for (const int want : {0, 1, 2, 0}) EXPECT_EQ(chooser.LayerToCompare(All), want);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(chooser.LayerToCompare(OnlyOne), 1);
}

TEST(ShareChooser, Auto_ProbesTheExchangeOnceAndThenByGainAndCost) {
  ShareChooser chooser(ShareMode::kAuto, 3);
  bool carry = false;
  EXPECT_THAT(Choose(chooser, TokenPhase::kDecode, &carry), Each(kFixed));
  EXPECT_TRUE(carry);
  // Layer 1 could gain 50 pairs with current shares, 5 with the previous ones.
  ShareObservation seen{.phase = TokenPhase::kDecode,
                        .solve = 4,
                        .layer = 1,
                        .comparison = {.fixed = 150, .previous = 145, .current = 100},
                        .per_pair = 1};
  chooser.Observe(seen);
  EXPECT_THAT(Choose(chooser, TokenPhase::kDecode), ElementsAre(kFixed, kCurrent, kFixed));
  // Too dear: 4 + 60. Previous costs 4 and gains 5, too little to be taken up over fixed... by the margin of 1.
  seen.exchange = 60;
  chooser.Observe(seen);
  EXPECT_THAT(Choose(chooser, TokenPhase::kDecode), Each(kFixed));
  // No more probes for a while; then it has become cheap.
  seen.exchange = -1;
  for (int64_t i = 2; i < ShareChooser::kProbeSteps; ++i) {
    chooser.Observe(seen);
    ASSERT_THAT(Choose(chooser, TokenPhase::kDecode), Each(kFixed)) << i;
  }
  int probes = 0;
  std::vector<ShareForm> forms;
  for (int64_t i = 0; i < 10 * ShareChooser::kProbeSteps && (forms = Choose(chooser, TokenPhase::kDecode))[1] == kFixed;
       ++i) {
    chooser.Observe(seen);
  }
  EXPECT_EQ(forms[1], kCurrent);
  for (int i = 0; i < 2 * ShareChooser::kCostSamples; ++i) {
    seen.exchange = forms[1] == kCurrent ? 2 : -1;
    probes += forms[1] == kCurrent;
    chooser.Observe(seen);
    forms = Choose(chooser, TokenPhase::kDecode);
  }
  EXPECT_GE(probes, 1);
  // The other phase knows nothing of all this.
  EXPECT_THAT(Choose(chooser, TokenPhase::kPrefill), Each(kFixed));
  // Nor does a new view.
  chooser.Enter();
  EXPECT_THAT(Choose(chooser, TokenPhase::kDecode), Each(kFixed));
}

TEST(ShareChooser, Auto_TakesWhatPaysAndLeavesItWhenItNoLongerDoes) {
  ShareChooser chooser(ShareMode::kAuto, 3);
  ShareObservation seen{.phase = TokenPhase::kPrefill,
                        .exchange = 3,
                        .solve = 2,
                        .layer = 0,
                        .comparison = {.fixed = 150, .previous = 120, .current = 100},
                        .per_pair = 1};
  chooser.Observe(seen);
  EXPECT_THAT(Choose(chooser, TokenPhase::kPrefill), ElementsAre(kCurrent, kFixed, kFixed));
  // The load becomes level: the mean over some steps sinks, and the form goes with it, not to and fro.
  seen.comparison = {.fixed = 101, .previous = 101, .current = 100};
  int changes = 0;
  ShareForm last = kCurrent;
  for (int i = 0; i < 100; ++i) {
    seen.exchange = last == kCurrent ? 3 : -1;
    chooser.Observe(seen);
    const ShareForm form = Choose(chooser, TokenPhase::kPrefill)[0];
    changes += form != last;
    last = form;
  }
  EXPECT_EQ(last, kFixed);
  EXPECT_LE(changes, 2);
}

TEST(ShareChooser, Flip_ForgetsGainsAndKeepsCosts) {
  ShareChooser chooser(ShareMode::kAuto, 3);
  ShareObservation seen{.phase = TokenPhase::kDecode,
                        .exchange = 3,
                        .solve = 2,
                        .layer = 0,
                        .comparison = {.fixed = 150, .previous = 120, .current = 100},
                        .per_pair = 1};
  chooser.Observe(seen);
  EXPECT_THAT(Choose(chooser, TokenPhase::kDecode), ElementsAre(kCurrent, kFixed, kFixed));
  chooser.Flip();
  EXPECT_THAT(Choose(chooser, TokenPhase::kDecode), Each(kFixed));
  // The first comparison of the new placement counts in full, and the costs are known.
  seen = {.phase = TokenPhase::kDecode, .layer = 0, .comparison = {.fixed = 110, .previous = 101, .current = 100}};
  chooser.Observe(seen);
  EXPECT_THAT(Choose(chooser, TokenPhase::kDecode), ElementsAre(kPrevious, kFixed, kFixed));
}

TEST(ShareChooser, Auto_NoiseDoesNotMakeItOscillate) {
  ShareChooser chooser(ShareMode::kAuto, 1);
  std::vector<ShareForm> forms(1);
  int changes = 0;
  ShareForm last = kFixed;
  for (int i = 0; i < 1000; ++i) {
    // Gains of previous and current about equal after costs, and a cost that varies by a tenth.
    const double wobble = (i * 7919 % 13 - 6) / 6.0;
    chooser.Observe({.phase = TokenPhase::kDecode,
                     .exchange = last == kCurrent ? 20 + wobble : -1,
                     .solve = 20 - wobble,
                     .layer = 0,
                     .comparison = {.fixed = 200, .previous = 120 + wobble, .current = 100 - wobble},
                     .per_pair = 1});
    chooser.Choose(TokenPhase::kDecode, All, forms);
    changes += forms[0] != last;
    last = forms[0];
  }
  EXPECT_LE(changes, 12);
}

}  // namespace
}  // namespace ballast
