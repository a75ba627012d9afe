#include "worker/moe/device_moe_executor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/invariant.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/tokens.h"
#include "proto/base/check.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"
#include "worker/experts/group_slots.h"
#include "worker/moe/device_load_counts.h"
#include "worker/moe/device_moe_impl.h"
#include "worker/moe/device_table.h"
#include "worker/moe/wire.h"

namespace ballast {
namespace {

uint32_t Nanoseconds(absl::Duration d) {
  return static_cast<uint32_t>(
      std::clamp<int64_t>(absl::ToInt64Nanoseconds(d), 0, std::numeric_limits<int32_t>::max()));
}

}  // namespace

absl::Status DeviceMoeExecutor::Impl::Init() {
  arena = {.slots = slots.Slot(0).data(),
           .slot_stride = DeviceSlots::StrideBytes(slots.Slot(0).size()),
           .num_slots = slots.slots(),
           .hidden_size = H(),
           .intermediate_size = model.intermediate_size};
  if (!exact()) {
    BALLAST_ASSIGN_OR_RETURN(experts, CudaExperts::Create(arena));
  }
  BALLAST_ASSIGN_OR_RETURN(groups, DeviceGroups::Create(L(), E()));
  BALLAST_RETURN_IF_ERROR(events.Create());
  BALLAST_RETURN_IF_ERROR(step_words.Allocate(kStepWords, "a step's words"));
  BALLAST_RETURN_IF_ERROR(ids.Allocate(L() * pairs(), "a step's routes"));
  BALLAST_RETURN_IF_ERROR(weights.Allocate(L() * pairs(), "a step's routes"));
  BALLAST_RETURN_IF_ERROR(replicas.Allocate(pairs(), "a layer's replicas"));
  BALLAST_RETURN_IF_ERROR(failed_at.Allocate(options.capacity, "a step's failures"));
  BALLAST_RETURN_IF_ERROR(visited.Allocate(options.capacity, "a layer's ranks"));
  BALLAST_RETURN_IF_ERROR(chosen.Allocate(options.capacity, "a layer's ranks"));
  BALLAST_RETURN_IF_ERROR(route.Allocate(std::max(RouteTokensWorkspaceBytes(model.rule, options.capacity),
                                                  RouteAndGroupWorkspaceBytes(model.rule, options.capacity, E())),
                                         "the router's workspace"));
  std::vector<int32_t> numbers(E() + kMaxExchangeRanks, -1);
  BALLAST_RETURN_IF_ERROR(identity.Allocate(numbers.size(), "groups"));
  for (int g = 0; g < E(); ++g) numbers[g] = g;
  BALLAST_RETURN_IF_ERROR(identity.Fill(numbers, "groups"));
  BALLAST_RETURN_IF_ERROR(host_step_words.Allocate(kStepWords));
  BALLAST_RETURN_IF_ERROR(homes.Allocate(options.capacity, "a step's homes"));
  BALLAST_RETURN_IF_ERROR(host_homes.Allocate(options.capacity));
  BALLAST_RETURN_IF_ERROR(open.Allocate(pairs(), "a layer's pairs with a choice"));
  BALLAST_ASSIGN_OR_RETURN(load_counts, DeviceLoadCounts::Create(L(), E(), K(), options.capacity));
  BALLAST_RETURN_IF_ERROR(host_failed_at.Allocate(options.capacity));
  // What an exchange of counts alone sends for rows: no tokens, a row that goes nowhere, and its sum.
  BALLAST_RETURN_IF_ERROR(nothing.Allocate(16 * kMaxExchangeRanks, "an empty exchange"));
  return InitSpace(1, pairs(), alone_space);
}

absl::Status DeviceMoeExecutor::Impl::InitSpace(int ranks, size_t rank_pairs, Workspace& space) const {
  const size_t all_pairs = ranks * rank_pairs;
  space.ranks = ranks;
  space.table_at = LayOutDeviceTable(E(), ranks);
  space.notes_at = LayOutDeviceNotes(E(), ranks);
  BALLAST_RETURN_IF_ERROR(space.tables.Allocate(static_cast<size_t>(L()) * space.table_at.words, "replica tables"));
  BALLAST_RETURN_IF_ERROR(space.begin.Allocate(E() + 1, "a layer's groups"));
  BALLAST_RETURN_IF_ERROR(space.order.Allocate(all_pairs, "a layer's groups"));
  BALLAST_RETURN_IF_ERROR(space.row_of.Allocate(all_pairs, "a layer's groups"));
  BALLAST_RETURN_IF_ERROR(space.outputs.Allocate(all_pairs * H(), "experts' outputs"));
  BALLAST_RETURN_IF_ERROR(
      space.group.Allocate(GroupPairsWorkspaceBytes(static_cast<int>(all_pairs), E()), "the grouping's workspace"));
  BALLAST_RETURN_IF_ERROR(space.experts.Allocate(
      exact() ? 2 * all_pairs * model.intermediate_size : experts->WorkspaceBytes(static_cast<int>(all_pairs), E()),
      "the experts' workspace"));
  const size_t words = static_cast<size_t>(L()) * ranks * space.notes_at.words;
  BALLAST_RETURN_IF_ERROR(space.notes.Allocate(space.notes_at.words, "a layer's notes"));
  if (ranks == 1) return absl::OkStatus();
  BALLAST_RETURN_IF_ERROR(space.kept.Allocate(words, "a step's notes"));
  BALLAST_RETURN_IF_ERROR(space.host_kept.Allocate(words));
  BALLAST_RETURN_IF_ERROR(space.counts.Allocate(static_cast<size_t>(L()) * ranks * E(), "counts"));
  BALLAST_RETURN_IF_ERROR(space.flows.Allocate(static_cast<size_t>(ranks) * E() * ranks, "quotas"));
  if (!exact()) return absl::OkStatus();
  BALLAST_RETURN_IF_ERROR(space.pair_rows.Allocate(rank_pairs * H(), "rows by pair"));
  BALLAST_RETURN_IF_ERROR(space.pair_outputs.Allocate(rank_pairs * H(), "outputs by pair"));
  BALLAST_RETURN_IF_ERROR(space.ones.Allocate(rank_pairs, "pairs"));
  BALLAST_RETURN_IF_ERROR(space.pair_numbers.Allocate(rank_pairs, "pairs"));
  const std::vector<float> ones(rank_pairs, 1.0f);
  std::vector<int32_t> numbers(rank_pairs);
  std::iota(numbers.begin(), numbers.end(), 0);
  BALLAST_RETURN_IF_ERROR(space.ones.Fill(ones, "pairs"));
  return space.pair_numbers.Fill(numbers, "pairs");
}

absl::Status DeviceMoeExecutor::Impl::MakeExchanges(absl::Time deadline) {
  const ExchangeOptions limits{
      .wait_limit = options.wait_limit, .deadline = deadline, .blocks = mesh.terms.exchange_blocks};
  const auto make = [&](const ExchangeShape& shape) -> absl::StatusOr<std::unique_ptr<DeviceExchange>> {
    auto made = MakeLsaExchange(*mesh.communicator, shape, limits);
    // Not within direct reach of each other.
    if (absl::IsFailedPrecondition(made.status())) made = MakeSendRecvExchange(*mesh.communicator, shape, limits);
    return made;
  };
  BALLAST_ASSIGN_OR_RETURN(auto rows_exchange,
                           make({.ranks = view.size(),
                                 .capacity = exact() ? static_cast<int>(group_pairs()) : mesh.terms.capacity,
                                 .top_k = exact() ? 1 : K(),
                                 .hidden_size = H(),
                                 .groups_per_rank = E(),
                                 .note_words = group_space->notes_at.words}));
  BALLAST_ASSIGN_OR_RETURN(auto counts_exchange, make({.ranks = view.size(),
                                                       .capacity = 1,
                                                       .top_k = 1,
                                                       .hidden_size = 8,
                                                       .groups_per_rank = 1,
                                                       .note_words = E()}));
  MutexLock lock(mu);
  exchange = std::move(rows_exchange);
  count_exchange = std::move(counts_exchange);
  return absl::OkStatus();
}

absl::Status DeviceMoeExecutor::Impl::Enter(const GroupView& v, Transport* transport,
                                            std::shared_ptr<const ReplicaTable> tbl, absl::Time deadline,
                                            cudaStream_t stream) {
  view = v;
  speeds.clear();
  near = 0;
  for (int32_t r = 0; r < view.size(); ++r) {
    speeds.push_back(view.members[r].speed);
    if (r != view.rank && view.members[r].node == view.members[view.rank].node) near |= 1u << r % kMaxExchangeRanks;
  }
  shares.Enter(view.size(), view.rank, speeds);
  rank_seconds_per_pair.assign(view.size(), 0);
  next_layer = 0;
  ended = false;
  if (!alone()) {
    if (view.size() > kMaxExchangeRanks) {
      return absl::InvalidArgumentError(
          absl::StrCat("view has ", view.size(), " members, more than ", kMaxExchangeRanks, " GPUs"));
    }
    BALLAST_ASSIGN_OR_RETURN(mesh, ConnectDevices(view, *transport, options.shared_slots, options.capacity,
                                                  mesh_buffers, deadline, interrupted));
    group_space = std::make_unique<Workspace>();
    BALLAST_RETURN_IF_ERROR(InitSpace(view.size(), group_pairs(), *group_space));
    BALLAST_RETURN_IF_ERROR(MakeExchanges(deadline));
    if (interrupted) return absl::CancelledError("entering the view was interrupted");
  }
  return Flip(std::move(tbl), stream);
}

absl::Status DeviceMoeExecutor::Impl::Flip(std::shared_ptr<const ReplicaTable> tbl, cudaStream_t stream) {
  table = std::move(tbl);
  const Placement& placement = table->placement();
  std::vector<int32_t> rank_of_worker(placement.workers.size(), -1);
  for (size_t w = 0; w < placement.workers.size(); ++w) {
    for (int32_t r = 0; r < view.size(); ++r) {
      if (view.members[r].worker == placement.workers[w]) rank_of_worker[w] = r;
    }
  }
  NumberHomes(rank_of_worker);
  const int words = space().table_at.words;
  std::vector<int32_t> filled(static_cast<size_t>(L()) * words);
  std::vector<DispatchTable> tables;
  complete = true;
  for (int l = 0; l < L(); ++l) {
    tables.push_back(MakeDispatchTable(table->layers()[l], rank_of_worker));
    FillDeviceTable(tables.back(), view.size(), view.rank,
                    std::span(filled).subspan(static_cast<size_t>(l) * words, words));
    for (int e = 0; e < E(); ++e) complete &= tables.back().begin[e] != tables.back().begin[e + 1];
  }
  shares.SetTables(std::move(tables));
  solvers.clear();
  solvers.resize(L());
  BALLAST_ASSIGN_OR_RETURN(const std::vector<int32_t> group_slots,
                           GroupSlots(placement, view.members[view.rank].worker, E()));
  // Pageable memory: the call returns when it has been read.
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(space().tables.data(), filled.data(),
                                                     sizeof(int32_t) * filled.size(), cudaMemcpyHostToDevice, stream),
                                     "replica tables"));
  BALLAST_RETURN_IF_ERROR(groups->Flip(group_slots, stream));
  return CudaStatus(cudaStreamSynchronize(stream), "a flip");
}

