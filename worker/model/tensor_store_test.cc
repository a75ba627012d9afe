#include "worker/model/tensor_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

// A folder of its own for each test.
class TensorStoreTest : public testing::Test {
 protected:
  TensorStoreTest()
      : dir_(std::filesystem::path(testing::TempDir()) /
             testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  void Write(const std::string& name, const std::string& bytes) {
    std::ofstream(dir_ / name, std::ios::binary) << bytes;
  }
  // A shard with a U8 tensor of one byte for each name.
  void WriteShard(const std::string& file, const std::vector<std::string>& names) {
    std::string header = "{";
    for (size_t i = 0; i < names.size(); ++i) {
      absl::StrAppend(&header, i == 0 ? "" : ",", "\"", names[i],
                      "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[", i, ",", i + 1, "]}");
    }
    header += "}";
    const uint64_t length = header.size();
    Write(file, std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(names.size(), 'd'));
  }
  void WriteIndex(const std::string& weight_map) {
    Write("model.safetensors.index.json",
          absl::StrCat("{\"metadata\":{\"total_size\":3},\"weight_map\":", weight_map, "}"));
  }
  absl::StatusOr<TensorStore> Open() { return TensorStore::Open(dir_.string()); }

  const std::filesystem::path dir_;
};

TEST_F(TensorStoreTest, FindsTensorsOverShards) {
  WriteShard("1.safetensors", {"c", "a"});
  WriteShard("2.safetensors", {"b"});
  WriteIndex(R"({"a":"1.safetensors","b":"2.safetensors","c":"1.safetensors"})");
  const auto store = Open();
  ASSERT_TRUE(store.ok()) << store.status();
  ASSERT_EQ(store->tensors().size(), 3u);
  EXPECT_EQ(store->tensors()[0].name, "a");
  EXPECT_EQ(store->tensors()[2].name, "c");
  EXPECT_TRUE(store->Find("b").ok());
  EXPECT_TRUE(absl::IsNotFound(store->Find("d").status()));
  EXPECT_THAT(store->Find("d").status().message(), HasSubstr("tensor \"d\" is not in the checkpoint"));
}

TEST_F(TensorStoreTest, OneFileIsPreferred) {
  WriteShard("model.safetensors", {"a"});
  WriteIndex("{}");
  const auto store = Open();
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(store->Find("a").ok());
}

TEST_F(TensorStoreTest, NeitherFileNorIndex) {
  EXPECT_TRUE(absl::IsNotFound(Open().status()));
  EXPECT_THAT(Open().status().message(), HasSubstr("model.safetensors.index.json is there"));
}

TEST_F(TensorStoreTest, BrokenSingleFileIsNotHiddenByAnIndex) {
  Write("model.safetensors", "short");
  WriteIndex("{}");
  EXPECT_THAT(Open().status().message(), HasSubstr("model.safetensors: file has 5 bytes"));
}

TEST_F(TensorStoreTest, ShardMissing) {
  WriteIndex(R"({"a":"1.safetensors"})");
  EXPECT_TRUE(absl::IsNotFound(Open().status()));
  EXPECT_THAT(Open().status().message(), HasSubstr("1.safetensors"));
}

TEST_F(TensorStoreTest, IndexAndShardsDisagree) {
  WriteShard("1.safetensors", {"a", "b"});
  WriteShard("2.safetensors", {"c"});
  const struct {
    const char* weight_map;
    const char* message;
  } kCases[] = {
      {R"({"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors","d":"2.safetensors"})",
       "tensor \"d\" is not in shard \"2.safetensors\""},
      {R"({"a":"1.safetensors","c":"2.safetensors"})",
       "tensor \"b\" is in shard \"1.safetensors\" but not in the index"},
      {R"({"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"})",
       "tensor \"b\" is in shard \"1.safetensors\", the index says \"2.safetensors\""},
  };
  for (const auto& c : kCases) {
    WriteIndex(c.weight_map);
    EXPECT_TRUE(absl::IsInvalidArgument(Open().status())) << c.weight_map;
    EXPECT_THAT(Open().status().message(), HasSubstr(c.message));
  }
}

TEST_F(TensorStoreTest, TensorInTwoShards) {
  WriteShard("1.safetensors", {"a"});
  WriteShard("2.safetensors", {"a", "b"});
  WriteIndex(R"({"a":"1.safetensors","b":"2.safetensors"})");
  EXPECT_THAT(Open().status().message(),
              HasSubstr("tensor \"a\" is in shard \"2.safetensors\", the index says \"1.safetensors\""));
}

TEST(ParseShardIndex, RefusesBadIndexes) {
  const struct {
    std::string json;
    const char* message;
  } kCases[] = {
      {"", "not JSON"},
      {"[]", "wants a JSON object, got an array of 0"},
      {"{}", "weight_map is missing"},
      {R"({"weight_map":[]})", "weight_map is an array of 0, want an object"},
      {R"({"weight_map":{"a":1}})", "tensor \"a\": shard is 1, want a file name"},
      {R"({"weight_map":{"a":"x","a":"y"}})", "the key \"a\" twice"},
      {R"({"weight_map":{"a":"../x.safetensors"}})",
       "tensor \"a\": shard \"../x.safetensors\" is not a plain file name"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "is not a plain file name"},
      {R"({"weight_map":{"a":"sub/x"}})", "is not a plain file name"},
      {R"({"weight_map":{"a":".."}})", "is not a plain file name"},
      {R"({"weight_map":{"a":"."}})", "is not a plain file name"},
      {R"({"weight_map":{"a":""}})", "is not a plain file name"},
      {R"({"weight_map":{"a":"x\u0000y"}})", "is not a plain file name"},
      {absl::StrCat(R"({"weight_map":{"a":")", std::string(256, 'x'), "\"}}"), "is not a plain file name"},
  };
  for (const auto& c : kCases) {
    const auto entries = ParseShardIndex(c.json);
    ASSERT_FALSE(entries.ok()) << c.json;
    EXPECT_TRUE(absl::IsInvalidArgument(entries.status())) << c.json;
    EXPECT_THAT(entries.status().message(), HasSubstr(c.message)) << c.json;
  }
}

}  // namespace
}  // namespace ballast
