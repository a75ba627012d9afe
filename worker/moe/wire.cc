#include "worker/moe/wire.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr size_t kRowAlignment = 64;

// By their two bits in an announcement.
constexpr LayerShares kAnnounced[] = {
    {ShareForm::kFixed, false}, {ShareForm::kPrevious, true}, {ShareForm::kCurrent, false}, {ShareForm::kFixed, true}};

absl::Status Malformed(int from, const char* what, uint64_t value, const char* relation, uint64_t limit) {
  return absl::InvalidArgumentError(
      absl::StrCat("message of rank ", from, ": ", what, " is ", value, ", ", relation, " ", limit));
}

absl::Status CheckHeader(std::span<const std::byte> message, size_t header_bytes, int from, MessageKind kind) {
  if (message.size() < header_bytes) return Malformed(from, "length", message.size(), "less than", header_bytes);
  MessageHeader header;
  std::memcpy(&header, message.data(), sizeof(header));
  if (header.magic != kWireMagic) return Malformed(from, "magic", header.magic, "not", kWireMagic);
  if (header.version != kWireVersion) return Malformed(from, "version", header.version, "not", kWireVersion);
  if (header.kind != kind) {
    return Malformed(from, "kind", static_cast<uint64_t>(header.kind), "not", static_cast<uint64_t>(kind));
  }
  return absl::OkStatus();
}

absl::Status CheckPlace(const MessageHeader& header, uint32_t layer, const WireContext& context, int from) {
  if (header.view != context.view) return Malformed(from, "view", header.view, "not", context.view);
  if (header.step != context.step) return Malformed(from, "step", header.step, "not", context.step);
  if (layer != context.layer) return Malformed(from, "layer", layer, "not", context.layer);
  return absl::OkStatus();
}

size_t RowBytes(int hidden_size) { return sizeof(float) * static_cast<size_t>(hidden_size); }

absl::Status CheckCounts(const WireContext& context, int from, std::span<const int32_t> counts) {
  uint64_t sum = 0;
  for (const int32_t count : counts) {
    if (static_cast<uint32_t>(count) > static_cast<uint32_t>(context.capacity)) {
      return Malformed(from, "count", static_cast<uint32_t>(count), "more than", context.capacity);
    }
    sum += static_cast<uint32_t>(count);
  }
  const uint64_t most = static_cast<uint64_t>(context.capacity) * static_cast<uint64_t>(context.top_k);
  if (sum > most) return Malformed(from, "sum of counts", sum, "more than", most);
  return absl::OkStatus();
}

}  // namespace

Tag MakeTag(MessageKind kind, uint64_t step, int layer) {
  BALLAST_CHECK(layer >= 0 && layer < kMaxWireLayers) << "layer=" << layer;
  static_assert(3 + 10 + 31 == kTagBits && kMaxWireLayers == 1 << 10);
  const auto kind_bits = static_cast<Tag>(kind) - 1;
  return kind_bits << 41 | static_cast<Tag>(layer) << 31 | (step & 0x7fffffffu);
}

LayerShares AnnouncedShares(const Announcement& announcement, int layer) {
  BALLAST_CHECK(layer >= 0 && layer < kMaxWireLayers) << "layer=" << layer;
  return kAnnounced[announcement.shares[layer / 4] >> (layer % 4 * 2) & 3];
}

void SetAnnouncedShares(int layer, LayerShares shares, Announcement& announcement) {
  BALLAST_CHECK(layer >= 0 && layer < kMaxWireLayers) << "layer=" << layer;
  const auto code = std::find(std::begin(kAnnounced), std::end(kAnnounced), shares) - std::begin(kAnnounced);
  BALLAST_CHECK(code < 4) << "form " << static_cast<int>(shares.form) << ", counts " << shares.counts;
  uint8_t& bits = announcement.shares[layer / 4];
  const int shift = layer % 4 * 2;
  bits = static_cast<uint8_t>((bits & ~(3 << shift)) | static_cast<int>(code) << shift);
}

size_t DispatchCountsOffset(const DispatchPreamble& preamble) {
  return sizeof(DispatchHeader) + sizeof(uint32_t) * static_cast<size_t>(preamble.destinations);
}

