#include "worker/transport/nccl/device_exchange.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/cuda/status.h"
#include "proto/base/status_macros.h"
#include "worker/transport/nccl/exchange_kernel.h"

namespace ballast {
namespace {

using internal::ExchangeControl;
using internal::ExchangeKernelArgs;

constexpr absl::Duration kPollInterval = absl::Microseconds(20);
// How long the device may take to notice that the host has given up.
constexpr absl::Duration kAbortPatience = absl::Seconds(5);

// Owned memory of the device or the host.
struct CudaFree {
  void operator()(void* p) const { cudaFree(p); }
};
struct CudaFreeHost {
  void operator()(void* p) const { cudaFreeHost(p); }
};

absl::Status AllocateZeroed(size_t bytes, const char* what, std::unique_ptr<std::byte, CudaFree>& memory) {
  void* p = nullptr;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&p, bytes), what));
  memory.reset(static_cast<std::byte*>(p));
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaMemset(p, 0, bytes), what));
  return CudaStatus(cudaDeviceSynchronize(), what);
}

// What both implementations have: the region, the kernels' arguments, the wait for the end.
class ExchangeBase : public DeviceExchange {
 public:
  ~ExchangeBase() override {
    if (done_ != nullptr) cudaEventDestroy(done_);
  }

  const ExchangeShape& shape() const override { return shape_; }
  void* received_rows() const override { return region_ + layout_.rows; }
  const int32_t* received_groups() const override { return reinterpret_cast<int32_t*>(region_ + layout_.groups); }
  const float* received_weights() const override { return reinterpret_cast<float*>(region_ + layout_.weights); }
  const int32_t* received_notes() const override { return reinterpret_cast<int32_t*>(region_ + layout_.notes); }
  void* own_rows() const override { return region_ + layout_.rows + rank() * RowsBytes(); }

  absl::Status Finish(cudaStream_t stream, absl::Time deadline) override {
    BALLAST_RETURN_IF_ERROR(broken_);
    broken_ = Await(stream, deadline);
    return broken_;
  }

  std::vector<int> late_ranks() const override {
    std::vector<int> late;
    for (int r = 0; r < shape_.ranks; ++r) {
      if (Late(r) != 0) late.push_back(r);
    }
    return late;
  }

  void Abort() override {
    aborted_ = true;
    SetAbort();
  }

 protected:
  ExchangeBase(NcclCommunicator& communicator, const ExchangeShape& shape, const ExchangeLayout& layout,
               const ExchangeOptions& options)
      : communicator_(communicator), shape_(shape), layout_(layout), options_(options) {}

  int rank() const { return communicator_.rank(); }
  size_t RowsBytes() const { return static_cast<size_t>(shape_.capacity) * shape_.hidden_size * 2; }
  size_t ChoicesBytes() const { return static_cast<size_t>(shape_.capacity) * shape_.top_k * sizeof(int32_t); }

  // Ends the waits that are under way on the device.
  virtual void AbortOnDevice() { SetAbort(); }
  void SetAbort() { std::atomic_ref(control_->abort).store(1); }

