// How two workers find out that they belong together before they exchange anything else. Pure: bytes in, bytes out.
//
//   dialer                                     listener
//   kHello {LinkHello, nonce}             ->
//                                         <-   kHelloReply {LinkHello, nonce, HMAC("listener")}
//   kProof {HMAC("dialer")}               ->
//
// Each HMAC-SHA256 is keyed with the group's secret and covers both hellos, nonces included, so each side proves that
// it holds the secret now and that the hellos arrived as sent. A side that objects sends kRefuse {reason, text} and
// closes, so that both can name the reason. Nothing after the handshake is authenticated or encrypted: the data network
// is trusted as far as a network policy keeps others out.
#ifndef BALLAST_WORKER_TRANSPORT_HANDSHAKE_H_
#define BALLAST_WORKER_TRANSPORT_HANDSHAKE_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "proto/base/ids.h"
#include "worker/transport/frame_socket.h"

namespace ballast {

inline constexpr uint16_t kLinkProtocol = 2;
// Largest frame of the handshake.
inline constexpr size_t kMaxHandshakeBytes = 2048;

// What the workers of a group share; a link is refused when any of it differs.
struct GroupIdentity {
  // At most 253 characters.
  std::string group;
  // Shared by the group's workers and nobody else.
  std::string secret;
  // The checkpoint's; at most 253 characters.
  std::string fingerprint;
};

enum class LinkPurpose : uint8_t { kMesh = 1, kExpertPull = 2 };

enum class LinkFrame : uint8_t {
  kHello = 1,
  kHelloReply = 2,
  kProof = 3,
  kRefuse = 4,
  // From here on after the handshake. A mesh link swaps opaque payloads, the listener first.
  kMeshAccept = 5,
  kMeshReady = 6,
  // Expert pulls, see expert_link.h.
  kPullAddress = 7,
  kPullRequest = 8,
  kPullReply = 9,
};

// Who wants what of whom. A listener's reply repeats purpose, view and ranks.
struct LinkHello {
  uint16_t protocol = kLinkProtocol;
  LinkPurpose purpose = LinkPurpose::kMesh;
  std::string group;
  std::string fingerprint;
  // Of a mesh link; otherwise 0.
  ViewId view;
  int32_t dialer_rank = 0;
  int32_t listener_rank = 0;
  Incarnation dialer_incarnation;
  Incarnation listener_incarnation;
};

using LinkNonce = std::array<char, 32>;
// From the system's random source.
LinkNonce NewLinkNonce();

enum class Refusal : uint8_t {
  kMalformed = 1,
  kProtocol = 2,
  kGroup = 3,
  kFingerprint = 4,
  kSecret = 5,
  // The view is over.
  kStaleView = 6,
  // Not the member that the view has at this rank.
  kWrongMember = 7,
  // Try again.
  kBusy = 8,
};
// The code that a refused caller sees: InvalidArgument (kMalformed), PermissionDenied (kSecret), Unavailable (kBusy:
// the only one worth trying again), else FailedPrecondition.
absl::Status RefusalError(Refusal reason, std::string_view text);
std::string EncodeRefusal(Refusal reason, std::string_view text);
// The error of a kRefuse frame that the other side sent; its text is made printable and short.
absl::Status DecodeRefusal(const Frame& frame);

// One side of a handshake.
class Handshake {
 public:
  // The dialer's side: `hello`'s group and fingerprint are set from `identity`. Start() is the first thing to send.
  static Handshake Dialer(const GroupIdentity& identity, LinkHello hello, const LinkNonce& nonce);
  static Handshake Listener(const GroupIdentity& identity, const LinkNonce& nonce);

  std::string Start() const;

  struct Progress {
    // Encoded frames to send, also with an error: then it is the refusal.
    std::string send;
    bool done = false;
    // RefusalError or DecodeRefusal; the link is to be closed once `send` is sent.
    absl::Status error;
  };
  Progress OnFrame(const Frame& frame);

  // The dialer's hello; on the listener's side valid once its frame was taken (the proof may still be missing).
  const LinkHello& hello() const { return hello_; }

 private:
  Handshake(const GroupIdentity& identity, bool dialer, const LinkNonce& nonce)
      : identity_(identity), dialer_(dialer), nonce_(nonce) {}

  Progress OnHello(std::string_view payload);
  Progress OnReply(std::string_view payload);
  Progress OnProof(std::string_view payload);

  GroupIdentity identity_;
  bool dialer_;
  LinkNonce nonce_;
  LinkHello hello_;
  // The payloads of kHello and of kHelloReply without its HMAC, as sent.
  std::string dialer_bytes_;
  std::string listener_bytes_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_TRANSPORT_HANDSHAKE_H_
