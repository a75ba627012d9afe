// Single-task traffic: whether each task alone, shares chosen anew for it, leaves every worker within a limit.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_TASKS_ALONE_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_TASKS_ALONE_H_

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "controller/planner/grouping/routes.h"

namespace ballast {

// What no placement of a layer is below, whatever the shares: MaxVio of the worst of its tasks, each alone. An expert
// needs as many replicas as the task needs that chooses it most: at a level z, so many that the fastest workers'
// parts of z make up its pairs. `slots` [workers]; `speed` [workers] as in Topology, empty: all alike. 0 where there
// are no pairs.
double LeastTaskMaxVio(const LayerRoutes& layer, std::span<const int32_t> slots, std::span<const uint32_t> speed);

// A flow of pairs from experts to the workers that hold them, with least excess: the pairs beyond what workers may
// have, in each part of each task's tokens. Kept so while replicas move, by moving pairs along chains of experts from
// workers with too many to workers with room; none is left where there is no such chain. Changes are taken back by
// Undo. One thread at a time.
class TasksAlone {
 public:
  // A task's tokens, in the order of the routes, are parted into as many stretches of equal length, each with shares of
  // its own. What holds for the task as a whole is what was planned for and no more: another sample of as many tokens
  // differs from it, on the worst of some 16 workers by about as much as the worst of four stretches does. Of few
  // tokens fewer stretches are taken: what chance does to short ones is more than what is wanted to be held.
  static constexpr int64_t kMostParts = 4;
  static int64_t PartsOfTask(int64_t pairs, int32_t workers);
  // A worker may have (1 + limit) times its part of a task's pairs, at least its part rounded up. `speed_part`
  // [workers], summing to 1. `layer` is read here alone. Experts have no workers yet.
  TasksAlone(const LayerRoutes& layer, std::span<const double> speed_part, double limit);

  // The expert's replicas are on `workers`, distinct, at least one.
  void Set(int32_t expert, std::span<const int32_t> workers);
  // Over tasks, the sum of the parts of their pairs that are beyond, whatever the shares; stretches of a task count the
  // same.
  double Excess();
  // What was set since the last call is final, or as if it had never been.
  void Keep();
  void Undo();

 private:
  using Workers = absl::InlinedVector<int32_t, 4>;
  int64_t& Flow(int32_t part, int32_t expert, int32_t worker) {
    return state_[(static_cast<size_t>(part) * experts_ + expert) * workers_ + worker];
  }
  int64_t& Load(int32_t part, int32_t worker) {
    return state_[(static_cast<size_t>(parts_) * experts_ + part) * workers_ + worker];
  }
  void Change(int64_t& value, int64_t by);
  void Hold(int32_t expert, const Workers& workers);
  // Moves what the worker has beyond its capacity to workers with room, as far as chains lead there.
  void Unload(int32_t part, int32_t worker);

  const int32_t experts_;
  const int32_t workers_;
  int32_t parts_ = 0;
  std::vector<int64_t> count_;     // [parts][experts]
  std::vector<double> pair_;       // [parts] what a pair beyond counts
  std::vector<int64_t> capacity_;  // [parts][workers]
  // Flows [parts][experts][workers], then loads [parts][workers].
  std::vector<int64_t> state_;
  std::vector<Workers> workers_of_;               // [experts]
  std::vector<std::vector<int32_t>> experts_on_;  // [workers]
  std::vector<std::pair<size_t, int64_t>> old_;   // of state_
  std::vector<std::pair<int32_t, Workers>> held_;
  // Breadth-first search: the workers reached, and the worker and expert that each was reached from and by.
  std::vector<int32_t> reached_;
  std::vector<int32_t> from_;  // [workers] -1: not reached
  std::vector<int32_t> by_;    // [workers]
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_TASKS_ALONE_H_