  // `region` is this rank's, layout_.bytes long.
  absl::Status Init(std::byte* region) {
    region_ = region;
    BALLAST_ASSIGN_OR_RETURN(const int most, MostExchangeBlocks());
    if (options_.blocks > most) {
      return absl::InvalidArgumentError(
          absl::StrCat("blocks is ", options_.blocks, ", more than the ", most, " that the GPU runs at once"));
    }
    void* control = nullptr;
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaHostAlloc(&control, sizeof(ExchangeControl), cudaHostAllocMapped),
                                       "an exchange's control words"));
    control_.reset(new (control) ExchangeControl{});
    BALLAST_RETURN_IF_ERROR(AllocateZeroed(kStateWords * sizeof(uint32_t) + sizeof(uint32_t) * shape_.capacity,
                                           "an exchange's state", state_));
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "an exchange's event"));
    ExchangeKernelArgs& args = args_;
    args.rank = rank();
    args.ranks = shape_.ranks;
    args.capacity = shape_.capacity;
    args.top_k = shape_.top_k;
    args.hidden_size = shape_.hidden_size;
    args.groups_per_rank = shape_.groups_per_rank;
    args.note_words = shape_.note_words;
    args.blocks = ExchangeBlocks(shape_.capacity, options_.blocks > 0 ? options_.blocks : most);
    args.weights = received_weights();
    args.tokens = reinterpret_cast<int32_t*>(region_ + layout_.tokens);
    args.partials = region_ + layout_.partials;
    auto* const words = reinterpret_cast<uint32_t*>(state_.get());
    args.step = words;
    args.failed = words + 1;
    args.destinations = words + kStateWords;
    void* device_control = nullptr;
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(cudaHostGetDevicePointer(&device_control, control_.get(), 0), "an exchange's control words"));
    args.control = static_cast<ExchangeControl*>(device_control);
    args.wait_nanoseconds = absl::ToInt64Nanoseconds(options_.wait_limit);
    return absl::OkStatus();
  }

  // This rank's sections of the region at `region` are what args_ writes for rank r.
  void PointTo(int r, std::byte* region) {
    const size_t section = static_cast<size_t>(rank());
    args_.rows_to[r] = region + layout_.rows + section * RowsBytes();
    args_.groups_to[r] = reinterpret_cast<int32_t*>(region + layout_.groups + section * ChoicesBytes());
    args_.weights_to[r] = reinterpret_cast<float*>(region + layout_.weights + section * ChoicesBytes());
    args_.notes_to[r] = reinterpret_cast<int32_t*>(region + layout_.notes) + section * shape_.note_words;
    args_.tokens_to[r] = reinterpret_cast<int32_t*>(region + layout_.tokens) + section;
    args_.partials_to[r] = region + layout_.partials + section * RowsBytes();
  }

  absl::StatusOr<ExchangeKernelArgs> ForDispatch(const DispatchArgs& dispatch) {
    BALLAST_RETURN_IF_ERROR(broken_);
    if (dispatched_) return absl::FailedPreconditionError("a dispatch follows a dispatch without a combine");
    dispatched_ = true;
    ExchangeKernelArgs args = args_;
    args.x = dispatch.x;
    args.num_tokens = dispatch.num_tokens;
    args.replicas = dispatch.replicas;
    args.choice_weights = dispatch.weights;
    args.notes = dispatch.notes;
    if (dispatch.x == own_rows()) args.rows_to[rank()] = nullptr;
    return args;
  }

  absl::StatusOr<ExchangeKernelArgs> ForCombine(const CombineSumsArgs& combine) {
    if (!dispatched_) return absl::FailedPreconditionError("a combine follows no dispatch");
    dispatched_ = false;
    ExchangeKernelArgs args = args_;
    args.outputs = combine.outputs;
    args.row_of = combine.row_of;
    args.out = combine.out;
    return args;
  }

  NcclCommunicator& communicator_;
  const ExchangeShape shape_;
  const ExchangeLayout layout_;
  const ExchangeOptions options_;
  ExchangeKernelArgs args_ = {};

 private:
  // In front of the destinations, which begin at a multiple of 16 bytes.
  static constexpr size_t kStateWords = 4;

  absl::Status Await(cudaStream_t stream, absl::Time deadline) {
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaEventRecord(done_, stream), "waiting for an exchange"));
    absl::Status given_up;
    cudaError_t error;
    while ((error = cudaEventQuery(done_)) == cudaErrorNotReady) {
      const absl::Time now = absl::Now();
      if (given_up.ok() && (aborted_ || now > deadline)) {
        given_up = aborted_ ? absl::CancelledError("the exchange was aborted")
                            : absl::DeadlineExceededError("an exchange is not done by its deadline");
        deadline = now + kAbortPatience;
        AbortOnDevice();
      } else if (now > deadline) {
        return absl::DeadlineExceededError("the device does not end an exchange that was given up");
      }
      absl::SleepFor(kPollInterval);
    }
    BALLAST_RETURN_IF_ERROR(CudaStatus(error, "an exchange"));
    BALLAST_RETURN_IF_ERROR(given_up);
    if (aborted_) return absl::CancelledError("the exchange was aborted");
    return LateRanks();
  }

  uint32_t Late(int r) const { return std::atomic_ref(control_->late[r]).load(); }
  absl::Status LateRanks() const {
    std::string names;
    for (int r = 0; r < shape_.ranks; ++r) {
      const uint32_t late = Late(r);
      if (late == 0) continue;
      absl::StrAppend(&names, names.empty() ? "" : ", ", "rank ", r,
                      late == 1 + internal::kRowsWait ? " with its rows" : " with its sums");
    }
    if (names.empty()) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("late by more than ", absl::FormatDuration(options_.wait_limit), ": ", names));
  }

  std::byte* region_ = nullptr;
  std::unique_ptr<ExchangeControl, CudaFreeHost> control_;
  // step, failed, [capacity] destinations
  std::unique_ptr<std::byte, CudaFree> state_;
  cudaEvent_t done_ = nullptr;
  bool dispatched_ = false;
  // What Finish said, once it is an error.
  absl::Status broken_;
  std::atomic<bool> aborted_ = false;
};

