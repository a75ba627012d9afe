#include "worker/homes/request_router.h"

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

// Workers w0 to w3, this one w0; "a" is at home on w1, "b" on w0 and w2, "gone" on a worker outside the view.
class RequestRouterTest : public ::testing::Test {
 protected:
  RequestRouterTest() { router_.Install(View({1, 1, 1, 1}), Homes()); }

  static v1::View View(const std::vector<uint64_t>& incarnations) {
    v1::View view;
    view.set_view(1);
    for (size_t i = 0; i < incarnations.size(); ++i) {
      if (incarnations[i] == 0) continue;
      v1::Member& member = *view.add_members();
      member.set_worker(absl::StrCat("w", i));
      member.set_incarnation(incarnations[i]);
      member.set_serving_address(absl::StrCat("host:", i));
    }
    return view;
  }

  static Placement Homes() {
    Placement placement;
    placement.workers = {"w2", "w1", "w0", "w3", "elsewhere"};
    placement.task_homes = {{"a", {{1, 1}}}, {"b", {{2, 1}, {0, 1}}}, {"gone", {{4, 1}}}};
    return placement;
  }

  static v1::HeartbeatAck Load(const std::string& worker, int running, int waiting = 0, double kv = 0) {
    v1::HeartbeatAck ack;
    v1::MemberLoad& load = *ack.add_loads();
    load.set_worker(worker);
    load.set_requests_running(running);
    load.set_requests_waiting(waiting);
    load.set_kv_cache_used_ratio(kv);
    return ack;
  }

  std::string Next(const std::string& task) {
    const RequestRouter::Target target = router_.Route(task);
    if (target.peer != nullptr) handed_.push_back(target.peer);
    static const std::map<RequestRoute, std::string> names = {
        {RequestRoute::kNone, "none"},       {RequestRoute::kHere, "here"},
        {RequestRoute::kHome, "home"},       {RequestRoute::kSpilledHere, "spilled here"},
        {RequestRoute::kSpilled, "spilled"}, {RequestRoute::kAway, "away"}};
    return names.at(target.route) + (target.peer == nullptr ? "" : " " + target.peer->name());
  }

  SimulatedClock clock_;
  WorkerLoad own_;
  std::vector<std::string> addresses_;
  std::vector<std::shared_ptr<Peer>> handed_;
  RequestRouter router_{"w0",
                        [this](const std::string& address) {
                          addresses_.push_back(address);
                          return nullptr;
                        },
                        [this] { return own_; },
                        {},
                        clock_};
};

TEST_F(RequestRouterTest, HomesOfTheTask) {
  EXPECT_EQ(Next("a"), "home w1");
  EXPECT_EQ(Next("b"), "here");
  EXPECT_EQ(Next("b"), "home w2");
  EXPECT_EQ(Next("b"), "here");
  EXPECT_EQ(Next("gone"), "none");
  EXPECT_EQ(Next("unknown"), "none");
  EXPECT_EQ(Next(""), "none");
  EXPECT_EQ(addresses_, (std::vector<std::string>{"host:1", "host:2", "host:3"}));
}

TEST_F(RequestRouterTest, TasksThatTelemetryPoolsHaveHomesTogether) {
  Placement placement = Homes();
  placement.task_homes.push_back({"_other", {{3, 1}}});
  router_.Install(View({1, 1, 1, 1}), placement);
  EXPECT_EQ(Next("unknown"), "home w3");
  EXPECT_EQ(Next("a"), "home w1");
  EXPECT_EQ(Next("gone"), "none") << "kept apart, and its homes are not there";
  EXPECT_EQ(Next(""), "none") << "unlabelled is no pooled task";
}

