// The controller dies between any two actions, and everything happens in any order: what must stay true stays true.
#include <random>
#include <string>

#include "controller/group/group.h"
#include "controller/group/group_harness.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

absl::StatusOr<v1::Plan> Approve(GroupHarness& h, const std::string& id) {
  return h.Operate([&](Group& g, Effects& effects) { return g.Approve(id, "an operator", h.now(), effects); });
}

void ExpectAllServe(GroupHarness& h, int workers) {
  const v1::Group state = h.group().Describe(h.now());
  ASSERT_EQ(state.state(), v1::GROUP_STATE_SERVING) << state.ShortDebugString();
  ASSERT_EQ(state.view().members_size(), workers);
  for (int i = 0; i < workers; ++i) {
    ASSERT_EQ(h.worker_view(i), state.view().view()) << GroupHarness::Name(i);
    ASSERT_EQ(h.worker_epoch(i), state.epoch()) << GroupHarness::Name(i);
  }
}

// Runs a rollout with the controller dying before action `n` of it. Returns the actions it took.
int RolloutWithCrash(int n, bool rollback) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.LoadWindowSkewed();
  const auto plan = h.CreatePlan();
  EXPECT_TRUE(plan.ok()) << plan.status();
  const std::string id = plan->plan().id();
  const uint64_t base = h.group().placement().epoch.value();
  const int before = h.actions();
  if (n >= 0) h.CrashAfter(n);
  // An operator whose answer got lost asks again.
  if (const auto approved = Approve(h, id); !approved.ok() || h.restarts() > 0) Approve(h, id).IgnoreError();
  if (rollback) {
    h.Operate([&](Group& g, Effects& effects) {
       return g.Rollback("", "an operator", h.now(), effects);
     }).IgnoreError();
  }
  h.Advance(absl::Seconds(4));
  const int actions = h.actions() - before;
  EXPECT_EQ(h.restarts(), n >= 0 && !h.crash_pending() ? 1 : 0);
  ExpectAllServe(h, 4);
  const v1::Plan ended = h.group().Plan(id)->plan();
  EXPECT_TRUE(IsFinished(ended.state())) << "crash before action " << n << ": " << ended.ShortDebugString();
  if (!rollback) {
    // Every worker lives and reconnects, so nothing speaks against going on.
    EXPECT_EQ(ended.state(), v1::PLAN_STATE_DONE) << "crash before action " << n << ": " << ended.ShortDebugString();
    EXPECT_GE(h.group().placement().epoch.value(), base + ended.waves_total());
  }
  EXPECT_TRUE(h.group().record().active_plan().empty());
  EXPECT_TRUE(h.group().record().next_plan().empty());
  EXPECT_EQ(h.group().Describe(h.now()).window_tokens(), h.tokens_reported());
  return actions;
}

TEST(CrashAtEveryPoint, OfARollout) {
  const int actions = RolloutWithCrash(-1, false);
  ASSERT_GT(actions, 20);
  for (int n = 0; n < actions && !HasFailure(); ++n) RolloutWithCrash(n, false);
}

TEST(CrashAtEveryPoint, OfARolloutThatIsRolledBack) {
  const int actions = RolloutWithCrash(-1, true);
  for (int n = 0; n < actions && !HasFailure(); ++n) RolloutWithCrash(n, true);
}

// Nobody is ever without its experts, whatever of the drain the controller remembers.
TEST(CrashAtEveryPoint, OfADrain) {
  int actions = 0;
  for (int n = -1; n < actions && !HasFailure(); ++n) {
    SCOPED_TRACE(testing::Message() << "crash before action " << n);
    GroupHarness::Options options = GroupHarness::Small();
    options.slots = 13;
    GroupHarness h(options);
    h.FormGroup();
    const int before = h.actions();
    if (n >= 0) h.CrashAfter(n);
    h.SendLeaving(3);
    for (int i = 0; i < 40; ++i) {
      h.Advance(absl::Milliseconds(100));
      ASSERT_EQ(h.group().Describe(h.now()).missing_total(), 0);
    }
    if (n < 0) actions = h.actions() - before;
    ExpectAllServe(h, 3);
    ASSERT_EQ(h.worker_drain(3), v1::DRAIN_STATE_OUT);
    EXPECT_TRUE(h.group().record().active_plan().empty());
  }
}

