// What an operator says about a group, and the timing rules that all groups share.
#ifndef BALLAST_CONTROLLER_GROUP_CONFIG_H_
#define BALLAST_CONTROLLER_GROUP_CONFIG_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "ballast/v1/common.pb.h"
#include "ballast/v1/group_service.pb.h"
#include "controller/planner/cost_model.h"
#include "controller/planner/grouping/group_search.h"
#include "controller/telemetry/load_window.h"

namespace ballast {

struct GroupConfig {
  std::string name;
  // Workers that the group forms with.
  int32_t size = 0;
  v1::GroupRole role = v1::GROUP_ROLE_MIXED;
  // Of a new group; what an operator sets later is kept in the store.
  v1::GroupMode mode = v1::GROUP_MODE_AUTO;
  std::string policy = "cost-aware";
  // Unspecified: as the first worker has it.
  v1::CombineMode combine = v1::COMBINE_MODE_UNSPECIFIED;
};

struct GroupTiming {
  // A worker that is silent for longer is dead.
  absl::Duration lease = absl::Seconds(2);
  absl::Duration heartbeat = absl::Milliseconds(400);
  absl::Duration report = absl::Seconds(1);
  // How often counted load is stored and acknowledged.
  absl::Duration checkpoint = absl::Seconds(2);
  // A view whose members cannot reach each other is issued again after this, twice as late each time up to 32 times.
  absl::Duration view_retry = absl::Milliseconds(250);
  // A wave that is not prepared by then aborts.
  absl::Duration wave_deadline = absl::Minutes(10);
  // A committed wave that is not in force by then is brought in with a new view, twice as late after each such view up
  // to 32 times: members may take longer to build a view's connections.
  absl::Duration force_deadline = absl::Seconds(10);
  // Between two tries to bring elsewhere what a worker that is to go holds.
  absl::Duration drain_retry = absl::Seconds(1);
  // A worker that view after view failed because of is put out for so long, twice as long each time up to 64 times.
  absl::Duration keep_out = absl::Seconds(10);
};

struct PlanningRules {
  // What busy workers cost: the times that plans say they save.
  CostModel cost_model;
  // Between one look at the load and the next.
  absl::Duration interval = absl::Seconds(30);
  // Tokens that the window must hold.
  int64_t min_tokens = 10'000;
  // The balancedness of some scenario must be below this,
  double plan_below = 0.95;
  // and so much of its busiest workers' tokens must be left to gain beyond noise and what the plan in force was
  // predicted to leave (drift.h), so that chance does not move weights to and fro.
  double hysteresis = 0.01;
  // Variance over mean of the window's counts, where 1 is independent tokens.
  double dispersion = 1;
  // Policies that plan from routes: how much the recent mix of tasks must differ from the one that the placement is
  // grouped for, beyond chance, for a plan (task_mix.h); and of how much time it is.
  double mix_drift = 0.1;
  absl::Duration mix_window = absl::Minutes(1);
  // Of policy task-aware. A task alone must be about level, too, without a plan of its own.
  GroupLimits group_limits = {.maxvio = 0.06, .task_maxvio = 0.3};
  // Tokens whose routes a plan is made from, tasks together.
  int64_t max_route_tokens = 16'384;
  // What one plan of policy cost-aware or task-aware may move; 0: no limit. With a limit plans change the placement in
  // force where that gains most; the next plan goes on from there. Policies eplb and tacg plan from nothing.
  int64_t max_moves = 512;
  int64_t max_move_bytes = 0;
  // A worker that is gone for longer is planned around: the others take over its experts.
  absl::Duration heal_after = absl::Minutes(1);
  // After an aborted rollout.
  absl::Duration abort_hold_off = absl::Minutes(1);
  // After a rollback.
  absl::Duration rollback_hold_off = absl::Minutes(10);
  // Proposed plans that nobody approves.
  absl::Duration expiry = absl::Minutes(10);
  // Bytes a second that one worker may pull during a rollout; 0: no limit.
  int64_t max_bytes_per_second = 0;
  // Finished plans that are kept.
  int keep_plans = 200;
};

struct GroupOptions {
  GroupConfig config;
  GroupTiming timing;
  PlanningRules planning;
  LoadWindow::Options load;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_GROUP_CONFIG_H_
