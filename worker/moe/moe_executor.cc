#include "worker/moe/moe_executor.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/tokens.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "worker/moe/dispatch_plan.h"
#include "worker/moe/wire.h"

namespace ballast {
namespace {

constexpr size_t kAlignment = 64;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Aligned memory that is not touched before it is used: buffers are made for the worst case, which rarely comes.
class Buffer {
 public:
  void Reserve(size_t bytes) {
    if (bytes <= size_) return;
    data_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kAlignment))));
    size_ = bytes;
  }
  std::byte* data() const { return data_.get(); }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }
  size_t size() const { return size_; }

 private:
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<std::byte, Delete> data_;
  size_t size_ = 0;
};

// Below this many floats read a loop over rows is not worth waking the pool for.
constexpr size_t kFloatsWorthSharing = size_t{1} << 17;
// Pairs of one row at most, for scratch on the stack.
constexpr int kMaxTopK = 64;

}  // namespace

absl::Status RowFailure::ToStatus() const {
  return absl::UnavailableError(absl::StrCat("no live replica of layer ", expert.layer, " expert ", expert.expert,
                                             ": lost with worker ", absl::StrJoin(workers, ", ")));
}

struct MoeExecutor::Impl {
  Impl(MoeModel m, const MoeExecutorOptions& o, ThreadPool& p)
      : model(std::move(m)), options(o), pool(p), plan(model.rule.num_experts, model.rule.top_k, options.capacity) {
    const size_t pairs = static_cast<size_t>(options.capacity) * model.rule.top_k;
    logits.resize(static_cast<size_t>(options.capacity) * model.rule.num_experts);
    for (int layer = 0; layer < model.num_layers(); ++layer) {
      routed_experts.emplace_back(pairs);
      routed_weights.emplace_back(pairs);
    }
    failed.reserve(options.capacity);
    begin.resize(model.rule.num_experts + 1);
    tasks.reserve(model.rule.num_experts);
    routed_layers.reserve(model.num_layers());
  }

  // What this rank exchanges with another one in a layer.
  struct Peer {
    int rank = 0;
    std::span<std::byte> dispatch_in;  // room for the worst case
    std::span<std::byte> dispatch_out;
    std::span<std::byte> combine_in;
    std::span<std::byte> combine_out;
    RequestId dispatch_receive, dispatch_send, combine_receive, combine_send;
    size_t received = 0;
    DispatchView rows;
    // The first of the peer's pairs among the items of the layer.
    size_t first_item = 0;
    const float* combined = nullptr;
  };

  const MoeModel model;
  const MoeExecutorOptions options;
  ThreadPool& pool;
  std::function<void(const Trace&)> trace;

  // The stay in a view.
  GroupView view;
  Transport* transport = nullptr;
  std::shared_ptr<const ReplicaTable> table;
  std::vector<int32_t> node_of_rank;
  std::vector<DispatchTable> dispatch_tables;  // by layer
  std::vector<Peer> peers;                     // in the order they are sent to: own rank + 1 on, round
  std::vector<int> peer_of_rank;               // index into peers, -1: own rank
  Buffer dispatch_in, dispatch_out, combine_in, combine_out;

  // The step.
  MoeStep step;
  int next_layer = 0;
  // The step whose dispatch messages are being received.
  StepId receiving_step;
  std::vector<uint8_t> failed;
  std::vector<RowFailure> failures;
  MoeStepStats stats;
  double balancedness_sum = 0;
  int balanced_layers = 0;
  std::vector<int> late;
  std::vector<std::vector<int32_t>> routed_experts;  // by layer, [rows][k]
  std::vector<std::vector<float>> routed_weights;
  mutable std::vector<RoutedLayer> routed_layers;

  // The layer.
  DispatchPlan plan;
  std::vector<float> logits;
  std::vector<int64_t> load;  // by rank
  // Pairs to compute here: own ones, then peer by peer.
  std::vector<int32_t> item_expert;
  std::vector<const float*> item_row;
  std::vector<int32_t> place;  // of an item's output in `outputs`
  std::vector<int32_t> begin, order;
  std::vector<const float*> grouped_rows;
  std::vector<ExpertTask> tasks;
  Buffer outputs;
  std::vector<RequestId> requests;

