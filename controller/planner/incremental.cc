#include "controller/planner/incremental.h"

#include <algorithm>
#include <optional>
#include <queue>

#include "absl/strings/str_cat.h"
#include "controller/planner/layer_search.h"
#include "controller/planner/objective.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

// Edits that a layer is searched further than its best gain a move so far. With shares every edit gains by itself.
constexpr size_t kLookahead = 1;

// What the search for edits may cost in all, see LayerSearch::EditCost: some seconds. Layers of tens of thousands of
// replicas may end before all gains are found; whole layers placed anew do more for them.
constexpr int64_t kMostWork = 50'000'000;

// One layer's edits, made and to be made.
struct Layer {
  std::optional<LayerSearch> search;
  std::vector<double> committed;  // [scenarios] busiest, of the edits that are decided
  struct Step {
    Edit edit;
    std::vector<double> busiest;  // [scenarios] after it
    int64_t moves = 0;            // of it and those before it that are not decided
  };
  std::vector<Step> ahead;    // made in `search`, not decided
  std::vector<int32_t> used;  // [workers] room that they take
  // With shares, of what is decided, where a step is ahead.
  std::vector<int64_t> flow;
  double balancedness = 1;
  bool ended = false;  // no further edit
};

// The best of a layer's next edits: so many of them together.
struct Bundle {
  size_t edits = 0;
  double gain = 0;
  double ratio = 0;  // a move
};

class Incrementer {
 public:
  Incrementer(const Placement& current, const Topology& topology, std::span<const Scenario> scenarios, Split split,
              const IncrementLimits& limits)
      : limits_(limits),
        split_(split),
        lookahead_(split == Split::kSolved ? 0 : kLookahead),
        objective_(scenarios, topology),
        room_(current, topology, limits.slots_per_worker),
        layers_(current.num_layers),
        busiest_(scenarios.size()) {
    const std::vector<DispatchTable> tables = Onto(current, topology);
    for (int32_t l = 0; l < current.num_layers; ++l) {
      std::vector<std::span<const double>> tokens;
      tokens.reserve(scenarios.size());
      std::vector<double> burstiness;
      for (const Scenario& s : scenarios) {
        tokens.push_back(s.load.layer(l));
        burstiness.push_back(BurstinessOf(s, l));
      }
      layers_[l].search.emplace(tables[l], std::move(tokens), topology, split, limits.slots_per_layer, burstiness);
      layers_[l].committed = layers_[l].search->busiest();
      layers_[l].used.resize(topology.workers.size());
      for (size_t s = 0; s < busiest_.size(); ++s) busiest_[s] += layers_[l].committed[s];
    }
    value_ = objective_.Of(busiest_);
  }

  // [layers] by shares solved for the one load, of what is decided.
  std::vector<double> Balancedness() const {
    std::vector<double> out;
    for (const Layer& layer : layers_) {
      out.push_back(layer.ahead.empty() ? layer.search->balancedness() : layer.balancedness);
    }
    return out;
  }
  // [layers][replicas] the same's shares.
  std::vector<std::vector<int64_t>> TakeFlows() {
    std::vector<std::vector<int64_t>> out;
    for (Layer& layer : layers_) {
      const std::span<const int64_t> flow = layer.search->flow();
      out.push_back(layer.ahead.empty() ? std::vector<int64_t>(flow.begin(), flow.end()) : std::move(layer.flow));
    }
    return out;
  }

