#include "worker/model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return std::string(std::istreambuf_iterator<char>(in), {});
}

Json Base(const std::string& name) {
  return Json::parse(
      ReadFile(name == "olmoe" ? "testdata/olmoe-9m/tokenizer.json" : "testdata/tokenizer/metaspace.json"));
}

std::unique_ptr<Tokenizer> Make(const Json& json) {
  auto tokenizer = Tokenizer::Parse(json.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->why_ids_only(), "");
  return *std::move(tokenizer);
}

std::string Stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool at_start) {
  StreamDecoder decoder(tokenizer, at_start);
  std::string text;
  for (const int32_t id : ids) text += decoder.Push(id);
  return text + decoder.Finish();
}

// FNV-1a over each text's number of ids and ids, as golden.json has it.
class IdHash {
 public:
  void Add(const std::vector<int32_t>& ids) {
    AddValue(static_cast<uint32_t>(ids.size()));
    for (const int32_t id : ids) AddValue(static_cast<uint32_t>(id));
  }
  std::string hex() const { return absl::StrCat(absl::Hex(hash_, absl::kZeroPad16)); }

 private:
  void AddValue(uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) hash_ = (hash_ ^ (value >> shift & 0xFF)) * 0x100000001B3;
  }
  uint64_t hash_ = 0xCBF29CE484222325;
};

TEST(Tokenizer, GivesHuggingFacesIds) {
  const Json golden = Json::parse(ReadFile("testdata/tokenizer/golden.json"));
  const std::vector<std::string> texts = golden["texts"];
  std::vector<std::string> prompts;
  std::ifstream lines("testdata/prompts.jsonl");
  for (std::string line; std::getline(lines, line);) prompts.push_back(Json::parse(line)["text"]);
  ASSERT_GT(prompts.size(), 100u);
  for (const Json& variant : golden["variants"]) {
    SCOPED_TRACE(variant["name"]);
    Json json = Base(variant["base"]);
    json.merge_patch(variant["patch"]);
    const auto tokenizer = Make(json);
    for (size_t i = 0; i < texts.size(); ++i) {
      const auto ids = tokenizer->Encode(texts[i]);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_EQ(*ids, variant["ids"][i].get<std::vector<int32_t>>()) << Json(texts[i]);
      const std::string decoded = variant["decoded"].value(std::to_string(i), texts[i]);
      EXPECT_EQ(tokenizer->Decode(*ids), decoded) << Json(texts[i]);
    }
    IdHash hash;
    for (const std::string& prompt : prompts) hash.Add(*tokenizer->Encode(prompt));
    EXPECT_EQ(hash.hex(), variant["prompts"].get<std::string>());
  }
}

TEST(Tokenizer, MergesMayBePairs) {
  Json json = Base("olmoe");
  const auto strings = Make(json);
  for (Json& merge : json["model"]["merges"]) {
    const std::string text = merge;
    const size_t space = text.find(' ');
    merge = {text.substr(0, space), text.substr(space + 1)};
  }
  EXPECT_EQ(*Make(json)->Encode("The merges are the same."), *strings->Encode("The merges are the same."));
}

TEST(Tokenizer, SpecialTokensAroundTheText) {
  const auto tokenizer = Make(Base("metaspace"));
  const std::vector<int32_t> with = *tokenizer->Encode("a b");
  EXPECT_EQ(with.front(), 1);
  EXPECT_EQ(*tokenizer->Encode("a b", /*add_special_tokens=*/false),
            std::vector<int32_t>(with.begin() + 1, with.end()));
  EXPECT_THAT(*tokenizer->Encode(""), ElementsAre(1));
}

TEST(Tokenizer, VocabSize) {
  EXPECT_EQ(Make(Base("olmoe"))->vocab_size(), 4096);
  EXPECT_EQ(Make(Base("metaspace"))->vocab_size(), 640);
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const auto tokenizer = Make(Base("olmoe"));
  for (const char* text : {"ab\xFFz", "ab\xC3", "ab\xED\xA0\x80"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(tokenizer->Encode(text).status()));
    EXPECT_EQ(tokenizer->Encode(text).status().message(), "text is not UTF-8 at byte 2");
  }
  EXPECT_EQ(tokenizer->Encode(std::string(Tokenizer::kMaxTextBytes + 1, 'a')).status().message(),
            "text has 16777217 bytes, the limit is 16777216");
}