void DeviceMoeExecutor::Impl::NumberHomes(const std::vector<int32_t>& rank_of_worker) {
  row_homes.Install(table->placement().task_homes);
  home_bits.clear();
  for (const TaskHomes& task : table->placement().task_homes) {
    uint32_t& bits = home_bits.emplace_back(0);
    for (const TaskHome& home : task.homes) {
      if (rank_of_worker[home.worker] >= 0) bits |= 1u << rank_of_worker[home.worker];
    }
  }
}

void DeviceMoeExecutor::Impl::Leave() {
  {
    MutexLock lock(mu);
    exchange.reset();
    count_exchange.reset();
  }
  mesh = {};
  group_space.reset();
  solvers.clear();
  table = nullptr;
  interrupted = false;
}

ShareForm DeviceMoeExecutor::Impl::Form(int layer) const {
  if (alone() || step.shares.empty() || !shares.shared(layer)) return ShareForm::kFixed;
  const ShareForm form = step.shares[layer].form;
  return form == ShareForm::kPrevious && !shares.has_previous(layer) ? ShareForm::kFixed : form;
}

absl::Status DeviceMoeExecutor::Impl::MakeSolver(int layer, cudaStream_t stream) {
  if (Form(layer) == ShareForm::kFixed || solvers[layer] != nullptr) return absl::OkStatus();
  const DispatchTable& replicas = shares.table(layer);
  BALLAST_ASSIGN_OR_RETURN(CudaStepQuotas quotas,
                           CudaStepQuotas::Create(replicas.begin, replicas.rank, view.size(),
                                                  std::vector<int32_t>(speeds.begin(), speeds.end())));
  auto solver = std::make_unique<Solver>(Solver{.quotas = std::move(quotas), .table = {}});
  const std::span<const int32_t> words = solver->quotas.table();
  BALLAST_RETURN_IF_ERROR(solver->table.Allocate(words.size(), "a solver's table"));
  // Ahead of the step's kernels, which a copy outside of their stream would not be. Pageable memory: read when the call
  // returns.
  BALLAST_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(solver->table.data(), words.data(), words.size_bytes(), cudaMemcpyHostToDevice, stream),
      "a solver's table"));
  solvers[layer] = std::move(solver);
  return absl::OkStatus();
}

