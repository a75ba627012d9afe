#include "controller/planner/search.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <queue>

#include "controller/planner/anneal.h"
#include "controller/planner/score.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

using internal::Random;
using internal::Stage;
using internal::Tolerance;

// First the sum of fourth powers, whose landscape is smooth enough to settle who gets replicas; in the end hardly
// anybody but the busiest worker counts.
constexpr Stage kStages[] = {{2, .05, 1e-3, .2}, {4, 3e-2, 1e-4, .4}, {6, 3e-3, 1e-4, .2}, {8, 3e-3, 1e-4, .2}};

// Proposals a slot of one run: longer runs gain less than another one from another seed.
constexpr int64_t kRunProposals = 1400;
constexpr int64_t kLeastProposals = 50'000;
constexpr int64_t kRuns = 3;
// Proposals in all of one layer, each counting for more where replicas are many that a change of an expert's count
// touches: the time of a layer is bounded, whatever its shape.
constexpr int64_t kMostProposals = 9'000'000;
// Replicas touched at the same cost as the rest of a proposal.
constexpr int64_t kTouchedAtOnce = 4;
// Experts keep their counts where a change would touch more workers than this: one more of hundreds is worth nothing.
constexpr size_t kMostRecounted = 128;
// Workers that PackGreedily looks at for one to make room.
constexpr int64_t kMostRepairs = 20'000'000;
// Further runs start this much hotter: so many are only worth it where few changes lead out of a state.
constexpr double kHeat = 30;
// What is not worth another run.
constexpr double kLevel = 1.001;
constexpr double kRounding = 1e-9;

// [scenarios] of `problem` with load.
std::vector<size_t> Loaded(const LayerProblem& problem) {
  std::vector<size_t> out;
  for (size_t s = 0; s < problem.tokens.size(); ++s) {
    const auto& row = problem.tokens[s];
    if (std::accumulate(row.begin(), row.end(), 0.0) > 0) out.push_back(s);
  }
  return out;
}

// What Imbalance cannot be below with the slots of `packs`: the worst scenario's bound.
double LeastImbalance(const LayerProblem& problem, std::span<const size_t> scenarios, const Packs& packs) {
  std::vector<int32_t> slots;
  for (const auto& pack : packs) slots.push_back(static_cast<int32_t>(pack.size()));
  double least = 1;
  for (const size_t s : scenarios) least = std::max(least, 1 / UpperBound(problem.tokens[s], slots, problem.speed));
  return least;
}

// Proposals that one counts for: what changes of counts touch on average.
int64_t CostOfProposal(const Packs& packs, size_t experts) {
  std::vector<int64_t> count(experts);
  int64_t slots = 0;
  for (const auto& pack : packs) {
    slots += std::ssize(pack);
    for (const int32_t e : pack) ++count[e];
  }
  int64_t touched = 0;
  for (const int64_t c : count) {
    if (c < static_cast<int64_t>(kMostRecounted)) touched += c * c;
  }
  return 1 + touched / slots / kTouchedAtOnce;
}