  std::vector<Change> Run() {
    for (const Change& change : limits_.made) layers_[change.layer].search->Decide(change);
    std::vector<Change> changes;
    int64_t left = limits_.max_moves;
    slopes_ = objective_.Slopes(busiest_);
    struct Entry {
      double ratio;
      int32_t layer;
      bool operator<(const Entry& other) const {
        return ratio != other.ratio ? ratio < other.ratio : layer > other.layer;
      }
    };
    std::priority_queue<Entry> heap;
    const auto push = [&](int32_t l) {
      const Bundle bundle = Best(l, left);
      if (bundle.edits > 0 && bundle.ratio >= Least()) heap.push({bundle.ratio, l});
    };
    // What a move can gain at most; a layer is searched when its turn comes.
    for (int32_t l = 0; l < static_cast<int32_t>(layers_.size()); ++l) {
      double most = 0;
      for (size_t s = 0; s < slopes_.size(); ++s) {
        most += slopes_[s] * (layers_[l].committed[s] - layers_[l].search->level()[s]);
      }
      if (most > Least()) heap.push({most, l});
    }
    while (!heap.empty() && left > 0) {
      const Entry top = heap.top();
      heap.pop();
      const Bundle bundle = Best(top.layer, left);
      if (bundle.edits == 0) continue;
      // Slopes, the budget or the room are not what they were.
      if (bundle.ratio < top.ratio * (1 - 1e-9)) {
        push(top.layer);
        continue;
      }
      if (!Fits(top.layer, bundle.edits)) {
        Restart(top.layer);
        push(top.layer);
        continue;
      }
      const std::vector<double>& after = layers_[top.layer].ahead[bundle.edits - 1].busiest;
      std::vector<double> busiest = busiest_;
      for (size_t s = 0; s < busiest.size(); ++s) busiest[s] += after[s] - layers_[top.layer].committed[s];
      const double value = objective_.Of(busiest);
      // To first order it gains; the worst scenario may say otherwise.
      if (value >= value_) continue;
      value_ = value;
      busiest_ = std::move(busiest);
      slopes_ = objective_.Slopes(busiest_);
      left -= Commit(top.layer, bundle.edits, changes);
      push(top.layer);
    }
    return changes;
  }

 private:
  // What a move must bring.
  double Least() const { return limits_.least_gain * value_; }

  Bundle BestAhead(const Layer& layer, int64_t left) const {
    Bundle best;
    for (size_t k = 0; k < layer.ahead.size() && layer.ahead[k].moves <= left; ++k) {
      double gain = 0;
      for (size_t s = 0; s < slopes_.size(); ++s) {
        gain += slopes_[s] * (layer.committed[s] - layer.ahead[k].busiest[s]);
      }
      const double ratio = gain / static_cast<double>(layer.ahead[k].moves);
      if (ratio > best.ratio) best = {k + 1, gain, ratio};
    }
    return best;
  }

  // Searches the layer far enough to know it.
  Bundle Best(int32_t l, int64_t left) {
    Layer& layer = layers_[l];
    while (true) {
      const Bundle best = BestAhead(layer, left);
      if (layer.ended || layer.ahead.size() >= std::max<size_t>(1, best.edits) + lookahead_) return best;
      const int64_t moves = layer.ahead.empty() ? 0 : layer.ahead.back().moves;
      Edit edit;
      work_ += layer.search->EditCost();
      if (moves >= left || work_ > kMostWork || !layer.search->FindEdit(slopes_, room_, layer.used, Least(), edit)) {
        layer.ended = true;
        return best;
      }
      if (split_ == Split::kSolved) {
        layer.flow.assign(layer.search->flow().begin(), layer.search->flow().end());
        layer.balancedness = layer.search->balancedness();
      }
      layer.search->Apply(edit);
      Take(layer.used, edit, 1);
      layer.ahead.push_back({edit, layer.search->busiest(), moves + edit.arrivals});
    }
  }

  static void Take(std::vector<int32_t>& used, const Edit& edit, int32_t sign) {
    for (int32_t i = 0; i < edit.arrivals; ++i) used[edit.arrive[i].worker] += sign;
    for (int32_t i = 0; i < edit.leaves; ++i) used[edit.leave[i].worker] -= sign;
  }

