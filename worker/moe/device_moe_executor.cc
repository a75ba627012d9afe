#include "worker/moe/device_moe_executor.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/invariant.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/quotas.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/tokens.h"
#include "proto/base/check.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"
#include "worker/experts/device_groups.h"
#include "worker/experts/group_slots.h"
#include "worker/moe/choice_kernel.h"
#include "worker/moe/device_load_counts.h"
#include "worker/moe/device_mesh.h"
#include "worker/moe/device_table.h"
#include "worker/moe/expand_kernel.h"
#include "worker/moe/row_homes.h"
#include "worker/moe/wire.h"
#include "worker/transport/nccl/device_exchange.h"

namespace ballast {
namespace {

// Device memory of `size` elements, zeroed.
template <typename T>
class DeviceBuffer {
 public:
  absl::Status Allocate(size_t size, const char* what) {
    const size_t bytes = std::max<size_t>(size, 1) * sizeof(T);
    BALLAST_ASSIGN_OR_RETURN(memory_, AllocateDevice(bytes, what));
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemset(memory_.get(), 0, bytes), what));
    return CudaStatus(cudaDeviceSynchronize(), what);
  }
  T* data() const { return static_cast<T*>(memory_.get()); }

 private:
  DeviceMemory memory_;
};

// Pinned memory as elements.
template <typename T>
class HostBuffer {
 public:
  absl::Status Allocate(size_t size) {
    BALLAST_ASSIGN_OR_RETURN(PinnedMemory memory, PinnedMemory::Allocate(std::max<size_t>(size, 1) * sizeof(T)));
    memory_.emplace(std::move(memory));
    return absl::OkStatus();
  }
  T* data() const { return reinterpret_cast<T*>(memory_->bytes().data()); }

 private:
  std::optional<PinnedMemory> memory_;
};

// The ends of a layer's stages, in order.
enum Mark { kBegun, kRouted, kChosen, kDispatched, kComputed, kCombined, kCountsBegun, kCountsEnded, kMarks };

struct Events {
  Events() = default;
  ~Events() {
    for (const cudaEvent_t event : at) {
      if (event != nullptr) cudaEventDestroy(event);
    }
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;
  absl::Status Create() {
    for (cudaEvent_t& event : at) BALLAST_RETURN_IF_ERROR(CudaStatus(cudaEventCreate(&event), "a layer's events"));
    return absl::OkStatus();
  }
  absl::Duration Between(Mark first, Mark last) const {
    float ms = 0;
    return cudaEventElapsedTime(&ms, at[first], at[last]) == cudaSuccess ? absl::Milliseconds(ms)
                                                                         : absl::ZeroDuration();
  }
  std::array<cudaEvent_t, kMarks> at = {};
};

uint32_t Nanoseconds(absl::Duration d) {
  return static_cast<uint32_t>(
      std::clamp<int64_t>(absl::ToInt64Nanoseconds(d), 0, std::numeric_limits<int32_t>::max()));
}

// What a layer needs in views of so many ranks.
struct Workspace {
  int ranks = 0;
  DeviceTableLayout table_at;
  DeviceNotesLayout notes_at;
  DeviceBuffer<int32_t> tables;  // [layers][table_at.words]
  DeviceBuffer<int32_t> begin, order, row_of;
  DeviceBuffer<uint16_t> outputs;
  DeviceBuffer<std::byte> group, experts;  // experts, exact: activations
  // With peers. exact: each pair goes its own way, as a row with one choice of weight 1.
  DeviceBuffer<uint16_t> pair_rows, pair_outputs;  // [pairs][hidden_size]
  DeviceBuffer<float> ones;                        // [pairs]
  DeviceBuffer<int32_t> pair_numbers;              // [pairs]
  DeviceBuffer<int32_t> notes;                     // of the open layer
  DeviceBuffer<int32_t> kept;                      // [layers][ranks][notes_at.words]
  DeviceBuffer<int32_t> counts;                    // [layers][ranks][experts] as last told
  DeviceBuffer<int32_t> flows;                     // [ranks][replicas]
  HostBuffer<int32_t> host_kept;                   // as kept, of the last step
};

}  // namespace

