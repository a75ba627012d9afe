#include "proto/placement/shares.h"

#include <algorithm>

#include "proto/base/check.h"

namespace ballast {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

ShareSolver::ShareSolver(const DispatchTable& table, int32_t num_ranks, std::span<const uint32_t> speed, uint32_t unit,
                         int64_t most_searched)
    : speed_(speed.begin(), speed.end()),
      unit_(speed.empty() ? 1 : unit),
      most_searched_(most_searched),
      load_(num_ranks),
      from_(num_ranks),
      by_(num_ranks) {
  BALLAST_CHECK(speed.empty() || static_cast<int32_t>(speed.size()) == num_ranks) << speed.size() << " speeds";
  reached_.reserve(num_ranks);
  Reset(table);
}

void ShareSolver::Reset(const DispatchTable& table) {
  const auto num_ranks = static_cast<int32_t>(load_.size());
  begin_ = table.begin;
  rank_ = table.rank;
  shared_.clear();
  rank_begin_.assign(num_ranks + 1, 0);
  replica_expert_.resize(rank_.size());
  seen_.resize(table.num_experts());
  const std::span<const int32_t> begin = begin_;
  const std::span<const int32_t> rank = rank_;
  uint32_t last_rank = 0;  // one below 0 is beyond all
  for (const int32_t r : rank) last_rank = std::max(last_rank, static_cast<uint32_t>(r));
  BALLAST_CHECK(rank.empty() || last_rank < static_cast<uint32_t>(num_ranks))
      << "rank " << static_cast<int32_t>(last_rank) << " of " << num_ranks;
  int32_t most = 0;
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    if (begin[e + 1] - begin[e] < 2) continue;
    most = std::max(most, begin[e + 1] - begin[e]);
    shared_.push_back(e);
    for (int32_t r = begin[e]; r < begin[e + 1]; ++r) {
      replica_expert_[r] = e;
      ++rank_begin_[rank[r] + 1];
    }
  }
  for (int32_t d = 0; d < num_ranks; ++d) rank_begin_[d + 1] += rank_begin_[d];
  rank_replica_.resize(rank_begin_[num_ranks]);
  next_.assign(rank_begin_.begin(), rank_begin_.end() - 1);
  for (const int32_t e : shared_) {
    for (int32_t r = begin[e]; r < begin[e + 1]; ++r) rank_replica_[next_[rank[r]]++] = r;
  }
  order_.reserve(most);
}

void ShareSolver::FillLevel(int32_t expert, int64_t load, std::span<int64_t> flow) {
  if (speed_.empty() && begin_[expert + 1] - begin_[expert] == 2) {
    // What follows, for two ranks alike.
    const int32_t first = begin_[expert];
    const bool ordered = load_[rank_[first]] <= load_[rank_[first + 1]];
    const int32_t low = ordered ? first : first + 1;
    const int32_t high = ordered ? first + 1 : first;
    const int64_t at_low = load_[rank_[low]];
    const int64_t at_high = load_[rank_[high]];
    const int64_t more = at_high < at_low + load ? (load - (at_high - at_low)) / 2 + (at_high - at_low) : load;
    flow[low] = more;
    flow[high] = load - more;
    load_[rank_[low]] += more;
    load_[rank_[high]] += load - more;
    return;
  }
  // Ranks by load over speed; then the longest prefix that, raised to one level, still lies below the next.
  order_.clear();
  for (int32_t r = begin_[expert]; r < begin_[expert + 1]; ++r) order_.push_back(r);
  const auto speed = [&](int32_t r) { return speed_.empty() ? int64_t{1} : int64_t{speed_[rank_[r]]}; };
  std::sort(order_.begin(), order_.end(), [&](int32_t a, int32_t b) {
    const int64_t left = load_[rank_[a]] * speed(b);
    const int64_t right = load_[rank_[b]] * speed(a);
    return left != right ? left < right : a < b;
  });
  int64_t sum = load;
  int64_t speeds = 0;
  size_t used = 0;
  while (used < order_.size() && (used == 0 || load_[rank_[order_[used]]] * speeds < sum * speed(order_[used]))) {
    sum += load_[rank_[order_[used]]];
    speeds += speed(order_[used]);
    ++used;
  }
  // What rounding leaves over is spread: no rank is more than a token off its part of the level.
  int64_t left = load;
  for (size_t i = 0; i < order_.size(); ++i) {
    const int32_t r = order_[i];
    int64_t part = 0;
    if (i < used) {
      const int64_t level = sum * speed(r) / speeds;
      sum -= level;
      speeds -= speed(r);
      part = i + 1 == used ? left : std::clamp<int64_t>(level - load_[rank_[r]], 0, left);
    }
    flow[r] = part;
    left -= part;
    load_[rank_[r]] += part;
  }
}