// Loads of kLanes scenarios (the last ones empty) side by side, in `chunks` such groups.
template <int kLanes>
class Annealer {
 public:
  Annealer(const LayerProblem& problem, std::span<const size_t> scenarios, uint64_t seed, Packs& packs)
      : packs_(packs),
        workers_(static_cast<int32_t>(packs.size())),
        chunks_(static_cast<int32_t>((scenarios.size() + kLanes - 1) / kLanes)),
        stride_(chunks_ * kLanes),
        tokens_(problem.tokens[0].size() * stride_),
        inverse_speed_(workers_, 1),
        lane_weight_(stride_, 1),
        load_(static_cast<size_t>(workers_) * stride_),
        power_(workers_),
        holders_(problem.tokens[0].size()),
        row_of_(workers_, -1),
        random_(seed) {
    double speeds = workers_;
    if (!problem.speed.empty()) speeds = std::accumulate(problem.speed.begin(), problem.speed.end(), 0.0);
    for (size_t i = 0; i < scenarios.size(); ++i) {
      const auto& row = problem.tokens[scenarios[i]];
      const double total = std::accumulate(row.begin(), row.end(), 0.0);
      for (size_t e = 0; e < row.size(); ++e) tokens_[e * stride_ + i] = static_cast<float>(row[e] / total * speeds);
      if (!problem.weight.empty()) lane_weight_[i] = static_cast<float>(problem.weight[scenarios[i]]);
    }
    weighted_ = !problem.weight.empty();
    for (int32_t w = 0; w < workers_; ++w) {
      if (!problem.speed.empty()) inverse_speed_[w] = 1 / static_cast<float>(problem.speed[w]);
      for (const int32_t e : packs_[w]) {
        holders_[e].push_back(w);
        slot_worker_.push_back(w);
        slot_.push_back(e);
      }
    }
    size_t most = 1;
    for (const auto& held : holders_) most = std::max(most, held.size());
    part_.resize(std::max<size_t>(most, workers_) + 2);
    for (size_t c = 1; c < part_.size(); ++c) part_[c] = 1 / static_cast<float>(c);
    first_.assign(workers_ + 1, 0);
    for (int32_t w = 0; w < workers_; ++w) first_[w + 1] = first_[w] + static_cast<int32_t>(packs_[w].size());
  }

  void Run(int64_t proposals, bool recount, double heat) {
    Stage stages[std::size(kStages)];
    std::copy(std::begin(kStages), std::end(kStages), stages);
    stages[0].hot *= heat;
    internal::Anneal(
        proposals, stages, [&](int doublings) { Begin(doublings); },
        [&](int64_t i, float temperature) { Propose(i, recount, temperature); });
    for (int32_t w = 0; w < workers_; ++w) {
      packs_[w].assign(slot_.begin() + first_[w], slot_.begin() + first_[w + 1]);
    }
  }

 private:
  int32_t Count(int32_t e) const { return static_cast<int32_t>(holders_[e].size()); }
  // Whether its replicas stay as many as they are. Then its holders_ say how many, but not which workers.
  bool Fixed(int32_t e) const { return holders_[e].size() >= kMostRecounted; }
  bool Holds(int32_t w, int32_t e) const {
    if (Fixed(e)) {
      return std::find(slot_.begin() + first_[w], slot_.begin() + first_[w + 1], e) != slot_.begin() + first_[w + 1];
    }
    for (const int32_t held : holders_[e]) {
      if (held == w) return true;
    }
    return false;
  }

  float PowerOf(const float* load) const {
    float sum = 0;
    for (int32_t c = 0; c < chunks_; ++c) {
      float x[kLanes];
      for (int i = 0; i < kLanes; ++i) x[i] = load[c * kLanes + i] * scale_[c * kLanes + i];
      for (int d = 0; d < doublings_; ++d) {
        for (int i = 0; i < kLanes; ++i) x[i] *= x[i];
      }
      if (weighted_) {
        for (int i = 0; i < kLanes; ++i) x[i] *= lane_weight_[c * kLanes + i];
      }
      for (int i = 0; i < kLanes; ++i) sum += x[i];
    }
    return sum;
  }

  // Loads anew: what rounding has gathered is gone.
  void Sum() {
    std::fill(load_.begin(), load_.end(), 0.0f);
    for (size_t slot = 0; slot < slot_.size(); ++slot) {
      const int32_t e = slot_[slot];
      const int32_t w = slot_worker_[slot];
      const float part = part_[Count(e)] * inverse_speed_[w];
      for (int32_t i = 0; i < stride_; ++i) load_[w * stride_ + i] += tokens_[e * stride_ + i] * part;
    }
    for (int32_t w = 0; w < workers_; ++w) power_[w] = PowerOf(&load_[w * stride_]);
  }

