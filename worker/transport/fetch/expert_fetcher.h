// Brings experts' weights in from peers, in the background: a thread of its own, asleep while there is nothing to pull,
// and no more bytes a second than told.
#ifndef BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_FETCHER_H_
#define BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_FETCHER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/ids.h"
#include "proto/base/mutex.h"
#include "proto/placement/placement.h"
#include "worker/transport/fetch/token_bucket.h"
#include "worker/transport/handshake.h"
#include "worker/transport/poller.h"
#include "worker/transport/ucx.h"

namespace ballast {

// One replica to pull.
struct ExpertPull {
  // "host:port" of the data port of a worker that holds it.
  std::string address;
  ExpertId expert;
  // Takes the weights in the slot layout; exactly one replica long. The caller's until `done` is called; its contents
  // are undefined unless the pull succeeded, and then they are what the peer sent: the caller verifies the checksum.
  std::span<std::byte> buffer;
  // Of the buffer. kCuda needs a context with CUDA.
  UcxMemory memory = UcxMemory::kHost;
  absl::Time deadline = absl::InfiniteFuture();
  // Called by the fetcher's thread after every chunk with the bytes there so far; may be empty.
  std::function<void(size_t bytes)> on_progress;
  // Called once by the fetcher's thread when the pull has ended; must not destroy the fetcher. OK, or:
  //   NotFound           the peer holds no such replica (other errors of its PinReplica pass through)
  //   FailedPrecondition the peer's replica has another size; group, fingerprint or protocol differ
  //   PermissionDenied   the peer holds another secret
  //   InvalidArgument    the address is malformed, or the peer speaks nonsense
  //   Unavailable        the peer cannot be reached, is busy, or was lost in mid-pull: another may be tried
  //   DeadlineExceeded   with the bytes that had come
  //   Cancelled          Cancel or the fetcher's end
  //   Internal           UCX failed
  // Every error names the expert and the address.
  std::function<void(const absl::Status&)> done;
};

using PullId = StrongInt<struct PullTag, uint64_t>;

struct ExpertFetcherOptions {
  // At most 128 KiB. Into CUDA memory, from a peer that sends from it: MoveChunkBytes of the rate.
  int64_t chunk_bytes = 128 * 1024;
  // 0: no limit.
  int64_t bytes_per_second = 0;
};

// Thread-safe. Pulls run one after another in the order they were started: a rollout is paced, not raced. The
// checkpoint fingerprint that a peer must serve is `identity`'s; the link's handshake checks it.
class ExpertFetcher {
 public:
  using Options = ExpertFetcherOptions;

  ExpertFetcher(std::shared_ptr<UcxContext> context, GroupIdentity identity, Options options = {});
  // Cancels what is left; every `done` has been called when it returns.
  ~ExpertFetcher();
  ExpertFetcher(const ExpertFetcher&) = delete;
  ExpertFetcher& operator=(const ExpertFetcher&) = delete;

  PullId Start(ExpertPull pull) BALLAST_EXCLUDES(mu_);
  // Ends a pull early; `done` is still called, from the fetcher's thread. Unknown and finished ids are ignored.
  void Cancel(PullId id) BALLAST_EXCLUDES(mu_);
  // Holds from the next chunk on.
  void SetBytesPerSecond(int64_t bytes_per_second) BALLAST_EXCLUDES(mu_);
  // Start, and wait for the end; `pull.done` is not used.
  absl::Status Fetch(ExpertPull pull);

 private:
  struct Job {
    PullId id;
    ExpertPull pull;
    bool cancelled = false;
  };
  class Link;

  void Loop();
  absl::Status Run(const Job& job);
  absl::Status Transfer(const Job& job);
  // The next chunk's bytes, at most `left`.
  size_t ChunkBytes(UcxMemory memory, size_t left) BALLAST_EXCLUDES(mu_);
  // Not OK when the pull has to end before its time.
  absl::Status CheckGoingOn(const Job& job, absl::Time now) BALLAST_EXCLUDES(mu_);

  const std::shared_ptr<UcxContext> context_;
  const GroupIdentity identity_;
  const Options options_;
  WakeFd wake_;

  Mutex mu_;
  CondVar changed_;
  bool stopping_ BALLAST_GUARDED_BY(mu_) = false;
  PullId last_id_ BALLAST_GUARDED_BY(mu_);
  // The first is running.
  std::deque<Job> jobs_ BALLAST_GUARDED_BY(mu_);
  int64_t bytes_per_second_ BALLAST_GUARDED_BY(mu_);

  // The thread's own. A link is kept while the next pull is from the same peer.
  TokenBucket bucket_;
  std::unique_ptr<Link> link_;

  // Last: it uses everything above.
  std::thread thread_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_FETCH_EXPERT_FETCHER_H_
