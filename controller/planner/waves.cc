#include "controller/planner/waves.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"
#include "proto/placement/shares.h"

namespace ballast {
namespace {

enum class State : uint8_t { kPending, kInWave, kDone };

struct Arrival {
  ExpertId expert;
  int32_t worker;
  bool lost;  // the expert has no replica before the wave
  State state = State::kPending;
};

struct Departure {
  ExpertId expert;
  int32_t worker;
  State state = State::kPending;
};

// A Change by indices of its arrivals and departures.
struct Group {
  int32_t layer;
  std::vector<int32_t> arrivals;
  std::vector<int32_t> departures;
};

// Builds one wave after the other. Within a wave, changes are made one layer at a time and can be undone.
class Builder {
 public:
  Builder(const Placement& current, std::span<const DispatchTable> target, const Topology& topology, LoadMatrix load,
          const WaveLimits& limits)
      : experts_(current.num_experts),
        replicas_(current.num_layers),
        taken_(topology.workers.size()),
        target_(target),
        topology_(topology),
        load_(std::move(load)),
        limits_(limits),
        workers_(static_cast<int32_t>(topology.workers.size())),
        used_(workers_),
        incoming_(workers_),
        room_(workers_),
        alive_(static_cast<size_t>(current.num_layers) * current.num_experts),
        arrivals_of_(current.num_layers),
        departures_of_(current.num_layers),
        departures_at_(workers_) {
    bool alike = true;
    for (const TopologyWorker& w : topology.workers) {
      speeds_.push_back(w.speed);
      alike &= w.speed == topology.workers[0].speed;
    }
    if (alike) speeds_.clear();
    layers_ = Onto(current, topology);
    for (int32_t w = 0; w < workers_; ++w) taken_[w].resize(topology.workers[w].capacity.slots);
    for (const Replica& r : current.replicas) {
      ++used_[r.worker];
      ++alive_[Index(r.expert)];
      replicas_[r.expert.layer].push_back(r);
      if (r.slot < static_cast<int32_t>(taken_[r.worker].size())) taken_[r.worker][r.slot] = true;
    }
    for (int32_t l = 0; l < current.num_layers; ++l) {
      busiest_.push_back(Busiest(layers_[l], l));
      total_ += busiest_.back();
    }
  }

  // The way to the target in an order of its own.
  absl::StatusOr<std::vector<Wave>> Build() {
    for (int32_t l = 0; l < num_layers(); ++l) {
      for (int32_t e = 0; e < experts_; ++e) Compare({l, e});
    }
    OrderLayers();
    std::vector<Wave> waves;
    while (arrivals_left_ + departures_left_ > 0) {
      BeginWave();
      for (const int32_t l : order_) TryLayer(l, /*force=*/false);
      bool within = true;
      if (touched_.empty()) {
        // Nothing is good enough: the least bad layer, so that the rest can follow.
        within = false;
        ForceLeastBad();
        if (touched_.empty()) return NoRoom();
      }
      waves.push_back(EndWave(within));
    }
    AddWeights(waves);
    return waves;
  }

  // The changes in their order.
  absl::StatusOr<std::vector<Wave>> BuildInOrder(std::span<const Change> changes) {
    std::vector<Group> groups;
    for (const Change& change : changes) {
      Group& group = groups.emplace_back();
      group.layer = change.layer;
      for (const auto& [e, w] : change.arrivals) {
        const DispatchTable& table = layers_[change.layer];
        group.arrivals.push_back(AddArrival({{change.layer, e}, w, table.begin[e] == table.begin[e + 1]}));
      }
      for (const auto& [e, w] : change.departures) group.departures.push_back(AddDeparture({{change.layer, e}, w}));
    }
    std::vector<Wave> waves;
    while (!groups.empty()) {
      BeginWave();
      std::vector<bool> layer_waits(layers_.size());
      std::vector<bool> worker_waits(workers_);
      std::vector<Group> rest;
      for (Group& group : groups) {
        if (!layer_waits[group.layer] && Fits(group, worker_waits)) {
          for (const int32_t a : group.arrivals) Take(a);
          for (const int32_t d : group.departures) Leave(d);
          continue;
        }
        // What comes after it in its layer and on its workers stays after it.
        layer_waits[group.layer] = true;
        for (const int32_t a : group.arrivals) worker_waits[arrivals_[a].worker] = true;
        rest.push_back(std::move(group));
      }
      if (log_.empty()) return NoRoom();
      Settle(0, /*force=*/true);
      waves.push_back(EndWave(total_ <= before_ * (1 + limits_.tolerance + kRounding)));
      groups = std::move(rest);
    }
    AddWeights(waves);
    return waves;
  }

