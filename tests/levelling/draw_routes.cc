#include "tests/levelling/draw_routes.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "proto/base/check.h"

namespace ballast {
namespace {

// Probabilities that sum to top_k, none above 1.
std::vector<double> Probabilities(std::span<const double> load, int top_k) {
  std::vector<double> p(load.begin(), load.end());
  std::vector<bool> sure(p.size());
  for (bool again = true; again;) {
    double left = top_k, sum = 0;
    for (size_t e = 0; e < p.size(); ++e) (sure[e] ? left : sum) += sure[e] ? -1 : p[e];
    again = false;
    for (size_t e = 0; e < p.size(); ++e) {
      if (sure[e] || sum == 0) continue;
      if (p[e] * left / sum > 1) sure[e] = again = true;
    }
    if (again) continue;
    for (size_t e = 0; e < p.size(); ++e) p[e] = sure[e] ? 1 : p[e] * left / sum;
  }
  return p;
}

}  // namespace

void DrawRoutes(std::span<const double> load, int top_k, std::mt19937_64& random, std::span<int32_t> ids) {
  BALLAST_CHECK(std::count_if(load.begin(), load.end(), [](double l) { return l > 0; }) >= top_k)
      << top_k << " of " << load.size() << " experts";
  const std::vector<double> p = Probabilities(load, top_k);
  std::vector<int32_t> order(load.size());
  std::iota(order.begin(), order.end(), 0);
  std::uniform_real_distribution<double> unit;
  for (size_t token = 0; token < ids.size() / top_k; ++token) {
    const auto of_token = ids.subspan(token * top_k, top_k);
    std::shuffle(order.begin(), order.end(), random);
    double next = unit(random), sum = 0;
    int chosen = 0;
    for (size_t i = 0; i < order.size() && chosen < top_k; ++i) {
      sum += p[order[i]];
      if (sum <= next) continue;
      of_token[chosen++] = order[i];
      next += 1;
    }
    // The sum falls short of top_k by rounding, once in a great while: an expert that is not there yet.
    for (size_t i = order.size(); i-- > 0 && chosen < top_k;) {
      if (p[order[i]] == 0 ||
          std::find(of_token.begin(), of_token.begin() + chosen, order[i]) != of_token.begin() + chosen) {
        continue;
      }
      of_token[chosen++] = order[i];
    }
    std::shuffle(of_token.begin(), of_token.end(), random);
  }
}

}  // namespace ballast
