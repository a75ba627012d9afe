// top: the live view.
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "controller/ctl/client.h"
#include "controller/ctl/context.h"
#include "controller/ctl/terminal.h"
#include "controller/ctl/top.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct TopOptions {
  std::string group;
  double interval_seconds = 2;
  bool once = false;
};

absl::StatusOr<TopView> Look(Client& client, const std::string& group, absl::Time now) {
  TopView view{.at = now};
  BALLAST_ASSIGN_OR_RETURN(auto list,
                           client.Call(client.groups(), &v1::GroupService::Stub::ListGroups, v1::ListGroupsRequest()));
  view.groups.assign(list.groups().begin(), list.groups().end());
  const auto found = std::find_if(view.groups.begin(), view.groups.end(),
                                  [&](const v1::Group& g) { return group.empty() || g.name() == group; });
  if (found == view.groups.end()) {
    if (group.empty()) return view;
    return absl::NotFoundError(absl::StrCat("--group: there is no group '", group, "'"));
  }
  view.group = found->name();
  v1::GetPlacementRequest placement_request;
  placement_request.set_group(view.group);
  BALLAST_ASSIGN_OR_RETURN(auto placement,
                           client.Call(client.groups(), &v1::GroupService::Stub::GetPlacement, placement_request));
  view.placement = std::move(*placement.mutable_placement());
  v1::GetLoadRequest load_request;
  load_request.set_group(view.group);
  BALLAST_ASSIGN_OR_RETURN(view.load, client.Call(client.groups(), &v1::GroupService::Stub::GetLoad, load_request));
  BALLAST_ASSIGN_OR_RETURN(const v1::ListWorkersResponse all, client.Workers(view.group));
  view.workers.assign(all.workers().begin(), all.workers().end());
  if (found->plan().empty()) return view;
  v1::GetPlanRequest plan_request;
  plan_request.set_id(found->plan());
  BALLAST_ASSIGN_OR_RETURN(auto plan, client.Call(client.plans(), &v1::PlanService::Stub::GetPlan, plan_request));
  if (plan.plan().state() < v1::PLAN_STATE_DONE) view.plan = std::move(plan);
  return view;
}

absl::Status Top(CtlContext& context, const TopOptions& options) {
  if (context.output != OutputFormat::kTable) {
    return absl::InvalidArgumentError("--output: top is for people; get, and the services, are for programs");
  }
  Clock& clock = Clock::Real();
  Client client(context);
  const TopLook look = [&](const std::string& group) { return Look(client, group, clock.Now()); };
  // Errors that are there from the beginning are told as those of every verb are.
  BALLAST_ASSIGN_OR_RETURN(TopView view, look(options.group));
  const bool on_stdout = &context.out == &std::cout;
  if (options.once || !on_stdout || isatty(STDOUT_FILENO) == 0 || isatty(STDIN_FILENO) == 0) {
    context.out << TopText(view, TopSort::kLoad, (on_stdout ? TerminalSize() : std::nullopt).value_or(TopSize()));
    return absl::OkStatus();
  }
  Terminal terminal(clock);
  RunTop(look, options.group, std::move(view), absl::Seconds(options.interval_seconds), clock, terminal);
  return absl::OkStatus();
}

}  // namespace

void AddTopVerb(CLI::App& app, CtlContext& context) {
  auto options = std::make_shared<TopOptions>();
  CLI::App* verb = app.add_subcommand("top", "Watch groups: GPUs, layers, hottest experts, tasks, moves in flight");
  verb->add_option("--group,-g", options->group, "Shown in full; by default the first, and key g goes on to the next");
  verb->add_option("--interval", options->interval_seconds, "Seconds between two looks")
      ->check(Between(0.1, 3600.0))
      ->capture_default_str();
  verb->add_flag("--once", options->once, "Print one look and end; so it does, too, where output is no terminal");
  verb->footer(
      "Key q ends it; g goes to the next group; l, r, n, w and k sort GPUs, as the first line says.\n"
      "Examples:\n  ballastctl top\n  ballastctl top --group demo --once | head -n 20");
  verb->callback([&context, options] { context.run = [&context, options] { return Top(context, *options); }; });
}

}  // namespace ballast
