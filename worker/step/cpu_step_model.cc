#include "worker/step/cpu_step_model.h"

#include <utility>

#include "proto/base/status_macros.h"
#include "worker/step/moe_step_model.h"

namespace ballast {
namespace {

class CpuStepModel final : public MoeStepModel<Decoder, MoeExecutor> {
 public:
  using MoeStepModel::MoeStepModel;

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
};

}  // namespace

absl::StatusOr<std::unique_ptr<StepModel>> MakeCpuStepModel(Decoder& decoder, ThreadPool& pool,
                                                            const MoeExecutorOptions& options) {
  BALLAST_RETURN_IF_ERROR(CheckCapacity(decoder, options.capacity));
  if (options.combine == CombineMode::kExact && !decoder.row_invariant()) {
    return absl::FailedPreconditionError(
        "combine is exact, but on this machine the decoder's results depend on the rows beside");
  }
  BALLAST_ASSIGN_OR_RETURN(auto moe, MoeExecutor::Create(MoeLayersOf<MoeModel>(decoder), options, pool));
  return std::make_unique<CpuStepModel>(decoder, std::move(moe), options.capacity);
}

}  // namespace ballast