  int H() const { return model.hidden_size; }
  int K() const { return model.rule.top_k; }
  size_t row_bytes() const { return sizeof(float) * static_cast<size_t>(H()); }
  int rank() const { return view.rank; }

  void Enter(const GroupView& v, Transport* t, std::shared_ptr<const ReplicaTable> tbl);
  void Flip(std::shared_ptr<const ReplicaTable> tbl);
  void Leave();
  void MakeBuffers();
  void BeginStep(const MoeStep& s);
  absl::Status Run(int layer, const float* hidden, int rows, float* out);

  WireContext Context(int layer) const;
  MessageHeader Header(MessageKind kind) const;
  void PostDispatchReceives(StepId of_step, int layer);
  void PlanLayer(int layer, int rows);
  void SendRows(int layer, const float* hidden, int rows);
  absl::Status ReceiveRows(int layer, bool waited);
  void AddOwnItems(const float* hidden, int rows);
  void ComputeItems(int layer, size_t first, size_t last);
  void SendResults(int layer);
  absl::Status ReceiveResults(int layer);
  void CombineHome(int rows, float* out);
  void CombineRow(int row, size_t own_item, float* out, float* scratch) const;
  void CountLoad();
  absl::Status Await(RequestId Peer::*receive, std::span<std::byte> Peer::*buffer, MessageKind kind, int layer,
                     bool waited);
  absl::Status WaitFor(absl::Time deadline);
  const float* Output(size_t item) const { return outputs.floats() + static_cast<size_t>(place[item]) * H(); }

  // body(i) for i in [0, n), on several threads when there is enough to do.
  template <typename Body>
  void ForRows(int n, size_t floats_each, const Body& body) {
    if (pool.threads() == 1 || n * floats_each < kFloatsWorthSharing) {
      for (int i = 0; i < n; ++i) body(i);
      return;
    }
    const int parts = std::min(n, pool.threads() * 2);
    pool.ParallelFor(parts, [&](int part) {
      for (int i = n * part / parts; i < n * (part + 1) / parts; ++i) body(i);
    });
  }
};

void MoeExecutor::Impl::Enter(const GroupView& v, Transport* t, std::shared_ptr<const ReplicaTable> tbl) {
  BALLAST_CHECK(v.size() == 1 || (t != nullptr && t->size() == v.size() && t->rank() == v.rank)) << v.view;
  view = v;
  transport = v.size() > 1 ? t : nullptr;
  node_of_rank.clear();
  for (const GroupMember& member : view.members) {
    int32_t node = 0;
    while (view.members[node].node != member.node) ++node;
    node_of_rank.push_back(node);
  }
  peers.clear();
  peer_of_rank.assign(view.size(), -1);
  for (int i = 1; i < view.size(); ++i) {
    const int peer = (view.rank + i) % view.size();
    peer_of_rank[peer] = static_cast<int>(peers.size());
    peers.push_back({.rank = peer});
  }
  load.assign(view.size(), 0);
  receiving_step = StepId();
  MakeBuffers();
  Flip(std::move(tbl));
}

void MoeExecutor::Impl::MakeBuffers() {
  const size_t ranks = view.size();
  const size_t others = ranks - 1;
  const size_t rows = options.capacity;
  const size_t pairs = rows * K();
  // A row goes to at most so many other ranks.
  const size_t spread = std::min<size_t>(K(), others);
  const bool exact = options.combine == CombineMode::kExact;
  const size_t largest_dispatch = Aligned(DispatchBytes(rank() == 0, view.size(), rows, pairs, H()));
  const size_t header_room = Aligned(DispatchRowsOffset(true, view.size(), 0)) + kAlignment;

  dispatch_in.Reserve(others * largest_dispatch);
  for (size_t i = 0; i < others; ++i) {
    peers[i].dispatch_in = {dispatch_in.data() + i * largest_dispatch, largest_dispatch};
  }
  dispatch_out.Reserve(others * header_room + pairs * sizeof(WirePair) + rows * spread * row_bytes() +
                       others * kAlignment);
  combine_in.Reserve(others * (sizeof(CombineHeader) + kAlignment) + (exact ? pairs : rows * spread) * row_bytes());
  combine_out.Reserve(others * (Aligned(CombineBytes(exact ? pairs : rows, H()))));
  outputs.Reserve(ranks * pairs * row_bytes());
  item_expert.reserve(ranks * pairs);
  item_row.reserve(ranks * pairs);
  place.resize(ranks * pairs);
  order.resize(ranks * pairs);
  grouped_rows.resize(ranks * pairs);
  requests.reserve(4 * ranks);
}

