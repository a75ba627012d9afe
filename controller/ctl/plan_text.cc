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

// "task code", "unlabelled requests"
std::string TaskName(const std::string& task) {
  if (task.empty()) return "unlabelled requests";
  if (task == "_other") return "tasks beyond those kept apart";
  return absl::StrCat("task ", task);
}

std::string Change(double before, double after, bool known, int digits) {
  const std::string now = absl::StrFormat("%.*f", digits, after);
  return known ? absl::StrCat(absl::StrFormat("%.*f", digits, before), " -> ", now) : now;
}

std::string Traffic(const v1::Traffic& before, const v1::Traffic& after, bool known) {
  std::string out = absl::StrCat("hops ", Change(before.hops_per_token(), after.hops_per_token(), known, 2),
                                 ", copies ", Change(before.copies_per_token(), after.copies_per_token(), known, 2));
  if (before.cross_node_copies_per_token() > 0 || after.cross_node_copies_per_token() > 0) {
    absl::StrAppend(&out, " (between nodes ",
                    Change(before.cross_node_copies_per_token(), after.cross_node_copies_per_token(), known, 2), ")");
  }
  absl::StrAppend(&out, ", busiest worker above the mean ", Change(before.maxvio(), after.maxvio(), known, 3),
                  absl::StrFormat(" (worst layer %.3f; %.3f with shares of its own)", after.maxvio_worst_layer(),
                                  after.maxvio_solved_shares()));
  return out;
}

std::string Percent(double ratio) { return absl::StrFormat("%.0f %%", 100 * ratio); }

}  // namespace

std::string TrafficText(const v1::PlanEffect& effect) {
  if (!effect.has_traffic_after()) return "";
  std::string out = absl::StrCat(
      "  a token       ", Traffic(effect.traffic_before(), effect.traffic_after(), effect.has_traffic_before()), "\n");
  for (const v1::TaskEffect& task : effect.tasks()) {
    absl::StrAppend(&out, "    of ", TaskName(task.task()), ", ", Percent(task.mix_ratio()),
                    " of the mix: ", Traffic(task.before(), task.after(), task.has_before()), "\n");
  }
  return out;
}

std::string ReasonsText(std::span<const v1::ReplicaReason> reasons, int64_t total) {
  std::string out;
  for (const v1::ReplicaReason& r : reasons) {
    absl::StrAppend(&out, "  layer ", r.layer(), " expert ", r.expert(), r.moved() ? " moves to " : " is on ",
                    r.worker());
    if (r.partners_size() == 0) {
      absl::StrAppend(&out, ", where none of its tokens' other experts are");
    } else {
      absl::StrAppend(&out, ", where its tokens also choose ");
      for (int i = 0; i < r.partners_size(); ++i) {
        absl::StrAppend(&out, i == 0 ? "" : ", ", r.partners(i).expert(), " (", Percent(r.partners(i).ratio()),
                        i == 0 ? " of them)" : ")");
      }
    }
    if (r.tasks_size() > 0) {
      absl::StrAppend(&out, "; they are of ");
      for (int i = 0; i < r.tasks_size(); ++i) {
        absl::StrAppend(&out, i == 0 ? "" : ", ", TaskName(r.tasks(i).task()), " (", Percent(r.tasks(i).ratio()), ")");
      }
    }
    absl::StrAppend(&out, absl::StrFormat("; that %s %.4f hops a token\n",
                                          r.hops_saved_per_token() >= 0 ? "saves" : "costs, for balance,",
                                          std::abs(r.hops_saved_per_token())));
  }
  if (!reasons.empty() && total > static_cast<int64_t>(reasons.size())) {
    absl::StrAppend(&out, "  and ", total - static_cast<int64_t>(reasons.size()),
                    " moves that save less; --expert LAYER/EXPERT tells of any\n");
  }
  return out;
}

std::string HomesText(const v1::Placement& placement) {
  std::string out;
  for (const v1::TaskHomes& task : placement.task_homes()) {
    double weights = 0;
    for (const v1::TaskHome& home : task.homes()) weights += home.weight();
    absl::StrAppend(&out, "  ", TaskName(task.task()), " on ");
    for (int i = 0; i < task.homes_size(); ++i) {
      const v1::TaskHome& home = task.homes(i);
      absl::StrAppend(&out, i == 0 ? "" : ", ", placement.workers(home.worker()), " (",
                      Percent(home.weight() / weights),
                      absl::StrFormat(", saves %.2f copies a token)", home.copies_saved_per_token()));
    }
    absl::StrAppend(&out, "\n");
  }
  return out;
}

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
