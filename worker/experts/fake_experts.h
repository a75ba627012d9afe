// Experts without a checkpoint, for tests.
#ifndef BALLAST_WORKER_EXPERTS_FAKE_EXPERTS_H_
#define BALLAST_WORKER_EXPERTS_FAKE_EXPERTS_H_

#include <algorithm>
#include <atomic>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "worker/experts/expert_source.h"

namespace ballast {

class FakeExperts final : public ExpertSource {
 public:
  // Writes an expert's weights, expert_bytes() of them.
  using Fill = std::function<void(ExpertId, std::span<std::byte>)>;

  FakeExperts(int32_t layers, int32_t experts, size_t expert_bytes, Fill fill)
      : layers_(layers), experts_(experts), expert_bytes_(expert_bytes), fill_(std::move(fill)) {}
  // Every byte of an expert is 1 + layer * experts + expert.
  FakeExperts(int32_t layers, int32_t experts, size_t expert_bytes)
      : FakeExperts(layers, experts, expert_bytes,
                    [this](ExpertId id, std::span<std::byte> out) { std::fill(out.begin(), out.end(), Value(id)); }) {}
  FakeExperts(const FakeExperts&) = delete;

  std::byte Value(ExpertId id) const { return static_cast<std::byte>(1 + id.layer * experts_ + id.expert); }

  int32_t num_layers() const override { return layers_; }
  int32_t num_experts() const override { return experts_; }
  size_t expert_bytes() const override { return expert_bytes_; }
  absl::Status Read(ExpertId expert, std::span<std::byte> out) const override {
    ++reads;
    if (expert == unreadable) return absl::NotFoundError("gone");
    fill_(expert, out);
    if (expert == broken) out[expert_bytes_ / 2] = ~out[expert_bytes_ / 2];
    return absl::OkStatus();
  }
  absl::StatusOr<Checksum> ExpectedChecksum(ExpertId expert) const override {
    std::vector<std::byte> bytes(expert_bytes_);
    fill_(expert, bytes);
    return ComputeExpertChecksum(bytes);
  }

  mutable std::atomic<int> reads{0};
  // The expert that cannot be read, and one that is read with a wrong byte. Set before any other thread reads.
  ExpertId unreadable{-1, -1}, broken{-1, -1};

 private:
  const int32_t layers_, experts_;
  const size_t expert_bytes_;
  const Fill fill_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_EXPERTS_FAKE_EXPERTS_H_
