#include "controller/planner/failure.h"

#include <algorithm>
#include <optional>

#include "controller/planner/layer_search.h"
#include "controller/planner/objective.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

// Brings lost experts back into a placement, one layer at a time.
class Restorer {
 public:
  Restorer(const Placement& current, const PlanRequest& request)
      : request_(request), room_(current, request.topology, 0), tables_(Onto(current, request.topology)) {
    arrivals_.resize(request.topology.workers.size());
    std::vector<double> level;
    double speed = 0;
    for (const TopologyWorker& w : request.topology.workers) speed += w.speed;
    for (const Scenario& s : request.scenarios) {
      double tokens = 0;
      for (const double t : s.load.tokens) tokens += t;
      level.push_back(tokens / speed);
    }
    slopes_ = Objective(request.scenarios, request.topology).Slopes(level);
    layers_.resize(tables_.size());
    spares_.resize(tables_.size());
  }

  std::vector<ExpertId> Lost() const {
    std::vector<ExpertId> lost;
    for (size_t l = 0; l < tables_.size(); ++l) {
      for (int32_t e = 0; e < tables_[l].num_experts(); ++e) {
        if (tables_[l].begin[e] == tables_[l].begin[e + 1]) lost.push_back({static_cast<int32_t>(l), e});
      }
    }
    return lost;
  }

  // There is room for it.
  void Restore(ExpertId expert, std::vector<Change>& changes) {
    Edit edit;
    const auto add = [&](int32_t layer) -> Change& {
      Change& change = changes.emplace_back();
      change.layer = layer;
      return change;
    };
    if (Search(expert.layer).FindHome(expert.expert, slopes_, room_, arrivals_, edit)) {
      Change& change = add(expert.layer);
      change.arrivals.push_back(edit.arrive[0]);
      change.departures.assign(edit.leave.begin(), edit.leave.begin() + edit.leaves);
      Search(expert.layer).Apply(edit);
      spares_[expert.layer].reset();
      room_.free[edit.arrive[0].worker] -= edit.arrivals - edit.leaves;
      ++arrivals_[edit.arrive[0].worker];
      return;
    }
    // No slot is free, nor a spare replica of the layer beside one that the expert could come in by: one goes first, as
    // a change of its own.
    const int32_t gives = TakeSpare(edit);
    edit.arrive[0] = {expert.expert, edit.leave[0].worker};
    ++arrivals_[edit.arrive[0].worker];
    add(gives).departures.push_back(edit.leave[0]);
    add(expert.layer).arrivals.push_back(edit.arrive[0]);
    Search(gives).Apply(MakeEdit({}, {edit.leave[0]}));
    spares_[gives].reset();
    Search(expert.layer).Apply(MakeEdit({edit.arrive[0]}, {}));
    spares_[expert.layer].reset();
  }

  // As it stands after the changes, slots aside.
  Placement Restored(const Placement& current) {
    Placement placement = current;
    placement.replicas.clear();
    for (int32_t l = 0; l < static_cast<int32_t>(tables_.size()); ++l) {
      const DispatchTable table = layers_[l] ? layers_[l]->Table() : tables_[l];
      for (int32_t e = 0; e < table.num_experts(); ++e) {
        for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
          placement.replicas.push_back({{l, e}, table.rank[r], 0, 1});
        }
      }
    }
    return placement;
  }

 private:
  LayerSearch& Search(int32_t l) {
    if (!layers_[l]) {
      std::vector<std::span<const double>> tokens;
      for (const Scenario& s : request_.scenarios) tokens.push_back(s.load.layer(l));
      layers_[l].emplace(tables_[l], std::move(tokens), request_.topology, Split::kEqual, 0);
    }
    return *layers_[l];
  }

  // The layer whose spare replica is missed least, which leaves.
  int32_t TakeSpare(Edit& edit) {
    int32_t gives = -1;
    double least = 0;
    for (int32_t l = 0; l < static_cast<int32_t>(tables_.size()); ++l) {
      std::optional<Spare>& spare = spares_[l];
      if (!spare) {
        spare.emplace();
        spare->found = Search(l).FindSpare(slopes_, spare->edit, spare->cost);
      }
      if (!spare->found || (gives >= 0 && spare->cost >= least)) continue;
      least = spare->cost;
      gives = l;
    }
    BALLAST_CHECK(gives >= 0) << "fewer places than Places() says";
    edit = spares_[gives]->edit;
    return gives;
  }

  const PlanRequest& request_;
  Room room_;
  // [workers] of the plan so far.
  std::vector<int32_t> arrivals_;
  const std::vector<DispatchTable> tables_;
  std::vector<double> slopes_;
  std::vector<std::optional<LayerSearch>> layers_;
  // The spare replica of each layer that is missed least, until the layer changes.
  struct Spare {
    bool found = false;
    Edit edit;
    double cost = 0;
  };
  std::vector<std::optional<Spare>> spares_;
};

// Replicas that can be brought in: one in every free slot, and one for every spare replica.
int64_t Places(const Placement& placement, const Topology& topology) {
  int64_t places = 0;
  for (const int32_t free : Room(placement, topology, 0).free) places += std::max(0, free);
  for (size_t i = 1; i < placement.replicas.size(); ++i) {
    places += placement.replicas[i].expert == placement.replicas[i - 1].expert ? 1 : 0;
  }
  return places;
}

}  // namespace

absl::StatusOr<FailurePlan> PlanFailure(const PlanRequest& request, Split split) {
  if (!request.current) return absl::InvalidArgumentError("current: there is no placement in force");
  BALLAST_RETURN_IF_ERROR(Validate(request));
  if (const auto by_means = ByMeans(request, split)) return PlanFailure(*by_means, split);
  const Placement current = OverTopology(*request.current, request.topology);
  Restorer restorer(current, request);
  FailurePlan out;
  out.lost = restorer.Lost();
  // When room runs out the least loaded go without. The others layer after layer, so that a wave touches few, and
  // within a layer the most loaded first.
  const LoadMatrix blend = Blend(request.scenarios);
  std::vector<ExpertId> order = out.lost;
  std::stable_sort(order.begin(), order.end(), [&](ExpertId a, ExpertId b) {
    return blend.layer(a.layer)[a.expert] > blend.layer(b.layer)[b.expert];
  });
  const int64_t places = Places(current, request.topology);
  if (static_cast<int64_t>(order.size()) > places) {
    out.without_replica.assign(order.begin() + static_cast<std::ptrdiff_t>(places), order.end());
    std::sort(out.without_replica.begin(), out.without_replica.end());
    order.resize(places);
  }
  std::stable_sort(order.begin(), order.end(), [](ExpertId a, ExpertId b) { return a.layer < b.layer; });
  std::vector<Change> changes;
  for (const ExpertId expert : order) restorer.Restore(expert, changes);
  if (request.move_budget.limited()) {
    BALLAST_ASSIGN_OR_RETURN(const int64_t allowed, AllowedMoves(request.move_budget, request.expert_bytes));
    const int64_t left = allowed == kUnlimitedMoves ? allowed : allowed - static_cast<int64_t>(order.size());
    IncrementLimits limits = LimitsOf(request, left);
    limits.made = changes;
    const std::vector<Change> balance =
        FindIncrement(restorer.Restored(current), request.topology, request.scenarios, split, limits);
    changes.insert(changes.end(), balance.begin(), balance.end());
  }
  BALLAST_ASSIGN_OR_RETURN(out.plan, PlanChanges("failure", request, current, changes, split));
  return out;
}

}  // namespace ballast
