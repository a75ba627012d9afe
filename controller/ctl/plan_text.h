// What a controller's plan gains, costs and leaves to be gained, in words. Pure.
#ifndef BALLAST_CONTROLLER_CTL_PLAN_TEXT_H_
#define BALLAST_CONTROLLER_CTL_PLAN_TEXT_H_

#include <cstdint>
#include <span>
#include <string>

#include "ballast/v1/common.pb.h"
#include "ballast/v1/plan_service.pb.h"

namespace ballast {

// Indented lines "gains", "costs" and "bound", each ended. Empty where the plan does not say its effect.
std::string EffectText(const v1::Plan& plan);

// Indented lines "tokens" (of the mix) and one for each task, each ended: how many workers they visit, what they send,
// and how level it is. Empty where the plan was not made from routes.
std::string TrafficText(const v1::PlanEffect& effect);

// A sentence for each replica, indented and ended: whom it shares its tokens with there, whose they are, and what it
// saves. `total`: moves of the plan; where there are more of them than reasons, it says so.
std::string ReasonsText(std::span<const v1::ReplicaReason> reasons, int64_t total);

// Where each task's requests should start, a line a task, indented and ended. Empty where no task has a home.
std::string HomesText(const v1::Placement& placement);

// Cells of a table of plans; "-" where the plan does not say it: "4.2 %", "1.500 ms", "0.610 s".
std::string PlanGain(const v1::Plan& plan);
std::string PlanGainTime(const v1::Plan& plan);
std::string PlanTransferTime(const v1::Plan& plan);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_PLAN_TEXT_H_