bool ShareSolver::Unload(int32_t rank, int64_t z, std::span<int64_t> flow) {
  while (load_[rank] > Capacity(z, rank) && searched_ <= most_searched_) {
    ++search_;
    std::fill(from_.begin(), from_.end(), -1);
    searched_ += std::ssize(from_);
    reached_.assign(1, rank);
    from_[rank] = -2;
    int32_t room = -1;
    for (size_t i = 0; i < reached_.size() && room < 0; ++i) {
      const int32_t d = reached_[i];
      for (int32_t k = rank_begin_[d]; k < rank_begin_[d + 1] && room < 0; ++k) {
        const int32_t give = rank_replica_[k];
        const int32_t e = replica_expert_[give];
        if (flow[give] == 0 || seen_[e] == search_) continue;
        seen_[e] = search_;
        searched_ += begin_[e + 1] - begin_[e];
        for (int32_t take = begin_[e]; take < begin_[e + 1]; ++take) {
          const int32_t other = rank_[take];
          if (from_[other] != -1) continue;
          from_[other] = give;
          by_[other] = take;
          reached_.push_back(other);
          if (load_[other] < Capacity(z, other)) {
            room = other;
            break;
          }
        }
      }
    }
    if (room < 0) return false;
    int64_t amount = std::min(load_[rank] - Capacity(z, rank), Capacity(z, room) - load_[room]);
    for (int32_t d = room; d != rank; d = rank_[from_[d]]) amount = std::min(amount, flow[from_[d]]);
    for (int32_t d = room; d != rank; d = rank_[from_[d]]) {
      flow[from_[d]] -= amount;
      flow[by_[d]] += amount;
    }
    load_[rank] -= amount;
    load_[room] += amount;
  }
  return true;
}

bool ShareSolver::FindLevels(int64_t z, std::span<const int64_t> flow) {
  const auto ranks = static_cast<int32_t>(load_.size());
  rank_level_.assign(ranks, -1);
  expert_level_.assign(begin_.size() - 1, -1);
  reached_.clear();
  for (int32_t d = 0; d < ranks; ++d) {
    if (load_[d] <= Capacity(z, d)) continue;
    rank_level_[d] = 0;
    reached_.push_back(d);
  }
  // The nearest ranks with room, and nothing behind them.
  int32_t last = std::numeric_limits<int32_t>::max();
  for (size_t i = 0; i < reached_.size(); ++i) {
    const int32_t d = reached_[i];
    if (rank_level_[d] >= last) break;
    for (int32_t k = rank_begin_[d]; k < rank_begin_[d + 1]; ++k) {
      const int32_t e = replica_expert_[rank_replica_[k]];
      if (flow[rank_replica_[k]] == 0 || expert_level_[e] >= 0) continue;
      expert_level_[e] = rank_level_[d];
      for (int32_t take = begin_[e]; take < begin_[e + 1]; ++take) {
        const int32_t other = rank_[take];
        if (rank_level_[other] >= 0) continue;
        rank_level_[other] = rank_level_[d] + 1;
        reached_.push_back(other);
        if (load_[other] < Capacity(z, other)) last = rank_level_[other];
      }
    }
  }
  next_give_.assign(rank_begin_.begin(), rank_begin_.end() - 1);
  next_take_.assign(begin_.begin(), begin_.end() - 1);
  return last != std::numeric_limits<int32_t>::max();
}

void ShareSolver::UnloadByLevels(int32_t rank, int64_t z, std::span<int64_t> flow) {
  chain_.clear();
  int32_t d = rank;
  while (load_[rank] > Capacity(z, rank)) {
    if (const int64_t room = Capacity(z, d) - load_[d]; room > 0) {
      int64_t amount = std::min(load_[rank] - Capacity(z, rank), room);
      for (const auto& [give, take] : chain_) amount = std::min(amount, flow[give]);
      for (const auto& [give, take] : chain_) {
        flow[give] -= amount;
        flow[take] += amount;
      }
      load_[rank] -= amount;
      load_[d] += amount;
      chain_.clear();
      d = rank;
      continue;
    }
    bool further = false;
    for (int32_t& k = next_give_[d]; k < rank_begin_[d + 1]; ++k) {
      const int32_t give = rank_replica_[k];
      const int32_t e = replica_expert_[give];
      if (flow[give] == 0 || expert_level_[e] != rank_level_[d]) continue;
      int32_t& take = next_take_[e];
      while (take < begin_[e + 1] && rank_level_[rank_[take]] != rank_level_[d] + 1) ++take;
      if (take == begin_[e + 1]) continue;
      chain_.push_back({give, take});
      further = true;
      break;
    }
    if (further) {
      d = rank_[chain_.back().second];
      continue;
    }
    if (chain_.empty()) return;
    // A dead end for everybody.
    rank_level_[d] = -1;
    d = rank_[chain_.back().first];
    chain_.pop_back();
  }
}

