#include "controller/formats/torch_file.h"

#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "controller/formats/load_file.h"
#include "controller/formats/stored_zip.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string TestFile(const std::string& name) {
  std::ifstream in("controller/formats/testdata/" + name, std::ios::binary);
  EXPECT_TRUE(in) << name;
  std::ostringstream bytes;
  bytes << in.rdbuf();
  return bytes.str();
}

TEST(ParseLoad, ReadsWhatTheRecorderDumps) {
  const std::vector<double> both = {0, 0, 0, 0, 11, 22, 33, 44, 55, 66, 77, 88};
  for (const char* name : {"stat.pt", "stat.torch113.pt", "stat_int64.pt", "stat_float32.pt", "stat_float64.pt",
                           "stat_protocol4.pt", "stat_strided.pt"}) {
    const auto file = ParseLoad(TestFile(name), name);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->format, "sglang");
    EXPECT_EQ(file->parts[0].name, name);
    EXPECT_EQ(file->parts[0].load.layers, 3);
    EXPECT_EQ(file->parts[0].load.tokens, both) << name;
    EXPECT_THAT(file->parts[0].burstiness, testing::IsEmpty()) << name << ": two steps";
  }
  EXPECT_THAT(ParseLoad(TestFile("ordered.pt"), "f")->parts[0].load.tokens,
              ElementsAre(0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8));
}

TEST(ParseLoad, CountsRecordsByTheExpertOfTheirSlot) {
  const auto passes = ParseLoad(TestFile("per_pass.pt"), "f");
  ASSERT_TRUE(passes.ok()) << passes.status();
  EXPECT_EQ(passes->format, "sglang-records");
  // Twice 6..11 on slots of 0 1 2 3 3 2, and 12..17 on slots of 3 2 1 0 1 0.
  EXPECT_THAT(passes->parts[0].load.tokens, ElementsAre(0, 0, 0, 0, 12, 14, 38, 38, 64, 60, 26, 24));

  const auto tokens = ParseLoad(TestFile("per_token.pt"), "f");
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->routes.top_k, 2);
  EXPECT_THAT(tokens->routes.experts,
              ElementsAre(ElementsAre(), ElementsAre(0, 1, 2, 3, 2, 0, 3, 1), ElementsAre(3, 2, 1, 0, 1, 3, 0, 1)));
  // Two requests in the prefill, then a decode step whose second token is padding.
  EXPECT_THAT(tokens->routes.samples[1], ElementsAre(0, 0, 1, 2));
  EXPECT_THAT(tokens->routes.tokens[1], ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(tokens->parts[0].load.tokens, ElementsAre(0, 0, 0, 0, 2, 2, 2, 2, 2, 3, 1, 2));
}

TEST(ParseLoad, RefusesOtherTorchFiles) {
  const struct {
    const char* file;
    const char* message;
  } cases[] = {
      {"refused_half.pt", "wants to use \"torch HalfStorage\"; allowed are collections OrderedDict"},
      {"refused_module.pt", "wants to use \"torch._utils _rebuild_parameter\""},
      {"refused_command.pt", "wants to use \"posix system\""},
      {"refused_placement.pt", "this is a placement, not a load"},
      {"refused_nan.pt", "logical_count step 0 row 0 expert 1: nan; must be 0 to 1e18"},
      {"refused_negative.pt", "logical_count step 0 row 1 expert 1: -4; must be 0 to 1e18"},
      {"refused_shape.pt", "logical_count: is a tensor [2], want a tensor of 2 or 3 dimensions"},
      {"refused_legacy.pt", "a pickle outside of an archive"},
  };
  for (const auto& c : cases) {
    const std::string message(ParseLoad(TestFile(c.file), c.file).status().message());
    EXPECT_THAT(message, HasSubstr(c.message));
    EXPECT_THAT(message, HasSubstr(absl::StrCat(c.file, ": ")));
  }
}

