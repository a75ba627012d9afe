#include "worker/transport/fetch/expert_link.h"

#include <algorithm>
#include <utility>

#include "worker/transport/handshake.h"
#include "worker/transport/wire.h"

namespace ballast::internal {
namespace {

constexpr size_t kMaxText = 1024;

}  // namespace

std::string EncodeChunkRequest(const ChunkRequest& request) {
  WireWriter out;
  out.Put(request.tag).Put(request.expert.layer).Put(request.expert.expert).Put(request.offset).Put(request.length);
  return EncodeFrame(static_cast<uint8_t>(LinkFrame::kPullRequest), std::move(out).Take());
}

absl::StatusOr<ChunkRequest> DecodeChunkRequest(const Frame& frame) {
  WireReader in(frame.payload);
  ChunkRequest request;
  request.tag = in.Get<uint64_t>();
  request.expert.layer = in.Get<int32_t>();
  request.expert.expert = in.Get<int32_t>();
  request.offset = in.Get<uint64_t>();
  request.length = in.Get<uint64_t>();
  if (frame.type != static_cast<uint8_t>(LinkFrame::kPullRequest) || !in.AtEnd()) {
    return absl::InvalidArgumentError("malformed expert request");
  }
  return request;
}

std::string EncodeChunkReply(const ChunkReply& reply) {
  const absl::string_view text = reply.status.message();
  WireWriter out;
  out.Put(reply.tag).Put(static_cast<uint8_t>(reply.status.code())).Put(reply.replica_bytes).Put(reply.max_chunk_bytes);
  out.PutString(std::string_view(text.data(), std::min(text.size(), kMaxText)));
  return EncodeFrame(static_cast<uint8_t>(LinkFrame::kPullReply), std::move(out).Take());
}

absl::StatusOr<ChunkReply> DecodeChunkReply(const Frame& frame) {
  WireReader in(frame.payload);
  ChunkReply reply;
  reply.tag = in.Get<uint64_t>();
  const uint8_t code = in.Get<uint8_t>();
  reply.replica_bytes = in.Get<uint64_t>();
  reply.max_chunk_bytes = in.Get<uint64_t>();
  const std::string text(in.GetString(kMaxText));
  if (frame.type != static_cast<uint8_t>(LinkFrame::kPullReply) || !in.AtEnd() || code > 16) {
    return absl::InvalidArgumentError("malformed expert reply");
  }
  reply.status = absl::Status(static_cast<absl::StatusCode>(code), text);
  return reply;
}

}  // namespace ballast::internal
