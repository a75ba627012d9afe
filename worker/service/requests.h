// From the wire's requests to what the batcher takes: every check that needs no queue. See inference.proto for errors.
#ifndef BALLAST_WORKER_SERVICE_REQUESTS_H_
#define BALLAST_WORKER_SERVICE_REQUESTS_H_

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/inference.pb.h"
#include "worker/model/tokenizer.h"
#include "worker/schedule/batcher.h"

namespace ballast {

// What requests are checked against.
struct RequestRules {
  int32_t vocab_size = 0;
  std::span<const int32_t> eos_token_ids;
  const Tokenizer* tokenizer = nullptr;
};

inline constexpr size_t kMaxTaskLength = 64;
inline constexpr int kMaxStopTokens = 64;

// Without a sink. `fresh_seed` is used when the request has none.
//   InvalidArgument names the field, the value and the limit.
absl::StatusOr<BatchedRequest> ToBatched(const v1::GenerateRequest& request, const RequestRules& rules,
                                         absl::Time deadline, uint64_t fresh_seed);
absl::StatusOr<BatchedRequest> ToBatched(const v1::ScoreRequest& request, const RequestRules& rules,
                                         absl::Time deadline);

}  // namespace ballast

#endif  // BALLAST_WORKER_SERVICE_REQUESTS_H_