TEST(ParseLoad, CutOrChangedArchivesAreNoLoads) {
  const std::string good = TestFile("stat.pt");
  const auto want = ParseLoad(good, "f")->parts[0].load;
  for (size_t size = 1; size < good.size(); ++size) EXPECT_FALSE(ParseLoad(good.substr(0, size), "f").ok()) << size;
  for (size_t i = 0; i < good.size(); ++i) {
    std::string spoilt = good;
    spoilt[i] ^= 0x10;
    // What the checksums do not cover (padding, dates, flags that mean nothing here) changes nothing.
    const auto load = ParseLoad(spoilt, "f");
    EXPECT_TRUE(!load.ok() || load->parts[0].load == want) << i;
  }
}

TEST(ReadStoredZip, NamesWhatIsWrong) {
  const std::string good = TestFile("stat.pt");
  const size_t central = good.find("PK\x01\x02");
  ASSERT_NE(central, std::string::npos);
  const struct {
    size_t at;
    char value;
    const char* message;
  } cases[] = {
      {central + 8, 1, "entry \"stat/data.pkl\" is encrypted"},
      {central + 10, 8, "is compressed (method 8); torch.save only stores"},
      {central + 16, 'x', "is damaged: its checksum differs"},
      {central, 'x', "no entry at byte 0 of its directory"},
      {good.size() - 1, 'x', "it has no end record"},
      {good.find("data.pkl"), 'x', "has another name in its own header"},
  };
  for (const auto& c : cases) {
    std::string spoilt = good;
    spoilt[c.at] = c.value;
    EXPECT_THAT(ReadStoredZip(spoilt).status().ToString(), HasSubstr(c.message));
  }
  EXPECT_THAT(ReadStoredZip("PK\x03\x04").status().ToString(), HasSubstr("is cut"));
  // Two entries at one place: the first's offset in the second's record.
  std::string twice = good;
  const size_t second = good.find("PK\x01\x02", central + 4);
  twice.replace(second + 42, 4, good, central + 42, 4);
  EXPECT_FALSE(ReadStoredZip(twice).ok());
}

// A pickle of protocol 2 with `body`, beside a storage of 16 bytes.
absl::StatusOr<TorchFile> Unpickle(const std::string& body) {
  static const std::string* const storage = new std::string("\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0", 16);
  static std::string pickle;
  pickle = "\x80\x02" + body;
  return TorchFile::FromEntries({{"a/data.pkl", pickle}, {"a/data/0", *storage}});
}

std::string Storage(const std::string& type = "IntStorage", const std::string& key = "0", char elements = 4) {
  return absl::StrCat("(X\x07", std::string(3, '\0'), "storagectorch\n", type, "\nX\x01", std::string(3, '\0'), key,
                      "X\x06", std::string(3, '\0'), "cuda:0K", std::string(1, elements), "tQ");
}
std::string Tensor(const std::string& offset, const std::string& size, const std::string& stride) {
  return absl::StrCat("ctorch._utils\n_rebuild_tensor_v2\n(", Storage(), offset, size, stride,
                      "\x89"
                      "ccollections\nOrderedDict\n)RtR.");
}

TEST(TorchFile, ReadsTensorsOfAnyDevice) {
  const auto file = Unpickle(Tensor(std::string("K\0", 2), "K\x02K\x02\x86", "K\x01K\x02\x86"));
  ASSERT_TRUE(file.ok()) << file.status();
  const TorchTensor& tensor = file->root().tensor;
  EXPECT_THAT(tensor.shape, ElementsAre(2, 2));
  EXPECT_THAT((std::vector<double>{tensor.at(0), tensor.at(1), tensor.at(2), tensor.at(3)}), ElementsAre(1, 3, 2, 4));
}

TEST(TorchFile, ReadsPlainValues) {
  const auto file =
      Unpickle(std::string("]q\0(K\7M\0\1J\xff\xff\xff\xff\x8a\2\0\x80N\x88G\x3f\xf8\0\0\0\0\0\0h\0e.", 36));
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::string> items;
  for (const int32_t item : file->root().items) items.push_back(Describe(file->value(item)));
  EXPECT_THAT(items,
              ElementsAre("int 7", "int 256", "int -1", "int -32768", "None", "True", "float 1.5", "a list of 8"));
}

