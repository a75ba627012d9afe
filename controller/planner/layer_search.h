// One layer of a placement under change: what incremental.cc and failure.cc search with.
#ifndef BALLAST_CONTROLLER_PLANNER_LAYER_SEARCH_H_
#define BALLAST_CONTROLLER_PLANNER_LAYER_SEARCH_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "controller/planner/bursts.h"
#include "controller/planner/incremental.h"
#include "proto/placement/quotas.h"
#include "proto/placement/shares.h"

namespace ballast {

// Room on the workers, over all layers; shared by the layers that are searched.
struct Room {
  // [workers] slots that a placement may still use; a worker is only ever given something when it has a slot to take it
  // in through, so one without any free slot at all has `closed`.
  std::vector<int32_t> free;
  std::vector<bool> closed;

  Room(const Placement& placement, const Topology& topology, int32_t slots_per_worker);
};

// At most two replicas that arrive and two that leave, (expert, worker).
struct Edit {
  std::array<Change::Place, 2> arrive;
  std::array<Change::Place, 2> leave;
  int32_t arrivals = 0;
  int32_t leaves = 0;
  friend bool operator==(const Edit&, const Edit&) = default;
};

Edit MakeEdit(std::initializer_list<Change::Place> arrive, std::initializer_list<Change::Place> leave);

class LayerSearch {
 public:
  // `table`: workers ascending. `tokens` [scenarios][experts], and `topology`, must outlive it. `burstiness`
  // [scenarios], by equal split: Scenario::burstiness of this layer; empty, or all 0: only the mean of steps counts.
  LayerSearch(const DispatchTable& table, std::vector<std::span<const double>> tokens, const Topology& topology,
              Split split, int32_t slots, std::span<const double> burstiness = {});

  // [scenarios] tokens over speed of the busiest worker; with bursts those of a single step (bursts.h).
  const std::vector<double>& busiest() const { return busiest_; }
  // [scenarios] the same, were the layer level.
  const std::vector<double>& level() const { return level_; }
  // The edit of most gain a move, each scenario's tokens counting `slopes` times, within `room` less what the caller's
  // edits of this layer have `used` of it ([workers]). Busiest does not get worse. With shares, edits that gain no more
  // than `least` a move are not looked for; by equal split one may make way for the next. False: there is none.
  bool FindEdit(std::span<const double> slopes, const Room& room, std::span<const int32_t> used, double least,
                Edit& best);
  // What FindEdit looks at, about: replicas and workers, by equal split those of experts that may change places, too;
  // with bursts in units that take as long.
  int64_t EditCost() const;
  // With shares, of the layer as it stands: [replicas] the parts of the tokens, expert by expert, workers ascending.
  std::span<const int64_t> flow() const { return flow_; }
  // With shares: as LayerSolver says it, to the bit.
  double balancedness() const { return bound_ == 0 ? 1 : mean_ / static_cast<double>(bound_); }
  // What an edit decides stays: no replica is chosen to leave after it arrived, nor the other way round.
  void Apply(const Edit& edit);
  void Undo(const Edit& edit);
  // The same for changes made before.
  void Decide(const Change& change);

  // Where a replica of `expert`, which has none, costs least: a worker with room, or the slot of a spare replica. What
  // it costs is the change of the sum of the loads' 16th powers, the level being 1, slopes as above, and a little for
  // each of the `arrivals` [workers] that the plan has there already: workers fetch side by side. Among equals the most
  // room. False: nowhere.
  bool FindHome(int32_t expert, std::span<const double> slopes, const Room& room, std::span<const int32_t> arrivals,
                Edit& best);
  // The spare replica that is missed least, and what that costs in the same terms. False: there is none.
  bool FindSpare(std::span<const double> slopes, Edit& best, double& cost);

  // As it stands, workers ascending, weights 1.
  DispatchTable Table() const;

 private:
  using Pack = absl::InlinedVector<int32_t, 12>;

  // Workers that are looked at from the light end of a layer; all of them where there are few.
  static constexpr size_t kLightest = 8;
  static constexpr int32_t kFewWorkers = 16;
  // So many are kept in order of their loads, which change little by little.
  static constexpr int32_t kSortedWorkers = 64;
  // What counts for a level layer, and for a change that is no worse.
  static constexpr double kRounding = 1e-9;

  // What FindEdit tried and chose: Apply need not solve it again.
  struct Solution {
    Edit edit;
    std::vector<double> load;
    std::vector<int64_t> flow;
    double busiest = 0;
    int64_t bound = 0;
    bool known = false;
  };

