#include "worker/model/bpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>

#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Vocab = absl::flat_hash_map<std::string, int32_t>;
using Merges = std::vector<std::pair<std::string, std::string>>;

std::vector<int32_t> Encode(const Bpe& bpe, std::string_view word) {
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  bpe.Encode(word, scratch, ids);
  return ids;
}

// The definition: the leftmost pair of the lowest rank is merged until there is none.
std::vector<std::string> MergeNaively(std::string_view word, const Merges& merges) {
  std::vector<std::string> parts;
  for (const char c : word) parts.emplace_back(1, c);
  while (true) {
    std::optional<std::pair<size_t, size_t>> best;  // rank, place
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      for (size_t rank = 0; rank < merges.size(); ++rank) {
        if (merges[rank] == std::pair(parts[i], parts[i + 1])) {
          if (!best.has_value() || rank < best->first) best = {rank, i};
          break;
        }
      }
    }
    if (!best.has_value()) return parts;
    parts[best->second] += parts[best->second + 1];
    parts.erase(parts.begin() + best->second + 1);
  }
}

TEST(Bpe, EqualsTheDefinition) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    Vocab vocab;
    std::vector<std::string> tokens = {"a", "b", "c"};
    for (const std::string& token : tokens) vocab.try_emplace(token, vocab.size());
    Merges merges;
    for (int i = 0; i < 12; ++i) {
      const std::string left = tokens[random() % tokens.size()], right = tokens[random() % tokens.size()];
      // A second way to the same token is where the library departs from the definition.
      if (left.size() + right.size() > 8 || vocab.contains(left + right)) continue;
      merges.emplace_back(left, right);
      tokens.push_back(left + right);
      vocab.try_emplace(tokens.back(), vocab.size());
    }
    const auto bpe = Bpe::Create(vocab, merges, {});
    ASSERT_TRUE(bpe.ok()) << bpe.status();
    for (int i = 0; i < 20; ++i) {
      std::string word;
      for (size_t n = random() % 40; n > 0; --n) word.push_back(static_cast<char>('a' + random() % 3));
      std::vector<int32_t> want;
      for (const std::string& part : MergeNaively(word, merges)) want.push_back(vocab.at(part));
      EXPECT_EQ(Encode(*bpe, word), want) << word;
    }
  }
}

TEST(Bpe, UnknownSymbols) {
  const Vocab vocab = {{"a", 0}, {"?", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}};
  const std::string word = "xya\u00E9z";
  EXPECT_THAT(Encode(*Bpe::Create(vocab, {}, {}), word), ElementsAre(0));
  EXPECT_THAT(Encode(*Bpe::Create(vocab, {}, {.unk_token = "?"}), word), ElementsAre(1, 1, 0, 1, 1));
  EXPECT_THAT(Encode(*Bpe::Create(vocab, {}, {.unk_token = "?", .fuse_unk = true}), word), ElementsAre(1, 0, 1));
  EXPECT_THAT(Encode(*Bpe::Create(vocab, {}, {.byte_fallback = true}), word), ElementsAre(0, 2, 3));
  EXPECT_THAT(Encode(*Bpe::Create(vocab, {}, {.byte_fallback = true, .unk_token = "?"}), word),
              ElementsAre(1, 1, 0, 2, 3, 1));
}

TEST(Bpe, ByteLevel) {
  // \u0120 is the space, \u00C3 and \u00A9 are themselves.
  const Vocab vocab = {{"\u0120", 0}, {"a", 1},       {"\u00C3", 2},
                       {"\u00A9", 3}, {"\u0120a", 4}, {"\u0120\u00C3\u00A9", 5}};
  const auto merged = Bpe::Create(vocab, {{"\u0120", "a"}}, {.byte_level = true});
  EXPECT_THAT(Encode(*merged, " a\u00E9!"), ElementsAre(4, 2, 3));
  EXPECT_THAT(Encode(*merged, " \u00E9"), ElementsAre(0, 2, 3));
  const auto whole = Bpe::Create(vocab, {}, {.byte_level = true, .ignore_merges = true});
  EXPECT_THAT(Encode(*whole, " \u00E9"), ElementsAre(5));
  EXPECT_EQ(FromByteAlphabet("\u0120\u00C3\u00A9"), " \u00E9");
  EXPECT_EQ(FromByteAlphabet(" "), std::nullopt);
  EXPECT_EQ(FromByteAlphabet("\u6F22"), std::nullopt);
}

TEST(Bpe, RefusesWhatIsNotInTheVocabulary) {
  const Vocab vocab = {{"a", 0}, {"b", 1}, {"ab", 2}};
  EXPECT_TRUE(Bpe::Create(vocab, {{"a", "b"}}, {}).ok());
  EXPECT_THAT(Bpe::Create(vocab, {{"a", "b"}, {"c", "a"}}, {}).status().message(),
              HasSubstr("model.merges[1]: \"c\" is not in the vocabulary"));
  EXPECT_THAT(Bpe::Create(vocab, {{"b", "a"}}, {}).status().message(), HasSubstr("model.merges[0]: \"ba\""));
  EXPECT_THAT(Bpe::Create(vocab, {}, {.unk_token = "?"}).status().message(), HasSubstr("model.unk_token \"?\""));
}

}  // namespace
}  // namespace ballast