void MoeExecutor::Impl::Flip(std::shared_ptr<const ReplicaTable> tbl) {
  table = std::move(tbl);
  const Placement& placement = table->placement();
  std::vector<int32_t> rank_of_worker(placement.workers.size(), -1);
  for (size_t w = 0; w < placement.workers.size(); ++w) {
    for (int32_t r = 0; r < view.size(); ++r) {
      if (view.members[r].worker == placement.workers[w]) rank_of_worker[w] = r;
    }
  }
  dispatch_tables.clear();
  for (const LayerReplicas& layer : table->layers()) {
    dispatch_tables.push_back(MakeDispatchTable(layer, rank_of_worker));
  }
  BALLAST_CHECK(static_cast<int>(dispatch_tables.size()) == model.num_layers()) << dispatch_tables.size() << " layers";
}

void MoeExecutor::Impl::Leave() {
  transport = nullptr;
  table = nullptr;
  peers.clear();
}

void MoeExecutor::Impl::BeginStep(const MoeStep& s) {
  BALLAST_CHECK(table != nullptr) << "a step without a view";
  BALLAST_CHECK(s.rows.size() <= static_cast<size_t>(options.capacity)) << s.rows.size() << " rows";
  step = s;
  next_layer = 0;
  failed.assign(step.rows.size(), 0);
  failures.clear();
  late.clear();
  balancedness_sum = 0;
  balanced_layers = 0;
  stats = MoeStepStats{.any_more_work = step.more_work};
  for (const RowLabel& label : step.rows) stats.any_prefill |= label.phase == TokenPhase::kPrefill;
  if (receiving_step != step.step) PostDispatchReceives(step.step, 0);
}

WireContext MoeExecutor::Impl::Context(int layer) const {
  return {.view = view.view.value(),
          .step = step.step.value(),
          .epoch = table->version().epoch.value(),
          .layer = static_cast<uint32_t>(layer),
          .ranks = view.size(),
          .rank = rank(),
          .hidden_size = H(),
          .num_experts = model.rule.num_experts,
          .top_k = K(),
          .capacity = options.capacity};
}

MessageHeader MoeExecutor::Impl::Header(MessageKind kind) const {
  return {.kind = kind, .view = view.view.value(), .step = step.step.value()};
}

void MoeExecutor::Impl::PostDispatchReceives(StepId of_step, int layer) {
  receiving_step = of_step;
  const Tag tag = MakeTag(MessageKind::kDispatch, of_step.value(), layer);
  for (Peer& peer : peers) peer.dispatch_receive = transport->Receive(peer.rank, tag, peer.dispatch_in);
}

void MoeExecutor::Impl::PlanLayer(int layer, int rows) {
  const size_t pairs = static_cast<size_t>(rows) * K();
  plan.Plan(dispatch_tables[layer], {.rank = rank(), .node_of_rank = node_of_rank}, view.size(),
            static_cast<uint32_t>(rank() + step.step.value()), std::span(routed_experts[layer]).first(pairs),
            std::span(routed_weights[layer]).first(pairs), failed);
  for (const DispatchPlan::Missing& missing : plan.newly_failed()) {
    RowFailure failure{.row = missing.row, .expert = {layer, missing.expert}};
    const LayerReplicas& replicas = table->layers()[layer];
    for (int32_t i = replicas.begin[missing.expert]; i < replicas.begin[missing.expert + 1]; ++i) {
      failure.workers.push_back(table->placement().workers[replicas.replicas[i].worker]);
    }
    failures.push_back(std::move(failure));
  }
  for (int r = 0; r < view.size(); ++r) {
    const int64_t copies = plan.tokens_to()[r];
    (r == rank()                               ? stats.copies_self
     : node_of_rank[r] == node_of_rank[rank()] ? stats.copies_node
                                               : stats.copies_far) += copies;
  }
}