 private:
  // Of weights: they are whole numbers.
  static constexpr double kRounding = 1e-4;

  bool Fits(const Group& group, const std::vector<bool>& worker_waits) {
    const size_t mark = log_.size();
    bool fits = true;
    for (const int32_t a : group.arrivals) {
      const int32_t w = arrivals_[a].worker;
      fits &= !worker_waits[w] && incoming_[w] < room_[w];
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

  int32_t num_layers() const { return static_cast<int32_t>(replicas_.size()); }
  size_t Index(ExpertId e) const { return static_cast<size_t>(e.layer) * experts_ + e.expert; }
  int32_t Limit(int32_t w) const {
    return topology_.workers[w].capacity.slots - topology_.workers[w].capacity.staging_slots;
  }

  void Compare(ExpertId e) {
    const auto ranks = [&](const DispatchTable& t) {
      std::vector<int32_t> out(t.rank.begin() + t.begin[e.expert], t.rank.begin() + t.begin[e.expert + 1]);
      std::sort(out.begin(), out.end());
      return out;
    };
    const std::vector<int32_t> now = ranks(layers_[e.layer]);
    const std::vector<int32_t> then = ranks(target_[e.layer]);
    for (const int32_t w : then) {
      if (!std::binary_search(now.begin(), now.end(), w)) AddArrival({e, w, now.empty()});
    }
    for (const int32_t w : now) {
      if (!std::binary_search(then.begin(), then.end(), w)) AddDeparture({e, w});
    }
  }

  int32_t AddArrival(const Arrival& arrival) {
    const auto index = static_cast<int32_t>(arrivals_.size());
    arrivals_of_[arrival.expert.layer].push_back(index);
    arrivals_.push_back(arrival);
    ++arrivals_left_;
    return index;
  }
  int32_t AddDeparture(const Departure& departure) {
    const auto index = static_cast<int32_t>(departures_.size());
    departures_of_[departure.expert.layer].push_back(index);
    departures_at_[departure.worker].push_back(index);
    departures_.push_back(departure);
    ++departures_left_;
    return index;
  }

  // Lost experts first, then by what the layer gains.
  void OrderLayers() {
    std::vector<std::pair<double, int32_t>> gains;
    for (int32_t l = 0; l < num_layers(); ++l) {
      std::stable_sort(arrivals_of_[l].begin(), arrivals_of_[l].end(), [&](int32_t a, int32_t b) {
        if (arrivals_[a].lost != arrivals_[b].lost) return arrivals_[a].lost;
        return Tokens(arrivals_[a].expert) > Tokens(arrivals_[b].expert);
      });
      if (arrivals_of_[l].empty() && departures_of_[l].empty()) continue;
      double gain = busiest_[l] - Busiest(target_[l], l);
      for (const int32_t a : arrivals_of_[l]) {
        if (arrivals_[a].lost) gain = std::numeric_limits<double>::infinity();
      }
      gains.push_back({-gain, l});
    }
    std::sort(gains.begin(), gains.end());
    for (const auto& [gain, l] : gains) order_.push_back(l);
  }

  double Tokens(ExpertId e) const { return load_.layer(e.layer)[e.expert]; }

  double Busiest(const DispatchTable& table, int32_t layer) const {
    const std::vector<double> loads = WorkerLoads(table, load_.layer(layer), topology_);
    return *std::max_element(loads.begin(), loads.end());
  }

  void BeginWave() {
    touched_.clear();
    before_ = total_;
    for (int32_t w = 0; w < workers_; ++w) {
      incoming_[w] = 0;
      room_[w] = topology_.workers[w].capacity.slots - used_[w];
      if (limits_.moves_per_worker > 0) room_[w] = std::min(room_[w], limits_.moves_per_worker);
    }
  }

  // Every change of the wave is an entry of the log: arrivals by index, departures by -1 - index.
  void Take(int32_t a) {
    Arrival& arrival = arrivals_[a];
    arrival.state = State::kInWave;
    ++incoming_[arrival.worker];
    ++used_[arrival.worker];
    ++alive_[Index(arrival.expert)];
    log_.push_back(a);
  }
  void Leave(int32_t d) {
    Departure& departure = departures_[d];
    departure.state = State::kInWave;
    --used_[departure.worker];
    --alive_[Index(departure.expert)];
    log_.push_back(-1 - d);
  }
  void UndoTo(size_t mark) {
    while (log_.size() > mark) {
      const int32_t entry = log_.back();
      log_.pop_back();
      if (entry >= 0) {
        Arrival& arrival = arrivals_[entry];
        arrival.state = State::kPending;
        --incoming_[arrival.worker];
        --used_[arrival.worker];
        --alive_[Index(arrival.expert)];
      } else {
        Departure& departure = departures_[-1 - entry];
        departure.state = State::kPending;
        ++used_[departure.worker];
        ++alive_[Index(departure.expert)];
      }
    }
  }

  // Brings an expert in, with the departures and further arrivals that it takes: a worker at its limit gives a replica
  // up, and if that is the expert's last, the expert must arrive elsewhere in the same wave. Such a chain ends at a
  // worker with room or a replica to spare, or closes into a cycle; a cycle needs one free slot on each of its workers.
  // Every worker always has the same choice, so that some start on each cycle closes it.
  bool Bring(int32_t a) {
    const size_t mark = log_.size();
    int32_t next = a;
    while (true) {
      const int32_t w = arrivals_[next].worker;
      if (incoming_[w] >= room_[w]) break;
      Take(next);
      if (used_[w] <= Limit(w)) return true;
      const int32_t spare = ChooseDeparture(w, arrivals_[next].expert.layer, /*spare=*/true);
      if (spare >= 0) {
        Leave(spare);
        return true;
      }
      const int32_t last = ChooseDeparture(w, -1, /*spare=*/false);
      if (last < 0) break;
      const ExpertId e = departures_[last].expert;
      next = -1;
      for (const int32_t other : arrivals_of_[e.layer]) {
        if (arrivals_[other].expert == e && arrivals_[other].state == State::kPending) {
          next = other;
          break;
        }
      }
      if (next < 0) break;
      Leave(last);
    }
    UndoTo(mark);
    return false;
  }

  // A pending departure at `w`: one whose expert lives on without it, of `layer` before others; or else one whose
  // expert does not. -1: none.
  int32_t ChooseDeparture(int32_t w, int32_t layer, bool spare) const {
    int32_t best = -1;
    for (const int32_t d : departures_at_[w]) {
      if (departures_[d].state != State::kPending) continue;
      if ((alive_[Index(departures_[d].expert)] > 1) != spare) continue;
      if (departures_[d].expert.layer == layer) return d;
      if (best < 0) best = d;
    }
    return best;
  }

  // Makes as many of the layer's changes as fit, and keeps them if the wave stays within the tolerance.
  bool TryLayer(int32_t l, bool force) {
    const size_t mark = log_.size();
    bool arrived = true;
    for (const int32_t a : arrivals_of_[l]) {
      if (arrivals_[a].state == State::kPending) arrived &= Bring(a);
    }
    if (arrived) {
      for (const int32_t d : departures_of_[l]) {
        if (departures_[d].state == State::kPending && alive_[Index(departures_[d].expert)] > 1) Leave(d);
      }
    }
    if (log_.size() == mark) return false;
    return Settle(mark, force);
  }

  // Evaluates the layers changed since `mark`.
  bool Settle(size_t mark, bool force) {
    std::vector<int32_t> changed;
    bool restores = false;
    for (size_t i = mark; i < log_.size(); ++i) {
      restores |= log_[i] >= 0 && arrivals_[log_[i]].lost;
      changed.push_back(log_[i] >= 0 ? arrivals_[log_[i]].expert.layer : departures_[-1 - log_[i]].expert.layer);
    }
    std::sort(changed.begin(), changed.end());
    changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
    std::vector<DispatchTable> tables;
    std::vector<double> busiest;
    double total = total_;
    for (const int32_t l : changed) {
      tables.push_back(TableNow(l));
      busiest.push_back(Busiest(tables.back(), l));
      total += busiest.back() - busiest_[l];
    }
    // The load of a lost expert was on nobody; its return is no worsening.
    if (restores) before_ += std::max(0.0, total - total_);
    if (!force && total > before_ * (1 + limits_.tolerance + kRounding)) {
      UndoTo(mark);
      return false;
    }
    for (size_t i = 0; i < changed.size(); ++i) {
      layers_[changed[i]] = std::move(tables[i]);
      busiest_[changed[i]] = busiest[i];
    }
    total_ = total;
    touched_.insert(touched_.end(), changed.begin(), changed.end());
    return true;
  }

  void ForceLeastBad() {
    int32_t best = -1;
    double least = std::numeric_limits<double>::infinity();
    for (const int32_t l : order_) {
      const auto layers = layers_;
      const auto busiest = busiest_;
      const double total = total_;
      if (TryLayer(l, /*force=*/true) && total_ < least) {
        least = total_;
        best = l;
      }
      UndoTo(0);
      layers_ = layers;
      busiest_ = busiest;
      total_ = total;
      touched_.clear();
    }
    if (best >= 0) TryLayer(best, /*force=*/true);
  }

  // The layer with the wave's changes so far; the target's own weights once it is reached.
  DispatchTable TableNow(int32_t l) const {
    std::vector<std::pair<int32_t, int32_t>> held;  // (expert, worker)
    held.reserve(replicas_[l].size() + arrivals_of_[l].size());
    for (const Replica& r : replicas_[l]) held.push_back({r.expert.expert, r.worker});
    for (const int32_t d : departures_of_[l]) {
      if (departures_[d].state != State::kInWave) continue;
      const std::pair gone(departures_[d].expert.expert, departures_[d].worker);
      held.erase(std::lower_bound(held.begin(), held.end(), gone));
    }
    for (const int32_t a : arrivals_of_[l]) {
      if (arrivals_[a].state != State::kInWave) continue;
      const std::pair come(arrivals_[a].expert.expert, arrivals_[a].worker);
      held.insert(std::lower_bound(held.begin(), held.end(), come), come);
    }
    const auto pending = [](const auto& items, const std::vector<int32_t>& indices) {
      return std::any_of(indices.begin(), indices.end(), [&](int32_t i) { return items[i].state == State::kPending; });
    };
    DispatchTable table;
    table.begin.assign(experts_ + 1, 0);
    for (const auto& [e, w] : held) {
      ++table.begin[e + 1];
      table.rank.push_back(w);
    }
    for (int32_t e = 0; e < experts_; ++e) table.begin[e + 1] += table.begin[e];
    table.weight.assign(table.rank.size(), 1);
    if (!pending(arrivals_, arrivals_of_[l]) && !pending(departures_, departures_of_[l])) {
      table.weight = TargetWeights(l, table);
    } else if (!SplitsEqually(target_[l])) {
      ShareSolver solver(table, workers_, speeds_);
      std::vector<int64_t> flow(table.num_replicas());
      solver.Solve(ToIntegers(load_.layer(l)), flow);
      FlowToWeights(flow, table);
    }
    return table;
  }

  static bool SplitsEqually(const DispatchTable& table) {
    return std::all_of(table.weight.begin(), table.weight.end(), [](uint32_t w) { return w == 1; });
  }

  // `table` has the target's replicas, by worker.
  std::vector<uint32_t> TargetWeights(int32_t l, const DispatchTable& table) const {
    std::vector<uint32_t> weights;
    const DispatchTable& target = target_[l];
    for (int32_t e = 0; e < table.num_experts(); ++e) {
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        const auto at =
            std::find(target.rank.begin() + target.begin[e], target.rank.begin() + target.begin[e + 1], table.rank[r]);
        weights.push_back(target.weight[at - target.rank.begin()]);
      }
    }
    return weights;
  }

  Wave EndWave(bool within) {
    Wave wave;
    wave.busiest = total_;
    wave.within_tolerance = within;
    std::vector<int32_t> free(workers_);
    std::vector<int32_t> outgoing(workers_);
    for (const int32_t entry : log_) {
      if (entry < 0) {
        Departure& departure = departures_[-1 - entry];
        departure.state = State::kDone;
        --departures_left_;
        wave.drops.push_back(*Find(departure.expert, departure.worker));
        continue;
      }
      Arrival& arrival = arrivals_[entry];
      arrival.state = State::kDone;
      --arrivals_left_;
      for (const int32_t other : arrivals_of_[arrival.expert.layer]) {
        if (arrivals_[other].expert == arrival.expert) arrivals_[other].lost = false;
      }
      int32_t& slot = free[arrival.worker];
      while (taken_[arrival.worker][slot]) ++slot;
      wave.moves.push_back({arrival.expert, -1, arrival.worker, slot++});
    }
    std::sort(wave.moves.begin(), wave.moves.end(),
              [](const Move& a, const Move& b) { return std::tie(a.worker, a.slot) < std::tie(b.worker, b.slot); });
    std::sort(wave.drops.begin(), wave.drops.end());
    for (Move& move : wave.moves) move.source = ChooseSource(move, outgoing);
    std::sort(touched_.begin(), touched_.end());
    touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
    FillLayers(touched_, wave);
    for (const int32_t l : touched_) replicas_[l].clear();
    for (const Replica& r : wave.layers) replicas_[r.expert.layer].push_back(r);
    for (const Move& move : wave.moves) taken_[move.worker][move.slot] = true;
    for (const Replica& r : wave.drops) {
      if (r.slot < static_cast<int32_t>(taken_[r.worker].size())) taken_[r.worker][r.slot] = false;
    }
    log_.clear();
    return wave;
  }

  // The holder whose link is free soonest.
  int32_t ChooseSource(const Move& move, std::vector<int32_t>& outgoing) const {
    int32_t best = -1;
    double soonest = std::numeric_limits<double>::infinity();
    const std::vector<Replica>& layer = replicas_[move.expert.layer];
    for (auto r = Find(move.expert, 0); r != layer.end() && r->expert == move.expert; ++r) {
      const double rate = Rate(topology_, r->worker, move.worker);
      const double done = (outgoing[r->worker] + 1) / rate;
      if (done < soonest) {
        soonest = done;
        best = r->worker;
      }
    }
    if (best >= 0) ++outgoing[best];
    return best;
  }

  static double Rate(const Topology& topology, int32_t from, int32_t to) {
    return topology.workers[from].node == topology.workers[to].node ? topology.node_bytes_per_second
                                                                    : topology.cross_node_bytes_per_second;
  }

  // The first replica of its layer that is not before it.
  std::vector<Replica>::const_iterator Find(ExpertId expert, int32_t worker) const {
    const std::vector<Replica>& layer = replicas_[expert.layer];
    return std::lower_bound(layer.begin(), layer.end(), std::tie(expert, worker),
                            [](const Replica& r, const std::tuple<const ExpertId&, const int32_t&>& key) {
                              return std::tie(r.expert, r.worker) < key;
                            });
  }

  // Wave::layers: the replicas of `layers` after the wave.
  void FillLayers(const std::vector<int32_t>& layers, Wave& wave) const {
    std::vector<const Move*> arrived;
    for (const Move& move : wave.moves) arrived.push_back(&move);
    const auto before = [](const Move* a, const Move* b) {
      return std::tie(a->expert, a->worker) < std::tie(b->expert, b->worker);
    };
    std::sort(arrived.begin(), arrived.end(), before);
    for (const int32_t l : layers) {
      const DispatchTable& table = layers_[l];
      auto stays = replicas_[l].begin();
      for (int32_t e = 0; e < table.num_experts(); ++e) {
        const ExpertId expert{l, e};
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
          const int32_t w = table.rank[r];
          while (stays != replicas_[l].end() && std::tie(stays->expert, stays->worker) < std::tie(expert, w)) ++stays;
          int32_t slot = -1;
          if (stays != replicas_[l].end() && stays->expert == expert && stays->worker == w) {
            slot = stays->slot;
          } else {
            const Move key{expert, -1, w, 0};
            const auto move = std::lower_bound(arrived.begin(), arrived.end(), &key, before);
            if (move != arrived.end() && (*move)->expert == expert && (*move)->worker == w) slot = (*move)->slot;
          }
          BALLAST_CHECK(slot >= 0) << "layer " << l << " expert " << e << " worker " << w;
          wave.layers.push_back({expert, w, slot, table.weight[r]});
        }
      }
    }
  }

