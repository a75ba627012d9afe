#include "worker/moe/layer_exchange.h"

#include <algorithm>
#include <cstring>

#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {

LayerExchange::LayerExchange(const Shape& shape) : shape_(shape) {}

void LayerExchange::Enter(const GroupView& view, Transport* transport) {
  BALLAST_CHECK(view.size() == 1 ||
                (transport != nullptr && transport->size() == view.size() && transport->rank() == view.rank))
      << view.view;
  view_ = view.view;
  rank_ = view.rank;
  ranks_ = view.size();
  transport_ = ranks_ > 1 ? transport : nullptr;
  expected_step_ = StepId();
  counts_sent_ = false;
  late_.clear();
  peers_.clear();
  peer_at_rank_.assign(ranks_, -1);
  for (int i = 1; i < ranks_; ++i) {
    const int rank = (rank_ + i) % ranks_;
    peer_at_rank_[rank] = static_cast<int>(peers_.size());
    peers_.push_back({.rank = rank});
  }

  const size_t others = peers_.size();
  const size_t rows = shape_.capacity;
  const size_t pairs = rows * shape_.top_k;
  // A row goes to at most so many other ranks.
  const size_t spread = std::min<size_t>(shape_.top_k, others);
  const size_t counts_bytes = Buffer::Aligned(CountsBytes(shape_.num_experts));
  const size_t largest_dispatch =
      Buffer::Aligned(DispatchBytes(Preamble(rank_, true), rows, pairs, shape_.hidden_size));
  const size_t header_room = Buffer::Aligned(DispatchRowsOffset(Preamble(0, true), 0)) + Buffer::kAlignment;
  counts_in_.Reserve(others * counts_bytes);
  counts_out_.Reserve(counts_bytes);
  dispatch_in_.Reserve(others * largest_dispatch);
  for (size_t i = 0; i < others; ++i) {
    peers_[i].counts_in = {counts_in_.data() + i * counts_bytes, counts_bytes};
    peers_[i].dispatch_in = {dispatch_in_.data() + i * largest_dispatch, largest_dispatch};
  }
  dispatch_out_.Reserve(others * header_room + pairs * sizeof(WirePair) + rows * spread * row_bytes() +
                        others * Buffer::kAlignment);
  combine_in_.Reserve(others * (sizeof(CombineHeader) + Buffer::kAlignment) +
                      (shape_.result_by_pair ? pairs : rows * spread) * row_bytes());
  combine_out_.Reserve(others *
                       Buffer::Aligned(CombineBytes(shape_.result_by_pair ? pairs : rows, shape_.hidden_size)));
  requests_.reserve(6 * static_cast<size_t>(ranks_));
}

void LayerExchange::Leave() {
  transport_ = nullptr;
  peers_.clear();
}

void LayerExchange::BeginStep(StepId step, Epoch epoch, absl::Time deadline) {
  step_ = step;
  epoch_ = epoch;
  deadline_ = deadline;
  late_.clear();
  if (expected_step_ != step_) ExpectRows(step_, 0);
}

WireContext LayerExchange::Context(int layer, bool counts) const {
  return {.view = view_.value(),
          .step = step_.value(),
          .epoch = epoch_.value(),
          .layer = static_cast<uint32_t>(layer),
          .ranks = ranks_,
          .rank = rank_,
          .hidden_size = shape_.hidden_size,
          .num_experts = shape_.num_experts,
          .top_k = shape_.top_k,
          .capacity = shape_.capacity,
          .counts = counts};
}

MessageHeader LayerExchange::Header(MessageKind kind) const {
  return {.kind = kind, .view = view_.value(), .step = step_.value()};
}

DispatchPreamble LayerExchange::Preamble(int to_rank, bool counts) const {
  return {.destinations = to_rank == 0 ? ranks_ : 0, .counts = counts ? shape_.num_experts : 0};
}

