#include "controller/service/daemon_options.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "controller/service/planning.h"
#include "proto/base/loopback.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

constexpr int kMaxSize = 4096;
constexpr size_t kMaxNameLength = 63;

absl::Status GroupError(std::string_view key, std::string_view value, std::string_view allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat("group: ", std::string(key), ": '", std::string(value), "' is not ", std::string(allowed)));
}

// The value that `text` stands for in `values`.
template <typename T>
absl::StatusOr<T> Choose(std::string_view key, const std::string& text, const std::map<std::string, T>& values) {
  if (const auto found = values.find(text); found != values.end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [name, value] : values) names.push_back(name);
  return GroupError(key, text, absl::StrCat("one of ", absl::StrJoin(names, ", ")));
}

// A duration option with a unit, between two limits.
void AddDuration(CLI::App& app, const std::string& name, absl::Duration& value, absl::Duration least,
                 absl::Duration most, const std::string& help) {
  const CLI::Validator in_range(
      [least, most](std::string& text) {
        absl::Duration parsed;
        if (!absl::ParseDuration(text, &parsed) || parsed < least || parsed > most) {
          return absl::StrCat("'", text, "' is not a time such as 500ms, 5s or 10m between ",
                              absl::FormatDuration(least), " and ", absl::FormatDuration(most));
        }
        return std::string();
      },
      "TIME");
  app.add_option_function<std::string>(
         name, [&value](const std::string& text) { absl::ParseDuration(text, &value); }, help)
      ->check(in_range)
      ->default_str(absl::FormatDuration(value));
}

}  // namespace

absl::StatusOr<GroupConfig> ParseGroup(std::string_view text) {
  GroupConfig group;
  std::set<std::string> seen;
  const std::vector<std::string> items = absl::StrSplit(std::string(text), ',');
  for (const std::string& item : items) {
    const std::vector<std::string> pair = absl::StrSplit(item, absl::MaxSplits('=', 1));
    if (pair.size() != 2) return GroupError("item", item, "KEY=VALUE");
    const std::string& key = pair[0];
    const std::string& value = pair[1];
    if (!seen.insert(key).second) return GroupError(key, value, "given once");
    if (key == "name") {
      const bool plain = std::all_of(value.begin(), value.end(), [](unsigned char c) {
        return std::islower(c) != 0 || std::isdigit(c) != 0 || c == '-';
      });
      if (value.empty() || value.size() > kMaxNameLength || !plain) {
        return GroupError(key, value, absl::StrCat("1 to ", kMaxNameLength, " characters of [a-z0-9-]"));
      }
      group.name = value;
    } else if (key == "size") {
      if (!absl::SimpleAtoi(value, &group.size) || group.size < 1 || group.size > kMaxSize) {
        return GroupError(key, value, absl::StrCat("a number from 1 to ", kMaxSize));
      }
    } else if (key == "role") {
      BALLAST_ASSIGN_OR_RETURN(group.role, Choose<v1::GroupRole>(key, value,
                                                                 {{"prefill", v1::GROUP_ROLE_PREFILL},
                                                                  {"decode", v1::GROUP_ROLE_DECODE},
                                                                  {"mixed", v1::GROUP_ROLE_MIXED}}));
    } else if (key == "mode") {
      BALLAST_ASSIGN_OR_RETURN(group.mode, Choose<v1::GroupMode>(key, value,
                                                                 {{"observe", v1::GROUP_MODE_OBSERVE},
                                                                  {"approve", v1::GROUP_MODE_APPROVE},
                                                                  {"auto", v1::GROUP_MODE_AUTO}}));
    } else if (key == "combine") {
      BALLAST_ASSIGN_OR_RETURN(
          group.combine,
          Choose<v1::CombineMode>(key, value, {{"fast", v1::COMBINE_MODE_FAST}, {"exact", v1::COMBINE_MODE_EXACT}}));
    } else if (key == "policy") {
      BALLAST_RETURN_IF_ERROR(CheckPolicy(value));
      group.policy = value;
    } else {
      return GroupError("key", key, "one of name, size, role, mode, policy, combine");
    }
  }
  if (!seen.contains("name")) return GroupError("name", "", "given");
  if (!seen.contains("size")) return GroupError("size", "", "given");
  return group;
}

absl::Status CheckListen(std::string_view option, std::string_view address, bool may_leave_machine) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string_view::npos || colon == 0 ||
      !absl::SimpleAtoi(std::string(address.substr(colon + 1)), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(std::string(option), ": '", std::string(address),
                                                   "' is not HOST:PORT with a port from 0 to 65535"));
  }
  if (may_leave_machine || IsLoopback(std::string(address.substr(0, colon)))) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      std::string(option), ": ", std::string(address),
      " can be reached from other machines, and without TLS anyone there could read prompts' statistics, "
      "approve plans and pose as a worker. Give --tls-cert, --tls-key and --tls-ca, listen on 127.0.0.1, or give "
      "--allow-insecure where the network keeps strangers out"));
}

