#include "worker/homes/home_policy.h"

#include "proto/base/check.h"

namespace ballast {

bool IsFull(const WorkerLoad& load, double mean_requests, bool was_full, const SpillLimits& limits) {
  if (load.waiting > 0) return true;
  const double ratio = was_full ? limits.free_ratio : limits.full_ratio;
  const double slack = was_full ? limits.free_slack : limits.full_slack;
  const double kv = was_full ? limits.free_kv_ratio : limits.full_kv_ratio;
  return load.requests > ratio * mean_requests + slack || load.kv_used_ratio > kv;
}

HomeChoice ChooseWorker(std::span<HomeTurn> homes, std::span<const WorkerLoad> loads, std::span<const uint8_t> full,
                        int self) {
  BALLAST_CHECK(loads.size() == full.size()) << loads.size() << " loads, " << full.size() << " workers";
  if (homes.empty()) return {.worker = self};
  bool any_home = false;
  for (const HomeTurn& home : homes) any_home |= full[home.worker] == 0;
  if (!any_home) {
    int best = full[self] == 0 ? self : -1;
    for (int w = 0; w < static_cast<int>(loads.size()) && best != self; ++w) {
      if (full[w] == 0 && (best < 0 || loads[w].requests < loads[best].requests)) best = w;
    }
    if (best >= 0) return {.worker = best, .spilled = true};
  }
  // Smooth weighted turns: whoever may take part gains its weight, and who has most pays for all. The credit of a home
  // that is full rests, so that it has nothing to make up for afterwards.
  HomeTurn* next = nullptr;
  int64_t sum = 0;
  for (HomeTurn& home : homes) {
    if (any_home && full[home.worker] != 0) continue;
    home.credit += home.weight;
    sum += home.weight;
    if (next == nullptr || home.credit > next->credit) next = &home;
  }
  next->credit -= sum;
  return {.worker = next->worker};
}

int ChooseOther(std::span<const WorkerLoad> loads, std::span<const uint8_t> full, std::span<const uint8_t> draining,
                int self) {
  int best = -1;
  for (int w = 0; w < static_cast<int>(loads.size()); ++w) {
    if (w == self || draining[w] != 0) continue;
    if (best < 0 || full[w] < full[best] || (full[w] == full[best] && loads[w].requests < loads[best].requests)) {
      best = w;
    }
  }
  return best;
}

}  // namespace ballast