class LsaExchange final : public ExchangeBase {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceExchange>> Make(NcclCommunicator& communicator,
                                                              const ExchangeShape& shape,
                                                              const ExchangeOptions& options) {
    BALLAST_ASSIGN_OR_RETURN(const ExchangeLayout layout, LayOutExchange(shape));
    std::unique_ptr<LsaExchange> exchange(new LsaExchange(communicator, shape, layout, options));
    // The peers' memory is zeroed, their arrivals too, before anybody can write there.
    BALLAST_ASSIGN_OR_RETURN(const NcclCommunicator::Memory memory,
                             communicator.AllocateShared(layout.bytes, options.deadline));
    BALLAST_RETURN_IF_ERROR(exchange->Init(memory.own));
    ExchangeKernelArgs& args = exchange->args_;
    for (int r = 0; r < shape.ranks; ++r) {
      std::byte* const region = r == communicator.rank() ? memory.own : memory.peers[r];
      exchange->PointTo(r, region);
      for (const int wait : {internal::kRowsWait, internal::kPartialsWait}) {
        auto* const arrivals = reinterpret_cast<uint32_t*>(region + layout.arrivals) + wait * shape.ranks;
        args.arrivals_to[wait][r] = arrivals + communicator.rank();
        if (r == communicator.rank()) args.arrivals[wait] = arrivals;
      }
    }
    return exchange;
  }

  bool bounded() const override { return true; }

  absl::Status Dispatch(const DispatchArgs& dispatch, cudaStream_t stream) override {
    BALLAST_ASSIGN_OR_RETURN(const ExchangeKernelArgs args, ForDispatch(dispatch));
    return CudaStatus(internal::LaunchDispatch(args, stream), "the dispatch kernel");
  }

  absl::Status Combine(const CombineSumsArgs& combine, cudaStream_t stream) override {
    BALLAST_ASSIGN_OR_RETURN(const ExchangeKernelArgs args, ForCombine(combine));
    return CudaStatus(internal::LaunchCombineSums(args, true, true, stream), "the combine kernel");
  }

 private:
  using ExchangeBase::ExchangeBase;
};

// Every rank sends all `capacity` rows and sums to every other one: how many there are is known to the devices alone.
class SendRecvExchange final : public ExchangeBase {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceExchange>> Make(NcclCommunicator& communicator,
                                                              const ExchangeShape& shape,
                                                              const ExchangeOptions& options) {
    BALLAST_ASSIGN_OR_RETURN(const ExchangeLayout layout, LayOutExchange(shape));
    std::unique_ptr<SendRecvExchange> exchange(new SendRecvExchange(communicator, shape, layout, options));
    BALLAST_RETURN_IF_ERROR(AllocateZeroed(layout.bytes, "received rows", exchange->received_));
    BALLAST_RETURN_IF_ERROR(exchange->Init(exchange->received_.get()));
    // What is for other ranks lies in the sections of a region of its own, by destination.
    BALLAST_RETURN_IF_ERROR(AllocateZeroed(layout.bytes, "rows to send", exchange->outgoing_));
    ExchangeKernelArgs& args = exchange->args_;
    const int rank = communicator.rank();
    exchange->PointTo(rank, exchange->received_.get());
    for (int r = 0; r < shape.ranks; ++r) {
      if (r == rank) continue;
      std::byte* const out = exchange->outgoing_.get();
      args.rows_to[r] = nullptr;
      args.groups_to[r] = reinterpret_cast<int32_t*>(out + layout.groups + r * exchange->ChoicesBytes());
      args.weights_to[r] = reinterpret_cast<float*>(out + layout.weights + r * exchange->ChoicesBytes());
      args.notes_to[r] = reinterpret_cast<int32_t*>(out + layout.notes) + static_cast<size_t>(r) * shape.note_words;
      args.tokens_to[r] = reinterpret_cast<int32_t*>(out + layout.tokens) + r;
      args.partials_to[r] = out + layout.partials + r * exchange->RowsBytes();
    }
    // NCCL connects two ranks at their first transfer, which takes long and has to have a deadline.
    BALLAST_RETURN_IF_ERROR(exchange->Transfer(layout.partials, exchange->RowsBytes(), options.deadline, nullptr));
    BALLAST_RETURN_IF_ERROR(exchange->Finish(nullptr, options.deadline));
    return exchange;
  }

