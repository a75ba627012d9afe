// DeviceDecoder and DeviceMoeExecutor as a StepModel: everything on one GPU, rows to and from others through
// DeviceExchange; the view's transport carries announcements, and what the GPUs need to find each other.
#ifndef BALLAST_WORKER_STEP_DEVICE_STEP_MODEL_H_
#define BALLAST_WORKER_STEP_DEVICE_STEP_MODEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "worker/decoder/device_decoder.h"
#include "worker/experts/slot_memory.h"
#include "worker/migrate/device_moves.h"
#include "worker/moe/device_moe_executor.h"
#include "worker/step/step_model.h"

namespace ballast {

// On the GPU that is current, the decoder's. `decoder`, `slots` and `moves` (which is told of peers within direct
// reach; may be null) must outlive it. Errors: as DeviceMoeExecutor::Create; InvalidArgument: the capacity is above the
// decoder's max_rows.
absl::StatusOr<std::unique_ptr<StepModel>> MakeDeviceStepModel(DeviceDecoder& decoder, const SlotMemory& slots,
                                                               DeviceMoves* moves, const DeviceMoeOptions& options);

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_DEVICE_STEP_MODEL_H_
