#include "worker/moe/device_load_counts.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/memory.h"
#include "kernels/cuda/status.h"
#include "proto/base/check.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/experts/device_slots.h"

namespace ballast {
namespace {

constexpr int kCells = (LoadCounters::kMaxTasks + 1) * kTokenPhases;

template <typename T>
std::span<T> As(const PinnedMemory& memory) {
  return {reinterpret_cast<T*>(memory.bytes().data()), memory.bytes().size() / sizeof(T)};
}

// Whether there was none.
bool LogError(const absl::Status& status) {
  if (!status.ok()) Log(Severity::kWarning, "load of a GPU was not counted", {{"status", status}});
  return status.ok();
}

// The GPU that is current in a thread that may have another.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    cudaGetDevice(&before_);
    cudaSetDevice(device);
  }
  ~CurrentDevice() { cudaSetDevice(before_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
};

}  // namespace

struct DeviceLoadCounts::Impl {
  Impl(int l, int e, int k, PinnedMemory cells, PinnedMemory rows, PinnedMemory routes)
      : layers(l),
        experts(e),
        top_k(k),
        host_cells(std::move(cells)),
        host_rows(std::move(rows)),
        host_routes(std::move(routes)) {}
  ~Impl() {
    if (stream != nullptr) cudaStreamDestroy(stream);
    for (const cudaEvent_t event : {counted, gathered}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
  }
  size_t cell_size() const { return static_cast<size_t>(layers) * experts; }
  uint64_t* tokens(int cell) const { return static_cast<uint64_t*>(counts.get()) + cell * cell_size(); }
  uint64_t* gate_mass(int cell) const { return tokens(kCells + cell); }

  const int layers, experts, top_k;
  int device = 0;
  // [2][kCells][layers][experts]: tokens, gate mass; and [capacity].
  DeviceMemory counts, cells;
  // Of one step; the GPU reads the first two and writes the last.
  const PinnedMemory host_cells, host_rows, host_routes;
  cudaStream_t stream = nullptr;
  // Behind the last step counted, and the rows last asked for; as many, 0 where that failed.
  cudaEvent_t counted = nullptr, gathered = nullptr;
  size_t asked = 0;
  StepRoutes step;
  cudaStream_t step_stream = nullptr;
  std::vector<uint8_t> used = std::vector<uint8_t>(kCells);
  // Of the last Take.
  std::vector<std::vector<uint64_t>> fetched;
  std::vector<Counted> taken;
};

DeviceLoadCounts::DeviceLoadCounts(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DeviceLoadCounts::~DeviceLoadCounts() = default;

absl::StatusOr<std::unique_ptr<DeviceLoadCounts>> DeviceLoadCounts::Create(int layers, int experts, int top_k,
                                                                           int capacity) {
  const size_t ints = sizeof(int32_t) * capacity;
  BALLAST_ASSIGN_OR_RETURN(PinnedMemory cells, PinnedMemory::Allocate(ints));
  BALLAST_ASSIGN_OR_RETURN(PinnedMemory rows, PinnedMemory::Allocate(ints));
  BALLAST_ASSIGN_OR_RETURN(PinnedMemory routes, PinnedMemory::Allocate(ints * layers * top_k));
  auto impl = std::make_unique<Impl>(layers, experts, top_k, std::move(cells), std::move(rows), std::move(routes));
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&impl->device), "the GPU"));
  const size_t bytes = 2 * kCells * impl->cell_size() * sizeof(uint64_t);
  BALLAST_ASSIGN_OR_RETURN(impl->counts, AllocateDevice(bytes, "counts of load"));
  BALLAST_ASSIGN_OR_RETURN(impl->cells, AllocateDevice(ints, "a step's labels"));
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithFlags(&impl->stream, cudaStreamNonBlocking), "counts of load"));
  for (cudaEvent_t* const event : {&impl->counted, &impl->gathered}) {
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "counts of load"));
  }
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemset(impl->counts.get(), 0, bytes), "counts of load"));
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaDeviceSynchronize(), "counts of load"));
  return std::unique_ptr<DeviceLoadCounts>(new DeviceLoadCounts(std::move(impl)));
}