TEST_F(RequestRouterTest, WhatWasHandedOverCountsUntilItEnds) {
  // Nothing is heard of the others: only what was handed to w1 is known to be there. Above 1.5 times the mean of four
  // workers and 4 more, it is full: at 7 requests.
  for (int i = 0; i < 7; ++i) EXPECT_EQ(Next("a"), "home w1") << i;
  EXPECT_EQ(Next("a"), "spilled here");
  own_ = {.requests = 1, .waiting = 1};
  EXPECT_EQ(Next("a"), "spilled w2") << "this worker is full, too";
  own_ = {};
  // Back where it is below the other limits.
  for (int i = 0; i < 4; ++i) router_.Ended(*handed_[i]);
  EXPECT_EQ(Next("a"), "home w1");
}

TEST_F(RequestRouterTest, HeardLoadsAreCorrectedByWhatWasHandedOverSince) {
  for (int i = 0; i < 3; ++i) Next("a");
  // The three are among them.
  router_.SetLoads(Load("w1", 5));
  EXPECT_EQ(Next("a"), "home w1");  // 5 there, 1.25 in the mean
  EXPECT_EQ(Next("a"), "home w1");  // 6
  EXPECT_EQ(Next("a"), "spilled here") << "7 there, 1.75 in the mean";
  for (const auto& peer : handed_) router_.Ended(*peer);
  EXPECT_EQ(Next("a"), "home w1") << "2 are left, of others";
}

TEST_F(RequestRouterTest, WhereRequestsWaitNoneIsAdded) {
  router_.SetLoads(Load("w1", 1, 1));
  EXPECT_EQ(Next("a"), "spilled here");
  router_.SetLoads(Load("w1", 1, 0));
  EXPECT_EQ(Next("a"), "home w1");
  router_.SetLoads(Load("w1", 1, 0, .99));
  EXPECT_EQ(Next("a"), "spilled here");
  own_ = {.requests = 50, .waiting = 10};
  EXPECT_EQ(Next("b"), "home w2") << "this worker is full, the other home is not";
}

TEST_F(RequestRouterTest, ANewView_LosesWhoIsGoneOrCameBack) {
  Next("a");
  ASSERT_EQ(handed_.size(), 1u);
  struct Counter : PeerWatcher {
    int lost = 0;
    void OnPeerLost() override { ++lost; }
  };
  const auto early = std::make_shared<Counter>();
  handed_[0]->Watch(early);
  handed_[0]->Watch(std::make_shared<Counter>());  // gone before it could be told
  router_.Install(View({1, 1, 0, 1}), Homes());
  EXPECT_EQ(early->lost, 0);
  EXPECT_EQ(Next("b"), "here");
  EXPECT_EQ(Next("b"), "here") << "its other home is gone";
  router_.Install(View({1, 2, 0, 1}), Homes());
  EXPECT_EQ(early->lost, 1);
  EXPECT_EQ(Next("a"), "home w1") << "as its new incarnation";
  EXPECT_NE(handed_[0], handed_[1]);
  const auto late = std::make_shared<Counter>();
  handed_[0]->Watch(late);
  EXPECT_EQ(late->lost, 1) << "it is lost already";
  router_.Clear();
  EXPECT_EQ(Next("a"), "none");
  // Ends of requests with lost peers are still counted.
  for (const auto& peer : handed_) router_.Ended(*peer);
  EXPECT_TRUE(router_.AwaitIdle(Clock::Real(), absl::InfiniteFuture()));
}

TEST_F(RequestRouterTest, Away_EveryRequestIsAnothersThatStays) {
  v1::HeartbeatAck heard = Load("w1", 1);
  heard.MergeFrom(Load("w2", 2));
  heard.MergeFrom(Load("w3", 0));
  heard.mutable_loads(2)->set_draining(true);
  router_.SetLoads(heard);
  EXPECT_FALSE(router_.away());
  router_.SetAway(true);
  EXPECT_TRUE(router_.away());
  EXPECT_EQ(Next("b"), "away w1") << "this worker is its home, and w3 has less to do but is to go";
  EXPECT_EQ(Next("unknown"), "away w1") << "as many as w2";
  EXPECT_EQ(Next(""), "away w2");
  for (int w = 0; w < 2; ++w) heard.mutable_loads(w)->set_draining(true);
  router_.SetLoads(heard);
  EXPECT_EQ(Next("a"), "none") << "nobody stays";
  router_.SetAway(false);
  EXPECT_EQ(Next("b"), "here");
}

