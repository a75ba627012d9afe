// A full mesh of Transports within one process, for tests, with faults made to order.
//
// Messages up to `eager_limit` are copied when sent, longer ones when they are received, so that code which waits for a
// send before its receives are started hangs here as it would between processes.
#ifndef BALLAST_WORKER_TRANSPORT_INPROC_H_
#define BALLAST_WORKER_TRANSPORT_INPROC_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "proto/base/clock.h"
#include "worker/transport/transport.h"

namespace ballast {

// A message about to be sent.
struct InProcessMessage {
  int from = 0;
  int to = 0;
  Tag tag = 0;
  size_t bytes = 0;
  // Counts the mesh's messages from 0, in the order of their Send calls.
  int64_t index = 0;
};

enum class MessageFate {
  kDeliver,
  // Never arrives; its send counts as done.
  kDrop,
  // Arrives at ReleaseHeld, overtaken by what is sent before that. Its send counts as done.
  kHold,
  // The sender dies just before it sends.
  kKillSender,
  // The receiver dies just before it is sent.
  kKillReceiver,
};

struct InProcessOptions {
  size_t eager_limit = 8192;
  // Judges deadlines.
  Clock* clock = &Clock::Real();
};

// Thread-safe; may be destroyed before its transports.
class InProcessMesh {
 public:
  using Options = InProcessOptions;

  explicit InProcessMesh(int ranks, Options options = {});
  ~InProcessMesh();
  InProcessMesh(const InProcessMesh&) = delete;
  InProcessMesh& operator=(const InProcessMesh&) = delete;

  // The transport of `rank`, once for each rank. Its destruction is its rank's death for the others.
  std::unique_ptr<Transport> Join(int rank);

  // Asked for every message of live ranks from now on, in the sender's thread; must not call the mesh or a transport.
  void SetHook(std::function<MessageFate(const InProcessMessage&)> hook);
  // Delivers what was held, in the order it was sent.
  void ReleaseHeld();
  // The rank is lost to the others, its own waits fail with Unavailable naming itself; messages it sent before arrive.
  void Kill(int rank);

 private:
  class State;
  class End;
  const std::shared_ptr<State> state_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_INPROC_H_
