#include "worker/transport/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"
#include "worker/transport/wire.h"

namespace ballast {
namespace {

constexpr uint32_t kMagic = 0x54534c42;  // "BLST"
constexpr size_t kMaxName = 253;
constexpr size_t kMaxRefusalText = 512;
constexpr size_t kMacBytes = 32;

absl::string_view View(std::string_view text) { return absl::string_view(text.data(), text.size()); }

std::string EncodeHello(const LinkHello& hello, const LinkNonce& nonce) {
  internal::WireWriter out;
  // Magic and version first and in this form for ever, so that versions can refuse each other by name.
  out.Put(kMagic).Put(hello.protocol);
  out.Put(static_cast<uint8_t>(hello.purpose)).PutString(hello.group).PutString(hello.fingerprint);
  out.Put(hello.view.value()).Put(hello.dialer_rank).Put(hello.listener_rank);
  out.Put(hello.dialer_incarnation.value()).Put(hello.listener_incarnation.value());
  out.PutRaw(std::string_view(nonce.data(), nonce.size()));
  return std::move(out).Take();
}

struct Objection {
  Refusal reason;
  std::string text;
};

// Reads a hello and holds it against one's own identity.
std::optional<Objection> ReadHello(internal::WireReader& in, const GroupIdentity& identity, LinkHello* hello) {
  if (in.Get<uint32_t>() != kMagic) return Objection{Refusal::kMalformed, "not a Ballast link"};
  hello->protocol = in.Get<uint16_t>();
  if (!in.ok()) return Objection{Refusal::kMalformed, "truncated hello"};
  if (hello->protocol != kLinkProtocol) {
    return Objection{Refusal::kProtocol, absl::StrCat("link protocol ", hello->protocol, " against ", kLinkProtocol)};
  }
  const uint8_t purpose = in.Get<uint8_t>();
  hello->purpose = static_cast<LinkPurpose>(purpose);
  hello->group = std::string(in.GetString(kMaxName));
  hello->fingerprint = std::string(in.GetString(kMaxName));
  hello->view = ViewId(in.Get<uint64_t>());
  hello->dialer_rank = in.Get<int32_t>();
  hello->listener_rank = in.Get<int32_t>();
  hello->dialer_incarnation = Incarnation(in.Get<uint64_t>());
  hello->listener_incarnation = Incarnation(in.Get<uint64_t>());
  in.GetRaw(sizeof(LinkNonce));
  if (!in.ok()) return Objection{Refusal::kMalformed, "truncated hello"};
  if (purpose != static_cast<uint8_t>(LinkPurpose::kMesh) &&
      purpose != static_cast<uint8_t>(LinkPurpose::kExpertPull)) {
    return Objection{Refusal::kMalformed, absl::StrCat("unknown link purpose ", purpose)};
  }
  if (hello->group != identity.group) {
    return Objection{Refusal::kGroup, absl::StrCat("group \"", hello->group, "\" against \"", identity.group, "\"")};
  }
  if (hello->fingerprint != identity.fingerprint) {
    return Objection{Refusal::kFingerprint, absl::StrCat("checkpoint fingerprint \"", hello->fingerprint,
                                                         "\" against \"", identity.fingerprint, "\"")};
  }
  return std::nullopt;
}

Handshake::Progress Refuse(Refusal reason, std::string_view text) {
  return {.send = EncodeRefusal(reason, text), .error = RefusalError(reason, text)};
}

std::string Mac(const std::string& secret, std::string_view side, std::string_view dialer, std::string_view listener) {
  internal::WireWriter text;
  text.PutString("ballast link").PutString(side).PutString(dialer).PutString(listener);
  const std::string bytes = std::move(text).Take();
  std::string mac(kMacBytes, '\0');
  unsigned int size = 0;
  BALLAST_CHECK(HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
                     reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(),
                     reinterpret_cast<unsigned char*>(mac.data()), &size) != nullptr);
  BALLAST_CHECK(size == kMacBytes);
  return mac;
}

bool SameMac(std::string_view a, std::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace

LinkNonce NewLinkNonce() {
  LinkNonce nonce;
  BALLAST_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()), nonce.size()) == 1);
  return nonce;
}

