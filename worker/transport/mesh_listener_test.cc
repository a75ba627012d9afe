#include "worker/transport/mesh_listener.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const GroupIdentity kIdentity{.group = "g", .secret = "s3cret", .fingerprint = "f00d"};

absl::Time In(absl::Duration d) { return Clock::Real().Now() + d; }
constexpr absl::Duration kPatience = absl::Minutes(4);
// Generous: only a hang reaches it.
absl::Time Soon() { return In(kPatience); }

std::unique_ptr<MeshListener> Listen(MeshListenerOptions options = {}) {
  options.host = "127.0.0.1";
  if (options.identity.group.empty()) options.identity = kIdentity;
  return MeshListener::Start(std::move(options)).value();
}

std::string AddressOf(const MeshListener& listener) { return absl::StrCat("127.0.0.1:", listener.port()); }

// The view of `listeners`, rank by rank, with incarnations 1, 2, ...
MeshView ViewOf(const std::vector<std::unique_ptr<MeshListener>>& listeners, uint64_t number, int rank) {
  MeshView view{.view = ViewId(number), .rank = rank};
  for (const auto& listener : listeners) {
    view.members.push_back({.address = AddressOf(*listener), .incarnation = Incarnation(view.members.size() + 1)});
  }
  return view;
}

using Links = absl::StatusOr<std::vector<MeshLink>>;