void MoeExecutor::Impl::SendRows(int layer, const float* hidden, int rows) {
  const bool exact = options.combine == CombineMode::kExact;
  const Tag dispatch_tag = MakeTag(MessageKind::kDispatch, step.step.value(), layer);
  const Tag combine_tag = MakeTag(MessageKind::kCombine, step.step.value(), layer);
  const uint32_t flags = (stats.any_prefill ? kDispatchHasPrefill : 0) | (step.more_work ? kDispatchMoreWork : 0);
  std::byte* out = dispatch_out.data();
  std::byte* in = combine_in.data();
  for (Peer& peer : peers) {
    const size_t tokens = plan.tokens_to()[peer.rank];
    const size_t pairs = plan.pairs_to()[peer.rank];
    peer.dispatch_out = {out, DispatchBytes(peer.rank == 0, view.size(), tokens, pairs, H())};
    out += Aligned(peer.dispatch_out.size());
    peer.combine_in = {in, CombineBytes(exact ? pairs : tokens, H())};
    in += Aligned(peer.combine_in.size());
    // Before the peer can answer.
    peer.combine_receive = transport->Receive(peer.rank, combine_tag, peer.combine_in);
    const DispatchHeader header{.header = Header(MessageKind::kDispatch),
                                .epoch = table->version().epoch.value(),
                                .layer = static_cast<uint32_t>(layer),
                                .tokens = static_cast<uint32_t>(tokens),
                                .pairs = static_cast<uint32_t>(pairs),
                                .flags = flags};
    std::memcpy(peer.dispatch_out.data(), &header, sizeof(header));
    if (peer.rank == 0) {
      static_assert(sizeof(uint32_t) == sizeof(int32_t));
      std::memcpy(peer.dispatch_out.data() + sizeof(header), plan.pairs_to().data(),
                  plan.pairs_to().size() * sizeof(uint32_t));
    }
  }
  BALLAST_CHECK(out <= dispatch_out.data() + dispatch_out.size() && in <= combine_in.data() + combine_in.size());

  for (int row = 0; row < rows; ++row) {
    for (const PlannedPair& pair : plan.row(row)) {
      if (pair.rank < 0 || pair.rank == rank()) continue;
      const Peer& peer = peers[peer_of_rank[pair.rank]];
      std::byte* const message = peer.dispatch_out.data();
      const bool to_rank0 = pair.rank == 0;
      const WirePair wire{.token = static_cast<uint32_t>(pair.token_at_rank),
                          .expert = static_cast<uint32_t>(pair.expert),
                          .weight = pair.weight};
      std::memcpy(message + DispatchPairsOffset(to_rank0, view.size()) + sizeof(wire) * pair.pair_at_rank, &wire,
                  sizeof(wire));
      // The row itself, once for each rank: with its first pair there.
      std::byte* const rows_at = message + DispatchRowsOffset(to_rank0, view.size(), plan.pairs_to()[pair.rank]) +
                                 row_bytes() * pair.token_at_rank;
      bool first = true;
      for (const PlannedPair* before = plan.row(row).data(); before != &pair; ++before)
        first &= before->rank != pair.rank;
      if (first) std::memcpy(rows_at, hidden + static_cast<size_t>(row) * H(), row_bytes());
    }
  }
  for (Peer& peer : peers) {
    // The padding before the rows, so that no stale memory leaves this process.
    const size_t pairs_end = DispatchPairsOffset(peer.rank == 0, view.size()) +
                             sizeof(WirePair) * static_cast<size_t>(plan.pairs_to()[peer.rank]);
    const size_t rows_at = DispatchRowsOffset(peer.rank == 0, view.size(), plan.pairs_to()[peer.rank]);
    std::memset(peer.dispatch_out.data() + pairs_end, 0, rows_at - pairs_end);
    peer.dispatch_send = transport->Send(peer.rank, dispatch_tag, peer.dispatch_out);
  }
}