TEST_F(RequestRouterTest, WhoIsToGoIsNoHome) {
  v1::HeartbeatAck heard = Load("w1", 0);
  heard.mutable_loads(0)->set_draining(true);
  router_.SetLoads(heard);
  EXPECT_EQ(Next("a"), "spilled here");
  heard.mutable_loads(0)->set_draining(false);
  router_.SetLoads(heard);
  EXPECT_EQ(Next("a"), "home w1");
}

TEST_F(RequestRouterTest, ClientsThatFollowAreSentThere_WhileItsLoadIsHeard) {
  const auto redirected = [&] {
    const RequestRouter::Target target = router_.Route("a", /*follows_redirects=*/true);
    if (target.peer != nullptr && !target.redirect) handed_.push_back(target.peer);
    return target.redirect;
  };
  EXPECT_FALSE(redirected()) << "nothing is heard of w1: its end is to be known";
  router_.SetLoads(Load("w1", 1));
  EXPECT_TRUE(redirected());
  EXPECT_EQ(Next("a"), "home w1") << "a client that does not follow";
  clock_.Advance(absl::Seconds(10));
  EXPECT_TRUE(redirected());
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_FALSE(redirected()) << "the news are too old";
  EXPECT_EQ(handed_.size(), 3u);
  EXPECT_FALSE(router_.AwaitIdle(clock_, absl::InfinitePast()));
  for (const auto& peer : handed_) router_.Ended(*peer);
  EXPECT_TRUE(router_.AwaitIdle(clock_, absl::InfinitePast())) << "nothing is waited for that clients take elsewhere";
  EXPECT_FALSE(router_.Route("b", true).redirect) << "here";
}

TEST_F(RequestRouterTest, ClientsThatWereSentThereCountUntilItsLoadIsHeard) {
  router_.SetLoads(Load("w1", 0));
  // As requests that were handed over: full at 7.
  for (int i = 0; i < 7; ++i) EXPECT_TRUE(router_.Route("a", true).redirect) << i;
  EXPECT_EQ(Next("a"), "spilled here");
  router_.SetLoads(Load("w1", 1));
  EXPECT_TRUE(router_.Route("a", true).redirect);
  for (int i = 0; i < 6; ++i) router_.Route("a", true);
  EXPECT_EQ(Next("a"), "spilled here");
  // Without news nobody knows whether they have ended: they count no longer.
  clock_.Advance(absl::Seconds(11));
  EXPECT_EQ(Next("a"), "home w1");
}

TEST_F(RequestRouterTest, Away_ClientsThatFollowAreSentToAnother) {
  router_.SetLoads(Load("w1", 1));
  router_.SetAway(true);
  v1::HeartbeatAck draining = Load("w2", 0);
  draining.mutable_loads(0)->set_draining(true);
  router_.SetLoads(draining);
  draining.mutable_loads(0)->set_worker("w3");
  router_.SetLoads(draining);
  const RequestRouter::Target target = router_.Route("", true);
  EXPECT_EQ(target.route, RequestRoute::kAway);
  EXPECT_TRUE(target.redirect);
  EXPECT_EQ(target.peer->name(), "w1");
}

TEST_F(RequestRouterTest, Closed_EveryRequestIsThisWorkers) {
  Next("a");
  router_.Close();
  EXPECT_EQ(Next("a"), "none");
  EXPECT_FALSE(router_.AwaitIdle(Clock::Real(), absl::InfinitePast()));
  router_.Ended(*handed_[0]);
  EXPECT_TRUE(router_.AwaitIdle(Clock::Real(), absl::InfiniteFuture()));
}

}  // namespace
}  // namespace ballast
