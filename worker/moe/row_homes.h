// Which homes the tokens of a step's rows have: by the task that a row counts as, numbered as LoadCounters does.
#ifndef BALLAST_WORKER_MOE_ROW_HOMES_H_
#define BALLAST_WORKER_MOE_ROW_HOMES_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "proto/placement/placement.h"
#include "worker/moe/load_counters.h"

namespace ballast {

// One thread.
class RowHomes {
 public:
  // `tasks` must outlive it; null: no task has homes.
  explicit RowHomes(const LoadCounters* tasks) : tasks_(tasks) {}

  // The homes of tasks are these from now on, or there are none.
  void Install(std::span<const TaskHomes> homes);
  bool empty() const { return by_name_.empty(); }

  // Index into the homes installed, or -1. As requests are routed (RequestRouter): a labelled task without homes of its
  // own has those of the tasks that telemetry pools, where these have any.
  int32_t Of(int32_t task);

 private:
  int32_t Find(int32_t task) const;

  const LoadCounters* tasks_;
  std::unordered_map<std::string, int32_t> by_name_;
  // By task, as far as it was asked for.
  std::vector<std::optional<int32_t>> known_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_MOE_ROW_HOMES_H_
