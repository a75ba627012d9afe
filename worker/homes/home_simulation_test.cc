// Many workers that hand requests to homes by old news of each other, as a simulation: nothing flaps, and no worker has
// much more to do than the others.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <memory>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "worker/homes/request_router.h"

namespace ballast {
namespace {

constexpr int kWorkers = 4;

struct Traffic {
  // Homes of each task, and its part of the requests.
  std::vector<std::vector<int>> homes;
  std::vector<double> mix;
  // Requests a second in all; seconds that one takes, whatever runs beside it, up to `max_running` of a worker.
  double rate = 100;
  double seconds = .5;
  int max_running = 64;
};

struct Outcome {
  int requests = 0;
  int at_home = 0;
  int spilled = 0;
  // Runs of requests of one task and one worker that were handed alike (to homes or spilled).
  int changes = 0;
  // Over the time: how far the busiest worker was above the mean, and the longest queue.
  double mean_excess = 0;
  int most_excess = 0;
  int longest_queue = 0;
};

// Requests come to random workers. Heartbeats go out every 400 ms, each worker's at a time of its own, and what the
// controller knows comes back with them.
Outcome Simulate(const Traffic& traffic, const SpillLimits& limits, int requests) {
  struct Request {
    int origin;
    std::shared_ptr<Peer> peer;
  };
  struct Worker {
    int running = 0;
    std::deque<Request> waiting;
    v1::MemberLoad told;
    std::unique_ptr<RequestRouter> router;
    std::vector<int> last;
  };
  struct Event {
    double at;
    int worker;
    Request request;  // that ends
    bool operator>(const Event& other) const { return at > other.at; }
  };
  v1::View view;
  Placement placement;
  for (int w = 0; w < kWorkers; ++w) {
    v1::Member& member = *view.add_members();
    member.set_worker(absl::StrCat("w", w));
    member.set_incarnation(1);
    placement.workers.push_back(member.worker());
  }
  for (size_t t = 0; t < traffic.homes.size(); ++t) {
    placement.task_homes.push_back({absl::StrCat("t", t), {}});
    for (const int home : traffic.homes[t]) placement.task_homes.back().homes.push_back({home, 1});
  }
  std::vector<Worker> workers(kWorkers);
  for (int w = 0; w < kWorkers; ++w) {
    Worker& worker = workers[w];
    worker.last.assign(traffic.homes.size(), -1);
    worker.router = std::make_unique<RequestRouter>(
        absl::StrCat("w", w), [](const std::string&) { return nullptr; },
        [&worker] {
          return WorkerLoad{.requests = worker.running + static_cast<int>(worker.waiting.size()),
                            .waiting = static_cast<int>(worker.waiting.size())};
        },
        limits);
    worker.router->Install(view, placement);
  }

  std::mt19937 random(5);
  std::exponential_distribution<double> gap(traffic.rate), length(1 / traffic.seconds);
  std::discrete_distribution<int> task_of(traffic.mix.begin(), traffic.mix.end());
  std::priority_queue<Event, std::vector<Event>, std::greater<>> ends;
  Outcome out;
  double now = 0, next_request = 0;
  std::vector<double> next_beat = {.0, .1, .2, .3};
  double excess_time = 0;
  const auto start = [&](int w, Request request) {
    if (workers[w].running < traffic.max_running) {
      ++workers[w].running;
      ends.push({now + length(random), w, std::move(request)});
    } else {
      workers[w].waiting.push_back(std::move(request));
    }
  };
  while (out.requests < requests || !ends.empty()) {
    const bool more = out.requests < requests;
    double at = more ? next_request : ends.top().at;
    if (!ends.empty()) at = std::min(at, ends.top().at);
    const int beat = static_cast<int>(std::min_element(next_beat.begin(), next_beat.end()) - next_beat.begin());
    at = std::min(at, next_beat[beat]);
    int sum = 0, most = 0;
    for (const Worker& worker : workers) {
      const int has = worker.running + static_cast<int>(worker.waiting.size());
      sum += has;
      most = std::max(most, has);
      out.longest_queue = std::max(out.longest_queue, static_cast<int>(worker.waiting.size()));
    }
    const double excess = most - static_cast<double>(sum) / kWorkers;
    if (more) {
      excess_time += excess * (at - now);
      out.most_excess = std::max(out.most_excess, static_cast<int>(excess));
    }
    now = at;
    if (at == next_beat[beat]) {
      next_beat[beat] += .4;
      Worker& worker = workers[beat];
      worker.told.set_worker(absl::StrCat("w", beat));
      worker.told.set_requests_running(worker.running);
      worker.told.set_requests_waiting(static_cast<int>(worker.waiting.size()));
      v1::HeartbeatAck ack;
      for (const Worker& other : workers) *ack.add_loads() = other.told;
      worker.router->SetLoads(ack);
    } else if (!ends.empty() && at == ends.top().at) {
      const Event end = ends.top();
      ends.pop();
      if (end.request.peer != nullptr) workers[end.request.origin].router->Ended(*end.request.peer);
      Worker& worker = workers[end.worker];
      --worker.running;
      if (!worker.waiting.empty()) {
        Request next = std::move(worker.waiting.front());
        worker.waiting.pop_front();
        start(end.worker, std::move(next));
      }
    } else {
      next_request = now + gap(random);
      const int origin = static_cast<int>(random() % kWorkers);
      const int task = task_of(random);
      RequestRouter::Target target = workers[origin].router->Route(absl::StrCat("t", task));
      const bool spilled = target.route == RequestRoute::kSpilled || target.route == RequestRoute::kSpilledHere;
      ++out.requests;
      ++(spilled ? out.spilled : out.at_home);
      int& last = workers[origin].last[task];
      out.changes += last >= 0 && last != static_cast<int>(spilled);
      last = spilled;
      const int to = target.peer == nullptr ? origin : target.peer->name()[1] - '0';
      start(to, {origin, std::move(target.peer)});
    }
  }
  out.mean_excess = excess_time / now;
  for (Worker& worker : workers) {
    EXPECT_TRUE(worker.router->AwaitIdle(Clock::Real(), absl::InfinitePast())) << "a request never ended";
    EXPECT_EQ(worker.running, 0);
  }
  std::printf("%d requests, %.3f spilled, %.3f changes a request, excess %.2f in the mean, %d at most, queue %d\n",
              out.requests, static_cast<double>(out.spilled) / out.requests,
              static_cast<double>(out.changes) / out.requests, out.mean_excess, out.most_excess, out.longest_queue);
  return out;
}

// Each worker is the home of two of eight tasks; 50 requests run in the mean, 12.5 on each worker.
Traffic EightTasks() { return {.homes = {{0}, {1}, {2}, {3}, {0}, {1}, {2}, {3}}, .mix = std::vector<double>(8, 1)}; }

TEST(HomeSimulation, ALevelMixRunsAtHome) {
  const Outcome out = Simulate(EightTasks(), {}, 20000);
  EXPECT_LT(out.spilled, .02 * out.requests);
  EXPECT_LT(out.changes, .01 * out.requests);
}

TEST(HomeSimulation, OneTaskAlone_ItsHomeIsFullAndTheRestIsSpread) {
  Traffic traffic = EightTasks();
  traffic.mix = {1, 0, 0, 0, 0, 0, 0, 0};
  const Outcome out = Simulate(traffic, {}, 20000);
  // 1.5 times the mean of 12.5 and 4 more are 22.75 requests, 10.25 above the mean. News of the home is .4 to .8 s old,
  // in which up to as many come from the four workers as it takes to fill it.
  EXPECT_LT(out.mean_excess, 11);
  EXPECT_LT(out.most_excess, 35);
  EXPECT_GT(out.at_home, .3 * out.requests) << "its home does more than its part";
  EXPECT_LT(out.changes, .1 * out.requests);
  EXPECT_EQ(out.longest_queue, 0);
  // Were only spilled what would have to wait, most of the 50 that run in the mean would be there.
  EXPECT_GT(Simulate(traffic, {.full_ratio = 1e9, .full_kv_ratio = 2}, 20000).mean_excess, 20);
}

TEST(HomeSimulation, HysteresisKeepsItFromFlapping) {
  Traffic traffic = EightTasks();
  traffic.mix = {4, 1, 1, 1, 1, 1, 1, 1};
  const Outcome with = Simulate(traffic, {}, 20000);
  const Outcome without = Simulate(traffic, {.free_ratio = 1.5, .free_slack = 4}, 20000);
  EXPECT_LT(with.changes, .85 * without.changes);
  EXPECT_LT(with.changes, .07 * with.requests);
}

TEST(HomeSimulation, ShortOfRoom_TheQueueOfTheHomeStaysShort) {
  Traffic traffic = EightTasks();
  traffic.mix = {1, 0, 0, 0, 0, 0, 0, 0};
  traffic.max_running = 16;
  // 50 of 64 places are taken in the mean.
  const Outcome out = Simulate(traffic, {}, 20000);
  EXPECT_LT(out.longest_queue, 35);
  EXPECT_LT(out.mean_excess, 9);
}

}  // namespace
}  // namespace ballast
