#include "controller/group/membership.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Kind = MembershipStep::Kind;

const absl::Time kNow = absl::FromUnixSeconds(1000);
const absl::Time kLater = kNow + absl::Seconds(1);

WorkerFacts Serving(const std::string& name) {
  return {.name = name, .alive = true, .connected = true, .lease_deadline = kLater, .member = true};
}
WorkerFacts Joining(const std::string& name, bool loaded) {
  return {.name = name, .alive = true, .connected = true, .lease_deadline = kLater, .loaded = loaded};
}
WorkerFacts Dead(const std::string& name) { return {.name = name, .lease_deadline = kNow}; }

MembershipFacts Facts(std::vector<WorkerFacts> workers) {
  return {.workers = std::move(workers),
          .size = 2,
          .formed = true,
          .placed = {"a", "b"},
          .holders = {"a", "b"},
          .had_view = true,
          .has_view = true};
}

struct Case {
  std::string name;
  MembershipFacts facts;
  Kind kind;
  std::vector<std::string> workers;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](std::string name, MembershipFacts facts, Kind kind, std::vector<std::string> workers = {}) {
    cases.push_back({std::move(name), std::move(facts), kind, std::move(workers)});
  };
  const auto with = [](WorkerFacts worker, auto change) {
    change(worker);
    return worker;
  };
  add("all well", Facts({Serving("a"), Serving("b")}), Kind::kNothing);
  add("a lost session alone", Facts({with(Serving("a"), [](auto& w) { w.connected = false; }), Serving("b")}),
      Kind::kNothing);
  add("an accusation alone", Facts({with(Serving("a"), [](auto& w) { w.accused = true; }), Serving("b")}),
      Kind::kNothing);
  add("both", Facts({with(Serving("a"), [](auto& w) { w.accused = true, w.connected = false; }), Serving("b")}),
      Kind::kDeclareDead, {"a"});
  add("lease out, session open", Facts({with(Serving("a"), [](auto& w) { w.lease_deadline = kNow; }), Serving("b")}),
      Kind::kDeclareDead, {"a"});
  add("leaving and drained and gone",
      Facts({with(Serving("a"), [](auto& w) { w.leaving = w.drained = true, w.connected = false; }), Serving("b")}),
      Kind::kDeclareDead, {"a"});
  add("leaving, out of the view and gone",
      Facts({with(Joining("a", false), [](auto& w) { w.leaving = true, w.connected = false; }), Serving("b")}),
      Kind::kDeclareDead, {"a"});
  add("leaving, its session lost while it serves",
      Facts({with(Serving("a"), [](auto& w) { w.leaving = true, w.connected = false; }), Serving("b")}),
      Kind::kNothing);
  add("leaving with requests", Facts({with(Serving("a"), [](auto& w) { w.leaving = true; }), Serving("b")}),
      Kind::kNothing);
  add("leaving and drained",
      Facts({with(Serving("a"), [](auto& w) { w.leaving = true, w.drained = true; }), Serving("b")}), Kind::kIssueView,
      {"b"});
  add("drained, out of the view",
      Facts({with(Joining("a", true), [](auto& w) { w.leaving = true, w.drained = true; }), Serving("b")}),
      Kind::kNothing);
  add("dead member", Facts({with(Dead("a"), [](auto& w) { w.member = true; }), Serving("b")}), Kind::kIssueView, {"b"});
  add("dead, no member", Facts({Dead("a"), Serving("b")}), Kind::kNothing);
  add("last member dead", Facts({with(Dead("a"), [](auto& w) { w.member = true; }), Dead("b")}), Kind::kIssueView);
  add("new process in a member's place",
      Facts({with(Joining("a", false), [](auto& w) { w.stale_member = true; }), Serving("b")}), Kind::kIssueView,
      {"b"});
  add("the same, loaded", Facts({with(Joining("a", true), [](auto& w) { w.stale_member = true; }), Serving("b")}),
      Kind::kIssueView, {"a", "b"});
  add("joining, not loaded", Facts({Joining("a", false), Serving("b")}), Kind::kNothing);
  add("joining, loaded", Facts({Joining("a", true), Serving("b")}), Kind::kIssueView, {"a", "b"});
  add("joining, disconnected", Facts({with(Joining("a", true), [](auto& w) { w.connected = false; }), Serving("b")}),
      Kind::kNothing);

  MembershipFacts reissue = Facts({Serving("a"), Serving("b")});
  reissue.reissue_at = kLater;
  add("reissue not yet due", reissue, Kind::kNothing);
  reissue.reissue_at = kNow;
  add("reissue due", reissue, Kind::kIssueView, {"a", "b"});

  // Of four, so that one can be put out.
  const auto four = [](std::vector<WorkerFacts> workers) {
    MembershipFacts facts = Facts(std::move(workers));
    facts.size = 4;
    facts.placed = facts.holders = {"a", "b", "c", "d"};
    facts.reissue_at = kNow;
    return facts;
  };
  const auto failing = [&](const std::string& name, int views) {
    return with(Serving(name), [views](auto& w) { w.failed_views = views; });
  };
  add("three views failed because of one", four({failing("a", 3), Serving("b"), Serving("c"), Serving("d")}),
      Kind::kIssueView, {"a", "b", "c", "d"});
  add("four views did", four({failing("a", 4), Serving("b"), Serving("c"), Serving("d")}), Kind::kPutOut, {"a"});
  add("four views failed because of half", four({failing("a", 4), failing("b", 9), Serving("c"), Serving("d")}),
      Kind::kIssueView, {"a", "b", "c", "d"});
  add("four views did, another is kept out",
      four({failing("a", 4), Serving("b"), Serving("c"), with(Joining("d", true), [](auto& w) { w.kept_out = true; })}),
      Kind::kIssueView, {"a", "b", "c"});
  add("four views failed because of one who is back from being kept out",
      four({with(failing("a", 4), [](auto& w) { w.kept_out = true; }), Serving("b"), Serving("c"), Serving("d")}),
      Kind::kPutOut, {"a"});
  MembershipFacts pair = Facts({failing("a", 4), Serving("b")});
  pair.reissue_at = kNow;
  add("four views did, of two", pair, Kind::kIssueView, {"a", "b"});
  MembershipFacts early = four({failing("a", 4), Serving("b"), Serving("c"), Serving("d")});
  early.reissue_at = kLater;
  add("four views did, others may have a word to say yet", early, Kind::kNothing);
  add("kept out", Facts({with(Joining("a", true), [](auto& w) { w.kept_out = true; }), Serving("b")}), Kind::kNothing);

  MembershipFacts no_view = Facts({Joining("a", true), Joining("b", false)});
  no_view.has_view = false;
  add("whole group restarts, one not loaded", no_view, Kind::kNothing);
  no_view.workers[1].loaded = true;
  add("whole group restarts", no_view, Kind::kIssueView, {"a", "b"});

  no_view = Facts({Joining("a", true), Dead("b")});
  no_view.has_view = false;
  add("whole group restarts, one is gone", no_view, Kind::kNothing);
  no_view.holders = {"a"};
  add("whole group restarts, one that held nothing is gone", no_view, Kind::kIssueView, {"a"});
  no_view.workers[0].kept_out = true;
  add("whole group restarts, one had been put out", no_view, Kind::kIssueView, {"a"});

  MembershipFacts waited = Facts({Joining("a", true), Dead("b")});
  waited.has_view = false;
  waited.start_at = kLater;
  add("one is gone and waited for", waited, Kind::kNothing);
  waited.start_at = kNow;
  add("one is gone and has been waited for", waited, Kind::kIssueView, {"a"});
  waited.workers[1] = Joining("b", false);
  add("one is late and still loads", waited, Kind::kNothing);
  waited.workers[1].load_failed = true;
  add("one has been waited for and cannot load", waited, Kind::kIssueView, {"a"});
  waited.workers[1] = with(Joining("b", false), [](auto& w) { w.leaving = true; });
  add("one has been waited for and leaves", waited, Kind::kIssueView, {"a"});
  waited.holders = {"b"};
  add("who is there holds nothing", waited, Kind::kNothing);

  MembershipFacts fresh{.workers = {Joining("a", false)}, .size = 2};
  add("one of two", fresh, Kind::kNothing);
  fresh.workers.push_back(Joining("b", false));
  add("two of two", fresh, Kind::kForm, {"a", "b"});
  fresh.workers[1].connected = false;
  add("two of two, one disconnected", fresh, Kind::kNothing);

  MembershipFacts loading = Facts({Joining("a", true), Dead("b"), Joining("c", false)});
  loading.has_view = loading.had_view = false;
  add("a candidate died, another came", loading, Kind::kForm, {"a", "c"});
  return cases;
}

