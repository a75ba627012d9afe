#include "worker/step/device_step_model.h"

#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/status.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

class DeviceStepModel final : public StepModel {
 public:
  DeviceStepModel(DeviceDecoder& decoder, std::unique_ptr<DeviceMoeExecutor> moe, DeviceMoves* moves, int capacity,
                  int device, cudaStream_t stream)
      : decoder_(decoder),
        moe_(std::move(moe)),
        moves_(moves),
        device_(device),
        stream_(stream),
        shape_({.moe_layers = decoder.config().num_moe_layers(),
                .vocab_size = decoder.config().vocab_size,
                .capacity = capacity}) {}
  ~DeviceStepModel() override {
    cudaSetDevice(device_);
    Leave();
    moe_.reset();
    cudaStreamDestroy(stream_);
  }

  const StepModelShape& shape() const override { return shape_; }

  absl::Status Enter(const GroupView& view, Transport* transport, std::shared_ptr<const ReplicaTable> table,
                     absl::Time deadline) override {
    // A thread's current GPU is its own.
    BALLAST_RETURN_IF_ERROR(CudaStatus(cudaSetDevice(device_), "the worker's GPU"));
    BALLAST_RETURN_IF_ERROR(moe_->Enter(view, transport, std::move(table), deadline, stream_));
    std::map<std::string, DeviceMoves::Peer> peers;
    const auto slots = moe_->peer_slots();
    for (size_t r = 0; r < slots.size(); ++r) {
      const GroupMember& member = view.members[r];
      peers[member.data_address] = {.worker = member.worker, .slots = slots[r]};
    }
    if (moves_ != nullptr) moves_->SetPeers(std::move(peers));
    return absl::OkStatus();
  }
  absl::Status Flip(std::shared_ptr<const ReplicaTable> table) override {
    return moe_->Flip(std::move(table), stream_);
  }
  void Leave() override {
    if (moves_ != nullptr) moves_->ForgetPeers();
    moe_->Leave();
  }
  void Interrupt() override { moe_->Interrupt(); }

  absl::Status Run(const MoeStep& step, const StepInput& input, float* logits) override {
    BALLAST_RETURN_IF_ERROR(moe_->BeginStep(step, stream_));
    BALLAST_RETURN_IF_ERROR(decoder_.Forward(input, *moe_, logits, stream_));
    return moe_->EndStep(stream_);
  }
  bool begun() const override { return moe_->layers_begun() > 0; }

  std::span<const RowFailure> failures() const override { return moe_->failures(); }
  const MoeStepStats& stats() const override { return moe_->stats(); }
  std::span<const int> late_peers() const override { return moe_->late_peers(); }
  bool shared(int layer) const override { return moe_->shared(layer); }
  std::optional<ShareComparison> CompareShares(int layer) override { return moe_->CompareShares(layer); }
  double SecondsPerPair(int of_rank) const override { return moe_->SecondsPerPair(of_rank); }
  void CountStep(LoadCounters& counters) override { moe_->CountStep(counters); }

 private:
  DeviceDecoder& decoder_;
  std::unique_ptr<DeviceMoeExecutor> moe_;
  DeviceMoves* const moves_;
  const int device_;
  const cudaStream_t stream_;
  const StepModelShape shape_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StepModel>> MakeDeviceStepModel(DeviceDecoder& decoder, const SlotMemory& slots,
                                                               DeviceMoves* moves, const DeviceMoeOptions& options) {
  if (options.capacity > decoder.max_rows()) {
    return absl::InvalidArgumentError(
        absl::StrCat("capacity is ", options.capacity, ", more than the decoder's max_rows ", decoder.max_rows()));
  }
  const ModelConfig& config = decoder.config();
  DeviceMoeModel model{.rule = decoder.router_rule(),
                       .hidden_size = config.hidden_size,
                       .intermediate_size = config.expert_intermediate_size};
  for (int layer = 0; layer < config.num_moe_layers(); ++layer) {
    model.router_weights.push_back(decoder.router_weights(layer));
  }
  BALLAST_ASSIGN_OR_RETURN(auto moe, DeviceMoeExecutor::Create(std::move(model), slots, options));
  int device = 0;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "the worker's GPU"));
  // Ahead of moves, whose stream has the lowest priority.
  int least = 0, greatest = 0;
  BALLAST_RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "the steps' stream"));
  cudaStream_t stream = nullptr;
  BALLAST_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest), "the steps' stream"));
  return std::make_unique<DeviceStepModel>(decoder, std::move(moe), moves, options.capacity, device, stream);
}

}  // namespace ballast
