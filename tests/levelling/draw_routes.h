// Routes whose experts come as often as in a measured load.
#ifndef BALLAST_TESTS_LEVELLING_DRAW_ROUTES_H_
#define BALLAST_TESTS_LEVELLING_DRAW_ROUTES_H_

#include <cstdint>
#include <random>
#include <span>

namespace ballast {

// `ids` [tokens][top_k]: distinct experts a token, in random order. Tokens choose for themselves; an expert is among a
// token's with the probability of its part of `load` [experts] times top_k, at most 1 (what is above goes to the
// others in proportion). Systematic sampling over a new order of the experts for each token (Madow 1949), which meets
// the probabilities exactly. REQUIRES: at least top_k experts have load.
void DrawRoutes(std::span<const double> load, int top_k, std::mt19937_64& random, std::span<int32_t> ids);

}  // namespace ballast

#endif  // BALLAST_TESTS_LEVELLING_DRAW_ROUTES_H_
