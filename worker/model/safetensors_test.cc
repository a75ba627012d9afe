#include "worker/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

std::string LittleEndian(uint64_t value) { return std::string(reinterpret_cast<const char*>(&value), sizeof(value)); }

// `header` padded so that the data is aligned, then `data_bytes` bytes 0, 1, 2, ...
std::string File(std::string header, size_t data_bytes) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string data;
  for (size_t i = 0; i < data_bytes; ++i) data.push_back(static_cast<char>(i));
  return LittleEndian(header.size()) + header + data;
}

absl::StatusOr<std::vector<SafetensorsEntry>> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)));
}

// One U8 tensor "x" of 4 bytes, with `entry` in its place.
std::string OneEntry(const std::string& entry) { return File(absl::StrCat("{\"x\":", entry, "}"), 4); }

TEST(Safetensors, ListsTensorsInTheOrderOfTheirBytes) {
  const auto entries = Parse(File(R"({"__metadata__":{"format":"pt"},
    "second":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},
    "empty":{"dtype":"F32","shape":[0,9223372036854775807,4],"data_offsets":[8,8]},
    "first":{"shape":[2],"data_offsets":[0,8],"dtype":"F32"},
    "scalar":{"dtype":"U8","shape":[],"data_offsets":[20,21]}})",
                                  21));
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 4u);
  EXPECT_EQ((*entries)[0].name, "first");
  EXPECT_EQ((*entries)[1].name, "empty");
  EXPECT_EQ((*entries)[2].name, "second");
  EXPECT_EQ((*entries)[2].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*entries)[2].dtype, DType::kBF16);
  EXPECT_EQ((*entries)[2].end - (*entries)[2].begin, 12u);
  EXPECT_EQ((*entries)[3].name, "scalar");
}

TEST(Safetensors, HeaderWithoutTensors) {
  EXPECT_TRUE(Parse(File("{}", 0)).ok());
  EXPECT_THAT(Parse(File("{}", 1)).status().message(), HasSubstr("file has 1 bytes of data, its tensors only 0"));
}

struct BadFile {
  const char* what;
  std::string file;
  std::string message;
};

TEST(Safetensors, RefusesBadHeaders) {
  const std::string nested(100000, '[');
  const BadFile kCases[] = {
      {"empty file", "", "file has 0 bytes, the header's length alone needs 8"},
      {"cut length", "\x01\x02\x03", "file has 3 bytes"},
      {"length past the end", LittleEndian(100) + "{}",
       "header has 100 bytes, the file only 2 after the header's length"},
      {"length past everything", LittleEndian(UINT64_MAX) + "{}",
       "header has 18446744073709551615 bytes, the limit is 100000000"},
      {"length over the limit", LittleEndian(100000001) + "{}", "header has 100000001 bytes, the limit is 100000000"},
      {"length near the overflow", LittleEndian(UINT64_MAX - 7) + "{}", "the limit is 100000000"},
      {"no header", LittleEndian(0), "header is not JSON"},
      {"not JSON", File("{\"x\"", 0), "header is not JSON"},
      {"cut JSON", File("{\"x\":{\"dtype\":\"U8\"", 0), "header is not JSON"},
      {"after the JSON", File("{} {}", 0), "header is not JSON"},
      {"bad UTF-8", File("{\"\xFF\":{}}", 0), "header is not JSON"},
      {"array", File("[]", 0), "header is not an object but an array"},
      {"number", File("3", 0), "header is not an object but 3"},
      {"null", File("null", 0), "header is not an object but null"},
      {"deep nesting", File("{\"x\":" + nested, 0), "tensor \"x\": wants an object, got an array"},
      {"entry is a string", OneEntry("\"U8\""), "tensor \"x\": wants an object, got \"U8\""},
      {"metadata is not text", File("{\"__metadata__\":{\"a\":1}}", 0),
       "tensor \"__metadata__\": wants strings, got 1"},
      {"metadata twice the key", File("{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}", 0), "has the key \"a\" twice"},
      {"name twice",
       File(
           R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
           2),
       "tensor \"x\": the header lists it twice"},
      {"long name", File(absl::StrCat("{\"", std::string(1000, 'n'), "\":3}"), 0), "nnn...\": wants an object"},
  };
  for (const BadFile& c : kCases) {
    const auto entries = Parse(c.file);
    ASSERT_FALSE(entries.ok()) << c.what;
    EXPECT_TRUE(absl::IsInvalidArgument(entries.status())) << c.what;
    EXPECT_THAT(entries.status().message(), HasSubstr(c.message)) << c.what;
    EXPECT_LT(entries.status().message().size(), 1000u) << c.what;
  }
}

