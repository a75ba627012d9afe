#include "worker/transport/nccl/exchange_layout.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr size_t kAlignment = 256;

absl::Status CheckField(const char* field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", not between ", low, " and ", high));
}

}  // namespace

absl::StatusOr<ExchangeLayout> LayOutExchange(const ExchangeShape& shape) {
  BALLAST_RETURN_IF_ERROR(CheckField("ranks", shape.ranks, 1, kMaxExchangeRanks));
  BALLAST_RETURN_IF_ERROR(CheckField("capacity", shape.capacity, 1, kMaxExchangeCapacity));
  BALLAST_RETURN_IF_ERROR(CheckField("top_k", shape.top_k, 1, 32));
  BALLAST_RETURN_IF_ERROR(CheckField("hidden_size", shape.hidden_size, 8, 1 << 16));
  if (shape.hidden_size % 8 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("hidden_size is ", shape.hidden_size, ", not a multiple of 8"));
  }
  BALLAST_RETURN_IF_ERROR(CheckField("groups_per_rank", shape.groups_per_rank, 1, 1 << 16));
  BALLAST_RETURN_IF_ERROR(CheckField("note_words", shape.note_words, 0, 1 << 16));
  // Pair numbers of a region are int32.
  const size_t tokens = static_cast<size_t>(shape.ranks) * shape.capacity;
  BALLAST_RETURN_IF_ERROR(CheckField("ranks * capacity * top_k", tokens * shape.top_k, 1, INT32_MAX));

  ExchangeLayout layout;
  size_t end = 0;
  const auto place = [&end](size_t bytes) {
    const size_t at = end;
    end += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  layout.rows = place(tokens * shape.hidden_size * 2);
  layout.partials = place(tokens * shape.hidden_size * 2);
  layout.groups = place(tokens * shape.top_k * sizeof(int32_t));
  layout.weights = place(tokens * shape.top_k * sizeof(float));
  layout.notes = place(static_cast<size_t>(shape.ranks) * shape.note_words * sizeof(int32_t));
  layout.tokens = place(shape.ranks * sizeof(int32_t));
  layout.arrivals = place(2 * shape.ranks * sizeof(uint32_t));
  layout.bytes = end;
  return layout;
}

int ExchangeBlocks(int capacity, int most) { return std::min(capacity <= 256 ? 128 : 256, most); }

}  // namespace ballast
