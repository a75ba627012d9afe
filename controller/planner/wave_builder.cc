#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "controller/planner/score.h"
#include "controller/planner/wave_changes.h"
#include "controller/planner/waves.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// Builds one wave after the other. Within a wave, changes are made one layer at a time and can be undone.
class Builder {
 public:
  Builder(const Placement& current, std::span<const DispatchTable> target, const Topology& topology, LoadMatrix load,
          const WaveLimits& limits)
      : experts_(current.num_experts),
        replicas_(current.num_layers),
        taken_(topology.workers.size()),
        free_from_(topology.workers.size()),
        target_(target),
        topology_(topology),
        load_(std::move(load)),
        limits_(limits),
        workers_(static_cast<int32_t>(topology.workers.size())),
        solver_(workers_, Speeds(topology)),
        scorer_(topology),
        layers_(Onto(current, topology)),
        changes_(current, topology, limits) {
    for (int32_t w = 0; w < workers_; ++w) taken_[w].resize(topology.workers[w].capacity.slots);
    const std::span<const Replica> all = current.replicas;
    for (size_t first = 0, last = 0; first < all.size(); first = last) {
      while (last < all.size() && all[last].expert.layer == all[first].expert.layer) ++last;
      replicas_[all[first].expert.layer] = all.subspan(first, last - first);
    }
    for (const Replica& r : all) {
      if (r.slot < static_cast<int32_t>(taken_[r.worker].size())) taken_[r.worker][r.slot] = 1;
    }
    for (int32_t l = 0; l < current.num_layers; ++l) {
      equally_.push_back(SplitsEqually(target_[l]));
      busiest_.push_back(Busiest(layers_[l], l));
      total_ += busiest_.back();
    }
    best_ = total_;
    under_way_.resize(layers_.size());
  }

