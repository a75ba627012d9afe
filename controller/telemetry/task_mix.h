// Which tasks the tokens are of, and whether that has changed or is chance.
//
// Pure. Any thread.
#ifndef BALLAST_CONTROLLER_TELEMETRY_TASK_MIX_H_
#define BALLAST_CONTROLLER_TELEMETRY_TASK_MIX_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace ballast {

// Each task's part of the tokens; they sum to 1. Empty: there are none.
using TaskMix = std::map<std::string, double>;

// Tokens by task of one stretch of time, all stretches being as long.
using TaskBucket = std::map<std::string, int64_t>;

// The mix of the last `last` buckets (fewer, where there are fewer).
TaskMix MixOf(std::span<const TaskBucket> buckets, size_t last);

// Total variation: half the sum of the tasks' differences, 0 (the same) to 1 (no task in common). An empty mix is at 1
// from any other.
double MixDistance(const TaskMix& a, const TaskMix& b);

struct MixLimits {
  // The recent mix is of so many buckets.
  size_t recent = 6;
  // The distance beyond noise that counts as drift.
  double min_distance = .1;
};

struct MixDrift {
  TaskMix mix;
  double distance = 0;
  // What chance shows of it: see DetectMixDrift.
  double noise = 0;
  // What is beyond noise, at least 0.
  double beyond = 0;
  bool drifted = false;
  // One sentence with the numbers.
  std::string reason;
};

// Has the mix of the recent buckets moved away from `settled`, for which the placement was grouped? Tokens of a request
// share its task, so chance is not that of as many tokens: a task's part of a bucket varies by v, half the mean squared
// difference of neighbouring buckets but for the largest one (slow drift cancels out, and a sudden shift is no chance),
// the mean of n buckets by v / n, and the settled mix was as uncertain. Noise is the sum over tasks of sqrt(2 v / n),
// two and a half times the distance that chance shows on average. With fewer than three buckets it is unknown, and
// nothing has drifted but from an empty mix.
MixDrift DetectMixDrift(const TaskMix& settled, std::span<const TaskBucket> buckets, const MixLimits& limits);

// Whether the mix is on its way: the later half of the recent buckets has drifted away from the earlier one. What is
// planned for the mix of both is soon planned for the wrong one.
bool MixIsMoving(std::span<const TaskBucket> buckets, const MixLimits& limits);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_TELEMETRY_TASK_MIX_H_