// Releases before this rule could leave a record that calls a plan active beside one that says it is proposed.
TEST(Load, OfAPlanThatIsNotUnderWayHoldsUpNoOther) {
  GroupHarness h(GroupHarness::Small());
  h.FormGroup();
  h.LoadWindowSkewed();
  const auto plan = h.CreatePlan();
  ASSERT_TRUE(plan.ok()) << plan.status();
  const std::string id = plan->plan().id();
  const std::string key = "group/" + h.group().name();
  auto stored = h.stored();
  store::GroupRecord record;
  ASSERT_TRUE(record.ParseFromString(stored.at(key)));
  record.set_active_plan(id);
  stored[key] = record.SerializeAsString();
  auto group = Group::Load(GroupHarness::Small().group, Term(9), MemoryStore(stored), h.now());
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->record().active_plan(), "");
  Effects effects;
  const absl::StatusOr<v1::Plan> approved = (*group)->Approve(id, "an operator", h.now(), effects);
  EXPECT_TRUE(approved.ok()) << approved.status();

  // What was to follow it does.
  store::PlanRecord rollback;
  ASSERT_TRUE(rollback.ParseFromString(stored.at("plan/" + id)));
  rollback.mutable_plan()->set_id("next");
  rollback.mutable_plan()->set_state(v1::PLAN_STATE_APPROVED);
  rollback.set_rollback(true);
  rollback.set_waves_known(false);
  stored["plan/next"] = rollback.SerializeAsString();
  record.set_next_plan("next");
  stored[key] = record.SerializeAsString();
  group = Group::Load(GroupHarness::Small().group, Term(9), MemoryStore(stored), h.now());
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->record().active_plan(), "next");
  EXPECT_EQ((*group)->record().next_plan(), "");
}

TEST(CrashAtEveryPoint, OfForming) {
  int actions = 0;
  for (int n = -1; n < actions && !HasFailure(); ++n) {
    GroupHarness h(GroupHarness::Small());
    if (n >= 0) h.CrashAfter(n);
    for (int i = 0; i < 4; ++i) h.StartProcess(i);
    h.Advance(absl::Seconds(6));
    if (n < 0) actions = h.actions();
    ExpectAllServe(h, 4);
  }
}