size_t DispatchPairsOffset(const DispatchPreamble& preamble) {
  return DispatchCountsOffset(preamble) + sizeof(int32_t) * static_cast<size_t>(preamble.counts);
}

size_t DispatchRowsOffset(const DispatchPreamble& preamble, size_t pairs) {
  const size_t end = DispatchPairsOffset(preamble) + sizeof(WirePair) * pairs;
  return (end + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
}

size_t DispatchBytes(const DispatchPreamble& preamble, size_t tokens, size_t pairs, int hidden_size) {
  return DispatchRowsOffset(preamble, pairs) + tokens * RowBytes(hidden_size);
}

size_t CombineBytes(size_t rows, int hidden_size) { return sizeof(CombineHeader) + rows * RowBytes(hidden_size); }

size_t CountsBytes(int num_experts) {
  return sizeof(CountsHeader) + sizeof(int32_t) * static_cast<size_t>(num_experts);
}

absl::StatusOr<uint64_t> PeekView(std::span<const std::byte> message) {
  MessageHeader header;
  if (message.size() < sizeof(header)) {
    return absl::InvalidArgumentError(absl::StrCat("a message of ", message.size(), " bytes has no header"));
  }
  std::memcpy(&header, message.data(), sizeof(header));
  if (header.magic != kWireMagic || header.version != kWireVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("a message of magic ", header.magic, " and version ", header.version, " is not of this protocol"));
  }
  return header.view;
}

absl::StatusOr<DispatchView> ParseDispatch(const WireContext& context, int from, std::span<const std::byte> message) {
  BALLAST_CHECK(reinterpret_cast<uintptr_t>(message.data()) % kRowAlignment == 0) << "unaligned receive buffer";
  BALLAST_RETURN_IF_ERROR(CheckHeader(message, sizeof(DispatchHeader), from, MessageKind::kDispatch));
  DispatchHeader header;
  std::memcpy(&header, message.data(), sizeof(header));
  BALLAST_RETURN_IF_ERROR(CheckPlace(header.header, header.layer, context, from));
  if (header.epoch != context.epoch) return Malformed(from, "epoch", header.epoch, "not", context.epoch);
  if (header.tokens > static_cast<uint32_t>(context.capacity)) {
    return Malformed(from, "tokens", header.tokens, "more than", context.capacity);
  }
  const uint64_t max_pairs = uint64_t{header.tokens} * static_cast<uint32_t>(context.top_k);
  if (header.pairs > max_pairs) return Malformed(from, "pairs", header.pairs, "more than", max_pairs);
  const bool to_rank0 = context.rank == 0;
  const DispatchPreamble preamble{.destinations = to_rank0 ? context.ranks : 0,
                                  .counts = context.counts ? context.num_experts : 0};
  const size_t want = DispatchBytes(preamble, header.tokens, header.pairs, context.hidden_size);
  if (message.size() != want) return Malformed(from, "length", message.size(), "not", want);

  DispatchView view{.flags = header.flags,
                    .tokens = header.tokens,
                    .nanoseconds_per_pair = header.nanoseconds_per_pair,
                    .exchange_nanoseconds = header.exchange_nanoseconds};
  // Offsets are multiples of 4 in a buffer aligned to 64.
  if (to_rank0) {
    view.destination_pairs = {reinterpret_cast<const uint32_t*>(message.data() + sizeof(DispatchHeader)),
                              static_cast<size_t>(context.ranks)};
    if (view.destination_pairs[0] != header.pairs) {
      return Malformed(from, "destination_pairs[0]", view.destination_pairs[0], "not", header.pairs);
    }
  }
  view.counts = {reinterpret_cast<const int32_t*>(message.data() + DispatchCountsOffset(preamble)),
                 static_cast<size_t>(preamble.counts)};
  BALLAST_RETURN_IF_ERROR(CheckCounts(context, from, view.counts));
  view.pairs = {reinterpret_cast<const WirePair*>(message.data() + DispatchPairsOffset(preamble)), header.pairs};
  view.rows = reinterpret_cast<const float*>(message.data() + DispatchRowsOffset(preamble, header.pairs));
  int64_t last_token = -1;
  int64_t last_expert = -1;
  for (const WirePair& pair : view.pairs) {
    if (pair.expert >= static_cast<uint32_t>(context.num_experts)) {
      return Malformed(from, "expert", pair.expert, "not below", context.num_experts);
    }
    // Tokens come in order and none is left out, so that every row has a pair.
    if (pair.token == last_token) {
      if (pair.expert <= last_expert) return Malformed(from, "expert", pair.expert, "not above", last_expert);
    } else if (pair.token != last_token + 1) {
      return Malformed(from, "token", pair.token, "which should be at most", last_token + 1);
    }
    if (!std::isfinite(pair.weight))
      return Malformed(from, "weight of token", pair.token, "not finite: expert", pair.expert);
    last_token = pair.token;
    last_expert = pair.expert;
  }
  if (last_token + 1 != header.tokens) {
    return Malformed(from, "tokens", header.tokens, "but its pairs are of", last_token + 1);
  }
  return view;
}

