// A Hugging Face checkpoint's weights, mapped and checked.
#ifndef BALLAST_WORKER_MODEL_CHECKPOINT_H_
#define BALLAST_WORKER_MODEL_CHECKPOINT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/placement/placement.h"
#include "worker/model/checksum.h"
#include "worker/model/config.h"
#include "worker/model/tensor_store.h"

namespace ballast {

// A tensor that a model must have.
struct RequiredTensor {
  std::string name;
  std::vector<int64_t> shape;
  // Of a routed expert: must be BF16, because slots hold what the file holds. Others may be BF16, F16 or F32.
  bool expert = false;
};

// Calls `visit` for each tensor that a model of `config` needs, in a fixed order; ends at the first error and returns
// it.
absl::Status ForEachRequiredTensor(const ModelConfig& config,
                                   const std::function<absl::Status(const RequiredTensor&)>& visit);

// Thread-safe. The files must not change while it is open.
//
//   BALLAST_ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open("testdata/olmoe-9m"));
//   std::vector<std::byte> slot(checkpoint->expert_bytes());
//   BALLAST_RETURN_IF_ERROR(checkpoint->ReadExpert({.layer = 0, .expert = 3}, slot));
class Checkpoint {
 public:
  // Maps dir's config.json, generation_config.json and safetensors, and checks that every tensor the model needs is
  // there with its shape and an accepted dtype. Reads headers, not weights. As LoadModelConfig and TensorStore::Open;
  // InvalidArgument names tensor, got and want.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& dir);

  const ModelConfig& config() const { return config_; }

  // Any tensor by its name in the file; NotFound names it. The view lives as long as the checkpoint.
  absl::StatusOr<TensorView> Find(std::string_view name) const { return tensors_.Find(name); }
  // Sorted by name.
  std::span<const TensorView> tensors() const { return tensors_.tensors(); }
  // Name of the router's weights [num_experts, hidden] of a MoE layer (counted over MoE layers from 0).
  std::string RouterName(int32_t moe_layer) const;

  // One expert in slot layout, the same for every architecture: BF16 gate [I][H], up [I][H], down [H][I], without gaps.
  size_t expert_bytes() const { return expert_bytes_; }
  // Copies one expert. InvalidArgument names the field: no such layer or expert, `out` is not expert_bytes() long.
  absl::Status ReadExpert(ExpertId id, std::span<std::byte> out) const;
  // Of the slot layout, ComputeExpertChecksum of what ReadExpert gave when the fingerprint was computed, which the
  // first call does: what has changed in the files since does not verify itself. InvalidArgument: no such expert.
  absl::StatusOr<Checksum> ExpertChecksum(ExpertId id) const;

  // 32 hex digits over the configuration and each tensor's name, dtype, shape and checksum. The same however the
  // tensors are spread over files. The first call reads all weights, on every core, and may take as long as the disk
  // needs; later calls are free.
  const std::string& fingerprint() const;

 private:
  struct ExpertViews {
    std::span<const std::byte> gate, up, down;
  };

  struct Sums {
    std::string fingerprint;
    // By (MoE layer, expert).
    std::vector<Checksum> experts;
  };

  Checkpoint(ModelConfig config, TensorStore tensors) : config_(std::move(config)), tensors_(std::move(tensors)) {}
  absl::Status CheckTensors();
  absl::StatusOr<ExpertViews> FindExpert(ExpertId id) const;
  const Sums& sums() const;

  const ModelConfig config_;
  const TensorStore tensors_;
  // Set by Open, then constant.
  size_t expert_bytes_ = 0;
  // By (MoE layer, expert).
  std::vector<ExpertViews> experts_;

  mutable std::once_flag sums_once_;
  mutable Sums sums_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MODEL_CHECKPOINT_H_
