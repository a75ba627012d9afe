// What the console draws, as compact JSON made from the services' messages. Pure.
#ifndef BALLAST_CONTROLLER_CONSOLE_VIEWS_H_
#define BALLAST_CONTROLLER_CONSOLE_VIEWS_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/group_service.pb.h"
#include "ballast/v1/plan_service.pb.h"
#include "ballast/v1/telemetry_service.pb.h"

namespace ballast {

// A group as it was at one moment.
struct GroupView {
  absl::Time at;
  v1::Group group;
  // Any order.
  std::vector<v1::Worker> workers;
  // Shared with views of the same epoch and shares.
  std::shared_ptr<const v1::Placement> placement;
  v1::GetLoadResponse load;
};

// A matrix of ratios in little-endian thousandths, two bytes each, row by row, in base64; 65.535 stands for all above.
std::string PackRatios(const std::vector<double>& ratios);

// {at_ms, group (as in the API), layers, experts, workers: [{name, node, state, rank, load_ratio, slots, slots_used,
// kv_cache_used_ratio, requests_running, requests_waiting}], balancedness: [layer],
// load: PackRatios [layer][worker] of the worker's tokens over the layer's mean,
// hottest: [{layer, expert, tokens, ratio, replicas, workers}]}. Workers are in the order of the placement, and those
// outside it come after; hottest: the ten experts with most tokens beside the mean of their layer, `ratio` of them.
nlohmann::ordered_json OverviewJson(const GroupView& view);

// One layer: {layer, balancedness, tokens: [expert], expert: [replica], worker: [replica], load: [replica]}; `worker`
// indexes OverviewJson's, `load` is the replica's tokens over the mean of the layer's workers.
//   InvalidArgument  there is no such layer.
absl::StatusOr<nlohmann::ordered_json> LayerJson(const GroupView& view, int32_t layer);

// A plan beside the group that it is for: {plan, layers (both as in the API), wave_moves, moves_total, moves: the first
// kMovesShown of all or, while it is rolled out, of the wave under way [{layer, expert, source, destination, slot,
// bytes}], explanation: [line], after: as OverviewJson's load under the plan's placement and the view's load}. `after`
// is absent where the plan has no placement, or there is no load, or the shape is another.
inline constexpr int kMovesShown = 200;
nlohmann::ordered_json PlanJson(const v1::GetPlanResponse& plan, const GroupView& view);

// {at_ms, engines: [{name, model, layers, experts, gpus, nodes, slots_per_layer, policy, reason, epoch, planned_ms,
// last_report_ms, predicted_balancedness, balancedness, window_tokens}]}, as they come; what there is not yet is 0.
nlohmann::ordered_json EnginesJson(const std::vector<v1::EngineStatus>& engines, absl::Time at);

// What a group's balancedness was: a sample a second at most, for an hour. Not thread-safe.
class History {
 public:
  static constexpr absl::Duration kStep = absl::Seconds(1);
  static constexpr size_t kSamples = 3600;

  // Nothing while it is closer than kStep to the one before.
  void Add(absl::Time at, const v1::Group& group);

  // {at_ms, balancedness, epoch, window_tokens}: arrays of equal length, oldest first, of what came after `after`.
  nlohmann::ordered_json ToJson(absl::Time after) const;

 private:
  struct Sample {
    absl::Time at;
    double balancedness = 0;
    uint64_t epoch = 0;
    int64_t window_tokens = 0;
  };
  std::deque<Sample> samples_;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CONSOLE_VIEWS_H_
