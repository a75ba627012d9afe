// What a group wants done: the outputs of its state machine. Plain data, so that tests read them.
#ifndef BALLAST_CONTROLLER_GROUP_EFFECTS_H_
#define BALLAST_CONTROLLER_GROUP_EFFECTS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ballast/v1/plan_service.pb.h"
#include "ballast/v1/worker_session.pb.h"
#include "controller/rollout/plan_job.h"
#include "controller/store/store.h"
#include "proto/base/log.h"

namespace ballast {

// One open stream of one worker; never used twice by a process.
using SessionId = uint64_t;

struct SendMessage {
  SessionId session = 0;
  v1::ConnectResponse message;
};
struct CloseSession {
  SessionId session = 0;
  absl::Status status;
};

// First `writes`, as one batch, then, when they are durable, `sends` in order.
struct EffectStep {
  std::vector<StoreWrite> writes;
  std::vector<std::variant<SendMessage, CloseSession>> sends;
};

struct GroupEvent {
  absl::Time at;
  Severity severity = Severity::kInfo;
  // One line.
  std::string text;
};

// A counter to add to, or a histogram to observe, by its definition's name.
struct MetricUpdate {
  std::string_view name;
  std::vector<std::string> labels;
  double value = 1;
  // Of a histogram, values counted elsewhere: how many in each bucket; `value` is their sum then.
  std::vector<double> buckets;
};

// The answer to an operator's call that had to wait for the planner.
struct PlanReply {
  uint64_t call = 0;
  absl::StatusOr<v1::GetPlanResponse> plan;
};

struct Effects {
  // In order.
  std::vector<EffectStep> steps;
  std::vector<GroupEvent> events;
  std::vector<MetricUpdate> metrics;
  std::optional<PlanJob> job;
  // Only after every step.
  std::vector<PlanReply> replies;
  // The group looks different to those who watch it.
  bool changed = false;
};

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_GROUP_EFFECTS_H_