  // Other layers may have taken the room since.
  bool Fits(int32_t l, size_t edits) const {
    std::vector<int32_t> used(room_.free.size());
    for (size_t k = 0; k < edits; ++k) {
      const Edit& edit = layers_[l].ahead[k].edit;
      Take(used, edit, 1);
      for (int32_t i = 0; i < edit.arrivals; ++i) {
        const int32_t w = edit.arrive[i].worker;
        if (used[w] > 0 && used[w] > room_.free[w]) return false;
      }
    }
    return true;
  }

  void Restart(int32_t l) {
    Layer& layer = layers_[l];
    while (!layer.ahead.empty()) {
      layer.search->Undo(layer.ahead.back().edit);
      layer.ahead.pop_back();
    }
    std::fill(layer.used.begin(), layer.used.end(), 0);
    layer.ended = false;
  }

  int64_t Commit(int32_t l, size_t edits, std::vector<Change>& changes) {
    Layer& layer = layers_[l];
    const int64_t moves = layer.ahead[edits - 1].moves;
    layer.committed = layer.ahead[edits - 1].busiest;
    for (size_t k = 0; k < edits; ++k) {
      const Edit& edit = layer.ahead[k].edit;
      Change& change = changes.emplace_back();
      change.layer = l;
      change.arrivals.assign(edit.arrive.begin(), edit.arrive.begin() + edit.arrivals);
      change.departures.assign(edit.leave.begin(), edit.leave.begin() + edit.leaves);
      Take(layer.used, edit, -1);
      for (int32_t i = 0; i < edit.arrivals; ++i) --room_.free[edit.arrive[i].worker];
      for (int32_t i = 0; i < edit.leaves; ++i) ++room_.free[edit.leave[i].worker];
    }
    layer.ahead.erase(layer.ahead.begin(), layer.ahead.begin() + static_cast<std::ptrdiff_t>(edits));
    for (Layer::Step& step : layer.ahead) step.moves -= moves;
    layer.ended = false;
    return moves;
  }

  const IncrementLimits limits_;
  const Split split_;
  // By shares a layer is never more than one step ahead.
  const size_t lookahead_;
  const Objective objective_;
  Room room_;
  std::vector<Layer> layers_;
  std::vector<double> busiest_;  // [scenarios] over layers, of what is decided
  double value_ = 1;
  std::vector<double> slopes_;
  int64_t work_ = 0;  // of the searches so far
};

}  // namespace

absl::StatusOr<int64_t> AllowedMoves(const MoveBudget& budget, int64_t expert_bytes) {
  if (budget.max_moves < 0) {
    return absl::InvalidArgumentError(absl::StrCat("max_moves: ", budget.max_moves, "; must be at least 0"));
  }
  if (budget.max_bytes < 0) {
    return absl::InvalidArgumentError(absl::StrCat("max_bytes: ", budget.max_bytes, "; must be at least 0"));
  }
  int64_t moves = budget.max_moves > 0 ? budget.max_moves : kUnlimitedMoves;
  if (budget.max_bytes > 0) {
    if (expert_bytes <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("max_bytes: ", budget.max_bytes, "; expert_bytes must say how much a move takes"));
    }
    moves = std::min(moves, budget.max_bytes / expert_bytes);
  }
  return moves;
}

std::vector<Change> FindIncrement(const Placement& current, const Topology& topology,
                                  std::span<const Scenario> scenarios, Split split, const IncrementLimits& limits,
                                  SolvedLayers* solved) {
  if (limits.max_moves <= 0) return {};
  std::optional<Scenario> blend;
  if (split == Split::kSolved && scenarios.size() > 1) {
    blend = {"blend", 1, Blend(scenarios)};
    scenarios = std::span(&*blend, 1);
  }
  Incrementer incrementer(current, topology, scenarios, split, limits);
  std::vector<Change> changes = incrementer.Run();
  if (solved == nullptr || split != Split::kSolved) return changes;
  solved->levels = incrementer.Balancedness();
  solved->flow = incrementer.TakeFlows();
  return changes;
}

}  // namespace ballast
