// The messages that the ranks of a view exchange in a step, version 3.
//
// All numbers are little-endian, as the machines are; a message is a header and then arrays, with nothing in between
// but the padding named. Every message says which view and step it is of. Transport tags (MakeTag) match messages, so
// what arrives for a tag is already of the right step and layer unless its sender is wrong: everything is checked all
// the same, and a message that does not add up is an error and never an index.
//
//   announce  leader -> follower    Announcement
//   work      follower -> leader    WorkRequest: "after step n I have work"
//   counts    everyone -> everyone  CountsHeader, u32 counts[experts]               where shares are this step's
//   dispatch  home -> destination   DispatchHeader
//                                   u32 destination_pairs[ranks]                    in messages to rank 0 alone
//                                   u32 counts[experts]                             if announced, and not sent yet
//                                   WirePair pairs[pairs]                           by (token, expert), ascending
//                                   zeros up to a multiple of 64 bytes
//                                   f32 rows[tokens][hidden_size]
//   combine   destination -> home   CombineHeader (64 bytes)
//                                   exact: f32 outputs[pairs][hidden_size]          in the order of dispatch's pairs
//                                   fast:  f32 partial_sums[tokens][hidden_size]    in the order of its tokens
//   devices   everyone -> everyone  what GPUs of a view need to reach each other, once (worker/moe/device_mesh.h)
//
// Counts are the sender's pairs by expert, before a replica is chosen for them.
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
#include "worker/moe/share_form.h"
#include "worker/transport/transport.h"

namespace ballast {

inline constexpr uint32_t kWireMagic = 0x4c424c42;  // "BLBL"
inline constexpr uint16_t kWireVersion = 3;

enum class MessageKind : uint16_t { kAnnounce = 1, kWork = 2, kDispatch = 3, kCombine = 4, kCounts = 5, kDevices = 6 };

// At the start of each message.
struct MessageHeader {
  uint32_t magic = kWireMagic;
  uint16_t version = kWireVersion;
  MessageKind kind = MessageKind::kAnnounce;
  uint64_t view = 0;
  uint64_t step = 0;
};

// Layers of a model at most.
inline constexpr int kMaxWireLayers = 1 << 10;

// Step `header.step` begins, in these versions of everything.
struct Announcement {
  MessageHeader header;
  uint64_t epoch = 0;
  uint64_t shares_version = 0;
  uint64_t policy_version = 0;
  // Rows a rank may bring.
  uint32_t capacity = 0;
  uint32_t reserved = 0;
  // Where each layer's shares come from and whether its dispatch messages carry counts: two bits a layer, the lowest
  // ones first. 0: fixed; 1: previous, with counts; 2: current; 3: fixed, with counts.
  uint8_t shares[kMaxWireLayers / 4] = {};
};

LayerShares AnnouncedShares(const Announcement& announcement, int layer);
// One of the four that there are.
void SetAnnouncedShares(int layer, LayerShares shares, Announcement& announcement);

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
// The bits from here on: rows that the sender has room for (step capacity); 0: it does not say.
inline constexpr int kDispatchCapacityShift = 8;

// REQUIRES: 0 <= capacity < 2^24.
constexpr uint32_t DispatchFlags(bool has_prefill, bool more_work, int capacity) {
  return (has_prefill ? kDispatchHasPrefill : 0) | (more_work ? kDispatchMoreWork : 0) |
         static_cast<uint32_t>(capacity) << kDispatchCapacityShift;
}
// The least of `least` and what `flags` say.
constexpr int LeastCapacity(int least, uint32_t flags) {
  const auto capacity = static_cast<int>(flags >> kDispatchCapacityShift);
  return capacity > 0 && capacity < least ? capacity : least;
}

struct DispatchHeader {
  MessageHeader header;
  uint64_t epoch = 0;
  uint32_t layer = 0;
  uint32_t tokens = 0;
  uint32_t pairs = 0;
  // DispatchFlags about the sender and its part of the step.
  uint32_t flags = 0;
  // What a pair took the sender's experts in its step before; 0: not known.
  uint32_t nanoseconds_per_pair = 0;
  // What exchanging the layer's counts took the sender; 0: there was no exchange.
  uint32_t exchange_nanoseconds = 0;
};

struct CountsHeader {
  MessageHeader header;
  uint64_t epoch = 0;
  uint32_t layer = 0;
  // Numbers that follow.
  uint32_t experts = 0;
};

struct CombineHeader {
  MessageHeader header;
  uint32_t layer = 0;
  // Rows that follow.
  uint32_t rows = 0;
  uint32_t reserved[8] = {};
};

static_assert(sizeof(MessageHeader) == 24 && sizeof(Announcement) == 312 && sizeof(WorkRequest) == 24);
static_assert(sizeof(DispatchHeader) == 56 && sizeof(CombineHeader) == 64 && sizeof(WirePair) == 12);
static_assert(sizeof(CountsHeader) == 40);
static_assert(std::is_trivially_copyable_v<DispatchHeader> && std::is_trivially_copyable_v<CombineHeader>);

// What messages are matched by. Layers below kMaxWireLayers; steps by their low 31 bits.
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
  // The layer's dispatch messages carry counts.
  bool counts = false;
};

// What stands between a dispatch's header and its pairs: so many destination_pairs and counts, none where the message
// has none.
struct DispatchPreamble {
  int destinations = 0;
  int counts = 0;
};
size_t DispatchBytes(const DispatchPreamble& preamble, size_t tokens, size_t pairs, int hidden_size);
// Where the counts, the pairs and the rows of a dispatch message begin.
size_t DispatchCountsOffset(const DispatchPreamble& preamble);
size_t DispatchPairsOffset(const DispatchPreamble& preamble);
size_t DispatchRowsOffset(const DispatchPreamble& preamble, size_t pairs);
size_t CombineBytes(size_t rows, int hidden_size);
size_t CountsBytes(int num_experts);

// The parts of a dispatch message that has been checked; they lie in the message.
struct DispatchView {
  uint32_t flags = 0;
  uint32_t tokens = 0;
  uint32_t nanoseconds_per_pair = 0;
  uint32_t exchange_nanoseconds = 0;
  std::span<const uint32_t> destination_pairs;  // empty unless the receiver is rank 0
  std::span<const int32_t> counts;              // empty unless the context says that they are carried
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
// Returns the counts, each at most the capacity, in all at most capacity * top_k.
absl::StatusOr<std::span<const int32_t>> ParseCounts(const WireContext& context, int from,
                                                     std::span<const std::byte> message);
absl::StatusOr<Announcement> ParseAnnouncement(std::span<const std::byte> message);
absl::StatusOr<WorkRequest> ParseWorkRequest(int from, std::span<const std::byte> message);

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_WIRE_H_