// Deaths and crashes, partitions and operators, in random order; then everybody comes back.
void RandomLife(uint32_t seed) {
  std::mt19937 random(seed);
  const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
  GroupHarness::Options options = GroupHarness::Small();
  options.group.timing.wave_deadline = absl::Seconds(5);
  options.group.planning.interval = absl::Seconds(1);
  options.group.planning.abort_hold_off = absl::Seconds(1);
  options.group.planning.rollback_hold_off = absl::Seconds(2);
  options.group.planning.keep_plans = 3;
  options.group.config.mode = pick(2) == 0 ? v1::GROUP_MODE_AUTO : v1::GROUP_MODE_APPROVE;
  if (pick(2) == 0) {
    // Three workers hold everything, in several waves.
    options.group.planning.heal_after = absl::Milliseconds(300);
    options.slots = 13;
  }
  GroupHarness h(options);
  for (int step = 0; step < 150; ++step) {
    const int worker = pick(4);
    switch (pick(23)) {
      case 0:
        h.StartProcess(worker);
        break;
      case 1:
        if (pick(3) == 0) {
          h.KillProcess(worker);
          if (pick(2) == 0) h.SendPeerLost((worker + 1) % 4, {worker});
        }
        break;
      case 2:
        h.BreakSession(worker);
        break;
      case 3:
        h.Reconnect(worker);
        break;
      case 4:
        if (!h.crash_pending()) h.CrashAfter(pick(12));
        break;
      case 5:
        h.CrashNow();
        break;
      case 6:
        h.SendPeerLost(worker, {(worker + 1) % 4});
        break;
      case 7:
        h.SendReport(worker, 1000 + pick(5000));
        break;
      case 8:
        h.CreatePlan().IgnoreError();
        break;
      case 9:
        if (const auto plan = h.NewestPlan(); plan.has_value()) Approve(h, plan->id()).IgnoreError();
        break;
      case 10:
        if (pick(2) == 0) {
          h.Operate([&](Group& g, Effects& effects) {
             return g.Rollback("", "an operator", h.now(), effects);
           }).IgnoreError();
        }
        break;
      case 11:
        h.Operate([&, paused = pick(2) == 0](Group& g, Effects& effects) {
          g.SetPaused(paused, h.now(), effects);
          return 0;
        });
        break;
      case 12:
        h.StallWaves(worker, pick(2) == 0);
        break;
      case 13:
        h.RefuseWaves(worker, pick(3) == 0 ? "refused" : "");
        break;
      case 14:
        if (pick(4) == 0) h.SendLeaving(worker);
        break;
      case 15:
        h.Tick(absl::Milliseconds(pick(1500)));
        break;
      case 16:
        h.Heartbeats();
        break;
      case 17:
        h.Advance(absl::Milliseconds(300));
        break;
      case 18:
        for (int i = 0; i < 4; ++i) h.StartProcess(i);
        h.Run();
        break;
      case 19:
        h.Operate([&, drain = pick(3) == 0](Group& g, Effects& effects) {
           const std::string name = GroupHarness::Name(worker);
           return drain ? g.DrainWorker(name, h.now(), effects) : g.UndrainWorker(name, h.now(), effects);
         }).IgnoreError();
        break;
      default:
        for (int i = 0; i < 6; ++i) {
          h.DeliverToController(pick(4));
          h.DeliverToWorker(pick(4));
        }
        break;
    }
  }
  h.Operate([&](Group& g, Effects& effects) {
    g.SetPaused(false, h.now(), effects);
    return 0;
  });
  for (int i = 0; i < 4; ++i) {
    // Who was leaving has left; all come back.
    if (pick(2) == 0 || h.group().Workers(h.now()).size() < 4) h.KillProcess(i);
    h.RefuseWaves(i, "");
    h.StallWaves(i, false);
  }
  h.Advance(absl::Seconds(3));
  for (const v1::Worker& worker : h.group().Workers(h.now())) {
    if (worker.state() == v1::WORKER_STATE_LEAVING) h.KillProcess(std::stoi(worker.name().substr(1)));
  }
  for (int i = 0; i < 4; ++i) h.StartProcess(i);
  h.Advance(absl::Seconds(15));
  ExpectAllServe(h, 4);
  // What is remembered for plans counts each token as often as the window does.
  double remembered = 0;
  for (const auto& [key, value] : h.stored()) {
    if (key != "book/g/decode/0") continue;
    store::BookRecord record;
    ASSERT_TRUE(record.ParseFromString(value));
    for (const float tokens : record.tokens()) remembered += tokens;
  }
  double counted = 0;
  const std::optional<v1::GetLoadResponse> load = h.group().Load({}, h.now());
  for (const v1::LayerLoad& layer : load->layers()) {
    for (const double tokens : layer.tokens()) counted += tokens;
  }
  EXPECT_EQ(remembered, counted);
  const std::string active = h.group().record().active_plan();
  EXPECT_TRUE(active.empty()) << h.group().Plan(active)->plan().ShortDebugString();
}

// Under the address sanitizer a life takes twenty times as long, and what many of them find is found without it.
#ifdef __SANITIZE_ADDRESS__
constexpr uint32_t kLives = 200;
#else
constexpr uint32_t kLives = 2000;
#endif

TEST(RandomOrder, KeepsTheInvariantsAndHeals) {
  for (uint32_t seed = 1; seed <= kLives && !HasFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomLife(seed);
  }
}

}  // namespace
}  // namespace ballast
