#include "controller/planner/grouping/tasks_alone.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "proto/base/check.h"

namespace ballast {
namespace {

// Pairs by expert.
using Part = std::vector<int64_t>;

// Of each task in turn, in as many parts as `parts_of` says of it; those without pairs are left out.
template <typename PartsOf, typename Visit>
void ForParts(const LayerRoutes& layer, PartsOf parts_of, Visit visit) {
  Part part(layer.experts);
  for (const LayerRoutes::Task& task : layer.tasks) {
    const int64_t of_task = parts_of(task.tokens);
    for (int64_t p = 0; p < of_task; ++p) {
      std::fill(part.begin(), part.end(), 0);
      const int64_t begin = task.tokens * p / of_task, end = task.tokens * (p + 1) / of_task;
      for (const int32_t e : task.experts.subspan(begin * layer.top_k, (end - begin) * layer.top_k)) {
        if (e >= 0) ++part[e];
      }
      const int64_t pairs = std::accumulate(part.begin(), part.end(), int64_t{0});
      if (pairs > 0) visit(part, static_cast<double>(pairs), of_task);
    }
  }
}

}  // namespace

double LeastTaskMaxVio(const LayerRoutes& layer, std::span<const int32_t> slots, std::span<const uint32_t> speed) {
  // The most of any task.
  std::vector<double> most(layer.experts);
  const auto whole = [](int64_t) { return 1; };
  ForParts(layer, whole, [&](const Part& part, double pairs, int64_t) {
    for (int32_t e = 0; e < layer.experts; ++e) most[e] = std::max(most[e], static_cast<double>(part[e]) / pairs);
  });
  // Parts of the fastest workers with slots, summed: those of one, of two, ...
  std::vector<double> together;
  double sum = 0;
  int64_t replicas = 0;
  for (size_t w = 0; w < slots.size(); ++w) {
    const double s = speed.empty() ? 1 : speed[w];
    sum += s;
    replicas += slots[w];
    if (slots[w] > 0) together.push_back(s);
  }
  std::sort(together.begin(), together.end(), std::greater<>());
  for (double& s : together) s /= sum;
  std::partial_sum(together.begin(), together.end(), together.begin());
  const auto fits = [&](double level) {
    int64_t needed = 0;
    for (const double m : most) {
      const auto enough = std::lower_bound(together.begin(), together.end(), m / level);
      if (enough == together.end()) return false;
      needed += enough - together.begin() + 1;
    }
    return needed <= replicas;
  };
  if (fits(1)) return 0;
  double low = 1, high = 1 / together[0];
  constexpr int kHalvings = 40;
  for (int i = 0; i < kHalvings; ++i) {
    const double middle = (low + high) / 2;
    (fits(middle) ? high : low) = middle;
  }
  return low - 1;
}

int64_t TasksAlone::PartsOfTask(int64_t pairs, int32_t workers) {
  // By chance the most of 64 a worker differs from them by a quarter or so, which is about what limits are.
  return std::clamp<int64_t>(pairs / (int64_t{64} * workers), 1, kMostParts);
}

TasksAlone::TasksAlone(const LayerRoutes& layer, std::span<const double> speed_part, double limit)
    : experts_(layer.experts),
      workers_(static_cast<int32_t>(speed_part.size())),
      workers_of_(experts_),
      experts_on_(workers_),
      from_(workers_),
      by_(workers_) {
  const auto parts_of = [&](int64_t tokens) { return PartsOfTask(tokens * layer.top_k, workers_); };
  ForParts(layer, parts_of, [&](const Part& part, double pairs, int64_t of_task) {
    ++parts_;
    count_.insert(count_.end(), part.begin(), part.end());
    pair_.push_back(1 / pairs / static_cast<double>(of_task));
    for (const double s : speed_part) {
      capacity_.push_back(static_cast<int64_t>(std::max(std::ceil(pairs * s), std::floor((1 + limit) * pairs * s))));
    }
  });
  state_.resize((static_cast<size_t>(experts_) + 1) * workers_ * parts_);
}

void TasksAlone::Change(int64_t& value, int64_t by) {
  old_.emplace_back(&value - state_.data(), value);
  value += by;
}

void TasksAlone::Hold(int32_t expert, const Workers& workers) {
  for (const int32_t w : workers_of_[expert]) {
    std::vector<int32_t>& on = experts_on_[w];
    *std::find(on.begin(), on.end(), expert) = on.back();
    on.pop_back();
  }
  for (const int32_t w : workers) experts_on_[w].push_back(expert);
  workers_of_[expert] = workers;
}

void TasksAlone::Set(int32_t expert, std::span<const int32_t> workers) {
  BALLAST_CHECK(!workers.empty()) << "expert " << expert << " has no worker";
  const Workers before = workers_of_[expert];
  held_.emplace_back(expert, before);
  Hold(expert, Workers(workers.begin(), workers.end()));
  for (int32_t p = 0; p < parts_; ++p) {
    int64_t homeless = before.empty() ? count_[p * experts_ + expert] : 0;
    for (const int32_t w : before) {
      int64_t& flow = Flow(p, expert, w);
      if (flow == 0 || std::find(workers.begin(), workers.end(), w) != workers.end()) continue;
      homeless += flow;
      Change(Load(p, w), -flow);
      Change(flow, -flow);
    }
    for (size_t i = 0; i < workers.size() && homeless > 0; ++i) {
      const int32_t w = workers[i];
      // The last takes what is left, room or not.
      const int64_t room = std::max<int64_t>(0, capacity_[p * workers_ + w] - Load(p, w));
      const int64_t more = i + 1 == workers.size() ? homeless : std::min(homeless, room);
      if (more == 0) continue;
      Change(Load(p, w), more);
      Change(Flow(p, expert, w), more);
      homeless -= more;
    }
  }
}

void TasksAlone::Unload(int32_t part, int32_t worker) {
  const int64_t* const capacity = &capacity_[part * workers_];
  while (Load(part, worker) > capacity[worker]) {
    std::fill(from_.begin(), from_.end(), -1);
    from_[worker] = worker;
    reached_.assign(1, worker);
    int32_t room = -1;
    for (size_t i = 0; i < reached_.size() && room < 0; ++i) {
      const int32_t w = reached_[i];
      for (const int32_t e : experts_on_[w]) {
        if (workers_of_[e].size() < 2 || Flow(part, e, w) == 0) continue;
        for (const int32_t other : workers_of_[e]) {
          if (from_[other] >= 0) continue;
          from_[other] = w;
          by_[other] = e;
          reached_.push_back(other);
          if (Load(part, other) < capacity[other]) {
            room = other;
            break;
          }
        }
        if (room >= 0) break;
      }
    }
    if (room < 0) return;
    int64_t amount = std::min(Load(part, worker) - capacity[worker], capacity[room] - Load(part, room));
    for (int32_t w = room; w != worker; w = from_[w]) amount = std::min(amount, Flow(part, by_[w], from_[w]));
    for (int32_t w = room; w != worker; w = from_[w]) {
      Change(Flow(part, by_[w], from_[w]), -amount);
      Change(Flow(part, by_[w], w), amount);
    }
    Change(Load(part, worker), -amount);
    Change(Load(part, room), amount);
  }
}

double TasksAlone::Excess() {
  double out = 0;
  for (int32_t p = 0; p < parts_; ++p) {
    int64_t beyond = 0;
    for (int32_t w = 0; w < workers_; ++w) {
      if (Load(p, w) <= capacity_[p * workers_ + w]) continue;
      Unload(p, w);
      beyond += std::max<int64_t>(0, Load(p, w) - capacity_[p * workers_ + w]);
    }
    out += pair_[p] * static_cast<double>(beyond);
  }
  return out;
}

void TasksAlone::Keep() {
  old_.clear();
  held_.clear();
}

void TasksAlone::Undo() {
  for (; !old_.empty(); old_.pop_back()) state_[old_.back().first] = old_.back().second;
  for (; !held_.empty(); held_.pop_back()) Hold(held_.back().first, held_.back().second);
}

}  // namespace ballast
