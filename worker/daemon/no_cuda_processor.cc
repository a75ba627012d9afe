#include "worker/daemon/processor.h"

namespace ballast {

absl::StatusOr<Processor> OpenCuda(const WorkerConfig&, int, const Checkpoint&, const ExpertSource&, LoadCounters&) {
  return absl::UnimplementedError("--device: this program was built without CUDA; the one of `make cuda` has it");
}

}  // namespace ballast