  // Layers whose weights alone change go with the first wave, or make one without moves.
  void AddWeights(std::vector<Wave>& waves) {
    std::vector<int32_t> changed;
    for (int32_t l = 0; l < num_layers(); ++l) {
      if (!arrivals_of_[l].empty() || !departures_of_[l].empty()) continue;
      DispatchTable table = layers_[l];
      table.weight = TargetWeights(l, table);
      if (table.weight == layers_[l].weight) continue;
      const double busiest = Busiest(table, l);
      total_ += busiest - busiest_[l];
      for (Wave& wave : waves) wave.busiest += busiest - busiest_[l];
      busiest_[l] = busiest;
      layers_[l] = std::move(table);
      changed.push_back(l);
    }
    if (changed.empty()) return;
    if (waves.empty()) {
      waves.emplace_back();
      waves[0].busiest = total_;
    }
    FillLayers(changed, waves[0]);
    std::sort(waves[0].layers.begin(), waves[0].layers.end());
  }

  absl::Status NoRoom() const {
    for (int32_t w = 0; w < workers_; ++w) {
      if (room_[w] > 0) continue;
      const auto waits = [&](const Arrival& a) { return a.worker == w && a.state == State::kPending; };
      if (std::none_of(arrivals_.begin(), arrivals_.end(), waits)) continue;
      return absl::FailedPreconditionError(
          absl::StrCat("worker '", topology_.workers[w].name, "' has no free slot to move through: ", used_[w], " of ",
                       topology_.workers[w].capacity.slots, " slots are in use; at least 1 staging slot is needed"));
    }
    return absl::FailedPreconditionError("the target does not fit the workers' slots");
  }