struct DeviceMoeExecutor::Impl {
  Impl(DeviceMoeModel m, const SlotMemory& s, const DeviceMoeOptions& o)
      : model(std::move(m)),
        slots(s),
        options(o),
        row_homes(o.tasks),
        shares(model.num_layers(), model.rule.num_experts) {}

  const DeviceMoeModel model;
  const SlotMemory& slots;
  const DeviceMoeOptions options;
  ExpertArena arena;
  std::optional<CudaExperts> experts;  // fast
  std::unique_ptr<DeviceGroups> groups;
  Events events;

  // Of any view, always at the same places. identity: 0 .. experts - 1, then -1.
  DeviceBuffer<int32_t> step_words, ids, replicas, failed_at, identity, nothing;
  DeviceBuffer<float> weights;
  DeviceBuffer<uint32_t> visited, chosen;
  DeviceBuffer<std::byte> route;
  HostBuffer<int32_t> host_step_words, host_failed_at;
  // By row, bits of the ranks that are homes of its task.
  DeviceBuffer<uint32_t> homes;
  HostBuffer<uint32_t> host_homes;
  DeviceBuffer<int2> open;
  std::unique_ptr<DeviceLoadCounts> load_counts;
  LoadCounters* counted_in = nullptr;  // from when a step was counted
  Workspace alone_space;

  // The stay in a view.
  GroupView view;
  std::shared_ptr<const ReplicaTable> table;
  std::vector<uint32_t> speeds;  // by rank
  bool complete = false;         // every expert has a live replica
  uint32_t near = 0;             // bits of the other ranks of this node
  // Homes by the task of a row; and the bits of the ranks that they are.
  RowHomes row_homes;
  std::vector<uint32_t> home_bits;
  StepShares shares;
  DeviceMeshBuffers mesh_buffers;
  DeviceMesh mesh;
  std::unique_ptr<Workspace> group_space;
  Mutex mu;
  // Set and reset with the lock held, for Interrupt.
  std::unique_ptr<DeviceExchange> exchange, count_exchange;
  struct Solver {
    CudaStepQuotas quotas;
    DeviceBuffer<int32_t> table;
  };
  std::vector<std::unique_ptr<Solver>> solvers;  // by layer, from when they are needed

  // The step.
  MoeStep step;
  cudaStream_t step_stream = nullptr;
  int next_layer = 0;
  bool ended = false;
  int timed_layer = 0;
  bool timed = false;  // the open layer is
  bool layer_was_timed = false;
  bool counts_were_timed = false;
  absl::Duration per_pair, exchange_time;  // as last measured
  std::vector<double> rank_seconds_per_pair;
  std::vector<uint8_t> failed;
  std::vector<RowFailure> failures;
  std::vector<int> late;
  MoeStepStats stats;

  int L() const { return model.num_layers(); }
  int E() const { return model.rule.num_experts; }
  int K() const { return model.rule.top_k; }
  int H() const { return model.hidden_size; }
  int rows() const { return static_cast<int>(step.rows.size()); }
  size_t pairs() const { return static_cast<size_t>(options.capacity) * K(); }  // of a rank
  bool alone() const { return view.size() == 1; }
  bool exact() const { return options.combine == CombineMode::kExact; }
  Workspace& space() { return alone() ? alone_space : *group_space; }

  absl::Status Init();
  absl::Status InitSpace(int ranks, Workspace& space) const;
  absl::Status ConnectRanks(Transport& transport, absl::Time deadline);
  absl::Status Enter(const GroupView& v, Transport* transport, std::shared_ptr<const ReplicaTable> tbl,
                     absl::Time deadline, cudaStream_t stream);
  absl::Status Flip(std::shared_ptr<const ReplicaTable> tbl, cudaStream_t stream);
  void NumberHomes(const std::vector<int32_t>& rank_of_worker);
  void Leave();
  absl::Status BeginStep(const MoeStep& s, cudaStream_t stream);
  absl::Status Run(int layer, const void* hidden, int rows, void* out, cudaStream_t stream);
  absl::Status EndStep(cudaStream_t stream);