  int32_t Count(int32_t e) const { return table_.begin[e + 1] - table_.begin[e]; }
  std::span<const int32_t> Holders(int32_t e) const {
    return std::span(table_.rank).subspan(table_.begin[e], Count(e));
  }
  // Where `w` stands among the holders of `e`, or would.
  std::vector<int32_t>::const_iterator Place(int32_t e, int32_t w) const {
    return std::lower_bound(table_.rank.begin() + table_.begin[e], table_.rank.begin() + table_.begin[e + 1], w);
  }
  bool Holds(int32_t w, int32_t e) const {
    const std::span<const int32_t> at = Holders(e);
    return at.size() == 1 ? at[0] == w : std::binary_search(at.begin(), at.end(), w);
  }
  // Whether a change has decided that `w` holds it, or not.
  bool Decided(int32_t e, int32_t w) const { return touched_experts_[e] != 0 && IsDecided({e, w}); }
  bool IsDecided(const Change::Place& place) const;
  bool CanTake(int32_t w, int32_t e) const { return !Holds(w, e) && !Decided(e, w); }
  void MarkDecided(std::span<const Change::Place> places);
  bool Spare(int32_t e, int32_t w) const { return Count(e) > 1 && !Decided(e, w); }
  bool HasSlot(int32_t w, const Room& room, std::span<const int32_t> used) const {
    return room.free[w] - (used.empty() ? 0 : used[w]) > 0 &&
           (slots_ == 0 || static_cast<int32_t>(packs_[w].size()) < slots_);
  }
  void Restructure(std::span<const Change::Place> arrive, std::span<const Change::Place> leave);
  // The loads after an edit.
  void Refresh(const Edit& edit);
  // Those of `workers`, and the busiest.
  void SplitEqually(std::span<const int32_t> workers);
  // heaviest_, where loads have changed.
  void Rank();
  // False, and the solution of no use: the busiest has more than `most`.
  bool SolveShares(int64_t most = std::numeric_limits<int64_t>::max());
  // The value of an edit a move, by equal split; negative where the busiest gets worse.
  double Value(const Edit& edit, std::span<const double> slopes);
  // The same of the swap of `e` at `c` and `f` at `w`.
  double SwapValue(int32_t c, int32_t e, int32_t w, int32_t f, std::span<const double> slopes) const;
  // What others than the worker itself have to lose where its holders are eased: 16th powers of loads, busiest is 1.
  double PowersOf(size_t s, int32_t expert, int32_t but) const;
  void Gather(const Edit& edit);
  void Touch(int32_t w) {
    if (marked_[w]) return;
    marked_[w] = true;
    touched_.push_back(w);
  }
  // Calls visit(expert, worker) for each spare replica.
  template <typename Visit>
  void ForEachSpare(Visit visit) const {
    const std::span<const int32_t> begin = table_.begin;
    for (int32_t e = 0; e < experts_; ++e) {
      if (begin[e + 1] - begin[e] < 2) continue;
      for (const int32_t w : Holders(e)) {
        if (!Decided(e, w)) visit(e, w);
      }
    }
  }
  // A worker that takes an expert in, what leaves it (-1: nothing), and the cost of both; -1: there is none.
  struct Home {
    int32_t worker = -1;
    int32_t leaves = -1;
    double cost = 0;
    int32_t free = 0;
  };
  // 16th powers of the loads, as HomeCost counts them: power_ and growth_.
  void RaiseLoads();
  // How they grow at `worker` where it gets `by` tokens more.
  double Growth(size_t s, int32_t worker, double by) const;
  // Of `expert`, which has no replica (-1: of none), at `w`, where `f` leaves (-1: none): see FindHome.
  double HomeCost(int32_t expert, int32_t w, int32_t f, std::span<const double> slopes) const;
  static void Consider(const Home& home, Home& best) {
    if (best.worker < 0 || home.cost < best.cost || (home.cost == best.cost && home.free > best.free)) best = home;
  }
  void ClearGathered();
  void AddTo(int32_t w, int32_t e, double part);
  void Consider(const Edit& edit, std::span<const double> slopes, double& value, Edit& best);
  // What the workers from the light end that are less busy than `c` hold: lightest_.
  void GatherLightest(size_t s, int32_t c, const Room& room, std::span<const int32_t> used);
  void FromBusiest(size_t s, std::span<const double> slopes, const Room& room, std::span<const int32_t> used,
                   double& value, Edit& best);
  // Whether single steps count (layer_search_bursts.cc).
  bool bursty() const { return !bursts_.empty(); }
  // What one of `count` replicas of `e` adds to the load of `w`.
  double BurstPart(size_t s, int32_t e, int32_t w, int32_t count) const {
    return bursts_[s].Load(tokens_[s][e] / count * slowness_[w]);
  }
  // Collects what an edit adds to the load of `w`.
  void Burden(size_t s, int32_t w, double load) {
    Touch(w);
    delta_[s * workers_ + w] += load;
  }
  // The same for all that hold `e`, except `but`: there were `before` replicas of it, there are `after`.
  void BurdenHolders(int32_t e, int32_t but, int32_t before, int32_t after);
  // The value a move of what was collected, which it forgets.
  double BurstValue(int32_t arrivals, std::span<const double> slopes);
  bool FindEditOfBursts(std::span<const double> slopes, const Room& room, std::span<const int32_t> used, Edit& best);
  bool FindEditOfShares(const Room& room, std::span<const int32_t> used, double least, Edit& best);
  void Keep(Solution& solution) const;
  void Use(const Solution& solution);
  // Shares: tokens over unit_ that `w`, which holds it, has of `e`.
  int64_t Flow(int32_t e, int32_t w) const {
    return flow_[Count(e) == 1 ? table_.begin[e] : Place(e, w) - table_.rank.begin()];
  }
  // Workers by load, most first.
  void SortByLoad(size_t s);
  // The least loaded workers.
  const std::vector<int32_t>& Lightest(size_t s, size_t most);