absl::StatusOr<const float*> ParseCombine(const WireContext& context, int from, size_t rows,
                                          std::span<const std::byte> message) {
  BALLAST_RETURN_IF_ERROR(CheckHeader(message, sizeof(CombineHeader), from, MessageKind::kCombine));
  CombineHeader header;
  std::memcpy(&header, message.data(), sizeof(header));
  BALLAST_RETURN_IF_ERROR(CheckPlace(header.header, header.layer, context, from));
  if (header.rows != rows) return Malformed(from, "rows", header.rows, "not", rows);
  const size_t want = CombineBytes(rows, context.hidden_size);
  if (message.size() != want) return Malformed(from, "length", message.size(), "not", want);
  return reinterpret_cast<const float*>(message.data() + sizeof(CombineHeader));
}

absl::StatusOr<std::span<const int32_t>> ParseCounts(const WireContext& context, int from,
                                                     std::span<const std::byte> message) {
  BALLAST_CHECK(reinterpret_cast<uintptr_t>(message.data()) % kRowAlignment == 0) << "unaligned receive buffer";
  BALLAST_RETURN_IF_ERROR(CheckHeader(message, sizeof(CountsHeader), from, MessageKind::kCounts));
  CountsHeader header;
  std::memcpy(&header, message.data(), sizeof(header));
  BALLAST_RETURN_IF_ERROR(CheckPlace(header.header, header.layer, context, from));
  if (header.epoch != context.epoch) return Malformed(from, "epoch", header.epoch, "not", context.epoch);
  if (header.experts != static_cast<uint32_t>(context.num_experts)) {
    return Malformed(from, "experts", header.experts, "not", context.num_experts);
  }
  const size_t want = CountsBytes(context.num_experts);
  if (message.size() != want) return Malformed(from, "length", message.size(), "not", want);
  const std::span<const int32_t> counts(reinterpret_cast<const int32_t*>(message.data() + sizeof(header)),
                                        header.experts);
  BALLAST_RETURN_IF_ERROR(CheckCounts(context, from, counts));
  return counts;
}

absl::StatusOr<Announcement> ParseAnnouncement(std::span<const std::byte> message) {
  BALLAST_RETURN_IF_ERROR(CheckHeader(message, sizeof(Announcement), 0, MessageKind::kAnnounce));
  if (message.size() != sizeof(Announcement)) {
    return Malformed(0, "length", message.size(), "not", sizeof(Announcement));
  }
  Announcement announcement;
  std::memcpy(&announcement, message.data(), sizeof(announcement));
  return announcement;
}

absl::StatusOr<WorkRequest> ParseWorkRequest(int from, std::span<const std::byte> message) {
  BALLAST_RETURN_IF_ERROR(CheckHeader(message, sizeof(WorkRequest), from, MessageKind::kWork));
  if (message.size() != sizeof(WorkRequest)) {
    return Malformed(from, "length", message.size(), "not", sizeof(WorkRequest));
  }
  WorkRequest request;
  std::memcpy(&request, message.data(), sizeof(request));
  return request;
}

}  // namespace ballast
