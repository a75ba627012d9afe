// Where verified expert weights come from when no peer gives them.
#ifndef BALLAST_WORKER_EXPERTS_EXPERT_SOURCE_H_
#define BALLAST_WORKER_EXPERTS_EXPERT_SOURCE_H_

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/placement/placement.h"
#include "worker/model/checkpoint.h"
#include "worker/model/checksum.h"

namespace ballast {

// Thread-safe.
class ExpertSource {
 public:
  virtual ~ExpertSource() = default;

  virtual int32_t num_layers() const = 0;
  virtual int32_t num_experts() const = 0;
  // Bytes of one expert in slot layout (kernels/experts.h), the same for every expert.
  virtual size_t expert_bytes() const = 0;
  // Copies one expert; `out` is expert_bytes() long. Errors name layer and expert.
  virtual absl::Status Read(ExpertId expert, std::span<std::byte> out) const = 0;
  // What a right copy's bytes sum to.
  virtual absl::StatusOr<Checksum> ExpectedChecksum(ExpertId expert) const = 0;
};

// The experts of an open checkpoint, which must outlive it.
class CheckpointExperts final : public ExpertSource {
 public:
  explicit CheckpointExperts(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  int32_t num_layers() const override { return checkpoint_.config().num_moe_layers(); }
  int32_t num_experts() const override { return checkpoint_.config().num_experts; }
  size_t expert_bytes() const override { return checkpoint_.expert_bytes(); }
  absl::Status Read(ExpertId expert, std::span<std::byte> out) const override {
    return checkpoint_.ReadExpert(expert, out);
  }
  absl::StatusOr<Checksum> ExpectedChecksum(ExpertId expert) const override {
    return checkpoint_.ExpertChecksum(expert);
  }

 private:
  const Checkpoint& checkpoint_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_EXPERT_SOURCE_H_
