#include "worker/moe/moe_executor.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/tokens.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "worker/moe/dispatch_plan.h"
#include "worker/moe/layer_exchange.h"
#include "worker/moe/row_homes.h"

namespace ballast {
namespace {

// Below this many floats read a loop over rows is not worth waking the pool for.
constexpr size_t kFloatsWorthSharing = size_t{1} << 17;
// Pairs of one row at most, for scratch on the stack.
constexpr int kMaxTopK = 64;

}  // namespace

struct MoeExecutor::Impl {
  Impl(MoeModel m, const MoeExecutorOptions& o, ThreadPool& p)
      : model(std::move(m)),
        options(o),
        pool(p),
        homes(o.tasks),
        exchange({.num_layers = model.num_layers(),
                  .num_experts = model.rule.num_experts,
                  .top_k = model.rule.top_k,
                  .hidden_size = model.hidden_size,
                  .capacity = options.capacity,
                  .result_by_pair = options.combine == CombineMode::kExact}),
        shares(model.num_layers(), model.rule.num_experts),
        plan(model.rule.num_experts, model.rule.top_k, options.capacity) {
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

  const MoeModel model;
  const MoeExecutorOptions options;
  ThreadPool& pool;
  std::function<void(const Trace&)> trace;

  // The stay in a view.
  GroupView view;
  std::shared_ptr<const ReplicaTable> table;
  std::vector<int32_t> node_of_rank;
  std::vector<uint32_t> speeds;  // by rank
  // Groups are those that the table has homes for; and whether a rank is a home, [groups][ranks].
  RowHomes homes;
  std::vector<uint8_t> is_home;
  LayerExchange exchange;
  StepShares shares;

  // The step.
  MoeStep step;
  int next_layer = 0;
  // Of the step before, on this rank: what a pair took its experts. 0: not known.
  double seconds_per_pair = 0;
  // The same of every rank, as the last messages had it.
  std::vector<double> rank_seconds_per_pair;
  std::vector<int32_t> home_group;  // by row; empty: no task has homes
  std::vector<uint8_t> failed;
  std::vector<RowFailure> failures;
  MoeStepStats stats;
  double balancedness_sum = 0;
  int balanced_layers = 0;
  std::vector<std::vector<int32_t>> routed_experts;  // by layer, [rows][k]
  std::vector<std::vector<float>> routed_weights;
  mutable std::vector<RoutedLayer> routed_layers;

  // The layer.
  DispatchPlan plan;
  std::vector<float> logits;
  absl::Duration exchange_time;  // of counts, on this rank
  std::vector<int32_t> quotas;
  std::vector<int64_t> load;  // by rank
  // Pairs to compute here: own ones, then peer by peer.
  std::vector<int32_t> item_expert;
  std::vector<const float*> item_row;
  std::vector<size_t> first_item;  // of each peer
  std::vector<int32_t> place;      // of an item's output in `outputs`
  std::vector<int32_t> begin, order;
  std::vector<const float*> grouped_rows;
  std::vector<ExpertTask> tasks;
  Buffer outputs;

  int H() const { return model.hidden_size; }
  int K() const { return model.rule.top_k; }
  size_t row_bytes() const { return sizeof(float) * static_cast<size_t>(H()); }
  int rank() const { return view.rank; }

  void Enter(const GroupView& v, Transport* t, std::shared_ptr<const ReplicaTable> tbl);
  void Flip(std::shared_ptr<const ReplicaTable> tbl);
  void NumberHomes(const std::vector<int32_t>& rank_of_worker);
  void Leave();
  void BeginStep(const MoeStep& s);
  absl::Status Run(int layer, const float* hidden, int rows, float* out);

  bool alone() const { return exchange.num_peers() == 0; }
  // The form that the open step runs `layer` in.
  ShareForm Form(int layer) const;
  // The layer's dispatch messages carry counts.
  bool CountsWithRows(int layer) const {
    return !alone() && !step.shares.empty() && shares.shared(layer) && step.shares[layer].counts;
  }
  void CountRows(int layer, int rows);
  absl::Status ShareLayer(int layer);
  void SendRows(int layer, const float* hidden, int rows);
  absl::Status TakeRows(int layer);
  void AddOwnItems(const float* hidden, int rows);
  void ComputeItems(int layer, size_t first, size_t last);
  void SendResults(int layer);
  void CombineHome(int rows, float* out);
  void CombineRow(int row, size_t own_item, float* out, float* scratch) const;
  void CountLoad();
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

void MoeExecutor::Impl::Enter(const GroupView& v, Transport* transport, std::shared_ptr<const ReplicaTable> tbl) {
  view = v;
  exchange.Enter(view, transport);
  speeds.clear();
  for (const GroupMember& member : view.members) speeds.push_back(member.speed);
  shares.Enter(view.size(), view.rank, speeds);
  node_of_rank.clear();
  for (const GroupMember& member : view.members) {
    int32_t node = 0;
    while (view.members[node].node != member.node) ++node;
    node_of_rank.push_back(node);
  }
  load.assign(view.size(), 0);
  rank_seconds_per_pair.assign(view.size(), 0);
  next_layer = 0;

  const size_t ranks = view.size();
  const size_t pairs = static_cast<size_t>(options.capacity) * K();
  outputs.Reserve(ranks * pairs * row_bytes());
  item_expert.reserve(ranks * pairs);
  item_row.reserve(ranks * pairs);
  first_item.resize(ranks - 1);
  place.resize(ranks * pairs);
  order.resize(ranks * pairs);
  grouped_rows.resize(ranks * pairs);
  Flip(std::move(tbl));
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
  std::vector<DispatchTable> tables;
  size_t most = 0;
  for (const LayerReplicas& layer : table->layers()) {
    tables.push_back(MakeDispatchTable(layer, rank_of_worker));
    most = std::max<size_t>(most, tables.back().num_replicas());
  }
  quotas.reserve(most);
  shares.SetTables(std::move(tables));
  NumberHomes(rank_of_worker);
}

void MoeExecutor::Impl::NumberHomes(const std::vector<int32_t>& rank_of_worker) {
  const std::vector<TaskHomes>& tasks = table->placement().task_homes;
  homes.Install(tasks);
  is_home.clear();
  home_group.clear();
  if (homes.empty()) return;
  is_home.resize(tasks.size() * view.size());
  for (size_t group = 0; group < tasks.size(); ++group) {
    for (const TaskHome& home : tasks[group].homes) {
      if (rank_of_worker[home.worker] >= 0) is_home[group * view.size() + rank_of_worker[home.worker]] = 1;
    }
  }
}

void MoeExecutor::Impl::Leave() {
  exchange.Leave();
  table = nullptr;
}

void MoeExecutor::Impl::BeginStep(const MoeStep& s) {
  BALLAST_CHECK(table != nullptr) << "a step without a view";
  BALLAST_CHECK(s.rows.size() <= static_cast<size_t>(options.capacity)) << s.rows.size() << " rows";
  BALLAST_CHECK(s.shares.empty() || static_cast<int>(s.shares.size()) == model.num_layers()) << s.shares.size();
  if (next_layer == model.num_layers()) {
    shares.EndStep();
    if (stats.pairs_computed > 0) {
      seconds_per_pair = absl::ToDoubleSeconds(stats.experts) / static_cast<double>(stats.pairs_computed);
    }
  }
  step = s;
  next_layer = 0;
  failed.assign(step.rows.size(), 0);
  failures.clear();
  balancedness_sum = 0;
  balanced_layers = 0;
  stats = MoeStepStats{.any_more_work = step.more_work, .least_capacity = options.capacity};
  for (const RowLabel& label : step.rows) stats.any_prefill |= label.phase == TokenPhase::kPrefill;
  if (!homes.empty()) {
    home_group.clear();
    for (const RowLabel& label : step.rows) home_group.push_back(homes.Of(label.task));
  }
  if (!alone()) exchange.BeginStep(step.step, table->version().epoch, step.deadline);
}

ShareForm MoeExecutor::Impl::Form(int layer) const {
  if (alone() || step.shares.empty() || !shares.shared(layer)) return ShareForm::kFixed;
  const ShareForm form = step.shares[layer].form;
  return form == ShareForm::kPrevious && !shares.has_previous(layer) ? ShareForm::kFixed : form;
}

// What this rank has to send, and which rows cannot go on.
void MoeExecutor::Impl::CountRows(int layer, int rows) {
  const size_t pairs = static_cast<size_t>(rows) * K();
  plan.Count(shares.table(layer), std::span(routed_experts[layer]).first(pairs),
             std::span(routed_weights[layer]).first(pairs), failed);
  for (const DispatchPlan::Failed& of : plan.newly_failed()) {
    RowFailure failure{.row = of.row, .expert = {layer, of.expert}, .not_finite = of.not_finite};
    const LayerReplicas& replicas = table->layers()[layer];
    for (int32_t i = replicas.begin[of.expert]; i < replicas.begin[of.expert + 1] && !of.not_finite; ++i) {
      failure.workers.push_back(table->placement().workers[replicas.replicas[i].worker]);
    }
    failures.push_back(std::move(failure));
  }
}

// Where it goes.
absl::Status MoeExecutor::Impl::ShareLayer(int layer) {
  Clock& clock = *options.clock;
  const ShareForm form = Form(layer);
  const absl::Time start = clock.Now();
  if (form == ShareForm::kCurrent) {
    BALLAST_RETURN_IF_ERROR(exchange.ExchangeCounts(
        layer, plan.counts(), [&](int from, std::span<const int32_t> counts) { shares.Take(from, counts); }));
    shares.Take(rank(), plan.counts());
    shares.Counted(layer);
  }
  exchange_time = form == ShareForm::kCurrent ? clock.Now() - start : absl::ZeroDuration();
  const DispatchTable& replicas = shares.table(layer);
  quotas.resize(replicas.num_replicas());
  shares.Quotas(layer, form, plan.counts(), static_cast<uint32_t>(rank() + step.step.value()), quotas);
  if (!alone()) ++stats.layers_by_form[static_cast<int>(form)];
  plan.Assign(replicas,
              {.rank = rank(),
               .node_of_rank = node_of_rank,
               .home_group = home_group,
               .is_home = is_home,
               .num_ranks = view.size()},
              view.size(), quotas);
  for (int r = 0; r < view.size(); ++r) {
    const int64_t copies = plan.tokens_to()[r];
    (r == rank()                               ? stats.copies_self
     : node_of_rank[r] == node_of_rank[rank()] ? stats.copies_node
                                               : stats.copies_far) += copies;
  }
  return absl::OkStatus();
}

void MoeExecutor::Impl::SendRows(int layer, const float* hidden, int rows) {
  const auto nanoseconds = [](absl::Duration d) {
    return static_cast<uint32_t>(
        std::clamp<int64_t>(absl::ToInt64Nanoseconds(d), 0, std::numeric_limits<uint32_t>::max()));
  };
  exchange.SendRows(layer, plan, hidden, rows,
                    {.flags = DispatchFlags(stats.any_prefill, step.more_work, options.capacity),
                     .nanoseconds_per_pair = nanoseconds(absl::Seconds(seconds_per_pair)),
                     .exchange_nanoseconds = nanoseconds(exchange_time),
                     .counts = CountsWithRows(layer) ? plan.counts() : std::span<const int32_t>()});
}

// Makes items of the rows that the peers sent.
absl::Status MoeExecutor::Impl::TakeRows(int layer) {
  absl::Duration least = exchange_time;
  absl::Duration second = absl::InfiniteDuration();
  for (int p = 0; p < exchange.num_peers(); ++p) {
    const DispatchView& rows = exchange.rows_of(p);
    const int from = exchange.rank_of(p);
    stats.any_prefill |= (rows.flags & kDispatchHasPrefill) != 0;
    stats.any_more_work |= (rows.flags & kDispatchMoreWork) != 0;
    stats.least_capacity = LeastCapacity(stats.least_capacity, rows.flags);
    rank_seconds_per_pair[from] = rows.nanoseconds_per_pair * 1e-9;
    const absl::Duration of_peer = absl::Nanoseconds(rows.exchange_nanoseconds);
    second = std::min(second, std::max(least, of_peer));
    least = std::min(least, of_peer);
    if (CountsWithRows(layer)) shares.Take(from, rows.counts);
    first_item[p] = item_expert.size();
    for (const WirePair& pair : rows.pairs) {
      const auto expert = static_cast<int32_t>(pair.expert);
      if (table->OwnWeights({layer, expert}) == nullptr) {
        return exchange.Blame(p, absl::InvalidArgumentError(absl::StrCat(
                                     "message of rank ", from, ": expert is ", expert, ", of which layer ", layer,
                                     " has no replica here in epoch ", table->version().epoch.value())));
      }
      item_expert.push_back(expert);
      item_row.push_back(rows.rows + static_cast<size_t>(pair.token) * H());
    }
  }
  stats.count_exchange += exchange.num_peers() > 1 ? second : least;
  if (CountsWithRows(layer)) {
    shares.Take(rank(), plan.counts());
    shares.Counted(layer);
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
  exchange.SendResults(layer, [&](int p, float* results) {
    const std::span<const WirePair> pairs = exchange.rows_of(p).pairs;
    if (options.combine == CombineMode::kExact) {
      for (size_t i = 0; i < pairs.size(); ++i) std::memcpy(results + i * H(), Output(first_item[p] + i), row_bytes());
      return;
    }
    CombineTerm terms[kMaxTopK];
    for (size_t i = 0; i < pairs.size();) {
      size_t n = 0;
      const uint32_t token = pairs[i].token;
      for (; i < pairs.size() && pairs[i].token == token; ++i) {
        terms[n++] = {.row = Output(first_item[p] + i), .weight = pairs[i].weight};
      }
      CombineRows({terms, n}, H(), results + static_cast<size_t>(token) * H());
    }
  });
}

void MoeExecutor::Impl::CombineRow(int row, size_t own_item, float* out, float* scratch) const {
  const std::span<const PlannedPair> pairs = plan.row(row);
  CombineTerm terms[kMaxTopK];
  size_t n = 0;
  if (options.combine == CombineMode::kExact) {
    for (const PlannedPair& pair : pairs) {
      const float* result = pair.rank == rank() ? Output(own_item++)
                                                : exchange.results_of(exchange.peer_at(pair.rank)) +
                                                      static_cast<size_t>(pair.pair_at_rank) * H();
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
      partial = exchange.results_of(exchange.peer_at(ranks[i])) + static_cast<size_t>(of_rank->token_at_rank) * H();
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
  for (int p = 0; p < exchange.num_peers(); ++p) {
    for (int r = 0; r < view.size(); ++r) load[r] += exchange.rows_of(p).destination_pairs[r];
  }
  double sum = 0;
  double max = 0;
  double all = 0;  // speeds
  for (int r = 0; r < view.size(); ++r) {
    sum += static_cast<double>(load[r]);
    max = std::max(max, static_cast<double>(load[r]) / speeds[r]);
    all += speeds[r];
  }
  if (max == 0) return;
  balancedness_sum += sum / all / max;
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
  CountRows(layer, rows);
  const absl::Time routed = clock.Now();
  BALLAST_RETURN_IF_ERROR(ShareLayer(layer));
  const absl::Time shared = clock.Now();

  item_expert.clear();
  item_row.clear();
  if (!alone()) SendRows(layer, hidden, rows);
  AddOwnItems(hidden, rows);
  const size_t own_items = item_expert.size();
  size_t computed = 0;
  absl::Duration early;
  if (!alone()) {
    // The own rows are computed while the others' are under way; when those are here already, all of them at once, so
    // that each expert's weights are read once.
    BALLAST_ASSIGN_OR_RETURN(const bool here, exchange.RowsAreHere());
    if (!here) {
      const absl::Time before = clock.Now();
      ComputeItems(layer, 0, own_items);
      computed = own_items;
      early = clock.Now() - before;
    }
    BALLAST_RETURN_IF_ERROR(exchange.ReceiveRows(layer, here, CountsWithRows(layer)));
    BALLAST_RETURN_IF_ERROR(TakeRows(layer));
  }
  const absl::Time received = clock.Now();
  ComputeItems(layer, computed, item_expert.size());
  const absl::Time calculated = clock.Now();
  CountLoad();
  if (!alone()) {
    SendResults(layer);
    exchange.ExpectNextRows(layer);
    BALLAST_RETURN_IF_ERROR(exchange.ReceiveResults(layer, plan));
  }
  CombineHome(rows, out);
  stats.route += routed - start;
  stats.share += shared - routed;
  stats.dispatch += received - shared - early;
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
std::span<const int> MoeExecutor::late_peers() const { return impl_->exchange.late(); }
bool MoeExecutor::shared(int layer) const { return !impl_->alone() && impl_->shares.shared(layer); }

std::optional<ShareComparison> MoeExecutor::CompareShares(int layer) { return impl_->shares.Compare(layer); }

double MoeExecutor::SecondsPerPair(int of_rank) const {
  const Impl& impl = *impl_;
  if (of_rank != impl.rank()) return impl.rank_seconds_per_pair[of_rank];
  return impl.stats.pairs_computed == 0
             ? 0
             : absl::ToDoubleSeconds(impl.stats.experts) / static_cast<double>(impl.stats.pairs_computed);
}

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
                   {.balancedness = impl.stats.balancedness,
                    .phase = impl.stats.any_prefill ? TokenPhase::kPrefill : TokenPhase::kDecode,
                    .layers_by_form = impl.stats.layers_by_form});
}

}  // namespace ballast
