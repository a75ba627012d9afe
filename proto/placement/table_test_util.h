// Dispatch tables for tests and benchmarks.
#ifndef BALLAST_PROTO_PLACEMENT_TABLE_TEST_UTIL_H_
#define BALLAST_PROTO_PLACEMENT_TABLE_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "proto/placement/quotas.h"

namespace ballast {

// Expert e's replicas on the given ranks, with weight 1.
inline DispatchTable EqualTable(const std::vector<std::vector<int32_t>>& ranks_of_expert) {
  DispatchTable table;
  table.begin = {0};
  for (const auto& ranks : ranks_of_expert) {
    table.rank.insert(table.rank.end(), ranks.begin(), ranks.end());
    table.begin.push_back(static_cast<int32_t>(table.rank.size()));
  }
  table.weight.assign(table.rank.size(), 1);
  return table;
}

// Each expert on one to `most` ranks; `holes`: now and then on none.
inline DispatchTable RandomEqualTable(std::mt19937& random, int experts, int ranks, int most, bool holes) {
  std::vector<std::vector<int32_t>> out(experts);
  std::vector<int32_t> order(ranks);
  std::iota(order.begin(), order.end(), 0);
  for (auto& e : out) {
    std::shuffle(order.begin(), order.end(), random);
    if (holes && random() % 10 == 0) continue;
    e.assign(order.begin(), order.begin() + 1 + random() % std::min(most, ranks));
    std::sort(e.begin(), e.end());
  }
  return EqualTable(out);
}

}  // namespace ballast

#endif  // BALLAST_PROTO_PLACEMENT_TABLE_TEST_UTIL_H_
