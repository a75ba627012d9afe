#include "worker/transport/handshake.h"

#include <optional>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

const GroupIdentity kIdentity{.group = "g", .secret = "s3cret", .fingerprint = "f00d"};

Frame Decode(const std::string& encoded) {
  return {.type = static_cast<uint8_t>(encoded[4]), .payload = encoded.substr(5)};
}

LinkNonce NonceOf(char c) {
  LinkNonce nonce;
  nonce.fill(c);
  return nonce;
}

LinkHello SomeHello() {
  return {.view = ViewId(7),
          .dialer_rank = 2,
          .listener_rank = 1,
          .dialer_incarnation = Incarnation(11),
          .listener_incarnation = Incarnation(12)};
}

// How a handshake between two identities ends, on each side.
struct Ends {
  absl::Status dialer, listener;
  bool dialer_done = false, listener_done = false;
};
Ends Meet(const GroupIdentity& dialing, const GroupIdentity& listening) {
  Handshake dialer = Handshake::Dialer(dialing, SomeHello(), NonceOf('a'));
  Handshake listener = Handshake::Listener(listening, NonceOf('b'));
  Ends ends;
  std::string to_listener = dialer.Start(), to_dialer;
  while (!to_listener.empty() || !to_dialer.empty()) {
    if (!to_listener.empty()) {
      Handshake::Progress step = listener.OnFrame(Decode(std::exchange(to_listener, "")));
      to_dialer = step.send;
      ends.listener_done = step.done;
      if (!step.error.ok()) ends.listener = step.error;
    } else {
      Handshake::Progress step = dialer.OnFrame(Decode(std::exchange(to_dialer, "")));
      to_listener = step.send;
      ends.dialer_done = step.done;
      if (!step.error.ok()) ends.dialer = step.error;
    }
  }
  return ends;
}

TEST(HandshakeTest, SameIdentity_BothDoneAndHelloKnown) {
  const Ends ends = Meet(kIdentity, kIdentity);
  EXPECT_TRUE(ends.dialer_done);
  EXPECT_TRUE(ends.listener_done);
  EXPECT_EQ(ends.dialer, absl::OkStatus());
  EXPECT_EQ(ends.listener, absl::OkStatus());

  Handshake dialer = Handshake::Dialer(kIdentity, SomeHello(), NonceOf('a'));
  Handshake listener = Handshake::Listener(kIdentity, NonceOf('b'));
  static_cast<void>(listener.OnFrame(Decode(dialer.Start())));
  EXPECT_EQ(listener.hello().view, ViewId(7));
  EXPECT_EQ(listener.hello().dialer_rank, 2);
  EXPECT_EQ(listener.hello().listener_rank, 1);
  EXPECT_EQ(listener.hello().dialer_incarnation, Incarnation(11));
  EXPECT_EQ(listener.hello().listener_incarnation, Incarnation(12));
}

TEST(HandshakeTest, Mismatch_IsNamedOnBothSides) {
  struct Case {
    std::string what;
    GroupIdentity other;
    absl::StatusCode code;
    std::string text;
  };
  for (const Case& c : {
           Case{"group", {"h", "s3cret", "f00d"}, absl::StatusCode::kFailedPrecondition, "group \"h\" against \"g\""},
           Case{"fingerprint",
                {"g", "s3cret", "beef"},
                absl::StatusCode::kFailedPrecondition,
                "\"beef\" against \"f00d\""},
           Case{"secret",
                {"g", "other", "f00d"},
                absl::StatusCode::kPermissionDenied,
                "different secrets for group \"g\""},
           Case{"no secret", {"g", "", "f00d"}, absl::StatusCode::kPermissionDenied, "different secrets"},
       }) {
    SCOPED_TRACE(c.what);
    const Ends ends = Meet(c.other, kIdentity);
    EXPECT_FALSE(ends.listener_done);
    EXPECT_EQ(ends.dialer.code(), c.code);
    EXPECT_EQ(ends.listener.code(), c.code);
    EXPECT_THAT(std::string(ends.dialer.message()), HasSubstr(c.text));
    EXPECT_THAT(std::string(ends.listener.message()), HasSubstr(c.text));
  }
}

