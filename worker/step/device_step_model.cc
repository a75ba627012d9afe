#include "worker/step/device_step_model.h"

#include <map>
#include <string>
#include <utility>

#include "kernels/cuda/status.h"
#include "proto/base/status_macros.h"
#include "worker/step/moe_step_model.h"

namespace ballast {
namespace {

class DeviceStepModel final : public MoeStepModel<DeviceDecoder, DeviceMoeExecutor> {
 public:
  DeviceStepModel(DeviceDecoder& decoder, std::unique_ptr<DeviceMoeExecutor> moe, DeviceMoves* moves, int capacity,
                  int device, cudaStream_t stream)
      : MoeStepModel(decoder, std::move(moe), capacity), moves_(moves), device_(device), stream_(stream) {}
  ~DeviceStepModel() override {
    cudaSetDevice(device_);
    Leave();
    moe_.reset();
    cudaStreamDestroy(stream_);
  }

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
  absl::Status Lost() override {
    // The step thread may not have been in a view yet; without this it would ask, and take memory of, the first GPU.
    static_cast<void>(cudaSetDevice(device_));
    return DeviceLost();
  }

  absl::Status Run(const MoeStep& step, const StepInput& input, float* logits) override {
    BALLAST_RETURN_IF_ERROR(moe_->BeginStep(step, stream_));
    BALLAST_RETURN_IF_ERROR(decoder_.Forward(input, *moe_, logits, stream_));
    return moe_->EndStep(stream_);
  }

 private:
  DeviceMoves* const moves_;
  const int device_;
  const cudaStream_t stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StepModel>> MakeDeviceStepModel(DeviceDecoder& decoder, const SlotMemory& slots,
                                                               DeviceMoves* moves, const DeviceMoeOptions& options) {
  BALLAST_RETURN_IF_ERROR(CheckCapacity(decoder, options.capacity));
  BALLAST_ASSIGN_OR_RETURN(auto moe, DeviceMoeExecutor::Create(MoeLayersOf<DeviceMoeModel>(decoder), slots, options));
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