std::optional<int> ParseDaemonOptions(int argc, char** argv, DaemonOptions& o) {
  CLI::App app(
      "Keeps mixture-of-experts models level: collects expert load from workers, plans where replicas should live, "
      "and\n"
      "moves them while the workers serve.\n\n"
      "  ballast-controller --store=/var/lib/ballast/controller.db --group=name=demo,size=4\n\n"
      "starts one group that forms as soon as four workers have joined (ballast-worker --group=demo). When its gRPC "
      "and\n"
      "metrics ports are open it prints one line, 'ready grpc=HOST:PORT metrics=HOST:PORT console=HOST:PORT'; logs\n"
      "go to stderr. What it has decided is in the store: stop it or kill it, start it again with the same store, and "
      "it goes on.\n"
      "SIGTERM ends it in order. Look in with: ballastctl --controller=HOST:PORT get groups",
      "ballast-controller");
  std::vector<std::string> groups;
  bool engines_only = false;
  std::string log_format = "text";
  std::string log_level = "info";

  app.add_option("--listen", o.listen, "gRPC address; port 0 takes any free one")->capture_default_str();
  app.add_option("--metrics-listen", o.metrics_listen, "Prometheus address (GET /metrics); port 0 takes any free one")
      ->capture_default_str();
  o.console_listen = "127.0.0.1:7072";
  app.add_option(
         "--console-listen", o.console_listen,
         "Address of the console, web pages to watch and to approve plans in; port 0 takes any free one, 'none'\n"
         "turns it off. With TLS files HTTPS to those with a certificate; beyond this machine without them it\n"
         "only reads")
      ->capture_default_str();
  AddTlsFlags(app, o.tls);
  app.add_flag(
      "--allow-insecure", o.allow_insecure,
      "Listen beyond this machine without TLS. Gives up that callers are who they say and that nobody reads or "
      "changes what is sent");
  app.add_option("--store", o.store, "File that keeps placements, plans and load; made when missing")
      ->capture_default_str();
  app.add_option(
      "--group", groups,
      "A group of workers, repeatable: name=NAME,size=WORKERS[,role=prefill|decode|mixed]"
      "[,mode=observe|approve|auto][,policy=cost-aware|eplb|task-aware|tacg][,combine=fast|exact]. mode counts for a "
      "new group; what "
      "operators set later, the policy too, is kept. Without combine the first worker decides. At least one");

  app.add_flag("--engines-only", engines_only,
               "No group is needed: serve engines that are not Ballast workers, which register themselves\n"
               "(TelemetryService, ballastctl sidecar)");

  AddDuration(app, "--lease", o.timing.lease, absl::Milliseconds(200), absl::Minutes(5),
              "A worker silent for longer is dead");
  AddDuration(app, "--heartbeat-interval", o.timing.heartbeat, absl::Milliseconds(20), absl::Minutes(1),
              "Between a worker's heartbeats; at most a third of the lease");
  AddDuration(app, "--report-interval", o.timing.report, absl::Milliseconds(50), absl::Minutes(5),
              "Between a worker's load reports");
  AddDuration(app, "--checkpoint-interval", o.timing.checkpoint, absl::Milliseconds(50), absl::Minutes(5),
              "Between writes of the load to the store; what is not written workers keep and send again");

  AddDuration(app, "--planning-interval", o.planning.interval, absl::Milliseconds(100), absl::Hours(24),
              "Between two looks at whether a plan pays");
  AddDuration(app, "--load-window", o.load.window, absl::Seconds(1), absl::Hours(24), "Load that plans are made from");
  app.add_option("--max-tasks", o.load.max_tasks, "Tasks whose load is kept apart in a group; the rest is pooled")
      ->check(CLI::Range(1, 10'000))
      ->capture_default_str();
  app.add_option("--routes-per-bucket", o.load.max_routes,
                 "Whole routes that are kept of each task and phase in a thirtieth of the load window; more "
                 "than there are tokens, here and in the workers' --route-samples: co-activation is exact")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--min-tokens", o.planning.min_tokens, "Tokens that the window must hold for a plan")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 50))
      ->capture_default_str();
  app.add_option("--plan-below", o.planning.plan_below, "Plan when some phase's balancedness is below this")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  app.add_option(
         "--hysteresis", o.planning.hysteresis,
         "... and so much of the busiest workers' tokens is left to gain, beyond chance and what the last rollout "
         "was predicted to leave")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--min-gain", o.gate.min_gain,
                 "Least part of the busiest workers' tokens that a plan must save to be proposed")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  app.add_option(
      "--cost-model", o.cost_model,
      "What busy workers cost, for what plans say they gain and for weighing level against copies; JSON, see "
      "docs/schemas/cost_model.v1.schema.json. Without it: one H200 with DeepSeek-V3's experts");
  app.add_option("--load-dispersion", o.planning.dispersion,
                 "Variance over mean of counted tokens, for telling drift from chance: 1 where tokens choose for "
                 "themselves, more where neighbours choose alike")
      ->check(Between(0.01, 1e6))
      ->capture_default_str();
  app.add_option("--max-vio", o.planning.group_limits.maxvio,
                 "Policy task-aware: how far a layer's busiest worker may be above the mean, under the mix of tasks")
      ->check(Between(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--task-max-vio", o.planning.group_limits.task_maxvio, "The same under each task alone")
      ->check(Between(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--mix-drift", o.planning.mix_drift,
                 "Policies task-aware and tacg: plan when so much of the recent tokens, beyond chance, are of other "
                 "tasks than in the mix that the placement is for")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  AddDuration(app, "--mix-window", o.planning.mix_window, absl::Seconds(1), absl::Hours(24),
              "The recent tokens that the mix of tasks is taken from");
  app.add_option("--max-plan-moves", o.planning.max_moves,
                 "Replicas that one plan of policy cost-aware or task-aware may move; the next one goes on from there. "
                 "0: no limit, then "
                 "plans of cost-aware start from nothing, as those of eplb and tacg do")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->capture_default_str();
  app.add_option("--max-plan-bytes", o.planning.max_move_bytes, "The same in bytes")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 60))
      ->capture_default_str();
  AddDuration(app, "--heal-after", o.planning.heal_after, absl::Milliseconds(100), absl::Hours(24 * 7),
              "A worker gone for longer is planned around: the others take over its experts");
  AddDuration(app, "--plan-expiry", o.planning.expiry, absl::Seconds(1), absl::Hours(24 * 7),
              "A proposed plan that nobody approves expires");

  AddDuration(app, "--rollout-deadline", o.timing.wave_deadline, absl::Milliseconds(100), absl::Hours(24),
              "A wave that is not prepared by then is aborted");
  AddDuration(app, "--rollback-hold-off", o.planning.rollback_hold_off, absl::ZeroDuration(), absl::Hours(24 * 7),
              "No planning after a rollback");
  AddDuration(app, "--abort-hold-off", o.planning.abort_hold_off, absl::ZeroDuration(), absl::Hours(24),
              "No planning after an aborted rollout");
  app.add_option("--max-bytes-per-second", o.planning.max_bytes_per_second,
                 "Weights that one worker may pull a second during a rollout; 0: no limit")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 50))
      ->capture_default_str();

  app.add_option(
         "--expert-metrics-top", o.expert_metrics_top,
         "Show ballast_expert_tokens_total of this many experts a layer and ballast_worker_layer_load_ratio of this "
         "many workers, those with most tokens; 0: of all")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("--log-format", log_format, "How logs are written")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  app.add_option("--log-level", log_level, "The least that is logged")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();

  if (const std::optional<int> exit = ParseFlags(app, argc, argv); exit.has_value()) return exit;
  const auto fail = [](const auto& message) {
    std::cerr << "ballast-controller: " << message << "\n";
    return 2;
  };
  if (groups.empty() && !engines_only) {
    return fail("group: at least one is needed, or --engines-only; --help shows how to write it");
  }
  for (const std::string& text : groups) {
    absl::StatusOr<GroupConfig> group = ParseGroup(text);
    if (!group.ok()) return fail(group.status().message());
    o.groups.push_back(*std::move(group));
  }
  if (o.timing.heartbeat > o.timing.lease / 3) {
    return fail(absl::StrCat("heartbeat-interval: ", absl::FormatDuration(o.timing.heartbeat),
                             " is more than a third of the lease of ", absl::FormatDuration(o.timing.lease)));
  }
  if (o.console_listen == "none") o.console_listen.clear();
  for (const auto& [option, address] : {std::pair("listen", &o.listen), std::pair("metrics-listen", &o.metrics_listen),
                                        std::pair("console-listen", &o.console_listen)}) {
    if (address == &o.console_listen && address->empty()) continue;
    if (absl::Status status = CheckListen(option, *address, o.allow_insecure || o.tls.given()); !status.ok()) {
      return fail(status.message());
    }
  }
  // About thirty buckets, of whole seconds.
  o.load.bucket = std::max(absl::Seconds(1), absl::Seconds(absl::ToInt64Seconds(o.load.window / 30)));
  o.load.window = std::max(o.load.window, o.load.bucket);
  o.log_format = log_format == "json" ? LogFormat::kJson : LogFormat::kText;
  o.log_level = log_level == "debug"     ? Severity::kDebug
                : log_level == "warning" ? Severity::kWarning
                : log_level == "error"   ? Severity::kError
                                         : Severity::kInfo;
  return std::nullopt;
}

}  // namespace ballast
