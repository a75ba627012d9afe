// What step models have in common, whatever the processor: what is asked of the MoE executor is passed on to it.
#ifndef BALLAST_WORKER_STEP_MOE_STEP_MODEL_H_
#define BALLAST_WORKER_STEP_MOE_STEP_MODEL_H_

#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "worker/step/step_model.h"

namespace ballast {

// The decoder outlives it. `Executor` is MoeExecutor or DeviceMoeExecutor, `AnyDecoder` what runs its layers.
template <typename AnyDecoder, typename Executor>
class MoeStepModel : public StepModel {
 public:
  MoeStepModel(AnyDecoder& decoder, std::unique_ptr<Executor> moe, int capacity)
      : decoder_(decoder),
        moe_(std::move(moe)),
        shape_({.moe_layers = decoder.config().num_moe_layers(),
                .vocab_size = decoder.config().vocab_size,
                .capacity = capacity}) {}

  const StepModelShape& shape() const final { return shape_; }
  bool begun() const final { return moe_->layers_begun() > 0; }
  std::span<const RowFailure> failures() const final { return moe_->failures(); }
  const MoeStepStats& stats() const final { return moe_->stats(); }
  std::span<const int> late_peers() const final { return moe_->late_peers(); }
  bool shared(int layer) const final { return moe_->shared(layer); }
  std::optional<ShareComparison> CompareShares(int layer) final { return moe_->CompareShares(layer); }
  double SecondsPerPair(int of_rank) const final { return moe_->SecondsPerPair(of_rank); }
  void CountStep(LoadCounters& counters) final { moe_->CountStep(counters); }

 protected:
  AnyDecoder& decoder_;
  std::unique_ptr<Executor> moe_;

 private:
  const StepModelShape shape_;
};

// InvalidArgument: more rows than the decoder takes.
template <typename AnyDecoder>
absl::Status CheckCapacity(const AnyDecoder& decoder, int capacity) {
  if (capacity <= decoder.max_rows()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("capacity is ", capacity, ", more than the decoder's max_rows ", decoder.max_rows()));
}

// The decoder's MoE layers as the executor takes them: `Model` is MoeModel or DeviceMoeModel.
template <typename Model, typename AnyDecoder>
Model MoeLayersOf(const AnyDecoder& decoder) {
  const auto& config = decoder.config();
  Model model{.rule = decoder.router_rule(),
              .hidden_size = config.hidden_size,
              .intermediate_size = config.expert_intermediate_size};
  for (int layer = 0; layer < config.num_moe_layers(); ++layer) {
    model.router_weights.push_back(decoder.router_weights(layer));
  }
  return model;
}

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_MOE_STEP_MODEL_H_
