#include "worker/moe/device_terms.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/transport/nccl/exchange_layout.h"

namespace ballast {
namespace {

TEST(AgreeOnTermsTest, TheLeastOfTheGroupCounts) {
  const struct {
    std::vector<DeviceOffer> offers;
    DeviceTerms terms;
  } cases[] = {
      {{{100, 256, 264}}, {256, 264, true}},
      {{{100, 512, 264}, {100, 1024, 264}}, {512, 264, true}},
      {{{100, 1024, 264}, {100, 512, 264}}, {512, 264, true}},
      // An H100 PCIe among H200s.
      {{{100, 256, 264}, {100, 256, 228}, {100, 256, 264}}, {256, 228, true}},
      {{{100, 32, 200}, {200, 16, 300}}, {16, 200, false}},
      {{{100, 32, 200}, {0, 32, 200}}, {32, 200, false}},
      {{{0, 32, 200}, {0, 32, 200}}, {32, 200, false}},
  };
  for (const auto& c : cases) {
    const absl::StatusOr<DeviceTerms> terms = AgreeOnTerms(c.offers);
    ASSERT_TRUE(terms.ok()) << terms.status();
    EXPECT_EQ(terms->capacity, c.terms.capacity);
    EXPECT_EQ(terms->exchange_blocks, c.terms.exchange_blocks);
    EXPECT_EQ(terms->share_slots, c.terms.share_slots);
  }
}

TEST(AgreeOnTermsTest, AnOfferOfNothingNamesItsRank) {
  EXPECT_EQ(std::string(AgreeOnTerms(std::vector<DeviceOffer>{{1, 1, 1}, {1, 0, 1}}).status().message()),
            "rank 1: capacity is 0, has to be at least 1");
  EXPECT_EQ(std::string(AgreeOnTerms(std::vector<DeviceOffer>{{1, 1, -3}, {1, 1, 1}}).status().message()),
            "rank 0: exchange_blocks is -3, has to be at least 1");
}

// Why: of different capacities, what one rank takes for signals is where the other has rows.
TEST(AgreeOnTermsTest, RanksOfDifferentCapacityHaveOneLayout) {
  const auto layout = [](int capacity) {
    return *LayOutExchange({.ranks = 2, .capacity = capacity, .top_k = 8, .hidden_size = 2048, .groups_per_rank = 128});
  };
  EXPECT_NE(layout(512).arrivals, layout(1024).arrivals);
  const std::vector<DeviceOffer> offers = {{0, 512, 264}, {0, 1024, 132}};
  for (const DeviceOffer& own : offers) {
    const DeviceTerms terms = *AgreeOnTerms(offers);
    EXPECT_LE(terms.capacity, own.capacity);
    EXPECT_EQ(layout(terms.capacity).bytes, layout(512).bytes);
    EXPECT_EQ(ExchangeBlocks(terms.capacity, terms.exchange_blocks), 132);
  }
}

}  // namespace
}  // namespace ballast