void ShareSolver::UnloadTogether(int64_t z, std::span<int64_t> flow) {
  while (FindLevels(z, flow)) {
    for (int32_t d = 0; d < static_cast<int32_t>(load_.size()); ++d) {
      if (load_[d] > Capacity(z, d)) UnloadByLevels(d, z, flow);
    }
  }
}

int64_t ShareSolver::NextLevel(int64_t z) const {
  int64_t held = 0;
  int64_t speed = 0;
  for (const int32_t other : reached_) {
    held += load_[other];
    speed += speed_.empty() ? 1 : speed_[other];
  }
  // Capacities are rounded down, so the mean alone may not move z.
  return std::max(z + 1, CeilDiv(held * unit_, speed));
}

int64_t ShareSolver::Solve(std::span<const int64_t> loads, std::span<int64_t> flow, int64_t most) {
  BALLAST_CHECK(loads.size() + 1 == begin_.size() && flow.size() == rank_.size())
      << loads.size() << " loads, " << flow.size() << " flows";
  const auto ranks = static_cast<int32_t>(load_.size());
  std::fill(load_.begin(), load_.end(), 0);
  std::fill(seen_.begin(), seen_.end(), 0);
  search_ = 0;
  const std::span<const int32_t> begin = begin_;
  const std::span<const int32_t> rank = rank_;
  const std::span<int64_t> load = load_;
  int64_t total = 0;
  for (size_t e = 0; e < loads.size(); ++e) {
    const int32_t first = begin[e];
    const int32_t replicas = begin[e + 1] - first;
    if (replicas == 0) continue;
    total += loads[e];
    if (replicas == 1) {
      flow[first] = loads[e];
      load[rank[first]] += loads[e];
    }
  }
  int64_t z = 0;
  int64_t speeds = 0;
  for (int32_t d = 0; d < ranks; ++d) {
    const int64_t speed = speed_.empty() ? 1 : speed_[d];
    z = std::max(z, CeilDiv(load_[d] * unit_, speed));
    speeds += speed;
  }
  if (ranks > 0) z = std::max(z, CeilDiv(total * unit_, speeds));
  if (z > most) return z;
  // A level start, then every shared expert once more against the others: close to the answer.
  for (const int32_t e : shared_) FillLevel(e, loads[e], flow);
  for (const int32_t e : shared_) {
    for (int32_t r = begin_[e]; r < begin_[e + 1]; ++r) load_[rank_[r]] -= flow[r];
    FillLevel(e, loads[e], flow);
  }
  // Newton's method on z. When a rank can be unloaded no further, the ranks it reaches hold load that can go nowhere
  // else, so their mean is a lower bound, above z.
  searched_ = 0;
  for (int32_t d = 0; d < ranks && searched_ <= most_searched_; ++d) {
    while (searched_ <= most_searched_ && !Unload(d, z, flow)) {
      z = NextLevel(z);
      if (z > most) return z;
    }
  }
  if (searched_ <= most_searched_) return z;
  while (UnloadTogether(z, flow), !reached_.empty()) {
    z = NextLevel(z);
    if (z > most) return z;
  }
  return z;
}

void FlowToWeights(std::span<const int64_t> flow, DispatchTable& table) {
  constexpr int64_t kScale = 1 << 20;
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    const int32_t first = table.begin[e];
    const int32_t last = table.begin[e + 1];
    if (last - first == 1) {
      table.weight[first] = 1;
      continue;
    }
    int64_t sum = 0;
    for (int32_t r = first; r < last; ++r) sum += flow[r];
    for (int32_t r = first; r < last; ++r) {
      table.weight[r] = 1;
      if (sum > 0) table.weight[r] = static_cast<uint32_t>(std::max<int64_t>(1, (flow[r] * kScale + sum / 2) / sum));
    }
  }
}

}  // namespace ballast