absl::Status MoeExecutor::Impl::WaitFor(absl::Time deadline) {
  const absl::Status status = transport->Wait(requests, deadline);
  if (!absl::IsDeadlineExceeded(status) || deadline == absl::InfinitePast()) return status;
  for (const Peer& peer : peers) {
    for (const RequestId id : {peer.dispatch_receive, peer.dispatch_send, peer.combine_receive, peer.combine_send}) {
      if (std::find(requests.begin(), requests.end(), id) == requests.end()) continue;
      if (!transport->Wait({&id, 1}, absl::InfinitePast()).ok()) late.push_back(peer.rank);
    }
  }
  std::sort(late.begin(), late.end());
  late.erase(std::unique(late.begin(), late.end()), late.end());
  return status;
}

// Waits for `requests`, unless the last wait found them done; what a peer sent in an older view is dropped, and its
// next message is waited for.
absl::Status MoeExecutor::Impl::Await(RequestId Peer::*receive, std::span<std::byte> Peer::*buffer, MessageKind kind,
                                      int layer, bool waited) {
  while (true) {
    if (!waited) BALLAST_RETURN_IF_ERROR(WaitFor(step.deadline));
    waited = false;
    for (Peer& peer : peers) {
      if (std::find(requests.begin(), requests.end(), peer.*receive) != requests.end())
        peer.received = transport->ReceivedBytes(peer.*receive);
    }
    requests.clear();
    for (Peer& peer : peers) {
      const absl::StatusOr<uint64_t> sent_in = PeekView((peer.*buffer).first(peer.received));
      if (!sent_in.ok() || *sent_in >= view.view.value()) continue;
      peer.*receive = transport->Receive(peer.rank, MakeTag(kind, step.step.value(), layer), peer.*buffer);
      requests.push_back(peer.*receive);
    }
    if (requests.empty()) return absl::OkStatus();
  }
}

absl::Status MoeExecutor::Impl::ReceiveRows(int layer, bool waited) {
  BALLAST_RETURN_IF_ERROR(Await(&Peer::dispatch_receive, &Peer::dispatch_in, MessageKind::kDispatch, layer, waited));
  const WireContext context = Context(layer);
  for (Peer& peer : peers) {
    absl::StatusOr<DispatchView> rows = ParseDispatch(context, peer.rank, peer.dispatch_in.first(peer.received));
    if (!rows.ok()) {
      late.push_back(peer.rank);
      return rows.status();
    }
    peer.rows = *rows;
    stats.any_prefill |= (peer.rows.flags & kDispatchHasPrefill) != 0;
    stats.any_more_work |= (peer.rows.flags & kDispatchMoreWork) != 0;
    peer.first_item = item_expert.size();
    for (const WirePair& pair : peer.rows.pairs) {
      const auto expert = static_cast<int32_t>(pair.expert);
      if (table->OwnWeights({layer, expert}) == nullptr) {
        late.push_back(peer.rank);
        return absl::InvalidArgumentError(absl::StrCat("message of rank ", peer.rank, ": expert is ", expert,
                                                       ", of which layer ", layer, " has no replica here in epoch ",
                                                       context.epoch));
      }
      item_expert.push_back(expert);
      item_row.push_back(peer.rows.rows + static_cast<size_t>(pair.token) * H());
    }
  }
  return absl::OkStatus();
}

void MoeExecutor::Impl::AddOwnItems(const float* hidden, int rows) {
  for (int row = 0; row < rows; ++row) {
    for (const PlannedPair& pair : plan.row(row)) {
      if (pair.rank != rank()) continue;
      item_expert.push_back(pair.expert);
      item_row.push_back(hidden + static_cast<size_t>(row) * H());
    }
  }
}

// Runs items [first, last); their outputs take the same places of `outputs`, grouped by expert.
void MoeExecutor::Impl::ComputeItems(int layer, size_t first, size_t last) {
  if (first == last) return;
  const size_t n = last - first;
  GroupByExpert(std::span(item_expert).subspan(first, n), model.rule.num_experts, begin, std::span(order).first(n));
  for (size_t g = 0; g < n; ++g) {
    const size_t item = first + order[g];
    grouped_rows[first + g] = item_row[item];
    place[item] = static_cast<int32_t>(first + g);
  }
  tasks.clear();
  for (int32_t e = 0; e < model.rule.num_experts; ++e) {
    const int32_t count = begin[e + 1] - begin[e];
    if (count == 0) continue;
    const size_t at = first + begin[e];
    tasks.push_back({.weights = table->OwnWeights({layer, e}),
                     .rows = std::span(grouped_rows).subspan(at, count),
                     .out = outputs.floats() + at * H()});
  }
  RunExperts(tasks, H(), model.intermediate_size, model.activation, pool);
  stats.pairs_computed += static_cast<int64_t>(n);
}