void DeviceLoadCounts::SetStep(const StepRoutes& routes, cudaStream_t stream) {
  impl_->step = routes;
  impl_->step_stream = stream;
}

absl::Status DeviceLoadCounts::CountStep(std::span<const int32_t> cells) {
  BALLAST_CHECK(static_cast<int>(cells.size()) == impl_->step.rows) << cells.size() << " rows";
  if (cells.empty()) return absl::OkStatus();
  std::ranges::copy(cells, As<int32_t>(impl_->host_cells).begin());
  for (const int32_t cell : cells) {
    if (cell >= 0) impl_->used[cell] = 1;
  }
  auto* const device_cells = static_cast<int32_t*>(impl_->cells.get());
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(device_cells, impl_->host_cells.bytes().data(), cells.size_bytes(),
                                                     cudaMemcpyHostToDevice, impl_->step_stream),
                                     "a step's labels"));
  BALLAST_RETURN_IF_ERROR(CudaStatus(LaunchCountRoutes(impl_->step, impl_->experts, device_cells, impl_->tokens(0),
                                                       impl_->gate_mass(0), impl_->step_stream),
                                     "counting a step"));
  return CudaStatus(cudaEventRecord(impl_->counted, impl_->step_stream), "counting a step");
}

void DeviceLoadCounts::Count(std::span<const int32_t> cells) { LogError(CountStep(cells)); }

absl::Status DeviceLoadCounts::AskForRoutes(std::span<const int32_t> rows) {
  std::ranges::copy(rows, As<int32_t>(impl_->host_rows).begin());
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(LaunchGatherRoutes(impl_->step, As<int32_t>(impl_->host_rows).data(), static_cast<int>(rows.size()),
                                    As<int32_t>(impl_->host_routes).data(), impl_->step_stream),
                 "routes of rows"));
  return CudaStatus(cudaEventRecord(impl_->gathered, impl_->step_stream), "routes of rows");
}

void DeviceLoadCounts::Ask(std::span<const int32_t> rows) {
  impl_->asked = LogError(AskForRoutes(rows)) ? rows.size() : 0;
}

std::span<const int32_t> DeviceLoadCounts::Routes() {
  // What an earlier step left there is not this one's.
  if (impl_->asked == 0 || !LogError(CudaStatus(cudaEventSynchronize(impl_->gathered), "routes of rows"))) return {};
  return As<int32_t>(impl_->host_routes).first(impl_->asked * impl_->layers * impl_->top_k);
}

absl::Status DeviceLoadCounts::Fetch() {
  const size_t size = impl_->cell_size(), bytes = size * sizeof(uint64_t);
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaStreamWaitEvent(impl_->stream, impl_->counted), "counts of load"));
  size_t next = 0;
  for (int cell = 0; cell < kCells; ++cell) {
    if (impl_->used[cell] == 0) continue;
    if (impl_->fetched.size() == next) impl_->fetched.emplace_back(2 * size);
    std::vector<uint64_t>& into = impl_->fetched[next++];
    for (uint64_t* const from : {impl_->tokens(cell), impl_->gate_mass(cell)}) {
      BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemcpyAsync(into.data() + (from == impl_->tokens(cell) ? 0 : size), from,
                                                         bytes, cudaMemcpyDeviceToHost, impl_->stream),
                                         "counts of load"));
      BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemsetAsync(from, 0, bytes, impl_->stream), "counts of load"));
    }
  }
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(impl_->stream), "counts of load"));
  next = 0;
  for (int cell = 0; cell < kCells; ++cell) {
    if (impl_->used[cell] == 0) continue;
    const std::span<const uint64_t> both = impl_->fetched[next++];
    impl_->taken.push_back({.cell = cell, .tokens = both.first(size), .gate_mass = both.last(size)});
    impl_->used[cell] = 0;
  }
  return absl::OkStatus();
}

std::span<const RoutedElsewhere::Counted> DeviceLoadCounts::Take() {
  impl_->taken.clear();
  if (std::ranges::count(impl_->used, 1) == 0) return {};
  const CurrentDevice current(impl_->device);
  LogError(Fetch());
  return impl_->taken;
}

}  // namespace ballast