TEST(HandshakeTest, OtherProtocolVersion_IsNamed) {
  LinkHello hello = SomeHello();
  hello.protocol = 9;
  Handshake dialer = Handshake::Dialer(kIdentity, hello, NonceOf('a'));
  Handshake listener = Handshake::Listener(kIdentity, NonceOf('b'));
  const Handshake::Progress step = listener.OnFrame(Decode(dialer.Start()));
  EXPECT_EQ(step.error.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(step.error.message(), "link protocol 9 against 2");
  EXPECT_EQ(dialer.OnFrame(Decode(step.send)).error.message(), "refused by the other side: link protocol 9 against 2");
}

TEST(HandshakeTest, ReplayedProof_IsRefused) {
  Handshake dialer = Handshake::Dialer(kIdentity, SomeHello(), NonceOf('a'));
  Handshake first = Handshake::Listener(kIdentity, NonceOf('b'));
  const std::string proof = dialer.OnFrame(Decode(first.OnFrame(Decode(dialer.Start())).send)).send;
  EXPECT_TRUE(first.OnFrame(Decode(proof)).done);
  Handshake second = Handshake::Listener(kIdentity, NonceOf('c'));
  static_cast<void>(second.OnFrame(Decode(dialer.Start())));
  EXPECT_EQ(second.OnFrame(Decode(proof)).error.code(), absl::StatusCode::kPermissionDenied);
}

TEST(HandshakeTest, ReflectedMac_IsRefused) {
  // Someone without the secret answers a dialer with what a true listener said to somebody else's copy of the hello.
  Handshake dialer = Handshake::Dialer(kIdentity, SomeHello(), NonceOf('a'));
  Handshake listener = Handshake::Listener(kIdentity, NonceOf('b'));
  const std::string reply = listener.OnFrame(Decode(dialer.Start())).send;
  const std::string mac = reply.substr(reply.size() - 32);
  EXPECT_EQ(listener.OnFrame({static_cast<uint8_t>(LinkFrame::kProof), mac}).error.code(),
            absl::StatusCode::kPermissionDenied);
}

TEST(HandshakeTest, AnyChangedByte_IsRefused) {
  Handshake dialer = Handshake::Dialer(kIdentity, SomeHello(), NonceOf('a'));
  const Frame hello = Decode(dialer.Start());
  for (size_t i = 0; i < hello.payload.size(); ++i) {
    Frame changed = hello;
    changed.payload[i] ^= 1;
    Handshake listener = Handshake::Listener(kIdentity, NonceOf('b'));
    const Handshake::Progress step = listener.OnFrame(changed);
    if (!step.error.ok()) continue;
    Handshake honest = dialer;
    EXPECT_FALSE(honest.OnFrame(Decode(step.send)).error.ok()) << "byte " << i;
  }
}

TEST(HandshakeTest, TruncatedAndForeignFrames_AreMalformed) {
  Handshake dialer = Handshake::Dialer(kIdentity, SomeHello(), NonceOf('a'));
  const Frame hello = Decode(dialer.Start());
  for (size_t size = 0; size < hello.payload.size(); ++size) {
    Handshake listener = Handshake::Listener(kIdentity, NonceOf('b'));
    EXPECT_EQ(listener.OnFrame({hello.type, hello.payload.substr(0, size)}).error.code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
  Handshake listener = Handshake::Listener(kIdentity, NonceOf('b'));
  EXPECT_EQ(listener.OnFrame({hello.type, hello.payload + "x"}).error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(listener.OnFrame({static_cast<uint8_t>(LinkFrame::kProof), "early"}).error.code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(listener.OnFrame({99, ""}).error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(dialer.OnFrame({static_cast<uint8_t>(LinkFrame::kHelloReply), "?"}).error.code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(HandshakeTest, RefusalText_IsMadePrintable) {
  const Frame frame = Decode(EncodeRefusal(Refusal::kBusy, "a\nb\x1b[31m"));
  EXPECT_EQ(DecodeRefusal(frame).message(), "refused by the other side: a?b?[31m");
  EXPECT_EQ(DecodeRefusal(frame).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(DecodeRefusal({frame.type, ""}).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace ballast
