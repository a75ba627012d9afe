#include "worker/transport/nccl/exchange_layout.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace ballast {
namespace {

constexpr ExchangeShape kShape = {
    .ranks = 3, .capacity = 5, .top_k = 2, .hidden_size = 24, .groups_per_rank = 4, .note_words = 7};

TEST(ExchangeLayout, SectionsAreAlignedAndApart) {
  const absl::StatusOr<ExchangeLayout> layout = LayOutExchange(kShape);
  ASSERT_TRUE(layout.ok()) << layout.status();
  std::vector<std::pair<size_t, size_t>> sections = {
      {layout->rows, 3 * 5 * 24 * 2},   {layout->partials, 3 * 5 * 24 * 2}, {layout->groups, 3 * 5 * 2 * 4},
      {layout->weights, 3 * 5 * 2 * 4}, {layout->notes, 3 * 7 * 4},         {layout->tokens, 3 * 4},
      {layout->arrivals, 2 * 3 * 4}};
  std::sort(sections.begin(), sections.end());
  size_t end = 0;
  for (const auto& [at, bytes] : sections) {
    EXPECT_EQ(at % 256, 0u);
    EXPECT_GE(at, end);
    end = at + bytes;
  }
  EXPECT_LE(end, layout->bytes);
}

TEST(ExchangeLayout, ErrorsNameFieldValueAndLimits) {
  const struct {
    int ExchangeShape::*field;
    int value;
    const char* message;
  } cases[] = {
      {&ExchangeShape::ranks, 0, "ranks is 0, not between 1 and 32"},
      {&ExchangeShape::ranks, 33, "ranks is 33, not between 1 and 32"},
      {&ExchangeShape::capacity, 0, "capacity is 0, not between 1 and 2097152"},
      {&ExchangeShape::capacity, 2097153, "capacity is 2097153, not between 1 and 2097152"},
      {&ExchangeShape::top_k, 33, "top_k is 33, not between 1 and 32"},
      {&ExchangeShape::hidden_size, 0, "hidden_size is 0, not between 8 and 65536"},
      {&ExchangeShape::hidden_size, 12, "hidden_size is 12, not a multiple of 8"},
      {&ExchangeShape::groups_per_rank, 0, "groups_per_rank is 0, not between 1 and 65536"},
      {&ExchangeShape::note_words, -1, "note_words is -1, not between 0 and 65536"},
  };
  for (const auto& c : cases) {
    ExchangeShape shape = kShape;
    shape.*c.field = c.value;
    const absl::Status status = LayOutExchange(shape).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(status.message()), c.message);
  }
}

// Of exact, where each choice is a token: 65,536 rows with 32 choices, and what a worker may be started with.
TEST(ExchangeLayout, HasRoomForAChoiceATokenOfEveryCapacity) {
  for (const int capacity : {16384 * 8, 65536 * 8, 65536 * 32}) {
    const auto layout =
        LayOutExchange({.ranks = 16, .capacity = capacity, .top_k = 1, .hidden_size = 64, .groups_per_rank = 128});
    EXPECT_TRUE(layout.ok()) << layout.status();
  }
}

TEST(ExchangeBlocks, AreAsManyAsEveryRankRunsAtOnce) {
  const struct {
    int capacity, most, blocks;
  } cases[] = {
      {1, 264, 128},   {256, 264, 128},  {257, 264, 256}, {65536, 264, 256},  // H200: 132 multiprocessors
      {256, 228, 128}, {2048, 228, 228},                                      // H100 PCIe: 114
      {256, 156, 128}, {2048, 156, 156},                                      // H20: 78
      {256, 100, 100}, {2048, 100, 100}, {2048, 1, 1},
  };
  for (const auto& c : cases) EXPECT_EQ(ExchangeBlocks(c.capacity, c.most), c.blocks) << c.capacity << " " << c.most;
}

}  // namespace
}  // namespace ballast