  const int32_t experts_;
  std::vector<std::vector<Replica>> replicas_;  // by layer, before the wave that is being built
  std::vector<std::vector<bool>> taken_;        // [workers][slots], the same
  const std::span<const DispatchTable> target_;
  const Topology& topology_;
  const LoadMatrix load_;
  const WaveLimits limits_;
  const int32_t workers_;
  std::vector<uint32_t> speeds_;  // empty: all alike
  std::vector<DispatchTable> layers_;
  std::vector<double> busiest_;    // [layers]
  double total_ = 0;               // of busiest_
  double before_ = 0;              // total_ before the wave
  std::vector<int32_t> used_;      // [workers] slots after the wave
  std::vector<int32_t> incoming_;  // [workers] arrivals of the wave
  std::vector<int32_t> room_;      // [workers] arrivals that the wave may have
  std::vector<int32_t> alive_;     // [layers][experts] replicas after the wave
  std::vector<Arrival> arrivals_;
  std::vector<Departure> departures_;
  int64_t arrivals_left_ = 0;
  int64_t departures_left_ = 0;
  std::vector<std::vector<int32_t>> arrivals_of_;    // by layer
  std::vector<std::vector<int32_t>> departures_of_;  // by layer
  std::vector<std::vector<int32_t>> departures_at_;  // by worker
  std::vector<int32_t> order_;                       // layers that change
  std::vector<int32_t> touched_;                     // layers that the wave changes
  std::vector<int32_t> log_;                         // the wave's changes
};

}  // namespace

absl::StatusOr<std::vector<Wave>> PlanWaves(const Placement& current, std::span<const DispatchTable> target,
                                            const Topology& topology, std::span<const Scenario> scenarios,
                                            const WaveLimits& limits) {
  BALLAST_CHECK(static_cast<int32_t>(target.size()) == current.num_layers) << target.size() << " layers";
  return Builder(current, target, topology, Blend(scenarios), limits).Build();
}

absl::StatusOr<std::vector<Wave>> PackWaves(const Placement& current, std::span<const Change> changes,
                                            std::span<const DispatchTable> target, const Topology& topology,
                                            std::span<const Scenario> scenarios, const WaveLimits& limits) {
  BALLAST_CHECK(static_cast<int32_t>(target.size()) == current.num_layers) << target.size() << " layers";
  return Builder(current, target, topology, Blend(scenarios), limits).BuildInOrder(changes);
}

Placement ApplyWave(Placement placement, const Wave& wave) {
  std::vector<Replica> replicas;
  replicas.reserve(placement.replicas.size() + wave.moves.size());
  size_t next = 0;
  for (size_t i = 0; i < placement.replicas.size();) {
    const int32_t layer = placement.replicas[i].expert.layer;
    while (next < wave.layers.size() && wave.layers[next].expert.layer < layer) replicas.push_back(wave.layers[next++]);
    const bool replaced = next < wave.layers.size() && wave.layers[next].expert.layer == layer;
    while (i < placement.replicas.size() && placement.replicas[i].expert.layer == layer) {
      if (!replaced) replicas.push_back(placement.replicas[i]);
      ++i;
    }
    while (next < wave.layers.size() && wave.layers[next].expert.layer == layer)
      replicas.push_back(wave.layers[next++]);
  }
  replicas.insert(replicas.end(), wave.layers.begin() + next, wave.layers.end());
  placement.replicas = std::move(replicas);
  return placement;
}

Placement ApplyWaves(Placement placement, std::span<const Wave> waves) {
  // Of each layer what the last wave that touches it leaves.
  Wave all;
  std::vector<bool> seen(placement.num_layers);
  std::vector<std::span<const Replica>> parts;
  for (size_t i = waves.size(); i-- > 0;) {
    const std::vector<Replica>& layers = waves[i].layers;
    for (size_t first = 0; first < layers.size();) {
      const int32_t layer = layers[first].expert.layer;
      size_t last = first;
      while (last < layers.size() && layers[last].expert.layer == layer) ++last;
      if (!seen[layer]) parts.push_back(std::span(layers).subspan(first, last - first));
      seen[layer] = true;
      first = last;
    }
  }
  std::sort(parts.begin(), parts.end(),
            [](const auto& a, const auto& b) { return a[0].expert.layer < b[0].expert.layer; });
  for (const auto& part : parts) all.layers.insert(all.layers.end(), part.begin(), part.end());
  return ApplyWave(std::move(placement), all);
}

double TransferSeconds(const Wave& wave, const Topology& topology, int64_t expert_bytes) {
  return CostOfTransfers(std::span(&wave, 1), topology, expert_bytes).seconds;
}

TransferCost CostOfTransfers(std::span<const Wave> waves, const Topology& topology, int64_t expert_bytes) {
  const auto bytes = static_cast<double>(expert_bytes);
  const double seconds_of[] = {bytes / topology.node_bytes_per_second, bytes / topology.cross_node_bytes_per_second,
                               bytes / topology.checkpoint_bytes_per_second};
  TransferCost cost;
  TransferCost::Link* const links[] = {&cost.node, &cost.cross_node, &cost.checkpoint};
  const size_t workers = topology.workers.size();
  // [workers] for each link, taken in and given out.
  std::vector<double> time[2][3];
  for (const Wave& wave : waves) {
    for (auto& direction : time) {
      for (auto& link : direction) link.assign(workers, 0);
    }
    for (const Move& move : wave.moves) {
      const int link = move.source < 0                                                            ? 2
                       : topology.workers[move.source].node == topology.workers[move.worker].node ? 0
                                                                                                  : 1;
      ++links[link]->moves;
      links[link]->bytes += expert_bytes;
      time[0][link][move.worker] += seconds_of[link];
      if (move.source >= 0) time[1][link][move.source] += seconds_of[link];
    }
    double slowest = 0;
    double slowest_of[3] = {};
    for (const auto& direction : time) {
      for (size_t w = 0; w < workers; ++w) {
        double sum = 0;
        for (int link = 0; link < 3; ++link) {
          sum += direction[link][w];
          slowest_of[link] = std::max(slowest_of[link], direction[link][w]);
        }
        slowest = std::max(slowest, sum);
      }
    }
    for (int link = 0; link < 3; ++link) links[link]->seconds += slowest_of[link];
    cost.seconds += slowest;
  }
  return cost;
}

}  // namespace ballast