  // NCCL's kernels wait for their peers for ever.
  bool bounded() const override { return false; }

  absl::Status Dispatch(const DispatchArgs& dispatch, cudaStream_t stream) override {
    BALLAST_ASSIGN_OR_RETURN(const ExchangeKernelArgs args, ForDispatch(dispatch));
    BALLAST_RETURN_IF_ERROR(CudaStatus(internal::LaunchDispatch(args, stream), "the dispatch kernel"));
    std::vector<NcclCommunicator::Transfer> transfers;
    AddTransfers(layout_.rows, RowsBytes(), transfers);
    for (NcclCommunicator::Transfer& transfer : transfers) transfer.send = dispatch.x;
    AddTransfers(layout_.groups, ChoicesBytes(), transfers);
    AddTransfers(layout_.weights, ChoicesBytes(), transfers);
    AddTransfers(layout_.notes, shape_.note_words * sizeof(int32_t), transfers);
    AddTransfers(layout_.tokens, sizeof(int32_t), transfers);
    return communicator_.Exchange(transfers, absl::Now() + options_.wait_limit, stream);
  }

  absl::Status Combine(const CombineSumsArgs& combine, cudaStream_t stream) override {
    BALLAST_ASSIGN_OR_RETURN(const ExchangeKernelArgs args, ForCombine(combine));
    BALLAST_RETURN_IF_ERROR(
        CudaStatus(internal::LaunchCombineSums(args, true, false, stream), "the kernel of partial sums"));
    BALLAST_RETURN_IF_ERROR(Transfer(layout_.partials, RowsBytes(), absl::Now() + options_.wait_limit, stream));
    return CudaStatus(internal::LaunchCombineSums(args, false, true, stream), "the combine kernel");
  }

 private:
  using ExchangeBase::ExchangeBase;

  // Sections `at`, `bytes` each: for peer r section r goes out, and comes in.
  void AddTransfers(size_t at, size_t bytes, std::vector<NcclCommunicator::Transfer>& transfers) const {
    for (int i = 1; i < shape_.ranks; ++i) {
      const int r = (rank() + i) % shape_.ranks;
      transfers.push_back({.peer = r,
                           .send = outgoing_.get() + at + r * bytes,
                           .receive = received_.get() + at + r * bytes,
                           .bytes = bytes});
    }
  }
  absl::Status Transfer(size_t at, size_t bytes, absl::Time deadline, cudaStream_t stream) {
    std::vector<NcclCommunicator::Transfer> transfers;
    AddTransfers(at, bytes, transfers);
    return communicator_.Exchange(transfers, deadline, stream);
  }

  // NCCL's kernels know no deadline: they end with their communicator.
  void AbortOnDevice() override {
    SetAbort();
    communicator_.Abort();
  }

  std::unique_ptr<std::byte, CudaFree> received_, outgoing_;
};

}  // namespace

absl::StatusOr<int> MostExchangeBlocks() {
  int blocks = 0;
  BALLAST_RETURN_IF_ERROR(CudaStatus(internal::MostBlocks(&blocks), "the exchange's kernels"));
  return blocks;
}

absl::StatusOr<std::unique_ptr<DeviceExchange>> MakeLsaExchange(NcclCommunicator& communicator,
                                                                const ExchangeShape& shape,
                                                                const ExchangeOptions& options) {
  return LsaExchange::Make(communicator, shape, options);
}

absl::StatusOr<std::unique_ptr<DeviceExchange>> MakeSendRecvExchange(NcclCommunicator& communicator,
                                                                     const ExchangeShape& shape,
                                                                     const ExchangeOptions& options) {
  return SendRecvExchange::Make(communicator, shape, options);
}

}  // namespace ballast
