#include "controller/planner/waves.h"

#include <algorithm>
#include <utility>

#include "controller/planner/memory.h"

namespace ballast {

Placement ApplyWave(Placement placement, const Wave& wave) {
  return ApplyWaves(std::move(placement), std::span(&wave, 1));
}

Placement ApplyWaves(Placement placement, std::span<const Wave> waves) {
  // Of each layer what the last wave that touches it leaves, or what there is.
  std::vector<std::span<const Replica>> layers(placement.num_layers);
  const auto keep = [&](std::span<const Replica> replicas) {
    for (size_t first = 0, last = 0; first < replicas.size(); first = last) {
      const int32_t layer = replicas[first].expert.layer;
      while (last < replicas.size() && replicas[last].expert.layer == layer) ++last;
      layers[layer] = replicas.subspan(first, last - first);
    }
  };
  keep(placement.replicas);
  for (const Wave& wave : waves) keep(wave.layers);
  size_t size = 0;
  for (const auto& layer : layers) size += layer.size();
  std::vector<Replica> replicas;
  replicas.reserve(size);
  for (const auto& layer : layers) replicas.insert(replicas.end(), layer.begin(), layer.end());
  placement.replicas = std::move(replicas);
  return placement;
}

double TransferSeconds(const Wave& wave, const Topology& topology, int64_t expert_bytes) {
  return CostOfTransfers(std::span(&wave, 1), topology, expert_bytes).seconds;
}

TransferCost CostOfTransfers(std::span<const Wave> waves, const Topology& topology, int64_t expert_bytes) {
  const auto bytes = static_cast<double>(expert_bytes);
  const double seconds_of[] = {bytes / topology.node_bytes_per_second, bytes / topology.cross_node_bytes_per_second,
                               bytes / topology.checkpoint_bytes_per_second};
  TransferCost cost;
  TransferCost::Link* const links[] = {&cost.node, &cost.cross_node, &cost.checkpoint};
  const size_t workers = topology.workers.size();
  // [workers] for each link, taken in and given out.
  std::vector<double> time[2][3];
  for (const Wave& wave : waves) {
    for (auto& direction : time) {
      for (auto& link : direction) link.assign(workers, 0);
    }
    for (const Move& move : wave.moves) {
      const int link = move.source < 0                                                            ? 2
                       : topology.workers[move.source].node == topology.workers[move.worker].node ? 0
                                                                                                  : 1;
      ++links[link]->moves;
      time[0][link][move.worker] += seconds_of[link];
      if (move.source >= 0) time[1][link][move.source] += seconds_of[link];
    }
    double slowest = 0;
    double slowest_of[3] = {};
    for (const auto& direction : time) {
      for (size_t w = 0; w < workers; ++w) {
        double sum = 0;
        for (int link = 0; link < 3; ++link) {
          sum += direction[link][w];
          slowest_of[link] = std::max(slowest_of[link], direction[link][w]);
        }
        slowest = std::max(slowest, sum);
      }
    }
    for (int link = 0; link < 3; ++link) links[link]->seconds += slowest_of[link];
    cost.seconds += slowest;
  }
  for (TransferCost::Link* link : links) link->bytes = BytesOf(link->moves, expert_bytes);
  return cost;
}

}  // namespace ballast