TEST(DecideMembership, Table) {
  for (const Case& c : Cases()) {
    const MembershipStep step = DecideMembership(c.facts, kNow);
    EXPECT_EQ(step.kind, c.kind) << c.name;
    EXPECT_EQ(step.workers, c.workers) << c.name;
    EXPECT_EQ(step.reason.empty(), c.kind == Kind::kNothing) << c.name;
  }
}

TEST(Blamed, Table) {
  const MemberWord well{.installed = true};
  const MemberWord silent{};
  const MemberWord alone{.failed = true};
  const auto lost = [](std::set<int> ranks) {
    return MemberWord{.installed = true, .failed = true, .lost = std::move(ranks)};
  };
  struct Row {
    std::string name;
    std::vector<MemberWord> words;
    std::vector<bool> blamed;
  };
  const std::vector<Row> rows = {
      {"all well", {well, well, well, well}, {false, false, false, false}},
      {"one fails by itself", {well, well, alone, silent}, {false, false, true, false}},
      {"and is lost by others", {lost({2}), lost({0, 2}), alone, lost({0})}, {false, false, true, false}},
      {"one accuser", {lost({2}), well, well, well}, {false, false, false, false}},
      {"one accuser of a silent one", {lost({2}), well, silent, well}, {false, false, false, false}},
      {"one accuser of all", {lost({1, 2, 3}), well, well, well}, {false, false, false, false}},
      {"lost by most, and has lost them", {lost({2}), lost({2}), lost({0, 1, 3}), well}, {false, false, true, false}},
      {"lost by most, and says nothing", {lost({2}), lost({2}), silent, well}, {false, false, true, false}},
      {"lost by most, and serves", {lost({2}), lost({2}), well, well}, {false, false, false, false}},
      {"left first, because of one who hangs",
       {lost({2}), lost({0}), lost({0}), lost({0})},
       {false, false, false, false}},
      {"of two", {lost({1}), lost({0})}, {false, false}},
      {"of two, one by itself", {alone, well}, {false, false}},
      {"of three", {lost({1}), lost({0, 2}), lost({1})}, {false, true, false}},
      {"split in the middle", {lost({2, 3}), lost({2, 3}), lost({0, 1}), lost({0, 1})}, {false, false, false, false}},
      {"split, two of five",
       {lost({3, 4}), lost({3, 4}), lost({3, 4}), lost({0, 1, 2}), lost({0, 1, 2})},
       {false, false, false, true, true}},
      {"most fail by themselves", {alone, alone, alone, well}, {false, false, false, false}},
      {"nobody", {}, {}},
  };
  for (const Row& row : rows) EXPECT_EQ(Blamed(row.words), row.blamed) << row.name;
}