TEST(TorchFile, EqualIntsAreOneValue) {
  // As a recorder lists what tokens are and where they stand: in batches of 1000, between marks.
  std::string body = "]";
  for (int batch = 0; batch < 3000; ++batch) {
    body += "(";
    for (int i = 0; i < 1000; ++i) body += {'M', static_cast<char>(i), static_cast<char>(i / 256 + batch % 8 * 4)};
    body += "e";
  }
  const auto file = Unpickle(body + ".");
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->root().items.size(), 3'000'000u);
  EXPECT_EQ(file->value(file->root().items[1'001'255]).integer, 255 + 256 * 4);
  EXPECT_LT(file->size(), 12'000);
  std::string distinct = "(";
  for (uint32_t i = 0; i <= kMaxTorchValues; ++i) {
    distinct += 'J';
    for (int byte = 0; byte < 4; ++byte) distinct += static_cast<char>(i >> 8 * byte);
  }
  EXPECT_THAT(Unpickle(distinct + "t.").status().ToString(), HasSubstr("more than 1000000 values"));
}

TEST(TorchFile, NamesWhatIsWrong) {
  const std::string zero("K\0", 2);
  const struct {
    std::string pickle;
    const char* message;
  } cases[] = {
      {"", "data.pkl byte 2: the pickle is cut"},
      {".", "STOP with 0 values, not one"},
      {"NN.", "STOP with 2 values, not one"},
      {std::string(kMaxTorchValues + 1, 'N') + ".", "more than 1000000 values"},
      {"\x80\x07N.", "pickle protocol 7, want 2 to 5"},
      {"cos\nsystem\n.", "data.pkl byte 2: wants to use \"os system\""},
      {"N}b.", "instruction 0x62 is not allowed"},
      {"I1\n.", "instruction 0x49 is not allowed"},
      {"h\x05.", "memo 5 was never filled"},
      {"q", "the pickle is cut"},
      {std::string("q\0", 2), "a value is missing on the stack"},
      {"t.", "a mark is missing on the stack"},
      {"}NNs.", "a dict's key is None, want a str"},
      {std::string("}(X\1\0\0\0aNX\1\0\0\0aNu.", 19), "the key \"a\" twice"},
      {"NNa.", "items for a list, and there is none"},
      {"N)R.", "calls None"},
      {"NQ.", "a persistent id that is not ('storage'"},
      {Storage("IntStorage", "7") + ".", "there is no entry \"a/data/7\""},
      {Storage("LongStorage") + ".", "entry \"a/data/0\" has 16 bytes, want 4 elements of 8"},
      {Storage("IntStorage", "0", 5) + ".", "want 5 elements of 4"},
      {Tensor("K\x01", "K\x04\x85", "K\x01\x85"), "a tensor [4] from element 1 is not in its storage of 4 elements"},
      {Tensor(zero, "K\x05\x85", zero + "\x85"), "is not in its storage of 4 elements"},
      {Tensor(zero, "K\x02\x85", "K\x04\x85"), "is not in its storage of 4 elements"},
      {Tensor(zero, "K\x02\x85", ")"), "a tensor of 1 sizes and 0 strides"},
      {Tensor("J\xff\xff\xff\xff", "K\x01\x85", "K\x01\x85"), "a tensor's offset is int -1"},
      {Tensor(zero, "J\xff\xff\xff\xff\x85", "K\x01\x85"), "a tensor's size has int -1"},
      {Tensor(zero, "N", "N"), "a tensor's size is None, want a tuple of at most 8 ints"},
  };
  for (const auto& c : cases) {
    EXPECT_THAT(Unpickle(c.pickle).status().ToString(), HasSubstr(c.message)) << c.message;
  }
  const std::string none = "\x80\x02N.";
  EXPECT_THAT(TorchFile::FromEntries({}).status().ToString(), HasSubstr("no data.pkl"));
  EXPECT_THAT(TorchFile::FromEntries({{"a/data.pkl", none}, {"b/data.pkl", none}}).status().ToString(),
              HasSubstr("two data.pkl"));
  EXPECT_THAT(TorchFile::FromEntries({{"a/data.pkl", none}, {"a/byteorder", "big"}}).status().ToString(),
              HasSubstr("byteorder \"big\", want \"little\""));
}

}  // namespace
}  // namespace ballast