  ShareForm Form(int layer) const;
  bool CountsKept(int layer) const {
    return !alone() && !step.shares.empty() && shares.shared(layer) &&
           (step.shares[layer].counts || Form(layer) == ShareForm::kCurrent);
  }
  absl::Status MakeSolver(int layer);
  absl::Status Record(Mark mark, cudaStream_t stream);
  absl::Status RunAlone(int layer, const RouteTokensArgs& routing, void* out, cudaStream_t stream);
  absl::Status Choose(int layer, int32_t none, cudaStream_t stream);
  absl::Status TellCounts(int layer, cudaStream_t stream);
  absl::Status RunWithPeers(int layer, const RouteTokensArgs& routing, void* out, cudaStream_t stream);
  absl::Status FetchStep(cudaStream_t stream);
  void TakeFailures();
  void TakeNotes();
};

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
  BALLAST_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(identity.data(), numbers.data(), sizeof(int32_t) * numbers.size(), cudaMemcpyHostToDevice), "groups"));
  BALLAST_RETURN_IF_ERROR(host_step_words.Allocate(kStepWords));
  BALLAST_RETURN_IF_ERROR(homes.Allocate(options.capacity, "a step's homes"));
  BALLAST_RETURN_IF_ERROR(host_homes.Allocate(options.capacity));
  BALLAST_RETURN_IF_ERROR(open.Allocate(pairs(), "a layer's pairs with a choice"));
  BALLAST_ASSIGN_OR_RETURN(load_counts, DeviceLoadCounts::Create(L(), E(), K(), options.capacity));
  BALLAST_RETURN_IF_ERROR(host_failed_at.Allocate(options.capacity));
  // What an exchange of counts alone sends for rows: no tokens, a row that goes nowhere, and its sum.
  BALLAST_RETURN_IF_ERROR(nothing.Allocate(16 * kMaxExchangeRanks, "an empty exchange"));
  return InitSpace(1, alone_space);
}

absl::Status DeviceMoeExecutor::Impl::InitSpace(int ranks, Workspace& space) const {
  const size_t all_pairs = ranks * pairs();
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
  BALLAST_RETURN_IF_ERROR(space.pair_rows.Allocate(pairs() * H(), "rows by pair"));
  BALLAST_RETURN_IF_ERROR(space.pair_outputs.Allocate(pairs() * H(), "outputs by pair"));
  BALLAST_RETURN_IF_ERROR(space.ones.Allocate(pairs(), "pairs"));
  BALLAST_RETURN_IF_ERROR(space.pair_numbers.Allocate(pairs(), "pairs"));
  const std::vector<float> ones(pairs(), 1.0f);
  std::vector<int32_t> numbers(pairs());
  std::iota(numbers.begin(), numbers.end(), 0);
  BALLAST_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(space.ones.data(), ones.data(), sizeof(float) * ones.size(), cudaMemcpyHostToDevice), "pairs"));
  return CudaStatus(
      cudaMemcpy(space.pair_numbers.data(), numbers.data(), sizeof(int32_t) * numbers.size(), cudaMemcpyHostToDevice),
      "pairs");
}