absl::Status DeviceMoeExecutor::Impl::BeginStep(const MoeStep& s, cudaStream_t stream) {
  BALLAST_CHECK(table != nullptr) << "a step without a view";
  BALLAST_CHECK(s.rows.size() <= static_cast<size_t>(options.capacity)) << s.rows.size() << " rows";
  BALLAST_CHECK(s.shares.empty() || static_cast<int>(s.shares.size()) == L()) << s.shares.size();
  if (ended) shares.EndStep();
  ended = false;
  step = s;
  step_stream = stream;
  next_layer = 0;
  layer_was_timed = false;
  counts_were_timed = false;
  failed.assign(step.rows.size(), 0);
  failures.clear();
  late.clear();
  stats = MoeStepStats{.any_more_work = step.more_work, .least_capacity = options.capacity};
  for (const RowLabel& label : step.rows) stats.any_prefill |= label.phase == TokenPhase::kPrefill;
  if (!alone() && rows() > mesh.terms.capacity) {
    return absl::InternalError(
        absl::StrCat("rows is ", rows(), ", more than the group's least capacity ", mesh.terms.capacity));
  }
  // One layer of the step is timed, in turn; one that tells counts where there is one.
  timed_layer = static_cast<int>(step.step.value() % static_cast<uint64_t>(L()));
  for (int l = 0; l < L(); ++l) {
    BALLAST_RETURN_IF_ERROR(MakeSolver(l, stream));
    if (Form(l) == ShareForm::kCurrent && Form(timed_layer) != ShareForm::kCurrent) timed_layer = l;
  }
  int32_t* const words = host_step_words.data();
  words[kStepRows] = rows();
  words[kStepPairs] = rows() * K();
  words[kStepRotation] = static_cast<int32_t>(static_cast<uint32_t>(view.rank + step.step.value()));
  words[kStepFlags] = static_cast<int32_t>(DispatchFlags(stats.any_prefill, step.more_work, options.capacity));
  words[kStepPerPair] = static_cast<int32_t>(Nanoseconds(per_pair));
  words[kStepExchange] = static_cast<int32_t>(Nanoseconds(exchange_time));
  BALLAST_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpyAsync(step_words.data(), words, sizeof(int32_t) * kStepWords, cudaMemcpyHostToDevice, stream),
      "a step's words"));
  if (!row_homes.empty() && rows() > 0) {
    for (int row = 0; row < rows(); ++row) {
      const int32_t group = row_homes.Of(step.rows[row].task);
      host_homes.data()[row] = group < 0 ? 0 : home_bits[group];
    }
    BALLAST_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpyAsync(homes.data(), host_homes.data(), sizeof(uint32_t) * rows(), cudaMemcpyHostToDevice, stream),
        "a step's homes"));
  }
  return CudaStatus(cudaMemsetAsync(failed_at.data(), 0xff, sizeof(int32_t) * options.capacity, stream),
                    "a step's failures");
}