void LayerExchange::ExpectRows(StepId of_step, int layer) {
  expected_step_ = of_step;
  const Tag tag = MakeTag(MessageKind::kDispatch, of_step.value(), layer);
  for (Peer& peer : peers_) peer.dispatch_receive = transport_->Receive(peer.rank, tag, peer.dispatch_in);
}

void LayerExchange::ExpectNextRows(int layer) {
  const bool last = layer + 1 == shape_.num_layers;
  ExpectRows(last ? step_.next() : step_, last ? 0 : layer + 1);
}

absl::Status LayerExchange::Blame(int peer, absl::Status status) {
  late_.push_back(peers_[peer].rank);
  return status;
}

absl::Status LayerExchange::WaitFor(absl::Time deadline) {
  const absl::Status status = transport_->Wait(requests_, deadline);
  if (!absl::IsDeadlineExceeded(status) || deadline == absl::InfinitePast()) return status;
  for (const Peer& peer : peers_) {
    for (const RequestId id : {peer.counts_receive, peer.counts_send, peer.dispatch_receive, peer.dispatch_send,
                               peer.combine_receive, peer.combine_send}) {
      if (std::find(requests_.begin(), requests_.end(), id) == requests_.end()) continue;
      if (!transport_->Wait({&id, 1}, absl::InfinitePast()).ok()) late_.push_back(peer.rank);
    }
  }
  std::sort(late_.begin(), late_.end());
  late_.erase(std::unique(late_.begin(), late_.end()), late_.end());
  return status;
}

// Waits for `requests_`, unless the last wait found them done; what a peer sent in an older view is dropped, and its
// next message is waited for.
absl::Status LayerExchange::Await(RequestId Peer::*receive, std::span<std::byte> Peer::*buffer, MessageKind kind,
                                  int layer, bool waited) {
  while (true) {
    if (!waited) BALLAST_RETURN_IF_ERROR(WaitFor(deadline_));
    waited = false;
    for (Peer& peer : peers_) {
      if (std::find(requests_.begin(), requests_.end(), peer.*receive) != requests_.end())
        peer.received = transport_->ReceivedBytes(peer.*receive);
    }
    requests_.clear();
    for (Peer& peer : peers_) {
      const absl::StatusOr<uint64_t> sent_in = PeekView((peer.*buffer).first(peer.received));
      if (!sent_in.ok() || *sent_in >= view_.value()) continue;
      peer.*receive = transport_->Receive(peer.rank, MakeTag(kind, step_.value(), layer), peer.*buffer);
      requests_.push_back(peer.*receive);
    }
    if (requests_.empty()) return absl::OkStatus();
  }
}

absl::Status LayerExchange::ExchangeCounts(int layer, std::span<const int32_t> own,
                                           absl::FunctionRef<void(int rank, std::span<const int32_t>)> take) {
  const Tag tag = MakeTag(MessageKind::kCounts, step_.value(), layer);
  const CountsHeader header{.header = Header(MessageKind::kCounts),
                            .epoch = epoch_.value(),
                            .layer = static_cast<uint32_t>(layer),
                            .experts = static_cast<uint32_t>(own.size())};
  // The sends of the layer before were waited for with its results.
  const std::span<std::byte> message(counts_out_.data(), CountsBytes(shape_.num_experts));
  std::memcpy(message.data(), &header, sizeof(header));
  std::memcpy(message.data() + sizeof(header), own.data(), own.size_bytes());
  requests_.clear();
  for (Peer& peer : peers_) {
    peer.counts_receive = transport_->Receive(peer.rank, tag, peer.counts_in);
    requests_.push_back(peer.counts_receive);
  }
  for (Peer& peer : peers_) peer.counts_send = transport_->Send(peer.rank, tag, message);
  counts_sent_ = true;
  BALLAST_RETURN_IF_ERROR(
      Await(&Peer::counts_receive, &Peer::counts_in, MessageKind::kCounts, layer, /*waited=*/false));
  const WireContext context = Context(layer, /*counts=*/false);
  for (size_t i = 0; i < peers_.size(); ++i) {
    const Peer& peer = peers_[i];
    const auto counts = ParseCounts(context, peer.rank, peer.counts_in.first(peer.received));
    if (!counts.ok()) return Blame(static_cast<int>(i), counts.status());
    take(peer.rank, *counts);
  }
  return absl::OkStatus();
}

