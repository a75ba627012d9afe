// How a plan comes into force: pure rules from the state of a rollout to the next thing to do.
//
// Level-triggered as the rules of membership are: what the store remembers (a plan's state) and what workers say (again
// after each reconnect) decide alone, so a controller that restarts in any state goes on or aborts by the same rules.
//
//   PROPOSED -> APPROVED -> for each wave: PREPARING -> PREPARED -> COMMITTING -> APPROVED (the next wave) or DONE
//      \-> REJECTED | EXPIRED | SUPERSEDED      \-> ABORTED <-/
#ifndef BALLAST_CONTROLLER_ROLLOUT_ROLLOUT_H_
#define BALLAST_CONTROLLER_ROLLOUT_ROLLOUT_H_

#include <string>
#include <vector>

#include "absl/time/time.h"
#include "ballast/v1/plan_service.pb.h"

namespace ballast {

// What a member of the view in force has told about the wave under way.
struct MemberProgress {
  bool connected = false;
  bool prepared = false;
  bool in_force = false;
};

struct RolloutFacts {
  v1::PlanState state = v1::PLAN_STATE_UNSPECIFIED;
  // A rollback works its waves out first.
  bool waves_known = true;
  // They are being worked out.
  bool working_out = false;
  int waves_done = 0;
  int waves_total = 0;
  // Every worker that the next wave gives replicas is in the view and none of them is to go.
  bool group_complete = false;
  // Every member has installed the view.
  bool view_installed = false;
  // The view is another than the wave began in.
  bool view_changed = false;
  std::vector<MemberProgress> members;
  // A worker could not prepare the wave: why. Empty: none said so.
  std::string failure;
  absl::Time deadline;
  bool paused = false;
  // An operator's order: a rollback, or a plan around a worker that is to go. A pause does not hold it up.
  bool ordered = false;
  // A rollback waits for this rollout to stop.
  bool stop = false;
};

enum class RolloutStep {
  kNothing,
  // Work out a rollback's waves.
  kWorkOut,
  // Give the next wave its epoch, record PREPARING, tell every member.
  kBeginWave,
  // Record PREPARED.
  kRecordPrepared,
  // Record COMMITTING and the wave's placement as the one in force, then tell every member. No way back.
  kCommit,
  // Every member has the wave's epoch in force.
  kWaveDone,
  // Nothing is left to do.
  kFinish,
  // Record ABORTED, tell every member.
  kAbort,
};

struct RolloutDecision {
  RolloutStep step = RolloutStep::kNothing;
  // For people.
  std::string reason;
  // Of kAbort: the workers could not do it. Otherwise it gives way to what has changed around it.
  bool failed = false;
};

RolloutDecision DecideRollout(const RolloutFacts& facts, absl::Time now);

// A plan that will not change any more.
bool IsFinished(v1::PlanState state);
// A plan whose rollout has begun or may begin, and has not ended.
bool IsActive(v1::PlanState state);
// As operators read it: "PREPARING".
std::string StateName(v1::PlanState state);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_ROLLOUT_ROLLOUT_H_
