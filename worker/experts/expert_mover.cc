#include "worker/experts/expert_mover.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// Pieces under way at once, so that there is always a next one.
constexpr int kChunksInFlight = 3;

}  // namespace

absl::Status ExpertMover::AwaitTurn(size_t done, size_t bytes, absl::Time deadline) {
  MutexLock lock(mu_);
  for (;;) {
    if (std::exchange(cancelled_, false)) {
      return absl::CancelledError(absl::StrCat("a move was cancelled after ", done, " of ", bytes, " bytes"));
    }
    const absl::Time now = clock_.Now();
    if (now >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("a move has come to ", done, " of ", bytes, " bytes by its deadline"));
    }
    if (bucket_->ReadyAt() <= now) return absl::OkStatus();
    clock_.WaitUntil(changed_, mu_, std::min(bucket_->ReadyAt(), deadline));
  }
}

absl::Status ExpertMover::Move(std::span<const std::byte> from, std::byte* to, int64_t max_bytes_per_second,
                               absl::Time deadline) {
  const size_t chunk = MoveChunkBytes(max_bytes_per_second);
  if (!bucket_.has_value() || rate_ != max_bytes_per_second) {
    rate_ = max_bytes_per_second;
    bucket_.emplace(rate_, static_cast<int64_t>(chunk));
  }
  absl::Status status;
  for (size_t done = 0; done < from.size() && status.ok();) {
    status = AwaitTurn(done, from.size(), deadline);
    if (!status.ok()) break;
    const size_t bytes = std::min(chunk, from.size() - done);
    status = copier_.Start(from.data() + done, to + done, bytes);
    bucket_->Spend(static_cast<int64_t>(bytes), clock_.Now());
    done += bytes;
    if (status.ok()) status = copier_.AwaitAllBut(kChunksInFlight - 1);
  }
  const absl::Status ended = copier_.AwaitAllBut(0);
  return status.ok() ? ended : status;
}

void ExpertMover::Cancel() {
  MutexLock lock(mu_);
  cancelled_ = true;
  changed_.NotifyAll();
}

void ExpertMover::ForgetCancel() {
  MutexLock lock(mu_);
  cancelled_ = false;
}

}  // namespace ballast
