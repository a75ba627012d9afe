#include "controller/telemetry/task_mix.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "absl/strings/str_format.h"

namespace ballast {
namespace {

double Part(const TaskMix& mix, const std::string& task) {
  const auto found = mix.find(task);
  return found == mix.end() ? 0 : found->second;
}

}  // namespace

TaskMix MixOf(std::span<const TaskBucket> buckets, size_t last) {
  TaskMix mix;
  double sum = 0;
  for (const TaskBucket& bucket : buckets.last(std::min(last, buckets.size()))) {
    for (const auto& [task, tokens] : bucket) {
      mix[task] += static_cast<double>(tokens);
      sum += static_cast<double>(tokens);
    }
  }
  if (sum == 0) return {};
  for (auto& [task, part] : mix) part /= sum;
  return mix;
}

double MixDistance(const TaskMix& a, const TaskMix& b) {
  if (a.empty() != b.empty()) return 1;
  double sum = 0;
  for (const auto& [task, part] : a) sum += std::abs(part - Part(b, task));
  for (const auto& [task, part] : b) {
    if (!a.contains(task)) sum += part;
  }
  return sum / 2;
}

MixDrift DetectMixDrift(const TaskMix& settled, std::span<const TaskBucket> buckets, const MixLimits& limits) {
  MixDrift out;
  out.mix = MixOf(buckets, limits.recent);
  out.distance = MixDistance(settled, out.mix);
  if (settled.empty()) {
    out.beyond = out.distance;
    out.drifted = !out.mix.empty();
    out.reason = "the placement is not grouped for any mix of tasks";
    return out;
  }
  std::set<std::string> tasks;
  std::vector<TaskMix> parts;
  for (const TaskBucket& bucket : buckets) {
    parts.push_back(MixOf(std::span(&bucket, 1), 1));
    if (parts.back().empty()) parts.pop_back();
  }
  for (const TaskMix& mix : parts) {
    for (const auto& [task, part] : mix) tasks.insert(task);
  }
  if (parts.size() < 3) {
    out.noise = 1;
    out.reason = "too little is known of how the mix of tasks varies";
    return out;
  }
  const auto recent = static_cast<double>(std::min(limits.recent, parts.size()));
  for (const std::string& task : tasks) {
    double squares = 0, most = 0;
    for (size_t b = 1; b < parts.size(); ++b) {
      const double step = Part(parts[b], task) - Part(parts[b - 1], task);
      squares += step * step;
      most = std::max(most, step * step);
    }
    const double variance = (squares - most) / static_cast<double>(parts.size() - 2) / 2;
    out.noise += std::sqrt(2 * variance / recent);
  }
  out.beyond = std::max(0.0, out.distance - out.noise);
  out.drifted = out.beyond >= limits.min_distance;
  out.reason = absl::StrFormat("the mix of tasks is %.3f from the one that was grouped for, chance shows at most %.3f",
                               out.distance, out.noise);
  return out;
}

bool MixIsMoving(std::span<const TaskBucket> buckets, const MixLimits& limits) {
  const size_t half = limits.recent / 2;
  if (half == 0 || buckets.size() <= half) return false;
  const TaskMix before = MixOf(buckets.first(buckets.size() - half), half);
  return !before.empty() &&
         DetectMixDrift(before, buckets, {.recent = half, .min_distance = limits.min_distance}).drifted;
}

}  // namespace ballast