TEST(Safetensors, RefusesBadEntries) {
  const struct {
    const char* entry;
    const char* message;
  } kCases[] = {
      {R"({"shape":[4],"data_offsets":[0,4]})", "dtype is missing"},
      {R"({"dtype":"U8","data_offsets":[0,4]})", "shape is missing"},
      {R"({"dtype":"U8","shape":[4]})", "data_offsets is missing"},
      {R"({"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]})", "dtype is given twice"},
      {R"({"dtype":"U8","shape":[4],"shape":[4],"data_offsets":[0,4]})", "shape is given twice"},
      {R"({"dtype":"U8","shape":[4],"data_offsets":[0,4],"data_offsets":[0,4]})", "data_offsets is given twice"},
      {R"({"dtype":"U8","shape":[4],"data_offsets":[0,4],"stride":[1]})", "unknown field \"stride\""},
      {R"({"dtype":"Q4","shape":[4],"data_offsets":[0,4]})", "dtype \"Q4\" is not known"},
      {R"({"dtype":"u8","shape":[4],"data_offsets":[0,4]})", "dtype \"u8\" is not known"},
      {R"({"dtype":8,"shape":[4],"data_offsets":[0,4]})", "dtype wants a string, got 8"},
      {R"({"dtype":"U8","shape":4,"data_offsets":[0,4]})", "shape wants an array"},
      {R"({"dtype":"U8","shape":[-4],"data_offsets":[0,4]})",
       "shape wants an array of integers from 0 to 2^63-1, got -4"},
      {R"({"dtype":"U8","shape":[4.0],"data_offsets":[0,4]})", "got 4.0"},
      {R"({"dtype":"U8","shape":["4"],"data_offsets":[0,4]})", "got \"4\""},
      {R"({"dtype":"U8","shape":[[4]],"data_offsets":[0,4]})", "got an array"},
      {R"({"dtype":"U8","shape":[null],"data_offsets":[0,4]})", "got null"},
      {R"({"dtype":"U8","shape":[true],"data_offsets":[0,4]})", "got a boolean"},
      {R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,4]})",
       "dimension 9223372036854775808 is too large"},
      {R"({"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4]})", "got 99999999999999999999"},
      {R"({"dtype":"U8","shape":[1,1,1,1,1,1,1,1,4],"data_offsets":[0,4]})", "more than 8 dimensions"},
      {R"({"dtype":"U8","shape":[4],"data_offsets":[0]})", "data_offsets has fewer than 2 values"},
      {R"({"dtype":"U8","shape":[4],"data_offsets":[0,2,4]})", "data_offsets has more than 2 values"},
      {R"({"dtype":"U8","shape":[4],"data_offsets":[-4,0]})",
       "data_offsets wants an array of integers from 0 to 2^64-1, got -4"},
      {R"({"dtype":"U8","shape":[4],"data_offsets":{}})", "got an object"},
      {R"({"dtype":"U8","shape":[0],"data_offsets":[4,0]})", "data_offsets [4, 0] run backwards"},
      {R"({"dtype":"U8","shape":[5],"data_offsets":[0,5]})",
       "data_offsets [0, 5] end past the 4 bytes of data in the file"},
      {R"({"dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,18446744073709551615]})",
       "end past the 4 bytes"},
      {R"({"dtype":"U8","shape":[3],"data_offsets":[0,4]})", "U8 [3] needs 3 bytes, data_offsets [0, 4] hold 4"},
      {R"({"dtype":"F32","shape":[4],"data_offsets":[0,4]})", "F32 [4] needs 16 bytes, data_offsets [0, 4] hold 4"},
      {R"({"dtype":"U8","shape":[4,4294967296,4294967296],"data_offsets":[0,4]})",
       "U8 [4, 4294967296, 4294967296] has more than 2^64 bytes"},
      // The product alone fits, its bytes do not.
      {R"({"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]})", "has more than 2^64 bytes"},
      {R"({"dtype":"U8","shape":[3],"data_offsets":[1,4]})",
       "starts at byte 1 of the data, but the one before it ends at 0"},
  };
  for (const auto& c : kCases) {
    const auto entries = Parse(OneEntry(c.entry));
    ASSERT_FALSE(entries.ok()) << c.entry;
    EXPECT_TRUE(absl::IsInvalidArgument(entries.status())) << c.entry;
    EXPECT_THAT(entries.status().message(), HasSubstr("tensor \"x\": ")) << c.entry;
    EXPECT_THAT(entries.status().message(), HasSubstr(c.message)) << c.entry;
  }
}