  // The way to the target in an order of its own.
  absl::StatusOr<std::vector<Wave>> Build() {
    for (int32_t l = 0; l < num_layers(); ++l) {
      for (int32_t e = 0; e < experts_; ++e) Compare({l, e});
    }
    OrderLayers();
    std::vector<Wave> waves;
    while (changes_.left() > 0) {
      BeginWave();
      // What was begun first: fewer layers are between two good states at a time.
      std::stable_partition(order_.begin(), order_.end(), [&](int32_t l) { return under_way_[l]; });
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
    std::vector<ChangeGroup> groups;
    for (const Change& change : changes) {
      ChangeGroup& group = groups.emplace_back();
      group.layer = change.layer;
      for (const auto& [e, w] : change.arrivals) {
        const DispatchTable& table = layers_[change.layer];
        group.arrivals.push_back(changes_.AddArrival({{change.layer, e}, w, table.begin[e] == table.begin[e + 1]}));
      }
      for (const auto& [e, w] : change.departures)
        group.departures.push_back(changes_.AddDeparture({{change.layer, e}, w}));
    }
    std::vector<int32_t> left(groups.size());  // indices
    std::iota(left.begin(), left.end(), 0);
    std::vector<Wave> waves;
    while (!left.empty()) {
      BeginWave();
      std::vector<bool> layer_waits(layers_.size());
      std::vector<bool> worker_waits(workers_);
      std::vector<int32_t> rest;
      for (const int32_t g : left) {
        const ChangeGroup& group = groups[g];
        if (!layer_waits[group.layer] && changes_.Fits(group, worker_waits)) {
          for (const int32_t a : group.arrivals) changes_.Take(a);
          for (const int32_t d : group.departures) changes_.Leave(d);
          continue;
        }
        // What comes after it in its layer and on its workers stays after it.
        layer_waits[group.layer] = true;
        for (const int32_t a : group.arrivals) worker_waits[changes_.arrivals()[a].worker] = true;
        rest.push_back(g);
      }
      if (changes_.log().empty()) return NoRoom();
      Settle(0, /*force=*/true);
      waves.push_back(EndWave(total_ <= std::max(before_, Limit())));
      left = std::move(rest);
    }
    AddWeights(waves);
    return waves;
  }

 private:
  // Of weights: they are whole numbers.
  static constexpr double kRounding = 1e-4;

  int32_t num_layers() const { return static_cast<int32_t>(replicas_.size()); }

  void Compare(ExpertId e) {
    const auto ranks = [&](const DispatchTable& t) {
      std::vector<int32_t> out(t.rank.begin() + t.begin[e.expert], t.rank.begin() + t.begin[e.expert + 1]);
      std::sort(out.begin(), out.end());
      return out;
    };
    const std::vector<int32_t> now = ranks(layers_[e.layer]);
    const std::vector<int32_t> then = ranks(target_[e.layer]);
    for (const int32_t w : then) {
      if (!std::binary_search(now.begin(), now.end(), w)) changes_.AddArrival({e, w, now.empty()});
    }
    for (const int32_t w : now) {
      if (!std::binary_search(then.begin(), then.end(), w)) changes_.AddDeparture({e, w});
    }
  }

  // Lost experts first, then by what the layer gains.
  void OrderLayers() {
    std::vector<std::pair<double, int32_t>> gains;
    for (int32_t l = 0; l < num_layers(); ++l) {
      std::stable_sort(changes_.arrivals_of(l).begin(), changes_.arrivals_of(l).end(), [&](int32_t a, int32_t b) {
        if (changes_.arrivals()[a].lost != changes_.arrivals()[b].lost) return changes_.arrivals()[a].lost;
        return Tokens(changes_.arrivals()[a].expert) > Tokens(changes_.arrivals()[b].expert);
      });
      if (changes_.arrivals_of(l).empty() && changes_.departures_of(l).empty()) continue;
      double gain = busiest_[l] - Busiest(target_[l], l);
      for (const int32_t a : changes_.arrivals_of(l)) {
        if (changes_.arrivals()[a].lost) gain = std::numeric_limits<double>::infinity();
      }
      gains.push_back({-gain, l});
    }
    std::sort(gains.begin(), gains.end());
    for (const auto& [gain, l] : gains) order_.push_back(l);
  }

  double Tokens(ExpertId e) const { return load_.layer(e.layer)[e.expert]; }

  double Busiest(const DispatchTable& table, int32_t layer) { return scorer_.Busiest(table, load_.layer(layer)); }

  void BeginWave() {
    touched_.clear();
    replaced_.clear();
    before_ = total_;
    changes_.BeginWave();
  }

  // Makes as many of the layer's changes as fit, and keeps them if the wave stays within the tolerance.
  bool TryLayer(int32_t l, bool force) {
    const size_t mark = changes_.log().size();
    bool arrived = true;
    for (const int32_t a : changes_.arrivals_of(l)) {
      if (changes_.arrivals()[a].state == ChangeState::kPending) arrived &= changes_.Bring(a);
    }
    if (arrived) {
      for (const int32_t d : changes_.departures_of(l)) {
        if (changes_.CanLeave(d)) changes_.Leave(d);
      }
    }
    if (changes_.log().size() == mark) return false;
    return Settle(mark, force);
  }

  // What a change may leave where it makes things worse. Measured from the best so far, so that what one wave loses
  // after the other cannot add up.
  double Limit() const { return best_ * (1 + limits_.tolerance + kRounding); }

  // Evaluates the layers changed since `mark`.
  bool Settle(size_t mark, bool force) {
    std::vector<int32_t> changed;
    bool restores = false;
    for (size_t i = mark; i < changes_.log().size(); ++i) {
      restores |= changes_.log()[i] >= 0 && changes_.arrivals()[changes_.log()[i]].lost;
      changed.push_back(changes_.log()[i] >= 0 ? changes_.arrivals()[changes_.log()[i]].expert.layer
                                               : changes_.departures()[-1 - changes_.log()[i]].expert.layer);
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
    if (restores) {
      before_ += std::max(0.0, total - total_);
      best_ += std::max(0.0, total - total_);
    }
    if (!force && total > std::max(total_, Limit())) {
      changes_.UndoTo(mark);
      return false;
    }
    for (size_t i = 0; i < changed.size(); ++i) {
      const int32_t l = changed[i];
      replaced_.push_back({l, std::exchange(layers_[l], std::move(tables[i])), std::exchange(busiest_[l], busiest[i])});
    }
    total_ = total;
    touched_.insert(touched_.end(), changed.begin(), changed.end());
    return true;
  }

  void ForceLeastBad() {
    int32_t best = -1;
    double least = std::numeric_limits<double>::infinity();
    for (const int32_t l : order_) {
      const double total = total_;
      const double before = before_;
      const double best_so_far = best_;
      if (TryLayer(l, /*force=*/true) && total_ < least) {
        least = total_;
        best = l;
      }
      changes_.UndoTo(0);
      for (; !replaced_.empty(); replaced_.pop_back()) {
        layers_[replaced_.back().layer] = std::move(replaced_.back().table);
        busiest_[replaced_.back().layer] = replaced_.back().busiest;
      }
      total_ = total;
      before_ = before;
      best_ = best_so_far;
      touched_.clear();
    }
    if (best >= 0) TryLayer(best, /*force=*/true);
  }

  // The layer with the wave's changes so far; the target's own weights once it is reached.
  DispatchTable TableNow(int32_t l) {
    using Place = std::pair<int32_t, int32_t>;  // expert, worker
    come_.clear();
    gone_.clear();
    for (const int32_t d : changes_.departures_of(l)) {
      const Departure& departure = changes_.departures()[d];
      if (departure.state == ChangeState::kInWave) gone_.push_back({departure.expert.expert, departure.worker});
    }
    for (const int32_t a : changes_.arrivals_of(l)) {
      const Arrival& arrival = changes_.arrivals()[a];
      if (arrival.state == ChangeState::kInWave) come_.push_back({arrival.expert.expert, arrival.worker});
    }
    std::sort(come_.begin(), come_.end());
    std::sort(gone_.begin(), gone_.end());
    DispatchTable table;
    table.begin.resize(experts_ + 1);
    table.rank.resize(replicas_[l].size() + come_.size());
    int32_t experts = 0;  // that have begun
    int32_t replicas = 0;
    const auto add = [&](int32_t expert, int32_t worker) {
      while (experts <= expert) table.begin[experts++] = replicas;
      table.rank[replicas++] = worker;
    };
    auto come = come_.begin();
    auto gone = gone_.begin();
    for (const Replica& r : replicas_[l]) {
      const Place here(r.expert.expert, r.worker);
      for (; come != come_.end() && *come < here; ++come) add(come->first, come->second);
      if (gone != gone_.end() && *gone == here) {
        ++gone;
      } else {
        add(here.first, here.second);
      }
    }
    for (; come != come_.end(); ++come) add(come->first, come->second);
    std::fill(table.begin.begin() + experts, table.begin.end(), replicas);
    table.rank.resize(replicas);
    table.weight.assign(table.rank.size(), 1);
    if (!changes_.Pending(l)) {
      table.weight = TargetWeights(l, table);
    } else if (!equally_[l]) {
      solver_.SolveWeights(load_.layer(l), table);
    }
    return table;
  }

  // `table` has the target's replicas, by worker.
  std::vector<uint32_t> TargetWeights(int32_t l, const DispatchTable& table) const {
    const DispatchTable& target = target_[l];
    if (table.rank == target.rank && table.begin == target.begin) return target.weight;
    std::vector<uint32_t> weights;
    weights.reserve(table.rank.size());
    std::vector<uint32_t> weight_at(workers_);  // of the expert
    for (int32_t e = 0; e < table.num_experts(); ++e) {
      for (int32_t r = target.begin[e]; r < target.begin[e + 1]; ++r) weight_at[target.rank[r]] = target.weight[r];
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) weights.push_back(weight_at[table.rank[r]]);
    }
    return weights;
  }

  Wave EndWave(bool within) {
    Wave wave;
    wave.busiest = total_;
    wave.within_tolerance = within;
    best_ = std::min(best_, total_);
    for (const int32_t l : touched_) under_way_[l] = changes_.Pending(l);
    std::vector<int32_t> outgoing(workers_);
    for (const int32_t entry : changes_.log()) {
      if (entry < 0) {
        const Departure& departure = changes_.departures()[-1 - entry];
        wave.drops.push_back(*Find(departure.expert, departure.worker));
        continue;
      }
      const Arrival& arrival = changes_.arrivals()[entry];
      if (arrival.lost) {
        for (const int32_t other : changes_.arrivals_of(arrival.expert.layer)) {
          if (changes_.arrivals()[other].expert == arrival.expert) changes_.arrivals()[other].lost = false;
        }
      }
      int32_t& slot = free_from_[arrival.worker];
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
    // What a wave holds stays where it is until all are built.
    const std::span<const Replica> all = wave.layers;
    for (size_t first = 0; const int32_t l : touched_) {
      replicas_[l] = all.subspan(first, layers_[l].rank.size());
      first += layers_[l].rank.size();
    }
    for (const Move& move : wave.moves) taken_[move.worker][move.slot] = 1;
    for (const Replica& r : wave.drops) {
      if (r.slot >= static_cast<int32_t>(taken_[r.worker].size())) continue;
      taken_[r.worker][r.slot] = 0;
      free_from_[r.worker] = std::min(free_from_[r.worker], r.slot);
    }
    changes_.EndWave();
    return wave;
  }

  // The holder whose link is free soonest.
  int32_t ChooseSource(const Move& move, std::vector<int32_t>& outgoing) const {
    int32_t best = -1;
    double soonest = std::numeric_limits<double>::infinity();
    const std::span<const Replica> layer = replicas_[move.expert.layer];
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
  std::span<const Replica>::iterator Find(ExpertId expert, int32_t worker) const {
    const std::span<const Replica> layer = replicas_[expert.layer];
    return std::lower_bound(layer.begin(), layer.end(), std::tie(expert, worker),
                            [](const Replica& r, const std::tuple<const ExpertId&, const int32_t&>& key) {
                              return std::tie(r.expert, r.worker) < key;
                            });
  }

  // Wave::layers: the replicas of `layers`, ascending, after the wave: all that it moves into, or none of them.
  void FillLayers(const std::vector<int32_t>& layers, Wave& wave) const {
    std::vector<const Move*> arrived;
    for (const Move& move : wave.moves) arrived.push_back(&move);
    std::sort(arrived.begin(), arrived.end(), [](const Move* a, const Move* b) {
      return std::tie(a->expert, a->worker) < std::tie(b->expert, b->worker);
    });
    auto move = arrived.begin();
    size_t filled = wave.layers.size();
    size_t size = filled;
    for (const int32_t l : layers) size += layers_[l].rank.size();
    wave.layers.resize(size);
    for (const int32_t l : layers) {
      const DispatchTable& table = layers_[l];
      auto stays = replicas_[l].begin();
      const auto end = replicas_[l].end();
      for (int32_t e = 0; e < table.num_experts(); ++e) {
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
          const int32_t w = table.rank[r];
          while (stays != end && (stays->expert.expert < e || (stays->expert.expert == e && stays->worker < w)))
            ++stays;
          int32_t slot = -1;
          if (stays != end && stays->expert.expert == e && stays->worker == w) {
            slot = stays++->slot;
          } else if (move != arrived.end() && (*move)->expert == ExpertId{l, e} && (*move)->worker == w) {
            slot = (*move++)->slot;
          }
          BALLAST_CHECK(slot >= 0) << "layer " << l << " expert " << e << " worker " << w;
          wave.layers[filled++] = {{l, e}, w, slot, table.weight[r]};
        }
      }
    }
  }

  // Layers whose weights alone change go with the first wave, or make one without moves.
  void AddWeights(std::vector<Wave>& waves) {
    std::vector<int32_t> changed;
    for (int32_t l = 0; l < num_layers(); ++l) {
      if (!changes_.arrivals_of(l).empty() || !changes_.departures_of(l).empty()) continue;
      std::vector<uint32_t> weights = TargetWeights(l, layers_[l]);
      if (weights == layers_[l].weight) continue;
      layers_[l].weight = std::move(weights);
      const double busiest = Busiest(layers_[l], l);
      total_ += busiest - busiest_[l];
      for (Wave& wave : waves) wave.busiest += busiest - busiest_[l];
      busiest_[l] = busiest;
      changed.push_back(l);
    }
    if (changed.empty()) return;
    if (waves.empty()) {
      waves.emplace_back();
      waves[0].busiest = total_;
    }
    std::vector<Replica>& layers = waves[0].layers;
    const auto middle = static_cast<std::ptrdiff_t>(layers.size());
    FillLayers(changed, waves[0]);
    std::inplace_merge(layers.begin(), layers.begin() + middle, layers.end(),
                       [](const Replica& a, const Replica& b) { return a.expert.layer < b.expert.layer; });
  }

  absl::Status NoRoom() const {
    for (int32_t w = 0; w < workers_; ++w) {
      if (changes_.room(w) > 0) continue;
      const auto waits = [&](const Arrival& a) { return a.worker == w && a.state == ChangeState::kPending; };
      if (std::none_of(changes_.arrivals().begin(), changes_.arrivals().end(), waits)) continue;
      return absl::FailedPreconditionError(absl::StrCat(
          "worker '", topology_.workers[w].name, "' has no free slot to move through: ", changes_.used(w), " of ",
          topology_.workers[w].capacity.slots, " slots are in use; at least 1 staging slot is needed"));
    }
    return absl::FailedPreconditionError("the target does not fit the workers' slots");
  }

  const int32_t experts_;
  std::vector<std::span<const Replica>> replicas_;  // by layer, before the wave that is being built
  std::vector<std::vector<uint8_t>> taken_;         // [workers][slots] not 0: taken, the same
  std::vector<int32_t> free_from_;                  // [workers] all slots before it are taken
  const std::span<const DispatchTable> target_;
  const Topology& topology_;
  const LoadMatrix load_;
  const WaveLimits limits_;
  const int32_t workers_;
  LayerSolver solver_;
  LayerScorer scorer_;
  std::vector<DispatchTable> layers_;
  std::vector<bool> equally_;    // [layers] whether the target splits equally
  std::vector<double> busiest_;  // [layers]
  double total_ = 0;             // of busiest_
  double before_ = 0;            // total_ before the wave
  double best_ = 0;              // the least total_ of a wave so far, or before all
  std::vector<bool> under_way_;  // [layers] begun and not ended
  WaveChanges changes_;
  std::vector<int32_t> order_;    // layers that change
  std::vector<int32_t> touched_;  // layers that the wave changes
  // Layers as they were before the wave's changes, in the order of these.
  struct Replaced {
    int32_t layer;
    DispatchTable table;
    double busiest;
  };
  std::vector<Replaced> replaced_;
  // Scratch of TableNow: (expert, worker).
  std::vector<std::pair<int32_t, int32_t>> come_;
  std::vector<std::pair<int32_t, int32_t>> gone_;
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

}  // namespace ballast
