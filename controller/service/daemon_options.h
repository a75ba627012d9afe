// The options of ballast-controller.
#ifndef BALLAST_CONTROLLER_SERVICE_DAEMON_OPTIONS_H_
#define BALLAST_CONTROLLER_SERVICE_DAEMON_OPTIONS_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "controller/group/config.h"
#include "controller/planner/gate.h"
#include "proto/base/flags.h"
#include "proto/base/log.h"
#include "proto/base/tls.h"

namespace ballast {

struct DaemonOptions {
  std::string listen = "127.0.0.1:7070";
  std::string metrics_listen = "127.0.0.1:7071";
  // Empty: no console.
  std::string console_listen;
  TlsFiles tls;
  bool allow_insecure = false;
  std::string store = "ballast-controller.db";
  std::vector<GroupConfig> groups;
  GroupTiming timing;
  PlanningRules planning;
  GateLimits gate;
  // File of the cost model; empty: the model's defaults.
  std::string cost_model;
  LoadWindow::Options load;
  int expert_metrics_top = 0;
  LogFormat log_format = LogFormat::kText;
  Severity log_level = Severity::kInfo;
};

// "name=demo,size=4,role=mixed,mode=auto,policy=eplb,combine=exact": name and size are needed.
//   InvalidArgument names the key, the value and what is allowed.
absl::StatusOr<GroupConfig> ParseGroup(std::string_view text);

// FailedPrecondition unless `address` ("host:port") is one of this machine alone or `may_leave_machine`; the message
// says what to do. InvalidArgument when it is no host:port.
absl::Status CheckListen(std::string_view option, std::string_view address, bool may_leave_machine);

// As ParseFlags; fills `options`.
std::optional<int> ParseDaemonOptions(int argc, char** argv, DaemonOptions& options);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_SERVICE_DAEMON_OPTIONS_H_
