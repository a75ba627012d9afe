// Decoder and MoeExecutor as a StepModel: everything on the CPU, messages through the view's transport.
#ifndef BALLAST_WORKER_STEP_CPU_STEP_MODEL_H_
#define BALLAST_WORKER_STEP_CPU_STEP_MODEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "worker/decoder/decoder.h"
#include "worker/moe/moe_executor.h"
#include "worker/step/step_model.h"

namespace ballast {

// `decoder` and `pool` must outlive it.
//   InvalidArgument      names field, value and limit: the capacity must lie between 1 and the decoder's max_rows
//   FailedPrecondition   exact, on a machine whose decoder is not row-invariant
absl::StatusOr<std::unique_ptr<StepModel>> MakeCpuStepModel(Decoder& decoder, ThreadPool& pool,
                                                            const MoeExecutorOptions& options);

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_CPU_STEP_MODEL_H_
