// Time to solve one layer of one step: counts of all sources in, quotas out.
//
// The step's counts are drawn from Zipf popularities, with a taste of each source's own on top, or from equal ones; the
// placement is made for the popularities, either one chain of experts shared by neighbours (level by construction) or
// the hottest experts replicated and packed greedily (EPLB's way).
#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "benchmark/benchmark.h"
#include "proto/placement/step_quotas.h"
#include "proto/placement/table_test_util.h"

namespace ballast {
namespace {

enum Kind { kChain = 0, kGreedy = 1 };

std::vector<double> Popularities(int experts, double exponent, std::mt19937& random) {
  std::vector<double> load(experts);
  for (int e = 0; e < experts; ++e) load[e] = std::pow(e + 1, -exponent);
  std::shuffle(load.begin(), load.end(), random);
  const double sum = std::accumulate(load.begin(), load.end(), 0.0);
  for (double& l : load) l /= sum;
  return load;
}

// Ranks filled up one after the other, the expert that does not fit going on in the next.
DispatchTable Chain(const std::vector<double>& load, int ranks) {
  std::vector<std::vector<int32_t>> out(load.size());
  std::vector<int32_t> order(load.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return load[a] > load[b]; });
  // Large and small by turns, so that ranks hold about as many experts each.
  size_t low = 0;
  size_t high = order.size();
  double filled = 0;
  int rank = 0;
  for (bool large = true; low < high; large = !large) {
    const int32_t e = large ? order[low++] : order[--high];
    out[e].push_back(rank);
    filled += load[e];
    while (filled * ranks > rank + 1 && rank + 1 < ranks) out[e].push_back(++rank);
  }
  return EqualTable(out);
}

DispatchTable Greedy(const std::vector<double>& load, int ranks, int slots) {
  const int experts = static_cast<int>(load.size());
  std::vector<int> copies(experts, 1);
  for (int i = experts; i < slots; ++i) {
    int best = -1;
    for (int e = 0; e < experts; ++e) {
      if (copies[e] < ranks && (best < 0 || load[e] / copies[e] > load[best] / copies[best])) best = e;
    }
    ++copies[best];
  }
  std::vector<int32_t> order(experts);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int a, int b) { return load[a] / copies[a] > load[b] / copies[b]; });
  std::vector<double> rank_load(ranks);
  std::vector<int> used(ranks);
  std::vector<std::vector<int32_t>> out(experts);
  for (const int32_t e : order) {
    for (int c = 0; c < copies[e]; ++c) {
      int best = -1;
      for (int d = 0; d < ranks; ++d) {
        if (used[d] * ranks >= slots || std::count(out[e].begin(), out[e].end(), d) > 0) continue;
        if (best < 0 || rank_load[d] < rank_load[best]) best = d;
      }
      if (best < 0) continue;
      out[e].push_back(best);
      ++used[best];
      rank_load[best] += load[e] / copies[e];
    }
    std::sort(out[e].begin(), out[e].end());
    if (out[e].empty()) out[e].push_back(0);
  }
  return EqualTable(out);
}

// Several steps, so that no branch predictor knows the answer.
constexpr int kSteps = 16;

struct Problem {
  DispatchTable table;
  std::vector<std::vector<int32_t>> steps;
};

// Drawn once: the library runs a benchmark several times to find how often to repeat it.
const Problem& MakeProblem(int experts, int ranks, int slots, int pairs, int64_t zipf, int64_t kind) {
  static auto& problems = *new std::map<std::vector<int64_t>, Problem>();
  const auto [place, is_new] = problems.try_emplace({experts, ranks, slots, pairs, zipf, kind});
  Problem& problem = place->second;
  if (!is_new) return problem;
  std::mt19937 random(1);
  const std::vector<double> load = Popularities(experts, static_cast<double>(zipf) / 100, random);
  problem.table = kind == kChain ? Chain(load, ranks) : Greedy(load, ranks, slots);
  for (int step = 0; step < kSteps; ++step) {
    std::vector<int32_t>& counts = problem.steps.emplace_back(static_cast<size_t>(ranks) * experts);
    for (int s = 0; s < ranks; ++s) {
      std::lognormal_distribution<double> taste(0, 0.3);
      std::vector<double> own = load;
      for (double& l : own) l *= taste(random);
      std::discrete_distribution<int> draw(own.begin(), own.end());
      for (int i = 0; i < pairs / ranks; ++i) ++counts[static_cast<size_t>(s) * experts + draw(random)];
    }
  }
  return problem;
}

// Args: experts, ranks, slots, pairs a step, Zipf exponent in hundredths, Kind.
void BM_StepQuotas(benchmark::State& state) {
  const auto experts = static_cast<int>(state.range(0));
  const auto ranks = static_cast<int>(state.range(1));
  const auto pairs = static_cast<int>(state.range(3));
  const auto& [table, steps] =
      MakeProblem(experts, ranks, static_cast<int>(state.range(2)), pairs, state.range(4), state.range(5));
  StepQuotaSolver solver(table, ranks);
  std::vector<int32_t> quotas(static_cast<size_t>(ranks) * table.num_replicas());
  double balancedness = 0;
  double equal = 0;
  for (const auto& counts : steps) {
    const int64_t bound = solver.Solve(counts, ranks);
    balancedness += static_cast<double>(pairs) / ranks / static_cast<double>(bound) / kSteps;
    std::vector<double> split(ranks);
    for (int e = 0; e < experts; ++e) {
      double total = 0;
      for (int s = 0; s < ranks; ++s) total += counts[static_cast<size_t>(s) * experts + e];
      for (int r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        split[table.rank[r]] += total / (table.begin[e + 1] - table.begin[e]);
      }
    }
    equal += static_cast<double>(pairs) / ranks / *std::max_element(split.begin(), split.end()) / kSteps;
  }
  size_t step = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(SolveStepQuotas(solver, steps[step++ % kSteps], ranks, quotas));
    benchmark::ClobberMemory();
  }
  state.counters["balancedness"] = balancedness;
  state.counters["equal_split"] = equal;
  state.counters["replicas"] = table.num_replicas();
}
BENCHMARK(BM_StepQuotas)
    ->ArgNames({"experts", "ranks", "slots", "pairs", "zipf", "placement"})
    ->ArgsProduct({{256}, {32}, {288}, {1024, 4096, 16384, 65536, 8 * 65536}, {0, 50, 90}, {kChain, kGreedy}})
    ->ArgsProduct({{256}, {64}, {320}, {4096, 65536}, {50}, {kChain, kGreedy}})
    ->ArgsProduct({{128}, {8}, {144}, {4096}, {50}, {kChain, kGreedy}})
    ->ArgsProduct({{64}, {4}, {72}, {2048}, {50}, {kChain, kGreedy}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ballast

BENCHMARK_MAIN();