// What the host is to know of the step, behind its last layer.
absl::Status DeviceMoeExecutor::Impl::FetchStep(cudaStream_t stream) {
  if (!alone()) {
    const size_t words = static_cast<size_t>(L()) * view.size() * space().notes_at.words;
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(space().host_kept.data(), space().kept.data(),
                                                       sizeof(int32_t) * words, cudaMemcpyDeviceToHost, stream),
                                       "a step's notes"));
  }
  if (rows() == 0) return absl::OkStatus();
  return CudaStatus(cudaMemcpyAsync(host_failed_at.data(), failed_at.data(), sizeof(int32_t) * rows(),
                                    cudaMemcpyDeviceToHost, stream),
                    "a step's failures");
}

void DeviceMoeExecutor::Impl::TakeFailures() {
  for (int row = 0; row < rows() && !complete; ++row) {
    const int32_t at = host_failed_at.data()[row];
    if (at < 0) continue;
    failed[row] = 1;
    RowFailure failure{.row = row, .expert = {at / E(), at % E()}};
    const LayerReplicas& replicas = table->layers()[failure.expert.layer];
    for (int32_t i = replicas.begin[failure.expert.expert]; i < replicas.begin[failure.expert.expert + 1]; ++i) {
      failure.workers.push_back(table->placement().workers[replicas.replicas[i].worker]);
    }
    failures.push_back(std::move(failure));
  }
}

