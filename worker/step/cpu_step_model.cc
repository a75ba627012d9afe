#include "worker/step/cpu_step_model.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

class CpuStepModel final : public StepModel {
 public:
  CpuStepModel(Decoder& decoder, std::unique_ptr<MoeExecutor> moe, int capacity)
      : decoder_(decoder),
        moe_(std::move(moe)),
        shape_({.moe_layers = decoder.config().num_moe_layers(),
                .vocab_size = decoder.config().vocab_size,
                .capacity = capacity}) {}

  const StepModelShape& shape() const override { return shape_; }

  absl::Status Enter(const GroupView& view, Transport* transport, std::shared_ptr<const ReplicaTable> table,
                     absl::Time deadline) override {
    moe_->Enter(view, transport, std::move(table));
    return absl::OkStatus();
  }
  absl::Status Flip(std::shared_ptr<const ReplicaTable> table) override {
    moe_->Flip(std::move(table));
    return absl::OkStatus();
  }
  void Leave() override { moe_->Leave(); }

  absl::Status Run(const MoeStep& step, const StepInput& input, float* logits) override {
    moe_->BeginStep(step);
    return decoder_.Forward(input, *moe_, logits);
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
  Decoder& decoder_;
  const std::unique_ptr<MoeExecutor> moe_;
  const StepModelShape shape_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StepModel>> MakeCpuStepModel(Decoder& decoder, ThreadPool& pool,
                                                            const MoeExecutorOptions& options) {
  if (options.capacity > decoder.max_rows()) {
    return absl::InvalidArgumentError(
        absl::StrCat("capacity is ", options.capacity, ", more than the decoder's max_rows ", decoder.max_rows()));
  }
  if (options.combine == CombineMode::kExact && !decoder.row_invariant()) {
    return absl::FailedPreconditionError(
        "combine is exact, but on this machine the decoder's results depend on the rows beside");
  }
  const ModelConfig& config = decoder.config();
  MoeModel model{.rule = decoder.router_rule(),
                 .hidden_size = config.hidden_size,
                 .intermediate_size = config.expert_intermediate_size};
  for (int layer = 0; layer < config.num_moe_layers(); ++layer) {
    model.router_weights.push_back(decoder.router_weights(layer));
  }
  BALLAST_ASSIGN_OR_RETURN(auto moe, MoeExecutor::Create(std::move(model), options, pool));
  return std::make_unique<CpuStepModel>(decoder, std::move(moe), options.capacity);
}

}  // namespace ballast