// Anything worse than O(n log n) would not end.
TEST(Tokenizer, LongWords) {
  constexpr size_t kBytes = 1 << 20;
  std::string words[4];
  words[0] = std::string(kBytes, 'a');
  words[1] = std::string(kBytes, ' ');
  while (words[2].size() < kBytes) words[2] += "the<and=0\u00E9\u6F22";
  while (words[3].size() < kBytes) words[3] += "a\u0315\u0323";
  Json nfc = Base("olmoe");
  nfc["normalizer"] = {{"type", "NFC"}};
  // Without a pre-tokenizer the whole text is one word.
  Json llama = Base("metaspace");
  llama["pre_tokenizer"] = nullptr;
  for (const Json& json : {nfc, llama}) {
    const auto tokenizer = Make(json);
    for (const std::string& word : words) {
      const auto ids = tokenizer->Encode(word);
      ASSERT_TRUE(ids.ok()) << ids.status();
      EXPECT_GT(ids->size(), kBytes / 1000);
      EXPECT_LE(ids->size(), kBytes + 16);
    }
  }
}

TEST(StreamDecoder, GivesWholeCharacters) {
  const auto tokenizer = Make(Base("olmoe"));
  const std::string text = "na\u00EFve \u6F22\u5B57 \U0001F642 end";
  const std::vector<int32_t> ids = *tokenizer->Encode(text);
  StreamDecoder decoder(*tokenizer, /*at_start=*/true);
  std::string all;
  bool held_back = false;
  for (const int32_t id : ids) {
    const std::string piece = decoder.Push(id);
    EXPECT_TRUE(tokenizer->Encode(piece).ok()) << "not UTF-8";
    held_back |= piece.empty();
    all += piece;
  }
  EXPECT_TRUE(held_back);
  EXPECT_EQ(decoder.Finish(), "");
  EXPECT_EQ(all, text);
}

TEST(StreamDecoder, IncompleteAndMalformedSequences) {
  const auto tokenizer = Make(Base("olmoe"));
  // The four bytes of U+1F642, of which each is a token or part of one.
  std::vector<int32_t> ids = *tokenizer->Encode("\U0001F642");
  ASSERT_GT(ids.size(), 1u);
  ids.pop_back();
  EXPECT_EQ(tokenizer->Decode(ids), "\uFFFD");
  ids.insert(ids.end(), {*tokenizer->Encode("a")->begin()});
  EXPECT_EQ(tokenizer->Decode(ids), "\uFFFDa");
}

TEST(StreamDecoder, SkipsSpecialTokensAndUnknownIds) {
  const auto tokenizer = Make(Base("olmoe"));
  std::vector<int32_t> ids = *tokenizer->Encode("<bos>a<eos>");
  EXPECT_EQ(ids.front(), 1);
  ids.insert(ids.begin(), {-1, 4096, 1 << 30, INT32_MIN, INT32_MAX});
  EXPECT_EQ(tokenizer->Decode(ids), "a");
}

TEST(StreamDecoder, LeadingSpaceOnlyAtTheStart) {
  const auto tokenizer = Make(Base("metaspace"));
  const std::vector<int32_t> ids = *tokenizer->Encode("the end", /*add_special_tokens=*/false);
  EXPECT_EQ(Stream(*tokenizer, ids, /*at_start=*/true), "the end");
  EXPECT_EQ(Stream(*tokenizer, ids, /*at_start=*/false), " the end");
}

// A byte-level tokenizer of two letters.
Json Small() {
  return Json::parse(R"({"version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                      "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
              "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": {"a": 0, "b": 1, "ab": 2},
              "merges": ["a b"]}})");
}

TEST(Tokenizer, Small) { EXPECT_THAT(*Make(Small())->Encode("<s>aab"), ElementsAre(3, 3, 0, 2)); }

struct Patch {
  const char* pointer;
  const char* value;
  const char* message;
};

Json Patched(const Patch& patch) {
  Json json = Small();
  json[Json::json_pointer(patch.pointer)] = Json::parse(patch.value);
  return json;
}