  const std::vector<std::span<const double>> tokens_;  // [scenarios][experts]
  const int32_t workers_;
  const int32_t experts_;
  const size_t scenarios_;
  const Split split_;
  const int32_t slots_;
  std::vector<double> speed_;     // [workers]
  std::vector<double> slowness_;  // [workers] 1 / speed
  std::vector<uint32_t> speeds_;  // empty: all alike
  std::vector<StepLoad> bursts_;  // [scenarios]; empty: none
  DispatchTable table_;           // holders of each expert, ascending; without weights
  std::vector<Pack> packs_;       // [workers]
  std::vector<Change::Place> decided_;
  std::vector<uint8_t> touched_experts_;        // [experts] not 0: decided_ may name them
  std::vector<double> load_;                    // [scenarios][workers]
  std::vector<double> level_;                   // [scenarios] mean load
  std::vector<double> busiest_;                 // [scenarios]
  std::vector<std::vector<int32_t>> heaviest_;  // [scenarios] workers, most loaded first; of many, some
  std::vector<double> powers_;                  // [scenarios][workers] 16th powers of loads, busiest is 1; with bursts
                                                // their parts of the soft maximum
  bool ranked_ = false;                         // whether both are up to date
  // Shares: the solution for the one load.
  std::vector<int64_t> whole_;  // tokens as integers
  double unit_ = 1;             // tokens of one of them
  double mean_ = 0;             // of them, over all speeds
  int64_t bound_ = 0;           // what the solver says of the busiest
  std::vector<int64_t> flow_;   // [replicas], in the order of table_
  Solution chosen_;
  std::optional<ShareSolver> solver_;
  // Scratch.
  Solution before_;
  std::vector<int32_t> order_;  // of Lightest
  std::vector<int32_t> hottest_;
  std::vector<int32_t> receivers_;  // of FindEditOfBursts
  std::vector<double> after_;       // of BurstValue: [workers] loads
  std::vector<double> held_;        // [experts]
  std::vector<int32_t> experts_held_;
  std::vector<int32_t> reached_;
  std::vector<bool> tight_;  // [workers]
  // A replica that a light worker holds.
  struct Held {
    int32_t expert;
    double part;  // of its tokens
  };
  std::vector<Held> packed_;  // of some workers, what may be swapped
  std::vector<Held> spare_;   // and what of it may leave for good
  // A worker from the light end, and its part of both.
  struct Light {
    int32_t worker;
    bool slot;     // whether it has a free one
    double least;  // the least part of those that may be swapped
    size_t first;  // in packed_
    size_t count;
    size_t first_spare;  // in spare_
    size_t spares;
  };
  std::span<const Held> Swappable(const Light& light) const {
    return std::span(packed_).subspan(light.first, light.count);
  }
  std::span<const Held> Spares(const Light& light) const {
    return std::span(spare_).subspan(light.first_spare, light.spares);
  }
  std::vector<Light> lightest_;
  std::vector<double> power_;  // [scenarios][workers] of FindHome: 16th powers of the loads, the level being 1
  // [scenarios][experts] the same: how they grow where a replica of the expert leaves, if all its workers take its
  // part; of experts with many.
  std::vector<double> growth_;
  // Scratch of Value: changes by worker.
  std::vector<double> delta_;  // [scenarios][workers]
  std::vector<int32_t> touched_;
  std::vector<bool> marked_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_LAYER_SEARCH_H_
