#include "worker/homes/request_router.h"

#include <algorithm>
#include <utility>

#include "proto/base/check.h"
#include "worker/moe/load_counters.h"

namespace ballast {

void Peer::Watch(const std::shared_ptr<PeerWatcher>& watcher) {
  {
    MutexLock lock(mu_);
    if (!lost_) {
      std::erase_if(watchers_, [](const std::weak_ptr<PeerWatcher>& w) { return w.expired(); });
      watchers_.push_back(watcher);
      return;
    }
  }
  watcher->OnPeerLost();
}

void Peer::MarkLost() {
  std::vector<std::weak_ptr<PeerWatcher>> watchers;
  {
    MutexLock lock(mu_);
    lost_ = true;
    watchers.swap(watchers_);
  }
  for (const std::weak_ptr<PeerWatcher>& watcher : watchers) {
    if (const std::shared_ptr<PeerWatcher> alive = watcher.lock()) alive->OnPeerLost();
  }
}

RequestRouter::RequestRouter(std::string own_name, MakeStub make_stub, std::function<WorkerLoad()> own_load,
                             const SpillLimits& limits, Clock& clock)
    : own_name_(std::move(own_name)),
      make_stub_(std::move(make_stub)),
      own_load_(std::move(own_load)),
      limits_(limits),
      clock_(clock) {}

void RequestRouter::Install(const v1::View& view, const Placement& placement) {
  std::vector<std::shared_ptr<Peer>> lost;
  {
    MutexLock lock(mu_);
    std::vector<Known> before = std::exchange(workers_, {});
    self_ = -1;
    std::map<std::string_view, int> index;
    for (const v1::Member& member : view.members()) {
      const auto same = std::find_if(before.begin(), before.end(), [&](const Known& known) {
        return known.peer != nullptr && known.peer->name() == member.worker() &&
               known.peer->member().incarnation() == member.incarnation() &&
               known.peer->member().serving_address() == member.serving_address();
      });
      index[member.worker()] = static_cast<int>(workers_.size());
      if (member.worker() == own_name_) {
        self_ = static_cast<int>(workers_.size());
        workers_.push_back({});
      } else if (same != before.end()) {
        workers_.push_back(std::move(*same));
        before.erase(same);
      } else {
        workers_.push_back({.peer = std::make_shared<Peer>(member, make_stub_(member.serving_address()))});
      }
    }
    for (Known& known : before) {
      if (known.peer != nullptr) lost.push_back(std::move(known.peer));
    }
    std::map<std::string, std::vector<HomeTurn>, std::less<>> homes;
    for (const TaskHomes& task : placement.task_homes) {
      std::vector<HomeTurn> turns;
      for (const TaskHome& home : task.homes) {
        const auto at = index.find(placement.workers[home.worker]);
        if (at != index.end()) turns.push_back({.worker = at->second, .weight = home.weight});
      }
      homes.emplace(task.task, std::move(turns));
    }
    homes_ = std::move(homes);
  }
  for (const std::shared_ptr<Peer>& peer : lost) peer->MarkLost();
}

void RequestRouter::Clear() { Install({}, {}); }

void RequestRouter::SetLoads(const v1::HeartbeatAck& ack) {
  MutexLock lock(mu_);
  for (const v1::MemberLoad& load : ack.loads()) {
    for (Known& known : workers_) {
      if (known.peer == nullptr || known.peer->name() != load.worker()) continue;
      known.draining = load.draining();
      known.heard = {.requests = load.requests_running() + load.requests_waiting(),
                     .waiting = load.requests_waiting(),
                     .kv_used_ratio = load.kv_cache_used_ratio()};
      known.handed_when_heard = known.handed;
      known.heard_at = clock_.Now();
      known.redirected = 0;
    }
  }
}

bool RequestRouter::IsHeard(const Known& worker) const {
  return clock_.Now() - worker.heard_at <= limits_.redirect_news;
}

WorkerLoad RequestRouter::LoadOf(const Known& worker) const {
  if (worker.peer == nullptr) return own_load_();
  WorkerLoad load = worker.heard;
  load.requests = std::max(worker.handed, load.requests + worker.handed - worker.handed_when_heard);
  // Of these none is heard to end but with its load.
  if (IsHeard(worker)) load.requests += worker.redirected;
  return load;
}

RequestRouter::Target RequestRouter::Route(std::string_view task, bool follows_redirects) {
  MutexLock lock(mu_);
  if (closed_ || self_ < 0) return {};
  auto homes = homes_.find(task);
  // Telemetry keeps so many tasks apart; the others have their homes together.
  if (homes == homes_.end() && !task.empty()) homes = homes_.find(LoadCounters::kOtherTasks);
  const bool homeless = homes == homes_.end() || homes->second.empty();
  if (homeless && !away_) return {};
  std::vector<WorkerLoad> loads;
  double sum = 0;
  for (const Known& known : workers_) {
    loads.push_back(LoadOf(known));
    sum += loads.back().requests;
  }
  std::vector<uint8_t> full;
  std::vector<uint8_t> draining;
  for (size_t w = 0; w < workers_.size(); ++w) {
    workers_[w].full = IsFull(loads[w], sum / static_cast<double>(loads.size()), workers_[w].full, limits_);
    full.push_back(workers_[w].full);
    draining.push_back(workers_[w].draining);
  }
  if (away_) {
    const int other = ChooseOther(loads, full, draining, self_);
    return other < 0 ? Target{} : HandTo(workers_[other], RequestRoute::kAway, follows_redirects);
  }
  // Who is to go counts as full.
  for (size_t w = 0; w < full.size(); ++w) full[w] |= draining[w];
  const HomeChoice choice = ChooseWorker(homes->second, loads, full, self_);
  Known& chosen = workers_[choice.worker];
  if (chosen.peer == nullptr) return {.route = choice.spilled ? RequestRoute::kSpilledHere : RequestRoute::kHere};
  return HandTo(chosen, choice.spilled ? RequestRoute::kSpilled : RequestRoute::kHome, follows_redirects);
}

RequestRouter::Target RequestRouter::HandTo(Known& worker, RequestRoute route, bool follows_redirects) {
  if (follows_redirects && IsHeard(worker)) {
    ++worker.redirected;
    return {.route = route, .peer = worker.peer, .redirect = true};
  }
  ++worker.handed;
  ++handed_;
  return {.route = route, .peer = worker.peer};
}

void RequestRouter::SetAway(bool away) {
  MutexLock lock(mu_);
  away_ = away;
}

bool RequestRouter::away() const {
  MutexLock lock(mu_);
  return away_;
}

void RequestRouter::Ended(const Peer& peer) {
  MutexLock lock(mu_);
  BALLAST_CHECK(handed_ > 0);
  if (--handed_ == 0) idle_.NotifyAll();
  for (Known& known : workers_) {
    if (known.peer.get() == &peer) --known.handed;
  }
}

void RequestRouter::Close() {
  MutexLock lock(mu_);
  closed_ = true;
}

bool RequestRouter::AwaitIdle(Clock& clock, absl::Time deadline) {
  MutexLock lock(mu_);
  while (handed_ > 0) {
    if (!clock.WaitUntil(idle_, mu_, deadline)) return handed_ == 0;
  }
  return true;
}

}  // namespace ballast