void LayerExchange::SendRows(int layer, const DispatchPlan& plan, const float* hidden, int rows, const Notes& notes) {
  const Tag dispatch_tag = MakeTag(MessageKind::kDispatch, step_.value(), layer);
  const Tag combine_tag = MakeTag(MessageKind::kCombine, step_.value(), layer);
  const bool counts = !notes.counts.empty();
  std::byte* out = dispatch_out_.data();
  std::byte* in = combine_in_.data();
  for (Peer& peer : peers_) {
    const size_t tokens = plan.tokens_to()[peer.rank];
    const size_t pairs = plan.pairs_to()[peer.rank];
    const DispatchPreamble preamble = Preamble(peer.rank, counts);
    peer.dispatch_out = {out, DispatchBytes(preamble, tokens, pairs, shape_.hidden_size)};
    out += Buffer::Aligned(peer.dispatch_out.size());
    peer.combine_in = {in, CombineBytes(shape_.result_by_pair ? pairs : tokens, shape_.hidden_size)};
    in += Buffer::Aligned(peer.combine_in.size());
    // Before the peer can answer.
    peer.combine_receive = transport_->Receive(peer.rank, combine_tag, peer.combine_in);
    const DispatchHeader header{.header = Header(MessageKind::kDispatch),
                                .epoch = epoch_.value(),
                                .layer = static_cast<uint32_t>(layer),
                                .tokens = static_cast<uint32_t>(tokens),
                                .pairs = static_cast<uint32_t>(pairs),
                                .flags = notes.flags,
                                .nanoseconds_per_pair = notes.nanoseconds_per_pair,
                                .exchange_nanoseconds = notes.exchange_nanoseconds};
    std::byte* const message = peer.dispatch_out.data();
    std::memcpy(message, &header, sizeof(header));
    if (preamble.destinations > 0) {
      static_assert(sizeof(uint32_t) == sizeof(int32_t));
      std::memcpy(message + sizeof(header), plan.pairs_to().data(), plan.pairs_to().size_bytes());
    }
    if (counts) std::memcpy(message + DispatchCountsOffset(preamble), notes.counts.data(), notes.counts.size_bytes());
    // The padding before the rows, so that no stale memory leaves this process.
    const size_t pairs_end = DispatchPairsOffset(preamble) + sizeof(WirePair) * pairs;
    std::memset(message + pairs_end, 0, DispatchRowsOffset(preamble, pairs) - pairs_end);
  }
  BALLAST_CHECK(out <= dispatch_out_.data() + dispatch_out_.size() && in <= combine_in_.data() + combine_in_.size());

  for (int row = 0; row < rows; ++row) {
    for (const PlannedPair& pair : plan.row(row)) {
      if (pair.rank < 0 || pair.rank == rank_) continue;
      std::byte* const message = peers_[peer_at_rank_[pair.rank]].dispatch_out.data();
      const DispatchPreamble preamble = Preamble(pair.rank, counts);
      const WirePair wire{.token = static_cast<uint32_t>(pair.token_at_rank),
                          .expert = static_cast<uint32_t>(pair.expert),
                          .weight = pair.weight};
      std::memcpy(message + DispatchPairsOffset(preamble) + sizeof(wire) * pair.pair_at_rank, &wire, sizeof(wire));
      // The row itself, once for each rank: with its first pair there.
      bool first = true;
      for (const PlannedPair* before = plan.row(row).data(); before != &pair; ++before)
        first &= before->rank != pair.rank;
      if (!first) continue;
      std::memcpy(message + DispatchRowsOffset(preamble, plan.pairs_to()[pair.rank]) + row_bytes() * pair.token_at_rank,
                  hidden + static_cast<size_t>(row) * shape_.hidden_size, row_bytes());
    }
  }
  for (Peer& peer : peers_) peer.dispatch_send = transport_->Send(peer.rank, dispatch_tag, peer.dispatch_out);
}