absl::Status DeviceMoeExecutor::Impl::ConnectRanks(Transport& transport, absl::Time deadline) {
  BALLAST_ASSIGN_OR_RETURN(mesh, ConnectDevices(view, transport, options.shared_slots, mesh_buffers, deadline));
  const ExchangeOptions limits{.wait_limit = options.wait_limit, .deadline = deadline};
  const auto make = [&](const ExchangeShape& shape) -> absl::StatusOr<std::unique_ptr<DeviceExchange>> {
    auto made = MakeLsaExchange(*mesh.communicator, shape, limits);
    // Not within direct reach of each other.
    if (absl::IsFailedPrecondition(made.status())) made = MakeSendRecvExchange(*mesh.communicator, shape, limits);
    return made;
  };
  BALLAST_ASSIGN_OR_RETURN(auto rows_exchange, make({.ranks = view.size(),
                                                     .capacity = exact() ? static_cast<int>(pairs()) : options.capacity,
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
    group_space = std::make_unique<Workspace>();
    BALLAST_RETURN_IF_ERROR(InitSpace(view.size(), *group_space));
    BALLAST_RETURN_IF_ERROR(ConnectRanks(*transport, deadline));
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
}

ShareForm DeviceMoeExecutor::Impl::Form(int layer) const {
  if (alone() || step.shares.empty() || !shares.shared(layer)) return ShareForm::kFixed;
  const ShareForm form = step.shares[layer].form;
  return form == ShareForm::kPrevious && !shares.has_previous(layer) ? ShareForm::kFixed : form;
}

absl::Status DeviceMoeExecutor::Impl::MakeSolver(int layer) {
  if (Form(layer) == ShareForm::kFixed || solvers[layer] != nullptr) return absl::OkStatus();
  const DispatchTable& replicas = shares.table(layer);
  BALLAST_ASSIGN_OR_RETURN(CudaStepQuotas quotas,
                           CudaStepQuotas::Create(replicas.begin, replicas.rank, view.size(),
                                                  std::vector<int32_t>(speeds.begin(), speeds.end())));
  auto solver = std::make_unique<Solver>(Solver{.quotas = std::move(quotas), .table = {}});
  const std::span<const int32_t> words = solver->quotas.table();
  BALLAST_RETURN_IF_ERROR(solver->table.Allocate(words.size(), "a solver's table"));
  BALLAST_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(solver->table.data(), words.data(), words.size_bytes(), cudaMemcpyHostToDevice), "a solver's table"));
  solvers[layer] = std::move(solver);
  return absl::OkStatus();
}

absl::Status DeviceMoeExecutor::Impl::BeginStep(const MoeStep& s, cudaStream_t stream) {
  BALLAST_CHECK(table != nullptr) << "a step without a view";
  BALLAST_CHECK(s.rows.size() <= static_cast<size_t>(options.capacity)) << s.rows.size() << " rows";
  BALLAST_CHECK(s.shares.empty() || static_cast<int>(s.shares.size()) == L()) << s.shares.size();
  BALLAST_RETURN_IF_ERROR(load_counts->status());
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
  stats = MoeStepStats{.any_more_work = step.more_work};
  for (const RowLabel& label : step.rows) stats.any_prefill |= label.phase == TokenPhase::kPrefill;
  // One layer of the step is timed, in turn; one that tells counts where there is one.
  timed_layer = static_cast<int>(step.step.value() % static_cast<uint64_t>(L()));
  for (int l = 0; l < L(); ++l) {
    BALLAST_RETURN_IF_ERROR(MakeSolver(l));
    if (Form(l) == ShareForm::kCurrent && Form(timed_layer) != ShareForm::kCurrent) timed_layer = l;
  }
  int32_t* const words = host_step_words.data();
  words[kStepRows] = rows();
  words[kStepPairs] = rows() * K();
  words[kStepRotation] = static_cast<int32_t>(static_cast<uint32_t>(view.rank + step.step.value()));
  words[kStepFlags] =
      static_cast<int32_t>((stats.any_prefill ? kDispatchHasPrefill : 0) | (step.more_work ? kDispatchMoreWork : 0));
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

absl::Status DeviceMoeExecutor::Impl::Record(Mark mark, cudaStream_t stream) {
  return timed ? CudaStatus(cudaEventRecord(events.at[mark], stream), "a layer's events") : absl::OkStatus();
}

absl::Status DeviceMoeExecutor::Impl::Run(int layer, const void* hidden, int num_rows, void* out, cudaStream_t stream) {
  BALLAST_CHECK(layer == next_layer && layer < L()) << "layer " << layer << " after " << next_layer - 1;
  BALLAST_CHECK(num_rows == rows()) << num_rows << " rows of " << rows();
  ++next_layer;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaStreamIsCapturing(stream, &capturing), "a layer"));
  timed = layer == timed_layer && capturing == cudaStreamCaptureStatusNone;
  RouteTokensArgs routing;
  routing.rule = model.rule;
  routing.hidden = hidden;
  routing.router_weights = model.router_weights[layer];
  routing.num_tokens = num_rows;
  routing.hidden_size = H();
  routing.ids = ids.data() + layer * pairs();
  routing.weights = weights.data() + layer * pairs();
  routing.row_invariant = exact();
  BALLAST_RETURN_IF_ERROR(Record(kBegun, stream));
  BALLAST_RETURN_IF_ERROR(alone() ? RunAlone(layer, routing, out, stream) : RunWithPeers(layer, routing, out, stream));
  BALLAST_RETURN_IF_ERROR(Record(kCombined, stream));
  layer_was_timed |= timed;
  return layer + 1 == L() ? FetchStep(stream) : absl::OkStatus();
}

