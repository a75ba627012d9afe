// What device_moe_executor.cc (views and steps) and device_moe_layers.cc (the layers of a step) share.
#ifndef BALLAST_WORKER_MOE_DEVICE_MOE_IMPL_H_
#define BALLAST_WORKER_MOE_DEVICE_MOE_IMPL_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cuda/experts.h"
#include "kernels/cuda/memory.h"
#include "kernels/cuda/quota_limits.h"
#include "kernels/cuda/quotas.h"
#include "kernels/cuda/status.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"
#include "worker/experts/device_groups.h"
#include "worker/moe/device_load_counts.h"
#include "worker/moe/device_mesh.h"
#include "worker/moe/device_moe_executor.h"
#include "worker/moe/device_table.h"
#include "worker/moe/row_homes.h"
#include "worker/transport/nccl/device_exchange.h"

namespace ballast {

struct DeviceMoeExecutor::Impl {
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
    // At most `size` elements. They are there when it returns, on every stream: a copy from pageable memory alone may
    // still be under way then, and streams that do not block would not wait for it.
    absl::Status Fill(const std::vector<T>& from, const char* what) {
      BALLAST_RETURN_IF_ERROR(
          CudaStatus(cudaMemcpy(data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), what));
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

  Impl(DeviceMoeModel m, const SlotMemory& s, const DeviceMoeOptions& o)
      : model(std::move(m)),
        slots(s),
        options(o),
        row_homes(o.tasks),
        shares(model.num_layers(), model.rule.num_experts,
               [](const DispatchTable& table, int ranks) { return QuotasFit(table.begin, table.rank, ranks); }) {}

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
  // Set by Interrupt, until the view is left; outlives the mesh.
  std::atomic<bool> interrupted = false;
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
  // Of this rank in any view; of each rank in this view, which is what they exchange.
  size_t pairs() const { return static_cast<size_t>(options.capacity) * K(); }
  size_t group_pairs() const { return static_cast<size_t>(mesh.terms.capacity) * K(); }
  bool alone() const { return view.size() == 1; }
  bool exact() const { return options.combine == CombineMode::kExact; }
  Workspace& space() { return alone() ? alone_space : *group_space; }

  absl::Status Init();
  // `rank_pairs`: of each rank.
  absl::Status InitSpace(int ranks, size_t rank_pairs, Workspace& space) const;
  absl::Status MakeExchanges(absl::Time deadline);
  absl::Status Enter(const GroupView& v, Transport* transport, std::shared_ptr<const ReplicaTable> tbl,
                     absl::Time deadline, cudaStream_t stream);
  absl::Status Flip(std::shared_ptr<const ReplicaTable> tbl, cudaStream_t stream);
  void NumberHomes(const std::vector<int32_t>& rank_of_worker);
  void Leave();
  absl::Status BeginStep(const MoeStep& s, cudaStream_t stream);
  absl::Status Run(int layer, const void* hidden, int rows, void* out, cudaStream_t stream);
  absl::Status FinishExchanges(cudaStream_t stream);
  absl::Status EndStep(cudaStream_t stream);

  ShareForm Form(int layer) const;
  bool CountsKept(int layer) const {
    return !alone() && !step.shares.empty() && shares.shared(layer) &&
           (step.shares[layer].counts || Form(layer) == ShareForm::kCurrent);
  }
  absl::Status MakeSolver(int layer, cudaStream_t stream);
  absl::Status Record(Mark mark, cudaStream_t stream);
  absl::Status RunAlone(int layer, const RouteTokensArgs& routing, void* out, cudaStream_t stream);
  absl::Status Choose(int layer, int32_t none, cudaStream_t stream);
  absl::Status TellCounts(int layer, cudaStream_t stream);
  absl::Status RunWithPeers(int layer, const RouteTokensArgs& routing, void* out, cudaStream_t stream);
  absl::Status FetchStep(cudaStream_t stream);
  void TakeFailures();
  void TakeNotes();
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_DEVICE_MOE_IMPL_H_
