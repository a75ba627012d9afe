// The messages that the ranks of a view exchange in a step, version 1.
//
// All numbers are little-endian, as the machines are; a message is a header and then arrays, with nothing in between
// but the padding named. Every message says which view and step it is of. Transport tags (MakeTag) match messages, so
// what arrives for a tag is already of the right step and layer unless its sender is wrong: everything is checked all
// the same, and a message that does not add up is an error and never an index.
//
//   announce  leader -> follower    Announcement
//   work      follower -> leader    WorkRequest: "after step n I have work"
//   dispatch  home -> destination   DispatchHeader
//                                   u32 destination_pairs[ranks]                    in messages to rank 0 alone
//                                   WirePair pairs[pairs]                           by (token, expert), both ascending
//                                   zeros up to a multiple of 64 bytes
//                                   f32 rows[tokens][hidden_size]
//   combine   destination -> home   CombineHeader (64 bytes)
//                                   exact: f32 outputs[pairs][hidden_size]          in the order of the dispatch's
//                                   pairs fast:  f32 partial_sums[tokens][hidden_size]    in the order of its tokens
//
// A dispatch without tokens is answered with a combine without rows.
#ifndef BALLAST_WORKER_MOE_WIRE_H_
#define BALLAST_WORKER_MOE_WIRE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/transport/transport.h"

namespace ballast {

inline constexpr uint32_t kWireMagic = 0x4c424c42;  // "BLBL"
inline constexpr uint16_t kWireVersion = 1;

enum class MessageKind : uint16_t { kAnnounce = 1, kWork = 2, kDispatch = 3, kCombine = 4 };

// At the start of each message.
struct MessageHeader {
  uint32_t magic = kWireMagic;
  uint16_t version = kWireVersion;
  MessageKind kind = MessageKind::kAnnounce;
  uint64_t view = 0;
  uint64_t step = 0;
};

// Step `header.step` begins, in these versions of everything.
struct Announcement {
  MessageHeader header;
  uint64_t epoch = 0;
  uint64_t shares_version = 0;
  uint64_t policy_version = 0;
  // Rows a rank may bring.
  uint32_t capacity = 0;
  uint32_t reserved = 0;
};

// The sender has work after step `header.step`.
struct WorkRequest {
  MessageHeader header;
};

struct WirePair {
  // Index into the message's rows.
  uint32_t token = 0;
  uint32_t expert = 0;
  // The pair's combine weight.
  float weight = 0;
};

inline constexpr uint32_t kDispatchHasPrefill = 1;
inline constexpr uint32_t kDispatchMoreWork = 2;

struct DispatchHeader {
  MessageHeader header;
  uint64_t epoch = 0;
  uint32_t layer = 0;
  uint32_t tokens = 0;
  uint32_t pairs = 0;
  // kDispatch* bits about the sender's part of the step.
  uint32_t flags = 0;
};

struct CombineHeader {
  MessageHeader header;
  uint32_t layer = 0;
  // Rows that follow.
  uint32_t rows = 0;
  uint32_t reserved[8] = {};
};

static_assert(sizeof(MessageHeader) == 24 && sizeof(Announcement) == 56 && sizeof(WorkRequest) == 24);
static_assert(sizeof(DispatchHeader) == 48 && sizeof(CombineHeader) == 64 && sizeof(WirePair) == 12);
static_assert(std::is_trivially_copyable_v<DispatchHeader> && std::is_trivially_copyable_v<CombineHeader>);

// What messages are matched by. Layers below 2^10; steps by their low 32 bits.
inline constexpr int kMaxWireLayers = 1 << 10;
Tag MakeTag(MessageKind kind, uint64_t step, int layer);

// Everything that receiver and sender must agree on before a message's own numbers mean anything.
struct WireContext {
  uint64_t view = 0;
  uint64_t step = 0;
  uint64_t epoch = 0;
  uint32_t layer = 0;
  int ranks = 0;
  int rank = 0;  // the receiver
  int hidden_size = 0;
  int num_experts = 0;
  int top_k = 0;
  // Tokens of one message at most.
  int capacity = 0;
};

size_t DispatchBytes(bool to_rank0, int ranks, size_t tokens, size_t pairs, int hidden_size);
// Where the pairs and the rows of a dispatch message begin.
size_t DispatchPairsOffset(bool to_rank0, int ranks);
size_t DispatchRowsOffset(bool to_rank0, int ranks, size_t pairs);
size_t CombineBytes(size_t rows, int hidden_size);

// The parts of a dispatch message that has been checked; they lie in the message.
struct DispatchView {
  uint32_t flags = 0;
  uint32_t tokens = 0;
  std::span<const uint32_t> destination_pairs;  // empty unless the receiver is rank 0
  std::span<const WirePair> pairs;
  const float* rows = nullptr;
};

// The header's view if `message` is one of this protocol at all; InvalidArgument otherwise. For telling what is stale
// from what is wrong.
absl::StatusOr<uint64_t> PeekView(std::span<const std::byte> message);

// InvalidArgument names the sender's rank `from`, the field, the value and the limit. `message` is 64-byte aligned.
absl::StatusOr<DispatchView> ParseDispatch(const WireContext& context, int from, std::span<const std::byte> message);
// Returns the first row. `rows` are expected.
absl::StatusOr<const float*> ParseCombine(const WireContext& context, int from, size_t rows,
                                          std::span<const std::byte> message);
absl::StatusOr<Announcement> ParseAnnouncement(std::span<const std::byte> message);
absl::StatusOr<WorkRequest> ParseWorkRequest(int from, std::span<const std::byte> message);

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_WIRE_H_
