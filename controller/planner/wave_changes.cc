#include "controller/planner/wave_changes.h"

#include <algorithm>

namespace ballast {

WaveChanges::WaveChanges(const Placement& current, const Topology& topology, const WaveLimits& limits)
    : topology_(topology),
      limits_(limits),
      experts_(current.num_experts),
      used_(topology.workers.size()),
      incoming_(topology.workers.size()),
      room_(topology.workers.size()),
      alive_(static_cast<size_t>(current.num_layers) * current.num_experts),
      arrivals_of_(current.num_layers),
      departures_of_(current.num_layers),
      departures_at_(topology.workers.size()) {
  for (const Replica& r : current.replicas) {
    ++used_[r.worker];
    ++alive_[Index(r.expert)];
  }
}

bool WaveChanges::Pending(int32_t layer) const {
  const auto pending = [](const auto& items, const std::vector<int32_t>& indices) {
    return std::any_of(indices.begin(), indices.end(),
                       [&](int32_t i) { return items[i].state == ChangeState::kPending; });
  };
  return pending(arrivals_, arrivals_of_[layer]) || pending(departures_, departures_of_[layer]);
}

bool WaveChanges::CanLeave(int32_t departure) const {
  const Departure& d = departures_[departure];
  return d.state == ChangeState::kPending && alive_[Index(d.expert)] > 1;
}

void WaveChanges::BeginWave() {
  for (size_t w = 0; w < used_.size(); ++w) {
    incoming_[w] = 0;
    room_[w] = topology_.workers[w].capacity.slots - used_[w];
    if (limits_.moves_per_worker > 0) room_[w] = std::min(room_[w], limits_.moves_per_worker);
  }
}

void WaveChanges::EndWave() {
  left_ -= std::ssize(log_);
  std::vector<bool> gave(used_.size());
  for (const int32_t entry : log_) {
    if (entry >= 0) {
      arrivals_[entry].state = ChangeState::kDone;
    } else {
      departures_[-1 - entry].state = ChangeState::kDone;
      gave[departures_[-1 - entry].worker] = true;
    }
  }
  // What is done need not be looked at again.
  for (size_t w = 0; w < gave.size(); ++w) {
    if (!gave[w]) continue;
    std::erase_if(departures_at_[w], [&](int32_t d) { return departures_[d].state == ChangeState::kDone; });
  }
  log_.clear();
}

int32_t WaveChanges::AddArrival(const Arrival& arrival) {
  const auto index = static_cast<int32_t>(arrivals_.size());
  arrivals_of_[arrival.expert.layer].push_back(index);
  arrivals_.push_back(arrival);
  ++left_;
  return index;
}

int32_t WaveChanges::AddDeparture(const Departure& departure) {
  const auto index = static_cast<int32_t>(departures_.size());
  departures_of_[departure.expert.layer].push_back(index);
  departures_at_[departure.worker].push_back(index);
  departures_.push_back(departure);
  ++left_;
  return index;
}

bool WaveChanges::Fits(const ChangeGroup& group, const std::vector<bool>& worker_waits) {
  // Mostly it does not.
  for (const int32_t a : group.arrivals) {
    const int32_t w = arrivals_[a].worker;
    if (worker_waits[w] || incoming_[w] >= room_[w]) return false;
  }
  const size_t mark = log_.size();
  bool fits = true;
  for (const int32_t a : group.arrivals) {
    fits &= incoming_[arrivals_[a].worker] < room_[arrivals_[a].worker];
    Take(a);
  }
  for (const int32_t d : group.departures) Leave(d);
  for (const int32_t a : group.arrivals) {
    const int32_t w = arrivals_[a].worker;
    const bool less = std::any_of(group.departures.begin(), group.departures.end(),
                                  [&](int32_t d) { return departures_[d].worker == w; });
    fits &= less || used_[w] <= Limit(w);
  }
  UndoTo(mark);
  return fits;
}

void WaveChanges::Take(int32_t a) {
  Arrival& arrival = arrivals_[a];
  arrival.state = ChangeState::kInWave;
  ++incoming_[arrival.worker];
  ++used_[arrival.worker];
  ++alive_[Index(arrival.expert)];
  log_.push_back(a);
}

void WaveChanges::Leave(int32_t d) {
  Departure& departure = departures_[d];
  departure.state = ChangeState::kInWave;
  --used_[departure.worker];
  --alive_[Index(departure.expert)];
  log_.push_back(-1 - d);
}

void WaveChanges::UndoTo(size_t mark) {
  while (log_.size() > mark) {
    const int32_t entry = log_.back();
    log_.pop_back();
    if (entry >= 0) {
      Arrival& arrival = arrivals_[entry];
      arrival.state = ChangeState::kPending;
      --incoming_[arrival.worker];
      --used_[arrival.worker];
      --alive_[Index(arrival.expert)];
    } else {
      Departure& departure = departures_[-1 - entry];
      departure.state = ChangeState::kPending;
      ++used_[departure.worker];
      ++alive_[Index(departure.expert)];
    }
  }
}

bool WaveChanges::Bring(int32_t a) { return Bring(a, /*layer_first=*/true) || Bring(a, /*layer_first=*/false); }

bool WaveChanges::Bring(int32_t a, bool layer_first) {
  const size_t mark = log_.size();
  int32_t next = a;
  while (true) {
    const int32_t w = arrivals_[next].worker;
    if (incoming_[w] >= room_[w]) break;
    Take(next);
    if (used_[w] <= Limit(w)) return true;
    const int32_t out = ChooseDeparture(w, arrivals_[next].expert.layer, layer_first);
    if (out < 0) break;
    const ExpertId e = departures_[out].expert;
    if (alive_[Index(e)] > 1) {
      Leave(out);
      return true;
    }
    next = -1;
    for (const int32_t other : arrivals_of_[e.layer]) {
      if (arrivals_[other].expert == e && arrivals_[other].state == ChangeState::kPending) {
        next = other;
        break;
      }
    }
    if (next < 0) break;
    Leave(out);
  }
  UndoTo(mark);
  return false;
}

int32_t WaveChanges::DepartureOf(int32_t w, int32_t layer, bool spare) const {
  const std::vector<int32_t>& at = departures_at_[w];
  // They stand in the order of layers.
  const auto before = [&](int32_t d, int32_t l) { return departures_[d].expert.layer < l; };
  for (auto d = std::lower_bound(at.begin(), at.end(), layer, before);
       d != at.end() && departures_[*d].expert.layer == layer; ++d) {
    if (IsPending(*d, spare)) return *d;
  }
  return -1;
}

int32_t WaveChanges::AnyDeparture(int32_t w, bool spare) const {
  const std::vector<int32_t>& at = departures_at_[w];
  const auto first = std::find_if(at.begin(), at.end(), [&](int32_t d) { return IsPending(d, spare); });
  return first == at.end() ? -1 : *first;
}

int32_t WaveChanges::ChooseDeparture(int32_t w, int32_t layer, bool layer_first) const {
  int32_t out = DepartureOf(w, layer, /*spare=*/true);
  if (out < 0 && layer_first) out = DepartureOf(w, layer, /*spare=*/false);
  if (out < 0) out = AnyDeparture(w, /*spare=*/true);
  if (out < 0) out = AnyDeparture(w, /*spare=*/false);
  return out;
}

}  // namespace ballast
