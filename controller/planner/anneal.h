// Simulated annealing on sums of powers: what the searches of one layer share.
#ifndef BALLAST_CONTROLLER_PLANNER_ANNEAL_H_
#define BALLAST_CONTROLLER_PLANNER_ANNEAL_H_

#include <array>
#include <cmath>
#include <cstdint>
#include <span>

namespace ballast::internal {

// A fixed sequence (SplitMix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // From 32 random bits a number below n.
  static uint32_t Below(uint32_t bits, uint32_t n) {
    return static_cast<uint32_t>((static_cast<uint64_t>(bits) * n) >> 32);
  }

 private:
  uint64_t state_;
};

// Exponential variates: what a change for the worse may cost, over the temperature. From a table, because std::log in
// the loop would take half of its time.
class Tolerance {
 public:
  Tolerance() {
    const auto size = static_cast<double>(table_.size());
    for (size_t i = 0; i < table_.size(); ++i) {
      table_[i] = static_cast<float>(-std::log((static_cast<double>(i) + .5) / size));
    }
  }
  float operator()(uint64_t bits) const { return table_[bits % table_.size()]; }

 private:
  std::array<float, 4096> table_;
};

// Loads are raised to the power 2^doublings, the busiest having been brought to 1, and summed; the temperature falls
// from `hot` to `cold` geometrically over `part` of the proposals.
struct Stage {
  int doublings;
  double hot, cold;
  double part;
};

// `begin(doublings)` brings the busiest to 1 anew, every few thousand proposals; `propose(i, temperature)` tries a
// change and keeps it when it adds less than a Tolerance times the temperature.
template <typename Begin, typename Propose>
void Anneal(int64_t proposals, std::span<const Stage> stages, Begin begin, Propose propose) {
  constexpr int64_t kCool = 256;
  constexpr int64_t kBegin = 64 * kCool;
  for (const Stage& stage : stages) {
    const auto n = static_cast<int64_t>(static_cast<double>(proposals) * stage.part);
    const double cooling = std::pow(stage.cold / stage.hot, static_cast<double>(kCool) / static_cast<double>(n));
    double temperature = stage.hot;
    for (int64_t i = 0; i < n; ++i) {
      if (i % kBegin == 0) begin(stage.doublings);
      if (i % kCool == 0) temperature *= cooling;
      propose(i, static_cast<float>(temperature));
    }
  }
}

}  // namespace ballast::internal

#endif  // BALLAST_CONTROLLER_PLANNER_ANNEAL_H_
