#include "controller/planner/topology.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string_view>
#include <unordered_map>

#include "absl/strings/str_cat.h"

namespace ballast {

absl::Status Validate(const Topology& topology) {
  if (topology.workers.empty()) return absl::InvalidArgumentError("topology: 0 workers; at least 1 is needed");
  std::set<std::string> names;
  for (const TopologyWorker& w : topology.workers) {
    const std::string where = absl::StrCat("topology: worker '", w.name, "': ");
    if (!names.insert(w.name).second) return absl::InvalidArgumentError(where + "named twice");
    if (w.node < 0) return absl::InvalidArgumentError(absl::StrCat(where, "node ", w.node, "; must be at least 0"));
    if (w.capacity.staging_slots < 0 || w.capacity.staging_slots >= w.capacity.slots) {
      return absl::InvalidArgumentError(absl::StrCat(where, w.capacity.staging_slots, " staging slots of ",
                                                     w.capacity.slots, "; must be at least 0 and leave a slot"));
    }
    if (w.speed < 1 || w.speed > 1024) {
      return absl::InvalidArgumentError(absl::StrCat(where, "speed ", w.speed, "; must be 1 to 1024"));
    }
  }
  for (const double rate :
       {topology.node_bytes_per_second, topology.cross_node_bytes_per_second, topology.checkpoint_bytes_per_second}) {
    if (!(rate > 0) || !std::isfinite(rate)) {
      return absl::InvalidArgumentError(
          absl::StrCat("topology: ", rate, " bytes a second; must be finite and above 0"));
    }
  }
  return absl::OkStatus();
}

std::vector<uint32_t> Speeds(const Topology& topology) {
  std::vector<uint32_t> speeds;
  bool alike = true;
  for (const TopologyWorker& w : topology.workers) {
    speeds.push_back(w.speed);
    alike &= w.speed == topology.workers[0].speed;
  }
  if (alike) speeds.clear();
  return speeds;
}

Topology UniformTopology(int32_t workers, int32_t nodes, int32_t slots) {
  Topology topology;
  for (int32_t w = 0; w < workers; ++w) {
    TopologyWorker worker;
    worker.name = absl::StrCat("w", w);
    // Contiguous blocks: the first workers % nodes nodes have one worker more.
    const int32_t each = workers / nodes;
    const int32_t larger = workers % nodes * (each + 1);
    worker.node = w < larger ? w / (each + 1) : workers % nodes + (w - larger) / each;
    worker.capacity.slots = slots + worker.capacity.staging_slots;
    topology.workers.push_back(std::move(worker));
  }
  return topology;
}

std::vector<int32_t> WorkersOf(const Placement& placement, const Topology& topology) {
  const auto alike = [](const std::string& name, const TopologyWorker& w) { return name == w.name; };
  std::vector<int32_t> out(placement.workers.size());
  if (std::equal(placement.workers.begin(), placement.workers.end(), topology.workers.begin(), topology.workers.end(),
                 alike)) {
    std::iota(out.begin(), out.end(), 0);
    return out;
  }
  std::unordered_map<std::string_view, int32_t> index;
  for (size_t w = 0; w < topology.workers.size(); ++w) {
    index.emplace(topology.workers[w].name, static_cast<int32_t>(w));
  }
  for (size_t w = 0; w < out.size(); ++w) {
    const auto found = index.find(placement.workers[w]);
    out[w] = found == index.end() ? -1 : found->second;
  }
  return out;
}

Placement OverTopology(const Placement& placement, const Topology& topology) {
  Placement out;
  out.num_layers = placement.num_layers;
  out.num_experts = placement.num_experts;
  for (const TopologyWorker& w : topology.workers) out.workers.push_back(w.name);
  const std::vector<int32_t> worker_of = WorkersOf(placement, topology);
  out.replicas.reserve(placement.replicas.size());
  bool sorted = true;
  for (Replica r : placement.replicas) {
    r.worker = worker_of[r.worker];
    if (r.worker < 0) continue;
    sorted = sorted && (out.replicas.empty() || out.replicas.back() < r);
    out.replicas.push_back(r);
  }
  if (!sorted) out.Sort();
  return out;
}

}  // namespace ballast
