#include "controller/rollout/plan_effect.h"

#include <algorithm>
#include <cmath>

#include "google/protobuf/duration.pb.h"

namespace ballast {
namespace {

google::protobuf::Duration ToProto(double seconds) {
  constexpr double kMost = 315'576'000'000;  // what a Duration may be
  seconds = std::min(seconds, kMost);
  google::protobuf::Duration out;
  out.set_seconds(static_cast<int64_t>(seconds));
  out.set_nanos(static_cast<int32_t>((seconds - std::floor(seconds)) * 1e9));
  return out;
}

v1::LinkCost ToProto(const TransferCost::Link& link) {
  v1::LinkCost out;
  out.set_moves(static_cast<int32_t>(link.moves));
  out.set_bytes(link.bytes);
  *out.mutable_time() = ToProto(link.seconds);
  return out;
}

}  // namespace

v1::PlanEffect MakePlanEffect(const Plan& plan, const BusiestTokens& busiest, const CostModel& model) {
  v1::PlanEffect out;
  out.set_busiest_tokens_before(busiest.before);
  out.set_busiest_tokens_after(busiest.after);
  out.set_busiest_tokens_bound(busiest.bound);
  if (plan.current.empty()) return out;
  out.set_gain_ratio(plan.gain);
  out.set_gain_microseconds((busiest.before - busiest.after) * model.microseconds_per_token);
  if (plan.transfer.node.moves > 0) *out.mutable_node() = ToProto(plan.transfer.node);
  if (plan.transfer.cross_node.moves > 0) *out.mutable_cross_node() = ToProto(plan.transfer.cross_node);
  if (plan.transfer.checkpoint.moves > 0) *out.mutable_checkpoint() = ToProto(plan.transfer.checkpoint);
  if (plan.moves > 0) *out.mutable_transfer_time() = ToProto(plan.transfer.seconds);
  return out;
}

}  // namespace ballast