TEST(Tokenizer, UnknownFeaturesLeaveIdsOnly) {
  const Patch kCases[] = {
      {"/model/type", "\"Unigram\"", "model.type \"Unigram\" is not supported"},
      {"/model", "{\"type\":\"WordPiece\"}", "model.type \"WordPiece\" is not supported"},
      {"/model/dropout", "0.1", "model.dropout 0.1"},
      {"/model/continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix \"##\""},
      {"/model/end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix"},
      {"/model/byte_fallback", "true", "model.byte_fallback with pre_tokenizer ByteLevel"},
      {"/truncation", "{\"max_length\":512}", "truncation is not supported"},
      {"/padding", "{\"strategy\":\"BatchLongest\"}", "padding is not supported"},
      {"/normalizer", "{\"type\":\"Lowercase\"}", "normalizer.type \"Lowercase\""},
      {"/normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"NFKC\"}]}",
       "normalizer.normalizers[1].type \"NFKC\""},
      {"/normalizer", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}",
       "normalizer.pattern other than a String"},
      {"/normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"\"}", "Replace with 0 bytes"},
      {"/normalizer", "{\"type\":\"Prepend\",\"prepend\":\"12345678901234567\"}", "normalizer.prepend of 17 bytes"},
      {"/pre_tokenizer", "{\"type\":\"Whitespace\"}", "pre_tokenizer.type \"Whitespace\""},
      {"/pre_tokenizer",
       "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x+\"},\"behavior\":\"Isolated\",\"invert\":false}",
       "pre_tokenizer.pattern.Regex \"x+\""},
      {"/pre_tokenizer",
       "{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"Isolated\",\"invert\":false}",
       "pre_tokenizer.pattern other than a Regex"},
      {"/pre_tokenizer", "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"x\"},\"behavior\":\"Removed\",\"invert\":true}",
       "pre_tokenizer.behavior \"Removed\" inverted"},
      {"/pre_tokenizer", "null", "ByteLevel in only one of pre_tokenizer and decoder"},
      {"/pre_tokenizer",
       "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\",\"add_prefix_space\":false},{\"type\":"
       "\"Digits\"}]}",
       "pre_tokenizer.pretokenizers[1].type \"Digits\" after ByteLevel or Metaspace"},
      {"/decoder", "null", "decoder null"},
      {"/decoder", "{\"type\":\"WordPiece\"}", "decoder.type \"WordPiece\""},
      {"/decoder", "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]}",
       "decoder.decoders[1].type \"ByteFallback\" at this place"},
      {"/decoder",
       "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}",
       "decoder.decoders[0].type \"Strip\" at this place"},
      {"/post_processor", "{\"type\":\"RobertaProcessing\"}", "post_processor.type \"RobertaProcessing\""},
      {"/post_processor/single", "[]", "post_processor.single without a sequence"},
      {"/post_processor/single", "[{\"Sequence\":{\"id\":\"B\"}}]", "post_processor.single[0].Sequence.id \"B\""},
      {"/added_tokens/0/single_word", "true", "added_tokens[0].single_word"},
      {"/added_tokens/0/id", "5", "added token \"<s>\" with id 5, where Hugging Face's library would give it 3"},
      {"/added_tokens/0/content", "\"a\"", "added token \"a\" with id 3, where Hugging Face's library would give it 0"},
      {"/added_tokens/1", "{\"id\":4,\"content\":\" x\",\"rstrip\":true}",
       "added token \" x\" beside tokens with rstrip"},
  };
  for (const Patch& c : kCases) {
    const auto tokenizer = Tokenizer::Parse(Patched(c).dump());
    ASSERT_TRUE(tokenizer.ok()) << c.pointer << " " << c.value << " " << tokenizer.status();
    EXPECT_FALSE((*tokenizer)->handles_text()) << c.pointer << " " << c.value;
    EXPECT_THAT((*tokenizer)->why_ids_only(), HasSubstr(c.message));
    EXPECT_EQ((*tokenizer)->vocab_size(), 0);
    EXPECT_TRUE(absl::IsFailedPrecondition((*tokenizer)->Encode("a").status()));
    EXPECT_THAT((*tokenizer)->Encode("a").status().message(), HasSubstr(c.message));
    EXPECT_EQ((*tokenizer)->Decode(std::vector<int32_t>{0, 1}), "");
  }
}