absl::Status DeviceMoeExecutor::Impl::RunAlone(int layer, const RouteTokensArgs& routing, void* out,
                                               cudaStream_t stream) {
  if (rows() == 0) {
    for (const Mark mark : {kRouted, kChosen, kDispatched, kComputed}) BALLAST_RETURN_IF_ERROR(Record(mark, stream));
    return absl::OkStatus();
  }
  Workspace& at = space();
  const int num_pairs = rows() * K();
  GroupPairsArgs group{
      .ids = routing.ids,
      .num_pairs = num_pairs,
      .group_of = at.tables.data() + static_cast<size_t>(layer) * at.table_at.words + at.table_at.group_of,
      .num_experts = E(),
      .num_groups = E(),
      .begin = at.begin.data(),
      .order = at.order.data(),
      .row_of = at.row_of.data()};
  if (complete) {
    BALLAST_RETURN_IF_ERROR(RouteAndGroup(routing, group, route.data(), stream));
    BALLAST_RETURN_IF_ERROR(Record(kRouted, stream));
    BALLAST_RETURN_IF_ERROR(Record(kChosen, stream));
  } else {
    // Rows that need an expert which nobody holds fail as a whole.
    BALLAST_RETURN_IF_ERROR(RouteTokens(routing, route.data(), stream));
    BALLAST_RETURN_IF_ERROR(Record(kRouted, stream));
    BALLAST_RETURN_IF_ERROR(Choose(layer, E(), stream));
    BALLAST_RETURN_IF_ERROR(Record(kChosen, stream));
    group.ids = replicas.data();
    group.group_of = identity.data();
    group.num_experts = E() + 1;
    BALLAST_RETURN_IF_ERROR(GroupPairs(group, at.group.data(), stream));
  }
  BALLAST_RETURN_IF_ERROR(Record(kDispatched, stream));
  const ExpertsStep work{.x = routing.hidden,
                         .order = at.order.data(),
                         .pairs_per_token = K(),
                         .begin = at.begin.data(),
                         .slots = groups->layer(layer),
                         .num_groups = E(),
                         .typical_rows = num_pairs,
                         .out = at.outputs.data()};
  const CombineArgs sum{.rows = at.outputs.data(),
                        .row_of = at.row_of.data(),
                        .ids = routing.ids,
                        .weights = routing.weights,
                        .num_tokens = rows(),
                        .top_k = K(),
                        .hidden_size = H(),
                        .out = out};
  if (exact()) {
    BALLAST_RETURN_IF_ERROR(InvariantExperts(arena, work, at.experts.data(), static_cast<int>(pairs()), stream));
    BALLAST_RETURN_IF_ERROR(Record(kComputed, stream));
    return CombineRows(sum, stream);
  }
  BALLAST_RETURN_IF_ERROR(experts->RunAndCombine(work, sum, at.experts.data(), static_cast<int>(pairs()), E(), stream));
  return Record(kComputed, stream);
}