// What the ranks told each other in the step's layers.
void DeviceMoeExecutor::Impl::TakeNotes() {
  const DeviceNotesLayout& at = space().notes_at;
  const int ranks = view.size();
  const auto notes = [&](int layer, int rank) {
    return std::span<const int32_t>(space().host_kept.data() + (static_cast<size_t>(layer) * ranks + rank) * at.words,
                                    at.words);
  };
  double balancedness_sum = 0;
  int balanced_layers = 0;
  for (int l = 0; l < L(); ++l) {
    double sum = 0, most = 0, speed_sum = 0;
    for (int to = 0; to < ranks; ++to) {
      int64_t load = 0;
      for (int from = 0; from < ranks; ++from) load += notes(l, from)[at.pairs + to];
      sum += static_cast<double>(load);
      most = std::max(most, static_cast<double>(load) / speeds[to]);
      speed_sum += speeds[to];
      if (to == view.rank) stats.pairs_computed += load;
      (to == view.rank ? stats.copies_self : stats.copies_node) += notes(l, view.rank)[at.rows + to];
    }
    if (most > 0) {
      balancedness_sum += sum / speed_sum / most;
      ++balanced_layers;
    }
    if (CountsKept(l)) {
      for (int from = 0; from < ranks; ++from) shares.Take(from, notes(l, from).subspan(at.counts, E()));
      shares.Counted(l);
    }
  }
  if (view.leads() && balanced_layers > 0) stats.balancedness = balancedness_sum / balanced_layers;
  // Each rank's time includes its wait for the others; the least is what telling costs.
  uint32_t least = 0;
  for (int from = 0; from < ranks; ++from) {
    const auto flags = static_cast<uint32_t>(notes(0, from)[at.flags]);
    stats.any_prefill |= (flags & kDispatchHasPrefill) != 0;
    stats.any_more_work |= (flags & kDispatchMoreWork) != 0;
    stats.least_capacity = LeastCapacity(stats.least_capacity, flags);
    rank_seconds_per_pair[from] = notes(0, from)[at.nanoseconds_per_pair] * 1e-9;
    const auto took = static_cast<uint32_t>(notes(0, from)[at.exchange_nanoseconds]);
    if (took > 0 && (least == 0 || took < least)) least = took;
  }
  if (counts_were_timed) exchange_time = events.Between(kCountsBegun, kCountsEnded);
  const int told = stats.layers_by_form[static_cast<int>(ShareForm::kCurrent)];
  stats.count_exchange = told * (least > 0 ? absl::Nanoseconds(least) : exchange_time);
}

