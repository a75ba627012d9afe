#include "worker/moe/wire.h"

#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr int kHidden = 5;
// To rank 0 of three, without counts.
constexpr DispatchPreamble kPreamble{.destinations = 3};
constexpr WireContext kContext{.view = 3,
                               .step = 9,
                               .epoch = 2,
                               .layer = 1,
                               .ranks = 3,
                               .rank = 0,
                               .hidden_size = kHidden,
                               .num_experts = 8,
                               .top_k = 2,
                               .capacity = 4};

// Bytes at a 64-byte boundary that end where they end, so that asan sees a read past them.
class Message {
 public:
  explicit Message(size_t bytes)
      : data_(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(64)))), size_(bytes) {
    std::memset(data_.get(), 0, bytes);
  }
  std::span<std::byte> bytes() { return {data_.get(), size_}; }
  template <typename T>
  void Put(size_t at, const T& value) {
    std::memcpy(data_.get() + at, &value, sizeof(value));
  }

 private:
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<std::byte, Delete> data_;
  size_t size_;
};

struct Dispatch {
  DispatchHeader header{.header = {.kind = MessageKind::kDispatch, .view = 3, .step = 9},
                        .epoch = 2,
                        .layer = 1,
                        .tokens = 2,
                        .pairs = 3,
                        .flags = kDispatchMoreWork};
  uint32_t destination_pairs[3] = {3, 1, 0};
  WirePair pairs[3] = {{0, 2, 0.5}, {0, 7, 0.25}, {1, 0, 1}};

  Message Make() const {
    Message message(DispatchBytes(kPreamble, 2, 3, kHidden));
    message.Put(0, header);
    message.Put(sizeof(header), destination_pairs);
    message.Put(DispatchPairsOffset(kPreamble), pairs);
    for (int i = 0; i < 2 * kHidden; ++i) message.Put(DispatchRowsOffset(kPreamble, 3) + 4 * i, static_cast<float>(i));
    return message;
  }
};

std::string Refusal(const Dispatch& dispatch) {
  Message message = dispatch.Make();
  const auto parsed = ParseDispatch(kContext, 2, message.bytes());
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("message of rank 2: "));
  return std::string(parsed.status().message());
}

TEST(Wire, DispatchRoundTrip) {
  Message message = Dispatch().Make();
  const auto parsed = ParseDispatch(kContext, 2, message.bytes());
  ASSERT_EQ(parsed.status(), absl::OkStatus());
  EXPECT_EQ(parsed->flags, kDispatchMoreWork);
  EXPECT_EQ(parsed->tokens, 2u);
  ASSERT_EQ(parsed->destination_pairs.size(), 3u);
  EXPECT_EQ(parsed->destination_pairs[1], 1u);
  ASSERT_EQ(parsed->pairs.size(), 3u);
  EXPECT_EQ(parsed->pairs[1].expert, 7u);
  EXPECT_EQ(parsed->rows[2 * kHidden - 1], 2 * kHidden - 1);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(parsed->rows) % 64, 0u);
}

TEST(Wire, Dispatch_EveryFieldIsChecked) {
  Dispatch d;
  d.header.header.magic = 1;
  EXPECT_THAT(Refusal(d), HasSubstr("magic is 1"));
  d = {};
  d.header.header.version = 1;
  EXPECT_THAT(Refusal(d), HasSubstr("version is 1, not 3"));
  d = {};
  d.header.header.kind = MessageKind::kCombine;
  EXPECT_THAT(Refusal(d), HasSubstr("kind is 4, not 3"));
  d = {};
  d.header.header.view = 4;
  EXPECT_THAT(Refusal(d), HasSubstr("view is 4, not 3"));
  d = {};
  d.header.header.step = 8;
  EXPECT_THAT(Refusal(d), HasSubstr("step is 8, not 9"));
  d = {};
  d.header.epoch = 1;
  EXPECT_THAT(Refusal(d), HasSubstr("epoch is 1, not 2"));
  d = {};
  d.header.layer = 0;
  EXPECT_THAT(Refusal(d), HasSubstr("layer is 0, not 1"));
  d = {};
  d.header.tokens = 5;
  EXPECT_THAT(Refusal(d), HasSubstr("tokens is 5, more than 4"));
  d = {};
  d.header.pairs = 5;
  EXPECT_THAT(Refusal(d), HasSubstr("pairs is 5, more than 4"));
  d = {};
  d.header.tokens = 3;
  EXPECT_THAT(Refusal(d), HasSubstr("length is"));
  d = {};
  d.destination_pairs[0] = 2;
  EXPECT_THAT(Refusal(d), HasSubstr("destination_pairs[0] is 2, not 3"));
  d = {};
  d.pairs[1].expert = 8;
  EXPECT_THAT(Refusal(d), HasSubstr("expert is 8, not below 8"));
  d = {};
  d.pairs[1].expert = 2;
  EXPECT_THAT(Refusal(d), HasSubstr("expert is 2, not above 2"));
  d = {};
  d.pairs[2].token = 2;
  EXPECT_THAT(Refusal(d), HasSubstr("token is 2, which should be at most 1"));
  d = {};
  d.pairs[0].token = 0xffffffff;
  EXPECT_THAT(Refusal(d), HasSubstr("token is 4294967295"));
  d = {};
  d.pairs[2] = {.token = 0, .expert = 7 + 1};
  EXPECT_THAT(Refusal(d), HasSubstr("expert is 8"));
  d = {};
  d.pairs[0].expert = 1;
  d.pairs[1].expert = 2;
  d.pairs[2] = {.token = 0, .expert = 3};
  EXPECT_THAT(Refusal(d), HasSubstr("tokens is 2, but its pairs are of 1"));
  d = {};
  d.pairs[0].weight = std::numeric_limits<float>::infinity();
  EXPECT_THAT(Refusal(d), HasSubstr("weight"));
}