  // The busiest worker, of the worst scenario or of each, is 1 from here on: powers stay finite, and a change that
  // would leave them is refused.
  void Begin(int doublings) {
    doublings_ = doublings;
    scale_.assign(stride_, 0);
    Sum();
    std::vector<float> most(stride_);
    for (int32_t w = 0; w < workers_; ++w) {
      for (int32_t i = 0; i < stride_; ++i) most[i] = std::max(most[i], load_[w * stride_ + i]);
    }
    const float worst = *std::max_element(most.begin(), most.end());
    for (int32_t i = 0; i < stride_; ++i) scale_[i] = weighted_ ? (most[i] > 0 ? 1 / most[i] : 0) : 1 / worst;
    Sum();
  }

  bool Accept(float change, uint64_t bits) const { return change <= 0 || change < temperature_ * tolerance_(bits); }

  void Propose(int64_t i, bool recount, float temperature) {
    temperature_ = temperature;
    const uint64_t bits = random_.Next();
    const auto slots = static_cast<uint32_t>(slot_.size());
    uint32_t at_a = Random::Below(static_cast<uint32_t>(bits), slots);
    const uint32_t at_b = Random::Below(static_cast<uint32_t>(bits >> 32), slots);
    const uint64_t more = random_.Next();
    // Half of the changes start at the busier of two workers.
    if (i & 1) {
      const uint32_t other = Random::Below(static_cast<uint32_t>(more), slots);
      if (power_[slot_worker_[other]] > power_[slot_worker_[at_a]]) at_a = other;
    }
    const int32_t a = slot_worker_[at_a];
    const int32_t b = slot_worker_[at_b];
    const int32_t e = slot_[at_a];
    const int32_t f = slot_[at_b];
    if (a == b || e == f) return;
    if (recount && Count(f) > 1 && (i & 2) && holders_[e].size() + holders_[f].size() < kMostRecounted) {
      Recount(at_a, at_b, more >> 32);
    } else {
      Swap(at_a, at_b, more >> 32);
    }
  }

  void Swap(uint32_t at_a, uint32_t at_b, uint64_t bits) {
    const int32_t a = slot_worker_[at_a];
    const int32_t b = slot_worker_[at_b];
    const int32_t e = slot_[at_a];
    const int32_t f = slot_[at_b];
    if (Holds(b, e) || Holds(a, f)) return;
    const float part_e = part_[Count(e)];
    const float part_f = part_[Count(f)];
    float* const load_a = &load_[a * stride_];
    float* const load_b = &load_[b * stride_];
    const float* const tokens_e = &tokens_[e * stride_];
    const float* const tokens_f = &tokens_[f * stride_];
    constexpr int kInline = 16;
    float inline_a[kInline], inline_b[kInline];
    float* new_a = inline_a;
    float* new_b = inline_b;
    if (stride_ > kInline) {
      scratch_.resize(2 * stride_);
      new_a = scratch_.data();
      new_b = new_a + stride_;
    }
    for (int32_t c = 0; c < stride_; c += kLanes) {
      for (int i = c; i < c + kLanes; ++i) {
        const float less = tokens_e[i] * part_e - tokens_f[i] * part_f;
        new_a[i] = load_a[i] - less * inverse_speed_[a];
        new_b[i] = load_b[i] + less * inverse_speed_[b];
      }
    }
    const float power_a = PowerOf(new_a);
    const float power_b = PowerOf(new_b);
    if (!Accept(power_a + power_b - power_[a] - power_[b], bits)) return;
    std::copy_n(new_a, stride_, load_a);
    std::copy_n(new_b, stride_, load_b);
    power_[a] = power_a;
    power_[b] = power_b;
    slot_[at_a] = f;
    slot_[at_b] = e;
    if (!Fixed(e)) *std::find(holders_[e].begin(), holders_[e].end(), a) = b;
    if (!Fixed(f)) *std::find(holders_[f].begin(), holders_[f].end(), b) = a;
  }