absl::StatusOr<bool> LayerExchange::RowsAreHere() {
  requests_.clear();
  for (const Peer& peer : peers_) requests_.push_back(peer.dispatch_receive);
  const absl::Status here = WaitFor(absl::InfinitePast());
  if (absl::IsDeadlineExceeded(here)) return false;
  BALLAST_RETURN_IF_ERROR(here);
  return true;
}

absl::Status LayerExchange::ReceiveRows(int layer, bool here, bool counts) {
  BALLAST_RETURN_IF_ERROR(Await(&Peer::dispatch_receive, &Peer::dispatch_in, MessageKind::kDispatch, layer, here));
  const WireContext context = Context(layer, counts);
  for (size_t i = 0; i < peers_.size(); ++i) {
    Peer& peer = peers_[i];
    absl::StatusOr<DispatchView> rows = ParseDispatch(context, peer.rank, peer.dispatch_in.first(peer.received));
    if (!rows.ok()) return Blame(static_cast<int>(i), rows.status());
    peer.rows = *rows;
  }
  return absl::OkStatus();
}

void LayerExchange::SendResults(int layer, absl::FunctionRef<void(int peer, float* results)> fill) {
  const Tag tag = MakeTag(MessageKind::kCombine, step_.value(), layer);
  std::byte* out = combine_out_.data();
  for (size_t i = 0; i < peers_.size(); ++i) {
    Peer& peer = peers_[i];
    const size_t rows = shape_.result_by_pair ? peer.rows.pairs.size() : peer.rows.tokens;
    peer.combine_out = {out, CombineBytes(rows, shape_.hidden_size)};
    out += Buffer::Aligned(peer.combine_out.size());
    const CombineHeader header{.header = Header(MessageKind::kCombine),
                               .layer = static_cast<uint32_t>(layer),
                               .rows = static_cast<uint32_t>(rows)};
    std::memcpy(peer.combine_out.data(), &header, sizeof(header));
    fill(static_cast<int>(i), reinterpret_cast<float*>(peer.combine_out.data() + sizeof(header)));
    peer.combine_send = transport_->Send(peer.rank, tag, peer.combine_out);
  }
}

absl::Status LayerExchange::ReceiveResults(int layer, const DispatchPlan& plan) {
  requests_.clear();
  for (Peer& peer : peers_) {
    requests_.push_back(peer.combine_receive);
    // Buffers of this layer are used again by the next.
    requests_.push_back(peer.dispatch_send);
    requests_.push_back(peer.combine_send);
    if (counts_sent_) requests_.push_back(peer.counts_send);
  }
  BALLAST_RETURN_IF_ERROR(
      Await(&Peer::combine_receive, &Peer::combine_in, MessageKind::kCombine, layer, /*waited=*/false));
  counts_sent_ = false;
  const WireContext context = Context(layer, /*counts=*/false);
  for (size_t i = 0; i < peers_.size(); ++i) {
    Peer& peer = peers_[i];
    const size_t rows = shape_.result_by_pair ? plan.pairs_to()[peer.rank] : plan.tokens_to()[peer.rank];
    absl::StatusOr<const float*> results = ParseCombine(context, peer.rank, rows, peer.combine_in.first(peer.received));
    if (!results.ok()) return Blame(static_cast<int>(i), results.status());
    peer.results = *results;
  }
  return absl::OkStatus();
}

}  // namespace ballast
