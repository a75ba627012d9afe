// Routes with known structure, for the tests of grouping.
#ifndef BALLAST_CONTROLLER_PLANNER_GROUPING_GROUPING_TEST_UTIL_H_
#define BALLAST_CONTROLLER_PLANNER_GROUPING_GROUPING_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "controller/planner/grouping/routes.h"
#include "controller/planner/packs.h"

namespace ballast {

struct RouteShape {
  int32_t layers = 1;
  int32_t experts = 16;
  int32_t top_k = 4;
  int32_t tasks = 2;
  int32_t tokens = 500;
  // Experts come in hidden communities of this size; a token draws its experts from a community of its task's with this
  // probability, else from all. 0: uniform.
  int32_t community = 4;
  double together = 0;
};

// Each layer's communities are another shuffle of the experts; every task prefers some of them.
inline Routes RandomRoutes(const RouteShape& shape, uint32_t seed) {
  std::mt19937 random(seed);
  const auto below = [&](int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); };
  Routes out{shape.layers, shape.experts, shape.top_k, {}};
  for (int32_t f = 0; f < shape.tasks; ++f) {
    out.tasks.push_back({"task" + std::to_string(f), 1, std::vector<std::vector<int32_t>>(shape.layers)});
  }
  for (int32_t l = 0; l < shape.layers; ++l) {
    std::vector<int32_t> shuffled(shape.experts);
    for (int32_t e = 0; e < shape.experts; ++e) shuffled[e] = e;
    for (int32_t e = shape.experts - 1; e > 0; --e) std::swap(shuffled[e], shuffled[below(e + 1)]);
    const int32_t communities = std::max(1, shape.experts / shape.community);
    for (int32_t f = 0; f < shape.tasks; ++f) {
      for (int32_t t = 0; t < shape.tokens; ++t) {
        // Half of a task's tokens come from its own communities.
        int32_t c = below(communities);
        if (below(2) == 0) c = (c / shape.tasks * shape.tasks + f) % communities;
        std::vector<int32_t> token;
        while (static_cast<int32_t>(token.size()) < shape.top_k) {
          const bool inside = below(1 << 20) < shape.together * (1 << 20);
          const int32_t e =
              shuffled[inside ? (c * shape.community + below(shape.community)) % shape.experts : below(shape.experts)];
          if (std::find(token.begin(), token.end(), e) == token.end()) token.push_back(e);
        }
        out.tasks[f].experts[l].insert(out.tasks[f].experts[l].end(), token.begin(), token.end());
      }
    }
  }
  return out;
}

// Experts to workers at random, as many on each.
inline Packs RandomPacks(int32_t experts, int32_t workers, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> order(experts);
  for (int32_t e = 0; e < experts; ++e) order[e] = e;
  for (int32_t e = experts - 1; e > 0; --e) std::swap(order[e], order[random() % static_cast<uint32_t>(e + 1)]);
  Packs packs(workers);
  for (int32_t e = 0; e < experts; ++e) packs[e % workers].push_back(order[e]);
  return packs;
}

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_GROUPING_GROUPING_TEST_UTIL_H_