  // Row k of scratch_ for worker w; its loads at first.
  float* Touch(int32_t w) {
    if (row_of_[w] >= 0) return &scratch_[static_cast<size_t>(row_of_[w]) * stride_];
    row_of_[w] = static_cast<int32_t>(touched_.size());
    touched_.push_back(w);
    scratch_.resize(std::max(scratch_.size(), touched_.size() * stride_));
    float* const row = &scratch_[(touched_.size() - 1) * stride_];
    std::copy_n(&load_[w * stride_], stride_, row);
    return row;
  }
  void Add(int32_t w, int32_t e, float part) {
    float* const row = Touch(w);
    part *= inverse_speed_[w];
    for (int32_t i = 0; i < stride_; ++i) row[i] += tokens_[e * stride_ + i] * part;
  }

  // The replica at `b` becomes one of the expert at `a`.
  void Recount(uint32_t at_a, uint32_t at_b, uint64_t bits) {
    const int32_t b = slot_worker_[at_b];
    const int32_t e = slot_[at_a];
    const int32_t f = slot_[at_b];
    if (Holds(b, e)) return;
    touched_.clear();
    const float fewer = part_[Count(e) + 1];
    for (const int32_t w : holders_[e]) Add(w, e, fewer - part_[Count(e)]);
    const float more = part_[Count(f) - 1];
    for (const int32_t w : holders_[f]) Add(w, f, (w == b ? 0 : more) - part_[Count(f)]);
    Add(b, e, fewer);
    powers_.resize(touched_.size());
    float change = 0;
    for (size_t k = 0; k < touched_.size(); ++k) {
      powers_[k] = PowerOf(&scratch_[k * stride_]);
      change += powers_[k] - power_[touched_[k]];
      row_of_[touched_[k]] = -1;
    }
    if (!Accept(change, bits)) return;
    for (size_t k = 0; k < touched_.size(); ++k) {
      std::copy_n(&scratch_[k * stride_], stride_, &load_[touched_[k] * stride_]);
      power_[touched_[k]] = powers_[k];
    }
    slot_[at_b] = e;
    std::erase(holders_[f], b);
    holders_[e].push_back(b);
  }

  Packs& packs_;
  const int32_t workers_;
  const int32_t chunks_;
  const int32_t stride_;
  std::vector<float> tokens_;         // [experts][stride], mean of worker loads 1
  std::vector<float> inverse_speed_;  // [workers]
  std::vector<float> lane_weight_;    // [stride]
  bool weighted_ = false;
  std::vector<float> load_;   // [workers][stride]
  std::vector<float> power_;  // [workers]
  std::vector<float> scale_;  // [stride]
  int doublings_ = 4;
  float temperature_ = 0;
  std::vector<int32_t> slot_;                  // expert
  std::vector<int32_t> slot_worker_;           // ascending
  std::vector<int32_t> first_;                 // [workers + 1]
  std::vector<std::vector<int32_t>> holders_;  // [experts]
  std::vector<float> part_;                    // 1 / count
  std::vector<int32_t> touched_;
  std::vector<int32_t> row_of_;  // [workers] of scratch_; -1: none
  std::vector<float> scratch_;
  std::vector<float> powers_;
  const Tolerance tolerance_;
  Random random_;
};

}  // namespace

double Imbalance(const LayerProblem& problem, const Packs& packs) {
  const size_t workers = packs.size();
  std::vector<double> count(problem.tokens[0].size());
  for (const auto& pack : packs) {
    for (const int32_t e : pack) ++count[e];
  }
  double speeds = static_cast<double>(workers);
  if (!problem.speed.empty()) speeds = std::accumulate(problem.speed.begin(), problem.speed.end(), 0.0);
  double worst = 0;
  double sum = 0;
  double weights = 0;
  for (const size_t s : Loaded(problem)) {
    const auto& tokens = problem.tokens[s];
    double most = 0;
    for (size_t w = 0; w < workers; ++w) {
      double load = 0;
      for (const int32_t e : packs[w]) load += tokens[e] / count[e];
      most = std::max(most, problem.speed.empty() ? load : load / problem.speed[w]);
    }
    most *= speeds / std::accumulate(tokens.begin(), tokens.end(), 0.0);
    worst = std::max(worst, most);
    if (!problem.weight.empty()) {
      sum += problem.weight[s] * most;
      weights += problem.weight[s];
    }
  }
  if (worst == 0) return 1;
  return weights > 0 ? sum / weights : worst;
}