absl::Status DeviceMoeExecutor::Impl::FinishExchanges(cudaStream_t stream) {
  for (DeviceExchange* const e : {exchange.get(), count_exchange.get()}) {
    if (const absl::Status status = e->Finish(stream, step.deadline); !status.ok()) {
      late = e->late_ranks();
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status DeviceMoeExecutor::Impl::EndStep(cudaStream_t stream) {
  if (exchange != nullptr) BALLAST_RETURN_IF_ERROR(FinishExchanges(stream));
  ended = true;
  next_layer = L();
  TakeFailures();
  if (alone()) {
    const auto going = static_cast<int64_t>(rows()) - static_cast<int64_t>(failures.size());
    stats.copies_self = going * L();
    stats.pairs_computed = stats.copies_self * K();
    if (going > 0) stats.balancedness = 1;
  } else {
    TakeNotes();
  }
  if (layer_was_timed) {
    // Of one layer, for all.
    stats.route = L() * events.Between(kBegun, kRouted);
    stats.share = L() * events.Between(kRouted, kChosen);
    stats.dispatch = L() * events.Between(kChosen, kDispatched);
    stats.experts = L() * events.Between(kDispatched, kComputed);
    stats.combine = L() * events.Between(kComputed, kCombined);
    if (stats.pairs_computed > 0) per_pair = stats.experts / stats.pairs_computed;
  }
  return absl::OkStatus();
}

DeviceMoeExecutor::DeviceMoeExecutor(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceMoeExecutor::~DeviceMoeExecutor() {
  if (impl_->counted_in != nullptr) impl_->counted_in->Forget(*impl_->load_counts);
  impl_->Leave();
}

absl::StatusOr<std::unique_ptr<DeviceMoeExecutor>> DeviceMoeExecutor::Create(DeviceMoeModel model,
                                                                             const SlotMemory& slots,
                                                                             const DeviceMoeOptions& options) {
  const auto check = [](const char* field, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", not between ", low, " and ", high));
  };
  BALLAST_RETURN_IF_ERROR(check("num_layers", model.num_layers(), 1, kMaxWireLayers));
  BALLAST_RETURN_IF_ERROR(CheckRouterRule(model.rule));
  BALLAST_RETURN_IF_ERROR(check("hidden_size", model.hidden_size, 8, 1 << 20));
  BALLAST_RETURN_IF_ERROR(check("capacity", options.capacity, 1, 1 << 16));
  auto impl = std::make_unique<Impl>(std::move(model), slots, options);
  BALLAST_RETURN_IF_ERROR(impl->Init());
  return std::unique_ptr<DeviceMoeExecutor>(new DeviceMoeExecutor(std::move(impl)));
}

absl::Status DeviceMoeExecutor::Enter(const GroupView& view, Transport* transport,
                                      std::shared_ptr<const ReplicaTable> table, absl::Time deadline,
                                      cudaStream_t stream) {
  return impl_->Enter(view, transport, std::move(table), deadline, stream);
}
absl::Status DeviceMoeExecutor::Flip(std::shared_ptr<const ReplicaTable> table, cudaStream_t stream) {
  return impl_->Flip(std::move(table), stream);
}
void DeviceMoeExecutor::Leave() { impl_->Leave(); }
void DeviceMoeExecutor::Interrupt() {
  impl_->interrupted = true;
  MutexLock lock(impl_->mu);
  if (impl_->exchange != nullptr) impl_->exchange->Abort();
  if (impl_->count_exchange != nullptr) impl_->count_exchange->Abort();
}
std::span<const std::byte* const> DeviceMoeExecutor::peer_slots() const { return impl_->mesh.slots; }
absl::Status DeviceMoeExecutor::BeginStep(const MoeStep& step, cudaStream_t stream) {
  return impl_->BeginStep(step, stream);
}
absl::Status DeviceMoeExecutor::Run(int moe_layer, const void* hidden, int rows, void* out, cudaStream_t stream) {
  return impl_->Run(moe_layer, hidden, rows, out, stream);
}
absl::Status DeviceMoeExecutor::Await(cudaStream_t stream) {
  if (impl_->exchange == nullptr || impl_->exchange->bounded()) return DeviceMoeLayer::Await(stream);
  return impl_->FinishExchanges(stream);
}
bool DeviceMoeExecutor::capturable() const { return impl_->alone() && impl_->complete; }
absl::Status DeviceMoeExecutor::EndStep(cudaStream_t stream) { return impl_->EndStep(stream); }
int DeviceMoeExecutor::layers_begun() const { return impl_->next_layer; }
std::span<const RowFailure> DeviceMoeExecutor::failures() const { return impl_->failures; }
const MoeStepStats& DeviceMoeExecutor::stats() const { return impl_->stats; }
std::span<const int> DeviceMoeExecutor::late_peers() const { return impl_->late; }
bool DeviceMoeExecutor::shared(int layer) const { return !impl_->alone() && impl_->shares.shared(layer); }
std::optional<ShareComparison> DeviceMoeExecutor::CompareShares(int layer) { return impl_->shares.Compare(layer); }
double DeviceMoeExecutor::SecondsPerPair(int of_rank) const {
  return of_rank == impl_->view.rank ? absl::ToDoubleSeconds(impl_->per_pair) : impl_->rank_seconds_per_pair[of_rank];
}

void DeviceMoeExecutor::CountStep(LoadCounters& counters) {
  Impl& impl = *impl_;
  BALLAST_CHECK(impl.counted_in == nullptr || impl.counted_in == &counters) << "counters changed";
  impl.counted_in = &counters;
  impl.load_counts->SetStep({.layers = impl.L(),
                             .rows = impl.rows(),
                             .top_k = impl.K(),
                             .ids = impl.ids.data(),
                             .weights = impl.weights.data(),
                             .layer_stride = impl.pairs()},
                            impl.step_stream);
  counters.AddStep(impl.table->version().epoch, impl.step.rows, impl.failed, *impl.load_counts,
                   {.balancedness = impl.stats.balancedness,
                    .phase = impl.stats.any_prefill ? TokenPhase::kPrefill : TokenPhase::kDecode,
                    .layers_by_form = impl.stats.layers_by_form});
}

}  // namespace ballast