void MoeExecutor::Impl::SendResults(int layer) {
  const bool exact = options.combine == CombineMode::kExact;
  const Tag tag = MakeTag(MessageKind::kCombine, step.step.value(), layer);
  std::byte* out = combine_out.data();
  for (Peer& peer : peers) {
    const std::span<const WirePair> pairs = peer.rows.pairs;
    const size_t rows = exact ? pairs.size() : peer.rows.tokens;
    peer.combine_out = {out, CombineBytes(rows, H())};
    out += Aligned(peer.combine_out.size());
    const CombineHeader header{.header = Header(MessageKind::kCombine),
                               .layer = static_cast<uint32_t>(layer),
                               .rows = static_cast<uint32_t>(rows)};
    std::memcpy(peer.combine_out.data(), &header, sizeof(header));
    auto* const sums = reinterpret_cast<float*>(peer.combine_out.data() + sizeof(header));
    if (exact) {
      for (size_t p = 0; p < pairs.size(); ++p) std::memcpy(sums + p * H(), Output(peer.first_item + p), row_bytes());
    } else {
      CombineTerm terms[kMaxTopK];
      for (size_t p = 0; p < pairs.size();) {
        size_t n = 0;
        const uint32_t token = pairs[p].token;
        for (; p < pairs.size() && pairs[p].token == token; ++p) {
          terms[n++] = {.row = Output(peer.first_item + p), .weight = pairs[p].weight};
        }
        CombineRows({terms, n}, H(), sums + static_cast<size_t>(token) * H());
      }
    }
    peer.combine_send = transport->Send(peer.rank, tag, peer.combine_out);
  }
}

absl::Status MoeExecutor::Impl::ReceiveResults(int layer) {
  requests.clear();
  for (const Peer& peer : peers) {
    requests.push_back(peer.combine_receive);
    // Buffers of this layer are used again by the next.
    requests.push_back(peer.dispatch_send);
    requests.push_back(peer.combine_send);
  }
  BALLAST_RETURN_IF_ERROR(
      Await(&Peer::combine_receive, &Peer::combine_in, MessageKind::kCombine, layer, /*waited=*/false));
  const WireContext context = Context(layer);
  const bool exact = options.combine == CombineMode::kExact;
  for (Peer& peer : peers) {
    const size_t rows = exact ? plan.pairs_to()[peer.rank] : plan.tokens_to()[peer.rank];
    absl::StatusOr<const float*> combined =
        ParseCombine(context, peer.rank, rows, peer.combine_in.first(peer.received));
    if (!combined.ok()) {
      late.push_back(peer.rank);
      return combined.status();
    }
    peer.combined = *combined;
  }
  return absl::OkStatus();
}

void MoeExecutor::Impl::CombineRow(int row, size_t own_item, float* out, float* scratch) const {
  const std::span<const PlannedPair> pairs = plan.row(row);
  CombineTerm terms[kMaxTopK];
  size_t n = 0;
  if (options.combine == CombineMode::kExact) {
    for (const PlannedPair& pair : pairs) {
      const float* result =
          pair.rank == rank() ? Output(own_item++)
                              : peers[peer_of_rank[pair.rank]].combined + static_cast<size_t>(pair.pair_at_rank) * H();
      terms[n++] = {.row = result, .weight = pair.weight};
    }
    CombineRows({terms, n}, H(), out);
    return;
  }
  // The partial sums in rank order, this rank's among them.
  int32_t ranks[kMaxTopK];
  size_t num_ranks = 0;
  for (const PlannedPair& pair : pairs) {
    size_t at = 0;
    while (at < num_ranks && ranks[at] < pair.rank) ++at;
    if (at < num_ranks && ranks[at] == pair.rank) continue;
    std::copy_backward(ranks + at, ranks + num_ranks, ranks + num_ranks + 1);
    ranks[at] = pair.rank;
    ++num_ranks;
  }
  for (size_t i = 0; i < num_ranks; ++i) {
    const float* partial = nullptr;
    if (ranks[i] == rank()) {
      for (const PlannedPair& pair : pairs) {
        if (pair.rank == rank()) terms[n++] = {.row = Output(own_item++), .weight = pair.weight};
      }
      CombineRows({terms, n}, H(), i == 0 ? out : scratch);
      partial = scratch;
    } else {
      const auto of_rank =
          std::find_if(pairs.begin(), pairs.end(), [&](const PlannedPair& p) { return p.rank == ranks[i]; });
      partial = peers[peer_of_rank[ranks[i]]].combined + static_cast<size_t>(of_rank->token_at_rank) * H();
      if (i == 0) std::memcpy(out, partial, row_bytes());
    }
    if (i > 0) AddRow(partial, H(), out);
  }
}