// Every rank joins its view on a thread of its own.
std::vector<Links> JoinAll(const std::vector<std::unique_ptr<MeshListener>>& listeners,
                           const std::vector<MeshView>& views) {
  std::vector<Links> results(views.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < views.size(); ++i) {
    threads.emplace_back([&, i] {
      const MeshView& view = views[i];
      results[i] = listeners[view.rank]->Join(view, absl::StrCat("payload ", view.rank), Soon());
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

// How a view ends for two ranks that refuse each other's proof. The dialled one does so without knowing of the view,
// and its Join comes later; where the dialling one refuses, the other hears of it a moment later: then with another
// view.
std::vector<Links> JoinAfterRefusal(const std::vector<std::unique_ptr<MeshListener>>& listeners) {
  std::vector<Links> results(2);
  for (uint64_t number = 1; !absl::StrContains(results[0].status().message(), "; refused "); ++number) {
    results[1] = listeners[1]->Join(ViewOf(listeners, number, 1), "", Soon());
    results[0] = listeners[0]->Join(ViewOf(listeners, number, 0), "", absl::InfinitePast());
  }
  return results;
}

std::vector<std::unique_ptr<MeshListener>> ThreeListeners() {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  for (int i = 0; i < 3; ++i) listeners.push_back(Listen());
  return listeners;
}

std::vector<MeshView> ThreeViews(const std::vector<std::unique_ptr<MeshListener>>& listeners, uint64_t number) {
  return {ViewOf(listeners, number, 0), ViewOf(listeners, number, 1), ViewOf(listeners, number, 2)};
}

TEST(MeshListenerTest, Join_LinksEveryRankWithEveryOther_ViewAfterView) {
  const auto listeners = ThreeListeners();
  for (const uint64_t number : {1, 2, 7}) {
    const std::vector<Links> results = JoinAll(listeners, ThreeViews(listeners, number));
    for (int rank = 0; rank < 3; ++rank) {
      ASSERT_EQ(results[rank].status(), absl::OkStatus());
      ASSERT_EQ(results[rank]->size(), 2u);
      for (const MeshLink& link : *results[rank]) {
        EXPECT_NE(link.rank, rank);
        EXPECT_EQ(link.payload, absl::StrCat("payload ", link.rank));
      }
    }
  }
}

TEST(MeshListenerTest, OneMember_NeedsNobody) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  listeners.push_back(Listen());
  const Links links = listeners[0]->Join(ViewOf(listeners, 1, 0), "", Soon());
  ASSERT_EQ(links.status(), absl::OkStatus());
  EXPECT_TRUE(links->empty());
}

TEST(MeshListenerTest, MembersThatAreMissing_AreToldByRank) {
  const auto listeners = ThreeListeners();
  std::vector<int> missing;
  EXPECT_EQ(listeners[1]->Join(ViewOf(listeners, 1, 1), "", absl::InfinitePast(), &missing).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(missing, (std::vector<int>{0, 2}));
}

// Rank 2 never comes and rank 0 gives up first: what rank 1 sees is that rank 0 left.
TEST(MeshListenerTest, MembersThatHadNotComeWhenAnotherLeft_AreToldWithIt) {
  const auto listeners = ThreeListeners();
  std::vector<int> missing;
  absl::Status status;
  // Rank 0 may give up before rank 1 is linked, and then refuses it: with another view, for which it waits longer.
  absl::Duration patience = absl::Milliseconds(20);
  for (uint64_t number = 1; !absl::StrContains(status.message(), "left while the view was forming"); ++number) {
    missing.clear();
    std::thread waiting(
        [&] { status = listeners[1]->Join(ViewOf(listeners, number, 1), "", Soon(), &missing).status(); });
    EXPECT_EQ(listeners[0]->Join(ViewOf(listeners, number, 0), "", In(patience)).status().code(),
              absl::StatusCode::kDeadlineExceeded);
    waiting.join();
    ASSERT_FALSE(absl::IsDeadlineExceeded(status)) << status;
    patience *= 2;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(missing, (std::vector<int>{0, 2}));
}

TEST(MeshListenerTest, EarlyPeers_AreParkedUntilTheViewIsKnown) {
  const auto listeners = ThreeListeners();
  // Ranks 1 and 2 know of the view long before rank 0.
  std::vector<Links> early;
  std::thread others([&] { early = JoinAll(listeners, {ViewOf(listeners, 5, 1), ViewOf(listeners, 5, 2)}); });
  // Forming an older view, or failing to, does not disturb them.
  EXPECT_EQ(listeners[0]->Join(ViewOf(listeners, 4, 0), "", In(absl::Milliseconds(50))).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  const Links late = listeners[0]->Join(ViewOf(listeners, 5, 0), "payload 0", Soon());
  others.join();
  EXPECT_EQ(late.status(), absl::OkStatus());
  for (const Links& links : early) EXPECT_EQ(links.status(), absl::OkStatus());
}

// Has the port of 127.0.0.1, without listening on it, beside whoever listens.
UniqueFd Keep(int port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  EXPECT_EQ(setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
  sockaddr_in address{.sin_family = AF_INET, .sin_port = htons(static_cast<uint16_t>(port))};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0) << std::strerror(errno);
  return fd;
}

TEST(MeshListenerTest, PeerThatIsNotThereYet_IsTriedAgain) {
  auto listeners = ThreeListeners();
  const std::vector<MeshView> views = ThreeViews(listeners, 1);
  const int port = listeners[0]->port();
  listeners[0].reset();
  // Nobody else gets the port meanwhile.
  const UniqueFd kept = Keep(port);
  std::vector<Links> early;
  std::thread others([&] { early = JoinAll(listeners, {views[1], views[2]}); });
  absl::StatusOr<std::unique_ptr<MeshListener>> again =
      MeshListener::Start({.host = "127.0.0.1", .port = port, .identity = kIdentity});
  ASSERT_EQ(again.status(), absl::OkStatus());
  const Links links = (*again)->Join(views[0], "payload 0", Soon());
  others.join();
  EXPECT_EQ(links.status(), absl::OkStatus());
  for (const Links& result : early) EXPECT_EQ(result.status(), absl::OkStatus());
}

TEST(MeshListenerTest, WrongSecret_IsNamedOnBothSides) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  listeners.push_back(Listen());
  listeners.push_back(Listen({.identity = {.group = "g", .secret = "guess", .fingerprint = "f00d"}}));
  const std::vector<Links> results = JoinAfterRefusal(listeners);
  // The dialled side may face a stranger: it goes on waiting for the member.
  EXPECT_EQ(results[0].status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(results[0].status().message()),
              AllOf(HasSubstr("rank 1 at "), HasSubstr("refused 127.0.0.1:"), HasSubstr("different secrets")));
  EXPECT_EQ(results[1].status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(results[1].status().message()),
              AllOf(HasSubstr(": rank 0 at "), HasSubstr("different secrets")));
}

TEST(MeshListenerTest, OtherCheckpoint_IsNamedOnBothSides) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  listeners.push_back(Listen());
  listeners.push_back(Listen({.identity = {.group = "g", .secret = "s3cret", .fingerprint = "beef"}}));
  const std::vector<Links> results = JoinAfterRefusal(listeners);
  EXPECT_THAT(std::string(results[0].status().message()), HasSubstr("fingerprint \"beef\" against \"f00d\""));
  EXPECT_EQ(results[1].status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(results[1].status().message()), HasSubstr("fingerprint \"beef\" against \"f00d\""));
}

TEST(MeshListenerTest, OtherIncarnation_IsNamedOnBothSides) {
  const auto listeners = ThreeListeners();
  std::vector<MeshView> views = {ViewOf(listeners, 1, 0), ViewOf(listeners, 1, 1)};
  for (MeshView& view : views) view.members.pop_back();
  views[1].members[1].incarnation = Incarnation(77);
  Links waiting;
  std::thread lower([&] { waiting = listeners[0]->Join(views[0], "", Soon()); });
  // Refused by that Join, which goes on waiting for the member.
  const Links refused = listeners[1]->Join(views[1], "", Soon());
  listeners[0]->Abandon(ViewId(1));
  lower.join();
  EXPECT_EQ(waiting.status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(std::string(waiting.status().message()), HasSubstr("rank 1 has incarnation 77, view 1 says 2"));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("rank 1 has incarnation 77, view 1 says 2"));
}

TEST(MeshListenerTest, OlderView_IsRefusedOnBothSides) {
  const auto listeners = ThreeListeners();
  listeners[0]->Abandon(ViewId(9));
  std::vector<int> missing;
  const Links behind = listeners[1]->Join(ViewOf(listeners, 8, 1), "", Soon(), &missing);
  EXPECT_EQ(missing, std::vector<int>{0});
  EXPECT_EQ(behind.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(behind.status().message()), AllOf(HasSubstr("view 8"), HasSubstr("is at view 9")));
  const Links own = listeners[0]->Join(ViewOf(listeners, 9, 0), "", Soon());
  EXPECT_EQ(own.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(own.status().message()), HasSubstr("has reached view 9 before"));
}

TEST(MeshListenerTest, Abandon_EndsAJoin) {
  const auto listeners = ThreeListeners();
  absl::Status status;
  std::thread joining([&] { status = listeners[0]->Join(ViewOf(listeners, 3, 0), "", Soon()).status(); });
  // Before the Join or during it.
  listeners[0]->Abandon(ViewId(2));
  std::thread abandoning([&] { listeners[0]->Abandon(ViewId(3)); });
  joining.join();
  abandoning.join();
  EXPECT_TRUE(absl::IsCancelled(status) || absl::IsFailedPrecondition(status)) << status;
}

TEST(MeshListenerTest, MissingPeers_AreNamed) {
  auto listeners = ThreeListeners();
  const MeshView view = ViewOf(listeners, 1, 1);
  listeners[0].reset();
  const absl::Status status = listeners[1]->Join(view, "", In(absl::Milliseconds(50))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(absl::StrCat("rank 0 at ", view.members[0].address)), HasSubstr("Connection refused"),
                    HasSubstr(absl::StrCat("rank 2 at ", view.members[2].address)), HasSubstr("has not connected")));
}

TEST(MeshListenerTest, MalformedViewsAndAddresses_AreRefused) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  listeners.push_back(Listen());
  EXPECT_EQ(listeners[0]->Join({.view = ViewId(1)}, "", Soon()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(listeners[0]->Join({.view = ViewId(1), .rank = 2, .members = {{}, {}}}, "", Soon()).status().code(),
            absl::StatusCode::kInvalidArgument);
  uint64_t number = 1;
  for (const char* address : {"", "nowhere", ":1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:70000"}) {
    const absl::Status status =
        listeners[0]
            ->Join({.view = ViewId(number++), .rank = 1, .members = {{.address = address}, {}}}, "", Soon())
            .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address << ": " << status;
  }
  EXPECT_EQ(MeshListener::Start({.host = "not an address"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MeshListener::Start({.identity = {.group = std::string(300, 'g')}}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MeshListener::Start({.host = "127.0.0.1", .port = listeners[0]->port()}).status().code(),
            absl::StatusCode::kUnavailable);
}

// Strangers on the data port.
class Stranger {
 public:
  explicit Stranger(const MeshListener& listener) : fd_(DialTcp(AddressOf(listener)).value()) {
    Poller poller;
    poller.Add(fd_.get(), 0, /*readable=*/false, /*writable=*/true);
    poller.Wait(kPatience);
    poller.Remove(fd_.get());
  }
  void Say(std::string_view bytes) const {
    static_cast<void>(send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL));
  }
  // Blocks until the listener has closed the connection.
  bool IsDropped() const {
    Poller poller;
    poller.Add(fd_.get(), 0, /*readable=*/true, /*writable=*/false);
    while (true) {
      const std::vector<Poller::Event>& events = poller.Wait(kPatience);
      if (events.empty()) return false;
      char buffer[4096];
      const ssize_t n = recv(fd_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
      if (n == 0 || (n < 0 && errno != EAGAIN)) return true;
    }
  }

 private:
  UniqueFd fd_;
};

TEST(MeshListenerTest, GarbageAndOversizedFrames_AreDropped) {
  const auto listener = Listen();
  for (const std::string& bytes :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(100, '\xff'), EncodeFrame(1, "hello?"), EncodeFrame(99, ""),
        EncodeFrame(1, std::string(kMaxHandshakeBytes + 1, 'x'))}) {
    const Stranger stranger(*listener);
    stranger.Say(bytes);
    EXPECT_TRUE(stranger.IsDropped()) << bytes.substr(0, 20);
  }
}

TEST(MeshListenerTest, SilentAndSlowConnections_AreDroppedInTime) {
  const auto listener = Listen({.proof_timeout = absl::Milliseconds(50)});
  const Stranger silent(*listener), slow(*listener);
  slow.Say("\x10");
  EXPECT_TRUE(silent.IsDropped());
  EXPECT_TRUE(slow.IsDropped());
}

TEST(MeshListenerTest, ManySilentConnections_HoldUpNobody) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  for (int i = 0; i < 3; ++i) listeners.push_back(Listen({.max_unproven = 8}));
  std::vector<std::unique_ptr<Stranger>> strangers;
  for (int i = 0; i < 100; ++i) strangers.push_back(std::make_unique<Stranger>(*listeners[0]));
  for (const Links& links : JoinAll(listeners, ThreeViews(listeners, 1))) {
    EXPECT_EQ(links.status(), absl::OkStatus());
  }
  // The oldest made room.
  EXPECT_TRUE(strangers[0]->IsDropped());
}

TEST(MeshListenerTest, ParkedLinks_AreBoundedInNumberAndTime) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  listeners.push_back(Listen({.max_parked = 1, .park_timeout = absl::Milliseconds(30)}));
  listeners.push_back(Listen());
  // Refused as busy or after a while, tried again: in the end the deadline names what is missing. How long it takes
  // until a link is parked is the machine's business.
  uint64_t number = 0;
  absl::Status status;
  do {
    status = listeners[1]->Join(ViewOf(listeners, ++number, 1), "", In(absl::Milliseconds(100))).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  } while (!absl::StrContains(status.message(), "has not been told of the view"));
  ++number;
  // And once it is told, all is well.
  for (const Links& links : JoinAll(listeners, {ViewOf(listeners, number, 0), ViewOf(listeners, number, 1)})) {
    EXPECT_EQ(links.status(), absl::OkStatus());
  }
}

}  // namespace
}  // namespace ballast
