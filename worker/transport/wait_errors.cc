#include "worker/transport/wait_errors.h"

#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/base/check.h"

namespace ballast::internal {

absl::Status InterruptedError() { return absl::CancelledError("transport interrupted: this view is over"); }

absl::Status WokenError() { return absl::AbortedError("woken"); }

absl::Status LostPeersError(std::span<const int> lost) {
  BALLAST_CHECK(!lost.empty());
  return absl::UnavailableError(
      absl::StrCat("lost ", lost.size() == 1 ? "rank " : "ranks ", absl::StrJoin(lost.begin(), lost.end(), ", ")));
}

absl::Status LateError(std::span<const OpenRequest> open) {
  std::map<int, OpenRequest> first_by_peer;
  for (const OpenRequest& request : open) first_by_peer.emplace(request.peer, request);
  std::string text = "deadline passed";
  const char* separator = " waiting for ";
  for (const auto& [peer, request] : first_by_peer) {
    absl::StrAppend(&text, separator, "rank ", peer, request.kind == RequestKind::kSend ? " to take" : " to send",
                    " tag 0x", absl::Hex(request.tag));
    separator = ", ";
  }
  return absl::DeadlineExceededError(text);
}

absl::Status OversizeError(int peer, Tag tag, size_t message_bytes, size_t buffer_bytes) {
  return absl::ResourceExhaustedError(absl::StrCat("message from rank ", peer, " with tag 0x", absl::Hex(tag), " is ",
                                                   message_bytes, " bytes, the receive's buffer holds ", buffer_bytes));
}

}  // namespace ballast::internal
