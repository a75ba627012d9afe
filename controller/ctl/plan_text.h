// What a controller's plan gains, costs and leaves to be gained, in words. Pure.
#ifndef BALLAST_CONTROLLER_CTL_PLAN_TEXT_H_
#define BALLAST_CONTROLLER_CTL_PLAN_TEXT_H_

#include <string>

#include "ballast/v1/plan_service.pb.h"

namespace ballast {

// Indented lines "gains", "costs" and "bound", each ended. Empty where the plan does not say its effect.
std::string EffectText(const v1::Plan& plan);

// Cells of a table of plans; "-" where the plan does not say it: "4.2 %", "1.500 ms", "0.610 s".
std::string PlanGain(const v1::Plan& plan);
std::string PlanGainTime(const v1::Plan& plan);
std::string PlanTransferTime(const v1::Plan& plan);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_CTL_PLAN_TEXT_H_