void ImprovePacks(const LayerProblem& problem, const SearchOptions& options, Packs& packs) {
  BALLAST_CHECK(!problem.tokens.empty()) << "no scenario";
  const std::vector<size_t> scenarios = Loaded(problem);
  if (scenarios.empty() || packs.size() < 2) return;
  const Packs start = packs;
  double best = Imbalance(problem, start);
  const int64_t slots = std::accumulate(start.begin(), start.end(), int64_t{0},
                                        [](int64_t sum, const auto& pack) { return sum + std::ssize(pack); });
  const int64_t one = std::max<int64_t>(kRunProposals * slots, kLeastProposals);
  const int64_t wanted = options.proposals > 0 ? options.proposals : kRuns * one;
  const int64_t proposals = std::min(wanted, kMostProposals / CostOfProposal(start, problem.tokens[0].size()));
  const int64_t runs = std::max<int64_t>(1, proposals / one);
  // Of a weighted mean of scenarios the bound is not known.
  const double least = problem.weight.empty() ? LeastImbalance(problem, scenarios, start) * (1 + kRounding) : 0;
  for (int64_t run = 0; run < runs && best > std::max(kLevel, least); ++run) {
    Packs found = start;
    const auto anneal = [&](auto annealer) {
      annealer.Run(proposals / runs, options.recount, run < kRuns ? 1 : kHeat);
    };
    const auto seed = static_cast<uint64_t>(run);
    if (scenarios.size() == 1) {
      anneal(Annealer<1>(problem, scenarios, seed, found));
    } else if (scenarios.size() <= 4) {
      anneal(Annealer<4>(problem, scenarios, seed, found));
    } else {
      anneal(Annealer<8>(problem, scenarios, seed, found));
    }
    const double imbalance = Imbalance(problem, found);
    if (imbalance < best) {
      best = imbalance;
      packs = std::move(found);
    }
  }
}

