// Transport: messages among the ranks of one view of a group. What the step and the MoE data path exchange goes through
// it. Implementations: UcxTransport (between processes), InProcessMesh (tests).
//
// One object is one rank's end of a full mesh, made for one view and thrown away with it: nothing sent in another view
// is ever received here.
//
// Threads: one thread, the step thread, calls everything but Wake and Interrupt, which any thread may call. The object
// is destroyed by the step thread, or when that thread has ended, and when no other thread can call Wake or Interrupt.
//
// Matching and ordering: a message meets the oldest open receive of the same (peer, tag) and waits for one when there
// is none; messages of one (peer, tag) are received in the order they were sent. Across tags or peers there is no
// order.
//
// Completion: a send is done when its buffer may be reused, which says nothing about the peer; it may need the peer to
// have started the receive. So start the receives of an exchange before waiting for its sends. Progress is made only
// inside Wait and WaitAny.
//
// Buffers belong to the caller and must live, untouched, until the request is done, cancelled, or the transport is
// destroyed. A wait that fails leaves its requests open: wait again, cancel receives or destroy the transport. Every
// request must see one of these ends.
//
// No call spins beyond a bounded few microseconds; a waiting thread sleeps in the kernel.
#ifndef BALLAST_WORKER_TRANSPORT_TRANSPORT_H_
#define BALLAST_WORKER_TRANSPORT_TRANSPORT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/ids.h"

namespace ballast {

// What a message is about; chosen by the caller, at most kMaxTag. A transport belongs to one view, so a tag needs no
// view; it may come round again once no message with its former meaning can be under way.
using Tag = uint64_t;
inline constexpr int kTagBits = 44;
inline constexpr Tag kMaxTag = (Tag{1} << kTagBits) - 1;
inline constexpr int kMaxRanks = 4096;

// A send or a receive; unique within its transport, 0 is none.
using RequestId = StrongInt<struct TransportRequestTag, uint64_t>;

class Transport {
 public:
  virtual ~Transport() = default;

  // This end's place in the view: 0 <= rank() < size() <= kMaxRanks.
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Starts a send or a receive; never blocks and never fails: errors are the wait's. `peer` is another rank of the
  // view, `tag` at most kMaxTag. Empty messages are messages.
  [[nodiscard]] virtual RequestId Send(int peer, Tag tag, std::span<const std::byte> message) = 0;
  [[nodiscard]] virtual RequestId Receive(int peer, Tag tag, std::span<std::byte> buffer) = 0;

  // Waits until every request is done. Requests that an earlier wait found done still count as done. Errors, in this
  // order; the first wins over requests that are all done, the others do not:
  //   Cancelled          Interrupt() was called, now or earlier
  //   ResourceExhausted  a message was longer than its receive's buffer; names the peer, the tag and both sizes. The
  //                      buffer's contents are undefined
  //   Unavailable        a rank of the view is lost, whether these requests are with it or not; names every lost rank.
  //                      What it sent before it died may or may not be received. Lost ranks stay lost
  //   Internal           the library below failed otherwise; names the peer
  //   DeadlineExceeded   `deadline` came; names the ranks that are late. InfiniteFuture never comes, InfinitePast is a
  //                      test that does not wait
  virtual absl::Status Wait(std::span<const RequestId> requests, absl::Time deadline) = 0;

  // Waits until one request is done and returns its index (the first of several). With no requests at all only an error
  // ends the wait. Errors as Wait's, and:
  //   Aborted            Wake() was called since the last WaitAny that said so, and no request is done
  virtual absl::StatusOr<int> WaitAny(std::span<const RequestId> requests, absl::Time deadline) = 0;

  // The length of the message that a finished receive got. Valid from the wait that finished it until the next Wait or
  // WaitAny.
  virtual size_t ReceivedBytes(RequestId receive) const = 0;

  // Forgets a receive, finished or not; its buffer is the caller's again. A message that came for it may be lost or
  // meet a later receive: use another tag.
  virtual void Cancel(RequestId receive) = 0;

  // Any thread. Ends the current WaitAny, or else the next one, with Aborted. Several calls may count as one.
  virtual void Wake() = 0;
  // Any thread. Fails every wait from now on, the current one included, with Cancelled: a new view is coming.
  virtual void Interrupt() = 0;

  // The ranks known to be lost, ascending.
  virtual std::vector<int> lost_peers() const = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_TRANSPORT_H_
