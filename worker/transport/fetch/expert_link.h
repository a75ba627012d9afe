// What fetcher and server of experts say to each other on a link of purpose kExpertPull, after the handshake:
//
//   fetcher                                            server
//   kPullAddress {address of its UCX worker}       ->
//   kPullRequest {tag, expert, offset, length}     ->
//                                                  <-  kPullReply {tag, code, replica's bytes, largest chunk, text}
//                                                  <-  the chunk, through UCX, with that tag (if the code is OK)
//
// Requests are answered in order. Either side closes the link to end it.
#ifndef BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_LINK_H_
#define BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_LINK_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "proto/placement/placement.h"
#include "worker/transport/frame_socket.h"

namespace ballast::internal {

inline constexpr size_t kMaxPullFrame = 65536;
// Requests of one link that may be unanswered or whose chunks are under way.
inline constexpr int kMaxPullsInFlight = 4;
// Below ucx.cc's rendezvous threshold: a receiver that gives up in the middle of a rendezvous cannot end its UCX
// worker, for UCX 1.13 insists that the answer it owes is sent first, and aborts.
inline constexpr uint64_t kMaxChunkBytes = uint64_t{128} << 10;
// Between two GPUs, whose UCX is a later one: only a rendezvous goes from one's memory into the other's, and it takes
// the same messages to and fro for few bytes as for many.
inline constexpr uint64_t kMaxCudaChunkBytes = uint64_t{32} << 20;

struct ChunkRequest {
  uint64_t tag = 0;
  ExpertId expert;
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct ChunkReply {
  uint64_t tag = 0;
  // OK: the chunk follows.
  absl::Status status;
  // Of the whole replica; 0 when there is none.
  uint64_t replica_bytes = 0;
  // The longest chunk that may be asked for from now on.
  uint64_t max_chunk_bytes = kMaxChunkBytes;
};

std::string EncodeChunkRequest(const ChunkRequest& request);
// InvalidArgument: malformed.
absl::StatusOr<ChunkRequest> DecodeChunkRequest(const Frame& frame);
std::string EncodeChunkReply(const ChunkReply& reply);
absl::StatusOr<ChunkReply> DecodeChunkReply(const Frame& frame);

}  // namespace ballast::internal

#endif  // BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_LINK_H_
