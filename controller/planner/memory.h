// How many replicas the memory should pay for.
#ifndef BALLAST_CONTROLLER_PLANNER_MEMORY_H_
#define BALLAST_CONTROLLER_PLANNER_MEMORY_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/statusor.h"

namespace ballast {

// What one expert's weights may take.
constexpr int64_t kMaxExpertBytes = int64_t{1} << 50;

// Of so many replicas; the most that 64 bits hold where they are more.
int64_t BytesOf(int64_t replicas, int64_t expert_bytes);

// Whole replicas of `expert_bytes` that `bytes` of memory hold, the same on every worker. InvalidArgument names a
// negative budget, or expert bytes below 1.
absl::StatusOr<int32_t> ReplicasForBytes(int64_t bytes, int64_t expert_bytes);

// One worker's memory. Every worker gets as many replicas, so that all have as much left.
struct MemoryRule {
  // KV-cache bytes without extra replicas; each replica takes `expert_bytes` of them.
  int64_t kv_bytes = 0;
  int64_t expert_bytes = 0;
  // KV-cache bytes that keep a level worker busy: with fewer, throughput falls in proportion. 0: all of kv_bytes.
  int64_t kv_bytes_needed = 0;
  // Replicas a worker that are considered at most.
  int32_t most_replicas = 0;
};

struct MemoryPoint {
  int32_t replicas = 0;
  double balancedness = 0;
  // Throughput, 1 being that of a level placement with KV cache enough.
  double goodput = 0;
};

struct MemoryChoice {
  MemoryPoint best;
  // What was looked at, by replicas.
  std::vector<MemoryPoint> tried;
};

// The replicas a worker, R, of the greatest goodput
//
//   Q(R) = min(balancedness(R), (kv_bytes - R * expert_bytes) / kv_bytes_needed)
//
// (the fewest among equals): busy workers bound it on one side, requests that fit the KV cache on the other. "The
// greatest gain a replica", by contrast, always chooses 1: gains fall with every replica. As `balancedness` grows with
// R and memory shrinks, the best lies where they cross, which bisection finds; it is asked about log2(most_replicas)
// times, and may plan a placement each time. InvalidArgument names a field out of range; errors of `balancedness` are
// passed on.
absl::StatusOr<MemoryChoice> ChooseReplicas(const MemoryRule& rule,
                                            const std::function<absl::StatusOr<double>(int32_t)>& balancedness);

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_MEMORY_H_