absl::Status DeviceMoeExecutor::Impl::TellCounts(int layer, cudaStream_t stream) {
  Workspace& at = space();
  BALLAST_RETURN_IF_ERROR(Record(kCountsBegun, stream));
  counts_were_timed |= timed;
  BALLAST_RETURN_IF_ERROR(count_exchange->Dispatch({.x = nothing.data(),
                                                    .num_tokens = nothing.data(),
                                                    .replicas = nothing.data(),
                                                    .weights = reinterpret_cast<const float*>(nothing.data()),
                                                    .notes = at.notes.data() + at.notes_at.counts},
                                                   stream));
  const size_t words = static_cast<size_t>(view.size()) * E();
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(at.counts.data() + layer * words, count_exchange->received_notes(),
                                                     sizeof(int32_t) * words, cudaMemcpyDeviceToDevice, stream),
                                     "counts"));
  // No row was sent, so that no pair has one; and no token is written.
  BALLAST_RETURN_IF_ERROR(count_exchange->Combine(
      {.outputs = nothing.data(), .row_of = identity.data() + E(), .out = nothing.data() + 8}, stream));
  return Record(kCountsEnded, stream);
}

absl::Status DeviceMoeExecutor::Impl::Choose(int layer, int32_t none, cudaStream_t stream) {
  Workspace& at = space();
  ChoiceArgs args{.rows = rows(),
                  .top_k = K(),
                  .experts = E(),
                  .ranks = view.size(),
                  .rank = view.rank,
                  .layer = layer,
                  .ids = ids.data() + layer * pairs(),
                  .table = at.tables.data() + static_cast<size_t>(layer) * at.table_at.words,
                  .step = step_words.data(),
                  .none = none,
                  .near = near,
                  .homes = row_homes.empty() ? nullptr : homes.data(),
                  .failed = failed_at.data(),
                  .notes = at.notes.data(),
                  .replicas = replicas.data(),
                  .visited = visited.data(),
                  .chosen = chosen.data(),
                  .open = open.data()};
  const ShareForm form = Form(layer);
  if (!alone()) ++stats.layers_by_form[static_cast<int>(form)];
  if (form == ShareForm::kCurrent) {
    BALLAST_RETURN_IF_ERROR(CudaStatus(LaunchCount(args, stream), "counting pairs"));
    BALLAST_RETURN_IF_ERROR(TellCounts(layer, stream));
  }
  if (form != ShareForm::kFixed) {
    const Solver& solver = *solvers[layer];
    const int stride = shares.table(layer).num_replicas();
    BALLAST_RETURN_IF_ERROR(
        solver.quotas.Run({.table = solver.table.data(),
                           .counts = at.counts.data() + static_cast<size_t>(layer) * view.size() * E(),
                           .sources = view.size(),
                           .quotas = at.flows.data()},
                          stream));
    if (form == ShareForm::kCurrent) {
      args.quotas = at.flows.data() + static_cast<size_t>(view.rank) * stride;
    } else {
      args.flows = at.flows.data();
      args.flow_stride = stride;
    }
  }
  return CudaStatus(LaunchChoose(args, /*counted=*/form == ShareForm::kCurrent, stream), "choosing replicas");
}