TEST(ContiguousPlacement, IsSoundAndLevelInSlots) {
  for (const auto& [experts, workers] : {std::pair(8, 4), std::pair(7, 3), std::pair(5, 8), std::pair(1, 1)}) {
    std::vector<std::string> names;
    for (int w = 0; w < workers; ++w) names.push_back(std::string(1, static_cast<char>('a' + w)));
    const int32_t slots = ContiguousSlots(3, experts, workers) + 2;
    const std::vector<SlotCapacity> capacity(workers, {slots, 2});
    const auto placement = ContiguousPlacement(3, experts, names, capacity);
    ASSERT_TRUE(placement.ok()) << placement.status();
    EXPECT_TRUE(Validate(*placement, capacity).ok()) << Validate(*placement, capacity);
  }
  const auto short_of_slots = ContiguousPlacement(1, 4, {"a", "b"}, {{4, 2}, {3, 2}});
  EXPECT_EQ(short_of_slots.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(short_of_slots.status().message()), HasSubstr("worker b has 3 slots"));
}

TEST(MissingExperts, AreThoseWithoutALiveReplica) {
  const auto placement = ContiguousPlacement(2, 4, {"a", "b"}, {{6, 2}, {6, 2}});
  EXPECT_THAT(MissingExperts(*placement, {"a", "b"}), IsEmpty());
  EXPECT_THAT(MissingExperts(*placement, {"a"}),
              ElementsAre(ExpertId{0, 2}, ExpertId{0, 3}, ExpertId{1, 2}, ExpertId{1, 3}));
}

}  // namespace
}  // namespace ballast
