#include "controller/ctl/plan_text.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "controller/ctl/output.h"

namespace ballast {
namespace {

double Seconds(const google::protobuf::Duration& duration) {
  return static_cast<double>(duration.seconds()) + duration.nanos() * 1e-9;
}

std::string Microseconds(double microseconds) {
  const double size = std::abs(microseconds);
  if (size < 1e3) return absl::StrFormat("%.3g us", microseconds);
  if (size < 1e6) return absl::StrFormat("%.3f ms", microseconds / 1e3);
  return absl::StrFormat("%.3f s", microseconds / 1e6);
}

void AddLink(const v1::LinkCost& link, const char* where, std::string* out) {
  if (link.moves() == 0) return;
  absl::StrAppend(out, out->empty() ? ": " : ", ", link.moves(), " ", where, " (", HumanBytes(link.bytes()),
                  absl::StrFormat(", %.3f s)", Seconds(link.time())));
}

std::string Gains(const v1::Plan& plan) {
  const v1::PlanEffect& effect = plan.effect();
  const double tokens = effect.busiest_tokens_before() - effect.busiest_tokens_after();
  if (effect.busiest_tokens_before() == 0) return "unknown: there was no load to measure it by";
  const bool less = tokens >= 0;
  return absl::StrFormat("%s of what the busiest workers have: %.6g tokens of the window %s, %s by the cost model",
                         PlanGain(plan), std::abs(tokens), less ? "less" : "more",
                         Microseconds(std::abs(effect.gain_microseconds())));
}

std::string Costs(const v1::Plan& plan) {
  const v1::PlanEffect& effect = plan.effect();
  if (plan.moves_total() == 0) return "nothing: nothing moves";
  std::string links;
  AddLink(effect.node(), "within nodes", &links);
  AddLink(effect.cross_node(), "between nodes", &links);
  AddLink(effect.checkpoint(), "from host memory or checkpoint", &links);
  return absl::StrFormat("%d moves, %s, %s of transfers%s", plan.moves_total(), HumanBytes(plan.bytes_total()),
                         PlanTransferTime(plan), links);
}

std::string Bound(const v1::PlanEffect& effect) {
  if (effect.busiest_tokens_bound() == 0) return "unknown: there was no load to measure it by";
  return absl::StrFormat(
      "the busiest workers keep %.6g tokens, %.2f %% above the %.6g that no placement of as many replicas can go below",
      effect.busiest_tokens_after(), 100 * (effect.busiest_tokens_after() / effect.busiest_tokens_bound() - 1),
      effect.busiest_tokens_bound());
}

}  // namespace

std::string PlanGain(const v1::Plan& plan) {
  return plan.has_effect() ? absl::StrFormat("%.1f %%", 100 * plan.effect().gain_ratio()) : "-";
}

std::string PlanGainTime(const v1::Plan& plan) {
  return plan.has_effect() ? Microseconds(plan.effect().gain_microseconds()) : "-";
}

std::string PlanTransferTime(const v1::Plan& plan) {
  return plan.has_effect() ? absl::StrFormat("%.3f s", Seconds(plan.effect().transfer_time())) : "-";
}

std::string EffectText(const v1::Plan& plan) {
  if (!plan.has_effect()) return "";
  return absl::StrCat("  gains         ", Gains(plan), "\n", "  costs         ", Costs(plan), "\n", "  bound         ",
                      Bound(plan.effect()), "\n");
}

}  // namespace ballast