TEST(Tokenizer, BrokenFilesAreErrors) {
  const Patch kCases[] = {
      {"/model", "null", "model is missing"},
      {"/model", "[]", "model is an array of 0, want an object"},
      {"/model/type", "3", "model.type is 3, want a string"},
      {"/model/vocab", "null", "model.vocab is missing"},
      {"/model/vocab/a", "-1", "model.vocab[\"a\"] is -1, want an integer from 0 to 4194303"},
      {"/model/vocab/a", "99999999999", "model.vocab[\"a\"] is 99999999999"},
      {"/model/vocab/a", "\"0\"", "model.vocab[\"a\"] is \"0\""},
      {"/model/vocab/b", "0", "is 0, as another token is"},
      {"/model/merges", "{}", "model.merges is missing or not an array"},
      {"/model/merges/0", "\"ab\"", "model.merges[0] is \"ab\", want two tokens"},
      {"/model/merges/0", "\"a b c\"", "model.merges[0] is \"a b c\", want two tokens"},
      {"/model/merges/0", "[\"a\",\"b\",\"c\"]", "model.merges[0] is an array of 3"},
      {"/model/merges/0", "[\"a\",1]", "model.merges[0] is an array of 2"},
      {"/model/merges/0", "\"a x\"", "model.merges[0]: \"x\" is not in the vocabulary"},
      {"/model/merges/0", "\"b a\"", "model.merges[0]: \"ba\" is not in the vocabulary"},
      {"/model/unk_token", "\"<unk>\"", "model.unk_token \"<unk>\" is not in the vocabulary"},
      {"/model/fuse_unk", "1", "model.fuse_unk is 1, want true or false"},
      {"/added_tokens", "{}", "added_tokens is an object, want an array"},
      {"/added_tokens/0", "3", "added_tokens[0] is 3, want an object"},
      {"/added_tokens/0/id", "null", "added_tokens[0].id is missing"},
      {"/added_tokens/0/content", "\"\"", "added_tokens[0].content has 0 bytes, want 1 to 256"},
      {"/added_tokens/1", "{\"id\":4,\"content\":\"<s>\"}", "added_tokens[1].content \"<s>\" is there twice"},
      {"/normalizer", "3", "normalizer is 3, want an object"},
      {"/normalizer", "{}", "normalizer.type is missing"},
      {"/normalizer", "{\"type\":\"Sequence\"}", "normalizer.normalizers is missing or not an array"},
      {"/pre_tokenizer/add_prefix_space", "\"no\"", "pre_tokenizer.add_prefix_space is \"no\""},
      {"/pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}",
       "pre_tokenizer.replacement is \"ab\", want one character"},
      {"/pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}",
       "pre_tokenizer.prepend_scheme is \"last\", want always, first or never"},
      {"/post_processor/special_tokens", "{}", "post_processor.special_tokens has no ids of \"<s>\""},
      {"/post_processor/special_tokens/<s>/ids", "[-1]", "post_processor.special_tokens.ids is -1"},
  };
  for (const Patch& c : kCases) {
    const auto tokenizer = Tokenizer::Parse(Patched(c).dump());
    ASSERT_FALSE(tokenizer.ok()) << c.pointer << " " << c.value;
    EXPECT_TRUE(absl::IsInvalidArgument(tokenizer.status())) << tokenizer.status();
    EXPECT_THAT(tokenizer.status().message(), HasSubstr(c.message));
  }
  for (const char* text : {"", "{", "[]", "\xFF"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Tokenizer::Parse(text).status())) << text;
  }
}

TEST(Tokenizer, LoadsAFolder) {
  const auto tokenizer = Tokenizer::Load("testdata/olmoe-9m");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->handles_text());
  const auto missing = Tokenizer::Load(testing::TempDir());
  ASSERT_TRUE(missing.ok()) << missing.status();
  EXPECT_THAT((*missing)->why_ids_only(), HasSubstr("tokenizer.json is not there"));
  std::ofstream(testing::TempDir() + "/tokenizer.json") << "{";
  EXPECT_THAT(Tokenizer::Load(testing::TempDir()).status().message(), HasSubstr("/tokenizer.json: not JSON"));
}

}  // namespace
}  // namespace ballast
