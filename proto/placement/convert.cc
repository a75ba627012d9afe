#include "proto/placement/convert.h"

#include "proto/base/status_macros.h"

namespace ballast {

v1::Placement ToProto(const Placement& placement) {
  v1::Placement out;
  out.set_epoch(placement.epoch.value());
  out.set_shares_version(placement.shares_version.value());
  out.set_num_layers(placement.num_layers);
  out.set_num_experts(placement.num_experts);
  for (const std::string& worker : placement.workers) out.add_workers(worker);
  for (const Replica& replica : placement.replicas) {
    v1::Replica& entry = *out.add_replicas();
    entry.set_layer(replica.expert.layer);
    entry.set_expert(replica.expert.expert);
    entry.set_worker(replica.worker);
    entry.set_slot(replica.slot);
    entry.set_weight(replica.weight);
  }
  for (const TaskHomes& task : placement.task_homes) {
    v1::TaskHomes& entry = *out.add_task_homes();
    entry.set_task(task.task);
    for (const TaskHome& home : task.homes) {
      v1::TaskHome& to = *entry.add_homes();
      to.set_worker(home.worker);
      to.set_weight(home.weight);
      to.set_copies_saved_per_token(home.copies_saved_per_token);
    }
  }
  return out;
}

absl::StatusOr<Placement> FromProto(const v1::Placement& placement) {
  Placement out;
  out.epoch = Epoch(placement.epoch());
  out.shares_version = SharesVersion(placement.shares_version());
  out.num_layers = placement.num_layers();
  out.num_experts = placement.num_experts();
  out.workers.assign(placement.workers().begin(), placement.workers().end());
  out.replicas.reserve(placement.replicas_size());
  for (const v1::Replica& entry : placement.replicas()) {
    out.replicas.push_back({.expert = {.layer = entry.layer(), .expert = entry.expert()},
                            .worker = entry.worker(),
                            .slot = entry.slot(),
                            .weight = entry.weight()});
  }
  for (const v1::TaskHomes& entry : placement.task_homes()) {
    TaskHomes& task = out.task_homes.emplace_back();
    task.task = entry.task();
    for (const v1::TaskHome& home : entry.homes()) {
      task.homes.push_back({home.worker(), home.weight(), home.copies_saved_per_token()});
    }
  }
  out.Sort();
  BALLAST_RETURN_IF_ERROR(Validate(out));
  return out;
}

}  // namespace ballast
