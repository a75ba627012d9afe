#include "worker/transport/fetch/expert_link.h"

#include <string>

#include "gtest/gtest.h"

namespace ballast::internal {
namespace {

constexpr size_t kHeaderBytes = 5;

Frame Decoded(const std::string& encoded) {
  return {.type = static_cast<uint8_t>(encoded[4]), .payload = encoded.substr(kHeaderBytes)};
}

TEST(ExpertLinkTest, FramesComeBackAsTheyWere) {
  const auto request =
      DecodeChunkRequest(Decoded(EncodeChunkRequest({.tag = 7, .expert = {3, 250}, .offset = 1 << 20, .length = 99})));
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->tag, 7u);
  EXPECT_EQ(request->expert, (ExpertId{3, 250}));
  EXPECT_EQ(request->offset, size_t{1} << 20);
  EXPECT_EQ(request->length, 99u);

  const auto reply = DecodeChunkReply(Decoded(EncodeChunkReply({.tag = 8,
                                                                .status = absl::NotFoundError("none here"),
                                                                .replica_bytes = 88'080'384,
                                                                .max_chunk_bytes = kMaxCudaChunkBytes})));
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->tag, 8u);
  EXPECT_EQ(reply->status, absl::NotFoundError("none here"));
  EXPECT_EQ(reply->replica_bytes, 88'080'384u);
  EXPECT_EQ(reply->max_chunk_bytes, kMaxCudaChunkBytes);
}

TEST(ExpertLinkTest, ATruncatedFrameIsMalformed) {
  for (const std::string& whole : {EncodeChunkRequest({.tag = 7}), EncodeChunkReply({.tag = 8})}) {
    Frame frame = Decoded(whole);
    frame.payload.pop_back();
    EXPECT_EQ(DecodeChunkRequest(frame).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(DecodeChunkReply(frame).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace ballast::internal
