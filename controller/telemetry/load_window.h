// Load of one group over the planning window: tokens by (phase, task, layer, expert) in buckets of time, and with them
// whole routes of some of the tokens, which know what experts are chosen together.
//
// Not thread-safe. Pure but for its own state: time comes in as arguments, what must be stored goes out as writes.
#ifndef BALLAST_CONTROLLER_TELEMETRY_LOAD_WINDOW_H_
#define BALLAST_CONTROLLER_TELEMETRY_LOAD_WINDOW_H_

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ballast/v1/common.pb.h"
#include "ballast/v1/worker_session.pb.h"
#include "controller/planner/grouping/routes.h"
#include "controller/store/store.h"
#include "controller/telemetry/task_mix.h"
#include "proto/placement/placement.h"

namespace ballast {

// The task that tokens count under when a group has more tasks than are kept apart.
inline constexpr std::string_view kPooledTask = "_other";

class LoadWindow {
 public:
  struct Options {
    // Whole buckets; at least one.
    absl::Duration window = absl::Minutes(5);
    absl::Duration bucket = absl::Seconds(10);
    // Tasks kept apart at a time; the rest is pooled under kPooledTask.
    int max_tasks = 32;
    // Tokens of a (bucket, phase, task) whose routes are kept. A window of 30 buckets then knows a chance p to within
    // sqrt(p (1 - p) / 1920), one deviation, of a task that every bucket has tokens of.
    int max_routes = 64;
  };

  // `experts_per_token`: what routes of tokens must have in each layer; 0: routes are left out.
  LoadWindow(std::string group, int32_t layers, int32_t experts, const Options& options, int32_t experts_per_token = 0);

  // Adds a report's counts to the bucket of its end, brought into [now - window, now]. Of routes a bucket keeps
  // max_routes, in the proportion of the tokens that they stand for (resample.h).
  //   InvalidArgument names the field, the value and the limit; nothing is added.
  absl::Status Add(const v1::LoadReport& report, absl::Time now);

  // What `task` counts under now.
  std::string Shown(const std::string& task) const;

  // Forgets buckets that have left the window.
  void Expire(absl::Time now);

  // What to store so that Load finds everything added so far: the cells changed since the last call, and deletions.
  std::vector<StoreWrite> TakeWrites();
  bool dirty() const { return !dirty_.empty() || !expired_.empty(); }

  // Takes one stored pair of prefix StorePrefix(group). Pairs of another shape (another model) are ignored.
  void Load(std::string_view key, std::string_view value);
  static std::string StorePrefix(std::string_view group);

  struct Selection {
    // Absent: both phases, every task, all buckets.
    std::optional<v1::Phase> phase;
    std::optional<std::string> task;
    std::optional<absl::Duration> last;
  };
  // Tokens [layers][experts].
  std::vector<double> Tokens(const Selection& selection, absl::Time now) const;
  // Tokens that entered the model, by task (sorted) and phase.
  struct TaskTotal {
    std::string task;
    int64_t prefill = 0;
    int64_t decode = 0;
  };
  std::vector<TaskTotal> Tasks(const Selection& selection, absl::Time now) const;
  // What tokens chose, by task (sorted), the phases in the proportion of their tokens: at most `max_tokens` in all, as
  // many for each task as it has and they allow. Weights are the tasks' parts of `mix`, or of the window's tokens where
  // that is empty; tasks without routes, or without a part, are left out. No tasks: there is nothing.
  Routes SampledRoutes(const TaskMix& mix, int64_t max_tokens) const;
  // Tokens of `task` whose routes are kept.
  int64_t SampledTokens(const std::string& task) const;
  // The same of all tasks.
  int64_t total_routes() const;
  // Tokens that entered the model, by task, of each bucket that has any, oldest first.
  std::vector<std::map<std::string, int64_t>> TasksByBucket() const;
  // All tokens that entered the model in the window.
  int64_t total_tokens() const { return total_tokens_; }
  // Start of the oldest bucket that the selection takes in.
  absl::Time Start(const Selection& selection, absl::Time now) const;

  int32_t layers() const { return layers_; }
  int32_t experts() const { return experts_; }
  const Options& options() const { return options_; }

 private:
  struct CellId {
    int64_t bucket;  // start in Unix seconds
    int phase;
    std::string task;
    friend auto operator<=>(const CellId&, const CellId&) = default;
  };
  struct Cell {
    std::vector<double> tokens;
    int64_t entered = 0;
    // [tokens kept][layers][experts per token], and how many tokens each stands for.
    std::vector<int32_t> routes;
    std::vector<double> stands_for;
  };
  Cell& CellOf(const CellId& id);
  absl::Status CheckRoutes(const v1::LoadReport& report) const;
  void AddRoutes(std::span<const int32_t> experts, double each, Cell& cell);
  size_t route_width() const { return static_cast<size_t>(layers_) * experts_per_token_; }
  bool Selected(const Selection& selection, const CellId& id, absl::Time now) const;
  int64_t BucketOf(absl::Time at) const;
  std::string Key(const CellId& id) const;

  const std::string group_;
  const int32_t layers_;
  const int32_t experts_;
  const Options options_;
  const int32_t experts_per_token_;
  std::map<CellId, Cell> cells_;
  // Tasks kept apart, with the number of cells each has.
  std::map<std::string, int> tasks_;
  std::set<CellId> dirty_;
  std::set<CellId> expired_;
  int64_t total_tokens_ = 0;
  // Times that a cell's routes were thinned out.
  uint64_t thinned_ = 0;
  // Sum of all cells, by phase.
  std::map<int, std::vector<double>> phase_tokens_;
};

// Load of each worker, in the order of placement.workers, and how level it is (1 when there is none), by layer: mean
// over max of load over speed, the mean being all load over all speeds. `speeds` [workers] as in TopologyWorker; empty:
// all alike. `tokens` is [layers][experts] of the placement's shape; experts are split by their replicas' weights.
struct LayerLevel {
  std::vector<double> worker_tokens;
  double balancedness = 1;
};
std::vector<LayerLevel> LevelByLayer(const Placement& placement, std::span<const uint32_t> speeds,
                                     const std::vector<double>& tokens);
// Mean over the layers that have tokens; 0 when none has.
double MeanBalancedness(const std::vector<LayerLevel>& layers);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_TELEMETRY_LOAD_WINDOW_H_