void MoeExecutor::Impl::CombineHome(int rows, float* out) {
  ForRows(rows, static_cast<size_t>(H()) * K(), [&](int row) {
    float* const to = out + static_cast<size_t>(row) * H();
    if (failed[row]) {
      std::fill(to, to + H(), 0.0f);
      return;
    }
    // Own items are in the order of rows, and so of pair_at_rank.
    size_t own_item = 0;
    for (const PlannedPair& pair : plan.row(row)) {
      if (pair.rank != rank()) continue;
      own_item = pair.pair_at_rank;
      break;
    }
    thread_local std::vector<float> scratch;
    if (scratch.size() < static_cast<size_t>(H())) scratch.resize(H());
    CombineRow(row, own_item, to, scratch.data());
  });
}

void MoeExecutor::Impl::CountLoad() {
  if (rank() != 0) return;
  for (int r = 0; r < view.size(); ++r) load[r] = plan.pairs_to()[r];
  for (const Peer& peer : peers) {
    for (int r = 0; r < view.size(); ++r) load[r] += peer.rows.destination_pairs[r];
  }
  int64_t sum = 0;
  int64_t max = 0;
  for (const int64_t l : load) {
    sum += l;
    max = std::max(max, l);
  }
  if (max == 0) return;
  balancedness_sum += static_cast<double>(sum) / view.size() / static_cast<double>(max);
  ++balanced_layers;
  stats.balancedness = balancedness_sum / balanced_layers;
}

