#include "proto/placement/placement.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "absl/strings/str_cat.h"

namespace ballast {

void Placement::Sort() {
  std::sort(replicas.begin(), replicas.end(), [](const Replica& a, const Replica& b) {
    return std::tie(a.expert, a.worker, a.slot) < std::tie(b.expert, b.worker, b.slot);
  });
}

namespace {

// The least number that is there more than once, none being below 0; -1: none is. `taken` is scratch.
int32_t FirstTwice(std::vector<int32_t>& numbers, std::vector<bool>& taken) {
  // Mostly they are dense: no need to sort them.
  const auto most = std::max_element(numbers.begin(), numbers.end());
  if (most != numbers.end() && static_cast<size_t>(*most) < 8 * numbers.size()) {
    taken.assign(*most + 1, false);
    bool twice = false;
    for (const int32_t n : numbers) {
      twice |= taken[n];
      taken[n] = true;
    }
    if (!twice) return -1;
  }
  std::sort(numbers.begin(), numbers.end());
  const auto twice = std::adjacent_find(numbers.begin(), numbers.end());
  return twice == numbers.end() ? -1 : *twice;
}

}  // namespace

namespace {

absl::Status ValidateHomes(const Placement& placement) {
  const std::string* last = nullptr;
  std::vector<int32_t> workers;
  std::vector<bool> taken;
  for (const TaskHomes& task : placement.task_homes) {
    const auto where = [&] { return absl::StrCat("homes of task '", task.task, "': "); };
    if (last != nullptr && *last >= task.task) {
      return absl::InvalidArgumentError(
          absl::StrCat(where(), "comes after '", *last, "'; tasks are sorted, each once"));
    }
    if (task.homes.empty()) return absl::InvalidArgumentError(absl::StrCat(where(), "there are none"));
    workers.clear();
    for (const TaskHome& home : task.homes) {
      if (home.worker < 0 || home.worker >= static_cast<int32_t>(placement.workers.size())) {
        return absl::InvalidArgumentError(
            absl::StrCat(where(), "worker ", home.worker, "; there are ", placement.workers.size(), " workers"));
      }
      if (home.weight < 1) return absl::InvalidArgumentError(absl::StrCat(where(), "weight 0, must be at least 1"));
      workers.push_back(home.worker);
    }
    if (const int32_t twice = FirstTwice(workers, taken); twice >= 0) {
      return absl::InvalidArgumentError(absl::StrCat(where(), "worker ", twice, " is named twice"));
    }
    last = &task.task;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const Placement& placement, std::span<const SlotCapacity> capacity) {
  const auto workers = static_cast<int32_t>(placement.workers.size());
  if (placement.num_layers < 1 || placement.num_experts < 1) {
    return absl::InvalidArgumentError(absl::StrCat("placement: num_layers=", placement.num_layers, ", num_experts=",
                                                   placement.num_experts, "; both must be at least 1"));
  }
  if (absl::Status homes = ValidateHomes(placement); !homes.ok()) return homes;
  if (!capacity.empty() && capacity.size() != placement.workers.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("capacity: ", capacity.size(), " entries for ", workers, " workers"));
  }
  std::vector<std::string> names = placement.workers;
  std::sort(names.begin(), names.end());
  if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end()) {
    return absl::InvalidArgumentError(absl::StrCat("workers: '", *twice, "' is named twice"));
  }
  std::vector<uint8_t> held(static_cast<size_t>(placement.num_layers) * placement.num_experts);
  std::vector<std::vector<int32_t>> slots(workers);
  int64_t last_index = -1;  // of the expert, in `held`
  Replica last;
  uint64_t weight_sum = 0;
  for (const Replica& r : placement.replicas) {
    const auto where = [&] {
      return absl::StrCat("replica of layer ", r.expert.layer, " expert ", r.expert.expert, " at worker ", r.worker,
                          " slot ", r.slot, ": ");
    };
    if (r.expert.layer < 0 || r.expert.layer >= placement.num_layers || r.expert.expert < 0 ||
        r.expert.expert >= placement.num_experts) {
      return absl::InvalidArgumentError(absl::StrCat(where(), "the model has ", placement.num_layers, " layers of ",
                                                     placement.num_experts, " experts"));
    }
    if (r.worker < 0 || r.worker >= workers) {
      return absl::InvalidArgumentError(absl::StrCat(where(), "there are ", workers, " workers"));
    }
    if (r.slot < 0) return absl::InvalidArgumentError(absl::StrCat(where(), "slots count from 0"));
    if (!capacity.empty() && r.slot >= capacity[r.worker].slots) {
      return absl::InvalidArgumentError(absl::StrCat(where(), "the arena has ", capacity[r.worker].slots, " slots"));
    }
    if (r.weight < 1) return absl::InvalidArgumentError(absl::StrCat(where(), "weight 0, must be at least 1"));
    const int64_t index = static_cast<int64_t>(r.expert.layer) * placement.num_experts + r.expert.expert;
    if (index < last_index || (index == last_index && std::tie(last.worker, last.slot) >= std::tie(r.worker, r.slot))) {
      return absl::InvalidArgumentError(absl::StrCat(where(), "replicas are not sorted by expert, worker, slot"));
    }
    if (index == last_index && last.worker == r.worker) {
      return absl::InvalidArgumentError(absl::StrCat(where(), "worker ", r.worker, " holds it twice"));
    }
    weight_sum = index == last_index ? weight_sum + r.weight : r.weight;
    if (weight_sum > std::numeric_limits<uint32_t>::max()) {
      return absl::InvalidArgumentError(absl::StrCat(where(), "the weights of the expert's replicas sum to ",
                                                     weight_sum, ", above the limit of 4294967295"));
    }
    last = r;
    last_index = index;
    slots[r.worker].push_back(r.slot);
    held[index] = 1;
  }
  if (const auto none = std::find(held.begin(), held.end(), 0); none != held.end()) {
    const int64_t i = none - held.begin();
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", i / placement.num_experts, " expert ", i % placement.num_experts, " has no replica"));
  }
  std::vector<bool> taken;
  for (int32_t w = 0; w < workers; ++w) {
    if (const int32_t twice = FirstTwice(slots[w], taken); twice >= 0) {
      return absl::InvalidArgumentError(absl::StrCat("worker ", w, " slot ", twice, " is used twice"));
    }
    if (!capacity.empty()) {
      const int32_t limit = capacity[w].slots - capacity[w].staging_slots;
      if (static_cast<int32_t>(slots[w].size()) > limit) {
        return absl::InvalidArgumentError(absl::StrCat("worker ", w, " uses ", slots[w].size(), " slots; the limit is ",
                                                       limit, " (", capacity[w].slots, " less ",
                                                       capacity[w].staging_slots, " for staging)"));
      }
    }
  }
  return absl::OkStatus();
}

std::vector<LayerReplicas> ByLayer(const Placement& placement) {
  std::vector<LayerReplicas> layers(placement.num_layers);
  for (LayerReplicas& layer : layers) layer.begin.assign(placement.num_experts + 1, 0);
  for (const Replica& r : placement.replicas) {
    LayerReplicas& layer = layers[r.expert.layer];
    layer.replicas.push_back(r);
    ++layer.begin[r.expert.expert + 1];
  }
  for (LayerReplicas& layer : layers) {
    for (int32_t e = 0; e < placement.num_experts; ++e) layer.begin[e + 1] += layer.begin[e];
  }
  return layers;
}

}  // namespace ballast