absl::Status DeviceMoeExecutor::Impl::RunWithPeers(int layer, const RouteTokensArgs& routing, void* out,
                                                   cudaStream_t stream) {
  Workspace& at = space();
  if (rows() > 0) BALLAST_RETURN_IF_ERROR(RouteTokens(routing, route.data(), stream));
  BALLAST_RETURN_IF_ERROR(Record(kRouted, stream));
  BALLAST_RETURN_IF_ERROR(Choose(layer, -1, stream));
  BALLAST_RETURN_IF_ERROR(Record(kChosen, stream));
  DispatchArgs dispatch{.x = routing.hidden,
                        .num_tokens = step_words.data() + kStepRows,
                        .replicas = replicas.data(),
                        .weights = routing.weights,
                        .notes = at.notes.data()};
  if (exact()) {
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(LaunchExpandRows(routing.hidden, rows(), K(), H(), at.pair_rows.data(), stream), "rows by pair"));
    dispatch.x = at.pair_rows.data();
    dispatch.num_tokens = step_words.data() + kStepPairs;
    dispatch.weights = at.ones.data();
  }
  BALLAST_RETURN_IF_ERROR(exchange->Dispatch(dispatch, stream));
  const size_t notes = static_cast<size_t>(at.notes_at.words) * view.size();
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(at.kept.data() + layer * notes, exchange->received_notes(),
                                                     sizeof(int32_t) * notes, cudaMemcpyDeviceToDevice, stream),
                                     "a layer's notes"));
  if (CountsKept(layer) && Form(layer) != ShareForm::kCurrent) {
    const size_t width = sizeof(int32_t) * E();
    BALLAST_RETURN_IF_ERROR(CudaStatus(
        cudaMemcpy2DAsync(at.counts.data() + static_cast<size_t>(layer) * view.size() * E(), width,
                          exchange->received_notes() + at.notes_at.counts, sizeof(int32_t) * at.notes_at.words, width,
                          view.size(), cudaMemcpyDeviceToDevice, stream),
        "a layer's counts"));
  }
  const int num_pairs = static_cast<int>(pairs()) * view.size();
  BALLAST_RETURN_IF_ERROR(GroupPairs({.ids = exchange->received_groups(),
                                      .num_pairs = num_pairs,
                                      .group_of = identity.data(),
                                      .num_experts = E() + 1,
                                      .num_groups = E(),
                                      .begin = at.begin.data(),
                                      .order = at.order.data(),
                                      .row_of = at.row_of.data()},
                                     at.group.data(), stream));
  BALLAST_RETURN_IF_ERROR(Record(kDispatched, stream));
  const ExpertsStep work{.x = exchange->received_rows(),
                         .order = at.order.data(),
                         .pairs_per_token = exact() ? 1 : K(),
                         .begin = at.begin.data(),
                         .slots = groups->layer(layer),
                         .num_groups = E(),
                         .typical_rows = std::max(rows(), 1) * K(),
                         .out = at.outputs.data()};
  if (!exact()) {
    BALLAST_RETURN_IF_ERROR(experts->Run(work, at.experts.data(), num_pairs, E(), stream));
    BALLAST_RETURN_IF_ERROR(Record(kComputed, stream));
    return exchange->Combine({.outputs = at.outputs.data(), .row_of = at.row_of.data(), .out = out}, stream);
  }
  BALLAST_RETURN_IF_ERROR(InvariantExperts(arena, work, at.experts.data(), num_pairs, stream));
  BALLAST_RETURN_IF_ERROR(Record(kComputed, stream));
  // A pair's sum is its output, unchanged; they are added here, by ascending expert.
  BALLAST_RETURN_IF_ERROR(exchange->Combine(
      {.outputs = at.outputs.data(), .row_of = at.row_of.data(), .out = at.pair_outputs.data()}, stream));
  if (rows() == 0) return absl::OkStatus();
  return CombineRows({.rows = at.pair_outputs.data(),
                      .row_of = at.pair_numbers.data(),
                      .ids = routing.ids,
                      .weights = routing.weights,
                      .num_tokens = rows(),
                      .top_k = K(),
                      .hidden_size = H(),
                      .out = out},
                     stream);
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
    rank_seconds_per_pair[from] = notes(0, from)[at.nanoseconds_per_pair] * 1e-9;
    const auto took = static_cast<uint32_t>(notes(0, from)[at.exchange_nanoseconds]);
    if (took > 0 && (least == 0 || took < least)) least = took;
  }
  if (counts_were_timed) exchange_time = events.Between(kCountsBegun, kCountsEnded);
  const int told = stats.layers_by_form[static_cast<int>(ShareForm::kCurrent)];
  stats.count_exchange = told * (least > 0 ? absl::Nanoseconds(least) : exchange_time);
}

absl::Status DeviceMoeExecutor::Impl::EndStep(cudaStream_t stream) {
  if (exchange != nullptr) {
    for (DeviceExchange* const e : {exchange.get(), count_exchange.get()}) {
      if (const absl::Status status = e->Finish(stream, step.deadline); !status.ok()) {
        late = e->late_ranks();
        return status;
      }
    }
  }
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