// Two tensors of 4 bytes, the second from `begin` to `end`, in a file with `data` bytes.
TEST(Safetensors, RefusesOverlapsAndGaps) {
  const struct {
    int begin, end, data;
    const char* message;
  } kCases[] = {
      {2, 6, 6, "tensor \"b\": starts at byte 2 of the data, inside tensor \"a\", which ends at 4"},
      {0, 4, 4, "tensor \"b\": starts at byte 0 of the data, inside tensor \"a\", which ends at 4"},
      {8, 12, 12, "tensor \"b\": starts at byte 8 of the data, but the one before it ends at 4"},
      {4, 8, 9, "file has 9 bytes of data, its tensors only 8"},
      {4, 8, 7, "tensor \"b\": data_offsets [4, 8] end past the 7 bytes of data"},
  };
  for (const auto& c : kCases) {
    const auto entries = Parse(File(absl::StrCat(R"({"b":{"dtype":"U8","shape":[4],"data_offsets":[)", c.begin, ",",
                                                 c.end, R"(]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})"),
                                    c.data));
    ASSERT_FALSE(entries.ok()) << c.message;
    EXPECT_THAT(entries.status().message(), HasSubstr(c.message));
  }
}

TEST(Safetensors, RefusesMisalignedTensors) {
  const auto entries = Parse(File(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
    "b":{"dtype":"BF16","shape":[1],"data_offsets":[1,3]}})",
                                  3));
  ASSERT_FALSE(entries.ok());
  EXPECT_THAT(entries.status().message(),
              HasSubstr("tensor \"b\": starts at byte 121 of the file, which is not aligned"));
}

TEST(SafetensorsFile, MapsTheTensors) {
  const std::string path = testing::TempDir() + "/two.safetensors";
  std::ofstream(path, std::ios::binary) << File(
      R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U16","shape":[1,1],"data_offsets":[2,4]}})",
      4);
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 2u);
  const TensorView& b = (*file)->tensors()[1];
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(Describe(b.dtype, b.shape), "U16 [1, 1]");
  ASSERT_EQ(b.num_elements(), 1);
  EXPECT_EQ(b.as<uint16_t>()[0], 0x0302);
}

TEST(SafetensorsFile, ErrorsNameThePath) {
  const std::string missing = testing::TempDir() + "/missing.safetensors";
  EXPECT_TRUE(absl::IsNotFound(SafetensorsFile::Open(missing).status()));
  EXPECT_THAT(SafetensorsFile::Open(missing).status().message(), HasSubstr(missing));
  EXPECT_TRUE(absl::IsFailedPrecondition(SafetensorsFile::Open(testing::TempDir()).status()));
  const std::string empty = testing::TempDir() + "/empty.safetensors";
  std::ofstream(empty, std::ios::binary).flush();
  EXPECT_THAT(SafetensorsFile::Open(empty).status().message(), HasSubstr(empty + ": file has 0 bytes"));
}

TensorView View(DType dtype, const std::vector<int64_t>& shape, std::string_view bytes) {
  return {.name = "t", .dtype = dtype, .shape = shape, .data = std::as_bytes(std::span(bytes))};
}

TEST(ReadAsFloat, F16IsExact) {
  // Every finite half, against the definition.
  std::vector<uint16_t> halves(0x10000);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  const std::string_view bytes(reinterpret_cast<const char*>(halves.data()), halves.size() * 2);
  std::vector<float> out(halves.size());
  const std::vector<int64_t> shape = {0x10000};
  ASSERT_TRUE(ReadAsFloat(View(DType::kF16, shape, bytes), out).ok());
  for (size_t i = 0; i < halves.size(); ++i) {
    const int exponent = i >> 10 & 0x1F;
    const double fraction = (i & 0x3FF) / 1024.0;
    if (exponent == 0x1F) {
      EXPECT_EQ(std::isnan(out[i]), fraction != 0);
      EXPECT_EQ(std::isinf(out[i]), fraction == 0);
    } else {
      const double magnitude = exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15);
      ASSERT_EQ(out[i], (i & 0x8000) != 0 ? -magnitude : magnitude) << i;
    }
    EXPECT_EQ(std::signbit(out[i]), (i & 0x8000) != 0) << i;
  }
}

TEST(ReadAsFloat, Bf16IsTheUpperHalf) {
  const std::vector<int64_t> shape = {2};
  std::vector<float> out(2);
  const std::vector<uint16_t> bits = {0x3FC0, 0xC000};
  const std::string_view bytes(reinterpret_cast<const char*>(bits.data()), 4);
  ASSERT_TRUE(ReadAsFloat(View(DType::kBF16, shape, bytes), out).ok());
  EXPECT_EQ(out, (std::vector<float>{1.5f, -2.0f}));
}

TEST(ReadAsFloat, Refuses) {
  const std::vector<int64_t> shape = {2};
  std::vector<float> out(2);
  EXPECT_THAT(ReadAsFloat(View(DType::kI16, shape, "abcd"), out).message(),
              HasSubstr("tensor \"t\" is I16 [2], want BF16, F16 or F32"));
  out.resize(3);
  EXPECT_THAT(ReadAsFloat(View(DType::kBF16, shape, "abcd"), out).message(),
              HasSubstr("tensor \"t\" has 2 elements, the output has 3"));
}

}  // namespace
}  // namespace ballast
