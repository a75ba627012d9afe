// MoE layers with every expert on this GPU: one GPU alone, and the reference that groups of GPUs are compared with.
#ifndef BALLAST_WORKER_DECODER_DEVICE_LOCAL_MOE_H_
#define BALLAST_WORKER_DECODER_DEVICE_LOCAL_MOE_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/memory.h"
#include "worker/decoder/device_decoder.h"
#include "worker/decoder/device_moe_layer.h"
#include "worker/model/checkpoint.h"

namespace ballast {

// Routes, runs the chosen experts and adds their outputs by ascending expert id. With a decoder that is exact(), a
// row's bits depend on the row and the weights alone. Used by one thread, on one stream.
class DeviceLocalMoe final : public DeviceMoeLayer {
 public:
  // Reads every expert of the checkpoint into device memory. `decoder` must outlive the result. Errors: the
  // checkpoint's, ResourceExhausted, FailedPrecondition: the GPU is not of compute capability 9.0.
  static absl::StatusOr<std::unique_ptr<DeviceLocalMoe>> Create(const Checkpoint& checkpoint,
                                                                const DeviceDecoder& decoder);

  absl::Status Run(int moe_layer, const void* hidden, int rows, void* out, cudaStream_t stream) override;
  bool capturable() const override { return true; }

  // The last Run's choices, [rows][k] in device memory, by falling probability.
  const int32_t* ids() const { return static_cast<const int32_t*>(ids_.get()); }

 private:
  explicit DeviceLocalMoe(const DeviceDecoder& decoder) : decoder_(decoder) {}

  const DeviceDecoder& decoder_;
  // Slot layer * E + expert.
  DeviceMemory weights_;
  ExpertArena arena_;
  std::optional<CudaExperts> experts_;
  int max_pairs_ = 0;
  // [layers * E], the slots, which begin with an expert's group: its own number.
  DeviceMemory numbers_;
  DeviceMemory ids_, route_weights_, begin_, order_, row_of_, outputs_;
  DeviceMemory route_workspace_;
  // Of CudaExperts; with exact(), activations.
  DeviceMemory workspace_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_DECODER_DEVICE_LOCAL_MOE_H_