absl::Status RefusalError(Refusal reason, std::string_view text) {
  switch (reason) {
    case Refusal::kMalformed:
      return absl::InvalidArgumentError(View(text));
    case Refusal::kSecret:
      return absl::PermissionDeniedError(View(text));
    case Refusal::kBusy:
      return absl::UnavailableError(View(text));
    case Refusal::kProtocol:
    case Refusal::kGroup:
    case Refusal::kFingerprint:
    case Refusal::kStaleView:
    case Refusal::kWrongMember:
      return absl::FailedPreconditionError(View(text));
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown reason ", static_cast<int>(reason), ": ", View(text)));
}

std::string EncodeRefusal(Refusal reason, std::string_view text) {
  internal::WireWriter out;
  out.Put(static_cast<uint8_t>(reason)).PutString(text.substr(0, kMaxRefusalText));
  return EncodeFrame(static_cast<uint8_t>(LinkFrame::kRefuse), std::move(out).Take());
}

absl::Status DecodeRefusal(const Frame& frame) {
  internal::WireReader in(frame.payload);
  const auto reason = static_cast<Refusal>(in.Get<uint8_t>());
  std::string text(in.GetString(kMaxRefusalText));
  if (!in.AtEnd()) return absl::InvalidArgumentError("malformed refusal");
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return RefusalError(reason, absl::StrCat("refused by the other side: ", text));
}

Handshake Handshake::Dialer(const GroupIdentity& identity, LinkHello hello, const LinkNonce& nonce) {
  Handshake handshake(identity, /*dialer=*/true, nonce);
  hello.group = identity.group;
  hello.fingerprint = identity.fingerprint;
  handshake.dialer_bytes_ = EncodeHello(hello, nonce);
  handshake.hello_ = std::move(hello);
  return handshake;
}

Handshake Handshake::Listener(const GroupIdentity& identity, const LinkNonce& nonce) {
  return Handshake(identity, /*dialer=*/false, nonce);
}

std::string Handshake::Start() const {
  BALLAST_CHECK(dialer_);
  return EncodeFrame(static_cast<uint8_t>(LinkFrame::kHello), dialer_bytes_);
}

Handshake::Progress Handshake::OnFrame(const Frame& frame) {
  const auto type = static_cast<LinkFrame>(frame.type);
  if (type == LinkFrame::kRefuse) return {.error = DecodeRefusal(frame)};
  if (dialer_ && type == LinkFrame::kHelloReply) return OnReply(frame.payload);
  if (!dialer_ && type == LinkFrame::kHello && dialer_bytes_.empty()) return OnHello(frame.payload);
  if (!dialer_ && type == LinkFrame::kProof && !dialer_bytes_.empty()) return OnProof(frame.payload);
  return Refuse(Refusal::kMalformed, absl::StrCat("unexpected frame of type ", frame.type));
}

Handshake::Progress Handshake::OnHello(std::string_view payload) {
  internal::WireReader in(payload);
  if (const auto objection = ReadHello(in, identity_, &hello_)) return Refuse(objection->reason, objection->text);
  if (!in.AtEnd()) return Refuse(Refusal::kMalformed, "hello with bytes left over");
  dialer_bytes_ = std::string(payload);
  LinkHello reply = hello_;
  reply.group = identity_.group;
  listener_bytes_ = EncodeHello(reply, nonce_);
  return {.send = EncodeFrame(static_cast<uint8_t>(LinkFrame::kHelloReply),
                              listener_bytes_ + Mac(identity_.secret, "listener", dialer_bytes_, listener_bytes_))};
}

Handshake::Progress Handshake::OnReply(std::string_view payload) {
  internal::WireReader in(payload);
  LinkHello theirs;
  if (const auto objection = ReadHello(in, identity_, &theirs)) return Refuse(objection->reason, objection->text);
  const std::string_view mac = in.GetRaw(kMacBytes);
  if (!in.AtEnd()) return Refuse(Refusal::kMalformed, "hello reply of the wrong length");
  listener_bytes_ = std::string(payload.substr(0, payload.size() - kMacBytes));
  if (!SameMac(mac, Mac(identity_.secret, "listener", dialer_bytes_, listener_bytes_))) {
    return Refuse(Refusal::kSecret,
                  absl::StrCat("the two sides hold different secrets for group \"", identity_.group, "\""));
  }
  return {.send = EncodeFrame(static_cast<uint8_t>(LinkFrame::kProof),
                              Mac(identity_.secret, "dialer", dialer_bytes_, listener_bytes_)),
          .done = true};
}

Handshake::Progress Handshake::OnProof(std::string_view payload) {
  if (!SameMac(payload, Mac(identity_.secret, "dialer", dialer_bytes_, listener_bytes_))) {
    return Refuse(Refusal::kSecret,
                  absl::StrCat("the two sides hold different secrets for group \"", identity_.group, "\""));
  }
  return {.done = true};
}

}  // namespace ballast
