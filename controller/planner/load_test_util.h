// Loads for tests.
#ifndef BALLAST_CONTROLLER_PLANNER_LOAD_TEST_UTIL_H_
#define BALLAST_CONTROLLER_PLANNER_LOAD_TEST_UTIL_H_

#include <cstdint>
#include <random>
#include <vector>

namespace ballast {

// Skewed, flat, with ties, zeros and giants.
inline std::vector<double> RandomTokens(std::mt19937& random, int32_t experts) {
  std::vector<double> tokens(experts);
  std::lognormal_distribution<double> skew(3, .1 + random() % 30 / 10.0);
  const auto kind = random() % 4;
  for (double& t : tokens) {
    t = kind == 0 ? static_cast<double>(random() % 4) : skew(random);
    if (kind == 1 && random() % 3 == 0) t = 0;
  }
  if (kind == 2) tokens[random() % experts] = 1e7;
  return tokens;
}

}  // namespace ballast

#endif  // BALLAST_CONTROLLER_PLANNER_LOAD_TEST_UTIL_H_