Packs PackGreedily(std::span<const double> tokens, std::span<const int32_t> slots, std::span<const uint32_t> speed) {
  const auto experts = static_cast<int32_t>(tokens.size());
  const auto workers = static_cast<int32_t>(slots.size());
  // A worker has no use for more than every expert once.
  int64_t total = 0;
  for (const int32_t s : slots) total += std::min(s, experts);
  BALLAST_CHECK(total >= experts) << total << " slots for " << experts << " experts";
  // Workers with room by speed, in heaps with the lightest on top.
  std::map<uint32_t, std::vector<int32_t>> open;
  int32_t most = 0;
  for (int32_t w = 0; w < workers; ++w) {
    if (slots[w] == 0) continue;
    open[speed.empty() ? 1 : speed[w]].push_back(w);
    ++most;
  }
  std::vector<int32_t> count(experts, 1);
  const auto part = [&](int32_t e) { return tokens[e] / count[e]; };
  // Without load experts take turns.
  const auto cooler = [&](int32_t a, int32_t b) {
    if (part(a) != part(b)) return part(a) < part(b);
    return count[a] != count[b] ? count[a] > count[b] : a > b;
  };
  std::priority_queue<int32_t, std::vector<int32_t>, decltype(cooler)> hottest(cooler);
  for (int32_t e = 0; e < experts; ++e) hottest.push(e);
  for (int64_t spare = total - experts; spare > 0 && !hottest.empty();) {
    const int32_t e = hottest.top();
    hottest.pop();
    if (count[e] == most) continue;
    ++count[e];
    --spare;
    hottest.push(e);
  }
  std::vector<int32_t> replicas;
  for (int32_t e = 0; e < experts; ++e) replicas.insert(replicas.end(), count[e], e);
  std::stable_sort(replicas.begin(), replicas.end(), [&](int32_t a, int32_t b) { return part(a) > part(b); });
  Packs packs(workers);
  std::vector<double> load(workers);
  const auto lacks = [&](int32_t w, int32_t e) {
    return std::find(packs[w].begin(), packs[w].end(), e) == packs[w].end();
  };
  const auto has_room = [&](int32_t w) { return static_cast<int32_t>(packs[w].size()) < std::min(slots[w], experts); };
  const auto heavier = [&](int32_t a, int32_t b) { return load[a] != load[b] ? load[a] > load[b] : a > b; };
  const auto close = [&](std::vector<int32_t>& heap) {
    std::pop_heap(heap.begin(), heap.end(), heavier);
    const int32_t w = heap.back();
    heap.pop_back();
    return w;
  };
  const auto reopen = [&](int32_t w) {
    std::vector<int32_t>& heap = open[speed.empty() ? 1 : speed[w]];
    heap.push_back(w);
    std::push_heap(heap.begin(), heap.end(), heavier);
  };
  // The worker that is soonest done with a replica of e, taken out of `open`; -1: none lacks it. An expert's replicas
  // come one after the other, so who has it already waits aside until the next expert's turn.
  std::vector<int32_t> aside;
  const auto soonest_done = [&](int32_t e) {
    int32_t best = -1;
    std::vector<int32_t>* from = nullptr;
    for (auto& [fast, heap] : open) {
      while (!heap.empty() && !lacks(heap.front(), e)) aside.push_back(close(heap));
      if (heap.empty()) continue;
      const int32_t w = heap.front();
      if (best >= 0 && (load[w] + part(e)) * speed[best] >= (load[best] + part(e)) * fast) continue;
      best = w;
      from = &heap;
    }
    if (from != nullptr) close(*from);
    return best;
  };
  // A replica of another worker, which is full, goes to one with room, and e takes its place. The worker with room; -1:
  // none was found in time. For the only replica of an expert the search goes on to the end.
  int64_t left = kMostRepairs;
  int32_t first = 0;  // with room
  const auto make_room = [&](int32_t e) {
    while (!has_room(first)) ++first;
    for (int32_t free = first; free < workers && (left > 0 || count[e] == 1); ++free) {
      if (!has_room(free)) continue;
      for (int32_t w = 0; w < workers && (left > 0 || count[e] == 1); ++w, --left) {
        if (slots[w] == 0 || !lacks(w, e)) continue;
        for (int32_t& f : packs[w]) {
          if (!lacks(free, f)) continue;
          packs[free].push_back(f);
          load[free] += part(f);
          load[w] += part(e) - part(f);
          f = e;
          return free;
        }
      }
    }
    return -1;
  };
  // What a worker lacks most.
  const auto hottest_of_others = [&](int32_t w) {
    std::vector<bool> here(experts);
    for (const int32_t f : packs[w]) here[f] = true;
    int32_t other = -1;
    for (int32_t f = 0; f < experts; ++f) {
      if (!here[f] && (other < 0 || part(f) > part(other))) other = f;
    }
    return other;
  };
  int32_t before = -1;
  bool everywhere = false;  // workers with room all have it
  for (const int32_t e : replicas) {
    if (e != before) {
      for (const int32_t w : aside) {
        if (has_room(w)) reopen(w);
      }
      aside.clear();
      everywhere = false;
    }
    before = e;
    if (const int32_t to = everywhere ? -1 : soonest_done(e); to >= 0) {
      packs[to].push_back(e);
      load[to] += part(e);
      if (has_room(to)) aside.push_back(to);
      continue;
    }
    everywhere = true;
    if (make_room(e) >= 0) continue;
    // So many replicas of one expert do not fit where some workers have more slots than others: the first worker
    // with room takes what it lacks most.
    BALLAST_CHECK(count[e] > 1) << "expert " << e << " fits nowhere";
    --count[e];
    const int32_t other = hottest_of_others(first);
    ++count[other];
    packs[first].push_back(other);
    load[first] += part(other);
  }
  return packs;
}

}  // namespace ballast
