// TCP sockets that carry frames: how links between workers are opened, and kept open as the sign of life.
#ifndef BALLAST_WORKER_TRANSPORT_FRAME_SOCKET_H_
#define BALLAST_WORKER_TRANSPORT_FRAME_SOCKET_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/transport/poller.h"

namespace ballast {

// A frame on the wire: u32 payload length, u8 type, payload.
struct Frame {
  uint8_t type = 0;
  std::string payload;
};
std::string EncodeFrame(uint8_t type, std::string_view payload);

// A non-blocking socket. Not thread-safe.
class FrameSocket {
 public:
  // Frames with a longer payload than `max_payload` are an error when received.
  FrameSocket(UniqueFd fd, size_t max_payload) : fd_(std::move(fd)), max_payload_(max_payload) {}
  FrameSocket(FrameSocket&&) = default;
  FrameSocket& operator=(FrameSocket&&) = default;

  int fd() const { return fd_.get(); }
  void set_max_payload(size_t bytes) { max_payload_ = bytes; }

  // Queues encoded frames and sends what the socket takes now. Unavailable: the connection is gone.
  absl::Status Send(std::string_view encoded);
  // Sends more of what is queued.
  absl::Status Flush();
  bool has_unsent() const { return !out_.empty(); }

  // The next whole frame; nullopt: not here yet. Unavailable: closed or reset by the other side (frames that came
  // before are returned first); InvalidArgument: a frame over the limit.
  absl::StatusOr<std::optional<Frame>> Read();

  // The bare socket; what was read beyond the frames taken is dropped.
  UniqueFd TakeFd() && { return std::move(fd_); }

 private:
  UniqueFd fd_;
  size_t max_payload_;
  std::string in_;
  std::string out_;
};

// Listens on `host` (a numeric address; "" is every address, IPv6 too where there is any); port 0 is any free one.
// `port` is set to the one it got. InvalidArgument: not an address; Unavailable: the system refused, e.g. address in
// use.
absl::StatusOr<UniqueFd> ListenTcp(const std::string& host, int* port);

// Starts to connect to "host:port" or "[v6]:port"; the socket is writable when that is decided, see ConnectResult.
// A host that is a name is looked up first, which can block. InvalidArgument: not an address; Unavailable otherwise.
absl::StatusOr<UniqueFd> DialTcp(const std::string& address);
// Unavailable: the connection could not be made.
absl::Status ConnectResult(int fd);

// "address:port" of the other side, for messages.
std::string PeerName(int fd);

// No delay, and keep-alive probes that find a vanished machine in about 10 s.
void ConfigureLink(int fd);

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_FRAME_SOCKET_H_