TEST(Wire, EveryLengthButTheRightOneIsRefused) {
  Message whole = Dispatch().Make();
  for (size_t bytes = 0; bytes < whole.bytes().size(); ++bytes) {
    Message cut(bytes);
    std::memcpy(cut.bytes().data(), whole.bytes().data(), bytes);
    EXPECT_EQ(ParseDispatch(kContext, 2, cut.bytes()).status().code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
}

// Whatever the bytes, an answer; asan and ubsan watch.
TEST(Wire, MangledMessages_AreAnErrorOrSound) {
  std::mt19937 random(1);
  int sound = 0;
  for (int round = 0; round < 20000; ++round) {
    Message message = Dispatch().Make();
    for (int flips = 0; flips < 3; ++flips) {
      message.bytes()[random() % DispatchRowsOffset(kPreamble, 3)] = static_cast<std::byte>(random());
    }
    const auto parsed = ParseDispatch(kContext, 2, message.bytes());
    if (!parsed.ok()) continue;
    ++sound;
    float sum = 0;
    for (const WirePair& pair : parsed->pairs) sum += parsed->rows[pair.token * kHidden + kHidden - 1];
    EXPECT_GE(sum, 0);
  }
  EXPECT_GT(sound, 0);
}

TEST(Wire, Dispatch_CarriesCounts) {
  WireContext context = kContext;
  context.counts = true;
  const DispatchPreamble preamble{.destinations = 3, .counts = 8};
  const Dispatch d;
  Message message(DispatchBytes(preamble, 2, 3, kHidden));
  message.Put(0, d.header);
  message.Put(sizeof(d.header), d.destination_pairs);
  const int32_t counts[8] = {1, 0, 4, 0, 0, 0, 0, 3};
  message.Put(DispatchCountsOffset(preamble), counts);
  message.Put(DispatchPairsOffset(preamble), d.pairs);
  const auto parsed = ParseDispatch(context, 2, message.bytes());
  ASSERT_EQ(parsed.status(), absl::OkStatus());
  EXPECT_THAT(parsed->counts, ElementsAreArray(counts));
  EXPECT_EQ(parsed->pairs[1].expert, 7u);
  // Who expects none, or the others do not send any, refuses.
  EXPECT_THAT(std::string(ParseDispatch(kContext, 2, message.bytes()).status().message()), HasSubstr("length is"));
  Message without = d.Make();
  EXPECT_THAT(std::string(ParseDispatch(context, 2, without.bytes()).status().message()), HasSubstr("length is"));
  message.Put(DispatchCountsOffset(preamble) + 4, 5);
  EXPECT_THAT(std::string(ParseDispatch(context, 2, message.bytes()).status().message()),
              HasSubstr("count is 5, more than 4"));
  message.Put(DispatchCountsOffset(preamble) + 4, 1);
  EXPECT_THAT(std::string(ParseDispatch(context, 2, message.bytes()).status().message()),
              HasSubstr("sum of counts is 9, more than 8"));
}

TEST(Wire, Counts_EveryFieldIsChecked) {
  const CountsHeader good{
      .header = {.kind = MessageKind::kCounts, .view = 3, .step = 9}, .epoch = 2, .layer = 1, .experts = 8};
  const auto parse = [](const CountsHeader& header, std::vector<int32_t> counts, size_t bytes = CountsBytes(8)) {
    Message message(bytes);
    message.Put(0, header);
    for (size_t i = 0; i < counts.size(); ++i) message.Put(sizeof(header) + 4 * i, counts[i]);
    const auto parsed = ParseCounts(kContext, 2, message.bytes());
    return parsed.ok() ? std::to_string((*parsed)[7]) : std::string(parsed.status().message());
  };
  EXPECT_EQ(parse(good, {4, 0, 0, 0, 0, 0, 0, 4}), "4");
  EXPECT_THAT(parse(good, {-1}), HasSubstr("count is 4294967295, more than 4"));
  EXPECT_THAT(parse(good, {4, 4, 1}), HasSubstr("sum of counts is 9, more than 8"));
  EXPECT_THAT(parse(good, {}, CountsBytes(9)), HasSubstr("length is 76, not 72"));
  CountsHeader h = good;
  h.header.kind = MessageKind::kDispatch;
  EXPECT_THAT(parse(h, {}), HasSubstr("kind is 3, not 5"));
  h = good;
  h.header.view = 2;
  EXPECT_THAT(parse(h, {}), HasSubstr("view is 2, not 3"));
  h = good;
  h.header.step = 8;
  EXPECT_THAT(parse(h, {}), HasSubstr("step is 8, not 9"));
  h = good;
  h.layer = 2;
  EXPECT_THAT(parse(h, {}), HasSubstr("layer is 2, not 1"));
  h = good;
  h.epoch = 3;
  EXPECT_THAT(parse(h, {}), HasSubstr("epoch is 3, not 2"));
  h = good;
  h.experts = 7;
  EXPECT_THAT(parse(h, {}), HasSubstr("experts is 7, not 8"));
  Message empty(8);
  EXPECT_FALSE(ParseCounts(kContext, 2, empty.bytes()).ok());
}

TEST(Wire, AnnouncedShares_AreKeptApart) {
  constexpr LayerShares kAll[] = {{ShareForm::kFixed, false},
                                  {ShareForm::kPrevious, true},
                                  {ShareForm::kCurrent, false},
                                  {ShareForm::kFixed, true}};
  Announcement announcement{.header = {.kind = MessageKind::kAnnounce}};
  for (int layer = 0; layer < kMaxWireLayers; ++layer) SetAnnouncedShares(layer, kAll[layer * 7 % 4], announcement);
  SetAnnouncedShares(5, {}, announcement);
  const auto parsed = ParseAnnouncement(std::as_bytes(std::span(&announcement, 1)));
  ASSERT_EQ(parsed.status(), absl::OkStatus());
  for (int layer = 0; layer < kMaxWireLayers; ++layer) {
    EXPECT_EQ(AnnouncedShares(*parsed, layer), layer == 5 ? LayerShares() : kAll[layer * 7 % 4]) << "layer " << layer;
  }
}

TEST(Wire, Combine) {
  Message message(CombineBytes(2, kHidden));
  message.Put(0, CombineHeader{.header = {.kind = MessageKind::kCombine, .view = 3, .step = 9}, .layer = 1, .rows = 2});
  message.Put(64, 1.5f);
  const auto rows = ParseCombine(kContext, 1, 2, message.bytes());
  ASSERT_EQ(rows.status(), absl::OkStatus());
  EXPECT_EQ((*rows)[0], 1.5f);
  EXPECT_THAT(std::string(ParseCombine(kContext, 1, 3, message.bytes()).status().message()),
              HasSubstr("rows is 2, not 3"));
  EXPECT_FALSE(ParseCombine(kContext, 1, 2, message.bytes().first(message.bytes().size() - 4)).ok());
  EXPECT_FALSE(ParseCombine(kContext, 1, 2, message.bytes().first(63)).ok());
}

TEST(Wire, AnnouncementAndWork) {
  Announcement announcement{
      .header = {.kind = MessageKind::kAnnounce, .view = 1, .step = 2}, .epoch = 3, .capacity = 4};
  const auto bytes = std::as_bytes(std::span(&announcement, 1));
  EXPECT_EQ(ParseAnnouncement(bytes)->epoch, 3u);
  EXPECT_FALSE(ParseAnnouncement(bytes.first(bytes.size() - 1)).ok());
  EXPECT_FALSE(ParseWorkRequest(1, bytes).ok());
  EXPECT_EQ(*PeekView(bytes), 1u);
  EXPECT_FALSE(PeekView(bytes.first(10)).ok());
  WorkRequest work{.header = {.kind = MessageKind::kWork, .view = 1, .step = 2}};
  EXPECT_EQ(ParseWorkRequest(1, std::as_bytes(std::span(&work, 1)))->header.step, 2u);
  announcement.header.magic = 0;
  EXPECT_FALSE(PeekView(bytes).ok());
}

TEST(Wire, TagsTellStepsLayersAndKindsApart) {
  std::set<Tag> tags;
  for (const MessageKind kind : {MessageKind::kAnnounce, MessageKind::kWork, MessageKind::kDispatch,
                                 MessageKind::kCombine, MessageKind::kCounts}) {
    for (const int layer : {0, 1, kMaxWireLayers - 1}) {
      for (const uint64_t step : {uint64_t{0}, uint64_t{1}, uint64_t{0x7fffffff}}) {
        const Tag tag = MakeTag(kind, step, layer);
        EXPECT_LE(tag, kMaxTag);
        EXPECT_TRUE(tags.insert(tag).second);
      }
    }
  }
}

}  // namespace
}  // namespace ballast