absl::Status MoeExecutor::Impl::Run(int layer, const float* hidden, int rows, float* out) {
  BALLAST_CHECK(layer == next_layer && layer < model.num_layers()) << "layer " << layer << " after " << next_layer - 1;
  BALLAST_CHECK(static_cast<size_t>(rows) == step.rows.size()) << rows << " rows of " << step.rows.size();
  ++next_layer;
  Clock& clock = *options.clock;
  const absl::Time start = clock.Now();
  const size_t pairs = static_cast<size_t>(rows) * K();
  const std::span<int32_t> experts = std::span(routed_experts[layer]).first(pairs);
  const std::span<float> weights = std::span(routed_weights[layer]).first(pairs);
  if (rows > 0) {
    RouteTokens(model.rule, hidden, model.router_weights[layer], rows, H(), logits.data(), experts.data(),
                weights.data(), pool);
  }
  PlanLayer(layer, rows);
  const absl::Time routed = clock.Now();

  item_expert.clear();
  item_row.clear();
  if (!peers.empty()) SendRows(layer, hidden, rows);
  AddOwnItems(hidden, rows);
  const size_t own_items = item_expert.size();
  size_t computed = 0;
  absl::Duration early;
  if (!peers.empty()) {
    // The own rows are computed while the others' are under way; when those are here already, all of them at once, so
    // that each expert's weights are read once.
    requests.clear();
    for (const Peer& peer : peers) requests.push_back(peer.dispatch_receive);
    const absl::Status here = WaitFor(absl::InfinitePast());
    if (!here.ok()) {
      if (!absl::IsDeadlineExceeded(here)) return here;
      const absl::Time before = clock.Now();
      ComputeItems(layer, 0, own_items);
      computed = own_items;
      early = clock.Now() - before;
    }
    BALLAST_RETURN_IF_ERROR(ReceiveRows(layer, here.ok()));
  }
  const absl::Time received = clock.Now();
  ComputeItems(layer, computed, item_expert.size());
  const absl::Time calculated = clock.Now();
  if (!peers.empty()) SendResults(layer);
  CountLoad();
  if (!peers.empty()) {
    // Peers that have their results may go on to the next layer, or step, before this rank.
    const bool last = layer + 1 == model.num_layers();
    PostDispatchReceives(last ? step.step.next() : step.step, last ? 0 : layer + 1);
    BALLAST_RETURN_IF_ERROR(ReceiveResults(layer));
  }
  CombineHome(rows, out);
  stats.route += routed - start;
  stats.dispatch += received - routed - early;
  stats.experts += early + (calculated - received);
  stats.combine += clock.Now() - calculated;
  if (trace) {
    trace({.moe_layer = layer,
           .rows = rows,
           .router_logits = std::span(logits).first(static_cast<size_t>(rows) * model.rule.num_experts),
           .experts = experts,
           .weights = weights,
           .output = {out, static_cast<size_t>(rows) * H()}});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<MoeExecutor>> MoeExecutor::Create(MoeModel model, const MoeExecutorOptions& options,
                                                                 ThreadPool& pool) {
  const auto check = [](const char* field, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", not between ", low, " and ", high));
  };
  BALLAST_RETURN_IF_ERROR(check("num_layers", model.num_layers(), 1, kMaxWireLayers));
  BALLAST_RETURN_IF_ERROR(check("num_experts", model.rule.num_experts, 1, 1 << 20));
  BALLAST_RETURN_IF_ERROR(
      check("experts_per_token", model.rule.top_k, 1, std::min<int64_t>(kMaxTopK, model.rule.num_experts)));
  BALLAST_RETURN_IF_ERROR(check("hidden_size", model.hidden_size, 1, 1 << 20));
  BALLAST_RETURN_IF_ERROR(check("expert_intermediate_size", model.intermediate_size, 1, 1 << 20));
  BALLAST_RETURN_IF_ERROR(check("capacity", options.capacity, 1, 1 << 16));
  return std::unique_ptr<MoeExecutor>(new MoeExecutor(std::make_unique<Impl>(std::move(model), options, pool)));
}

MoeExecutor::MoeExecutor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MoeExecutor::~MoeExecutor() = default;

void MoeExecutor::Enter(const GroupView& view, Transport* transport, std::shared_ptr<const ReplicaTable> table) {
  impl_->Enter(view, transport, std::move(table));
}
void MoeExecutor::Flip(std::shared_ptr<const ReplicaTable> table) { impl_->Flip(std::move(table)); }
void MoeExecutor::Leave() { impl_->Leave(); }
void MoeExecutor::BeginStep(const MoeStep& step) { impl_->BeginStep(step); }
absl::Status MoeExecutor::Run(int moe_layer, const float* hidden, int rows, float* out) {
  return impl_->Run(moe_layer, hidden, rows, out);
}
int MoeExecutor::layers_begun() const { return impl_->next_layer; }
std::span<const RowFailure> MoeExecutor::failures() const { return impl_->failures; }
const MoeStepStats& MoeExecutor::stats() const { return impl_->stats; }
std::span<const int> MoeExecutor::late_peers() const { return impl_->late; }
void MoeExecutor::set_trace(std::function<void(const Trace&)> trace) { impl_->trace = std::move(trace); }

void MoeExecutor::CountStep(LoadCounters& counters) const {
  const Impl& impl = *impl_;
  const size_t pairs = impl.step.rows.size() * impl.K();
  impl.routed_layers.clear();
  for (int layer = 0; layer < impl.next_layer; ++layer) {
    impl.routed_layers.push_back({.layer = layer,
                                  .experts = std::span(impl.routed_experts[layer]).first(pairs),
                                  .weights = std::span(impl.routed_weights[layer]).first(pairs)});
  }
  counters.AddStep(impl.table->version().epoch, impl.step.rows, impl.failed, impl.routed_layers,
                   impl.stats.balancedness);
}

}  // namespace ballast
