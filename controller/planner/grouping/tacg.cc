#include "controller/planner/grouping/tacg.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "proto/base/check.h"

namespace ballast {
namespace {

// (2), (3): of `x` [tasks][experts], each less the mean over the other tasks; (4): by task, over its deviation.
std::vector<std::vector<double>> StandardDifference(std::vector<std::vector<double>> x, double epsilon) {
  const auto tasks = static_cast<double>(x.size());
  const size_t experts = x[0].size();
  for (size_t e = 0; e < experts; ++e) {
    double sum = 0;
    for (const auto& row : x) sum += row[e];
    for (auto& row : x) row[e] -= tasks > 1 ? (sum - row[e]) / (tasks - 1) : 0;
  }
  for (auto& row : x) {
    const double mean = std::accumulate(row.begin(), row.end(), 0.0) / static_cast<double>(experts);
    double squares = 0;
    for (const double v : row) squares += (v - mean) * (v - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(experts));
    for (double& v : row) v = (v - mean) / (deviation + epsilon);
  }
  return x;
}

std::vector<double> Degrees(const Affinity& a) {
  std::vector<double> out(a.experts);
  for (int32_t e = 0; e < a.experts; ++e) {
    for (int32_t other = 0; other < a.experts; ++other) out[e] += a(e, other);
  }
  return out;
}

double AffinityTo(const Affinity& affinity, int32_t expert, const std::vector<int32_t>& pack) {
  double sum = 0;
  for (const int32_t other : pack) sum += affinity(expert, other);
  return sum;
}

// The task that each worker belongs to: consecutive workers, as many each as can be.
int32_t TaskOfWorker(int32_t worker, int32_t workers, int32_t tasks) {
  return static_cast<int32_t>(static_cast<int64_t>(worker) * tasks / workers);
}

}  // namespace

std::vector<std::vector<double>> TaskPreference(const std::vector<TaskStatistics>& tasks, const TacgOptions& options) {
  std::vector<std::vector<double>> use, degree;
  for (const TaskStatistics& task : tasks) {
    use.push_back(task.use);
    degree.push_back(Degrees(task.together));
  }
  std::vector<std::vector<double>> p = StandardDifference(std::move(use), options.epsilon);
  const std::vector<std::vector<double>> c = StandardDifference(std::move(degree), options.epsilon);
  for (size_t e = 0; e < p[0].size(); ++e) {
    double most = -std::numeric_limits<double>::infinity(), sum = 0;
    for (size_t f = 0; f < p.size(); ++f) {
      p[f][e] = (p[f][e] + c[f][e]) / options.temperature;
      most = std::max(most, p[f][e]);
    }
    for (auto& row : p) sum += row[e] = std::exp(row[e] - most);
    for (auto& row : p) row[e] /= sum;
  }
  return p;
}

Affinity TaskAffinity(const std::vector<TaskStatistics>& tasks, const TacgOptions& options) {
  const std::vector<std::vector<double>> p = TaskPreference(tasks, options);
  Affinity out = Pool(tasks);
  const double max = *std::max_element(out.values.begin(), out.values.end());
  if (max <= 0) return out;
  for (int32_t a = 0; a < out.experts; ++a) {
    for (int32_t b = 0; b < out.experts; ++b) {
      double alike = 0;
      for (const auto& row : p) alike += row[a] * row[b];
      out(a, b) *= (1 - options.alpha + options.alpha * alike) / max;
    }
  }
  return out;
}

Packs PlaceTacg(const std::vector<TaskStatistics>& tasks, std::span<const int32_t> sizes, const TacgOptions& options) {
  const auto workers = static_cast<int32_t>(sizes.size());
  const auto families = static_cast<int32_t>(tasks.size());
  const Affinity affinity = TaskAffinity(tasks, options);
  Packs packs = RepairSizes(affinity, SpectralClusters(affinity, workers, options.spectral), sizes);
  if (options.swaps) SwapPacks(affinity, packs);

  const std::vector<std::vector<double>> p = TaskPreference(tasks, options);
  std::vector<int64_t> value(static_cast<size_t>(workers) * workers);
  for (int32_t m = 0; m < workers; ++m) {
    for (int32_t w = 0; w < workers; ++w) {
      double preference = 0;
      for (const int32_t e : packs[m]) preference += p[TaskOfWorker(w, workers, families)][e];
      // A pack of another size never comes before one that fits.
      value[m * workers + w] = sizes[m] == sizes[w] ? std::llround(preference * (1 << 20)) : -(int64_t{1} << 40);
    }
  }
  const std::vector<int32_t> worker_of = BestAssignment(value, workers);
  Packs out(workers);
  for (int32_t m = 0; m < workers; ++m) out[worker_of[m]] = std::move(packs[m]);
  return out;
}

std::vector<double> GenericScore(const std::vector<TaskStatistics>& tasks, const GesrOptions& options) {
  const Affinity mean = Pool(tasks);
  std::vector<double> score = Degrees(mean);
  for (int32_t e = 0; e < mean.experts; ++e) {
    double consistency = 0, specificity = 0;
    for (const TaskStatistics& task : tasks) {
      double dot = 0, own = 0, pooled = 0, apart = 0;
      for (int32_t o = 0; o < mean.experts; ++o) {
        const double a = task.together(e, o), m = mean(e, o);
        dot += a * m;
        own += a * a;
        pooled += m * m;
        apart += (a - m) * (a - m);
      }
      consistency += own > 0 && pooled > 0 ? dot / std::sqrt(own * pooled) / static_cast<double>(tasks.size()) : 0;
      specificity = std::max(specificity, std::sqrt(apart));
    }
    score[e] += options.consistency * consistency - options.specificity * specificity;
  }
  return score;
}

void ReplicateGeneric(const std::vector<TaskStatistics>& tasks, const Affinity& affinity, const GesrOptions& options,
                      std::span<const int32_t> room, Packs& packs) {
  const std::vector<double> score = GenericScore(tasks, options);
  std::vector<int32_t> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score[a] > score[b]; });
  const Packs homes = packs;
  std::vector<int32_t> left(room.begin(), room.end());
  const auto chosen = std::min(static_cast<size_t>(std::max(0, options.experts)), order.size());
  for (size_t i = 0; i < chosen; ++i) {
    const int32_t e = order[i];
    for (int32_t copy = 0; copy < options.secondaries; ++copy) {
      int32_t best = -1;
      double most = 0;
      for (size_t w = 0; w < packs.size(); ++w) {
        if (!left.empty() && left[w] == 0) continue;
        if (std::find(packs[w].begin(), packs[w].end(), e) != packs[w].end()) continue;
        if (const double to = AffinityTo(affinity, e, homes[w]); best < 0 || to > most) {
          best = static_cast<int32_t>(w);
          most = to;
        }
      }
      if (best < 0) break;
      packs[best].push_back(e);
      if (!left.empty()) --left[best];
    }
  }
}

std::vector<HopScore> ScoreGuarded(std::span<const Packs> layers, const Routes& routes, const Topology& topology,
                                   const GuardOptions& options) {
  const auto workers = static_cast<int32_t>(topology.workers.size());
  const auto tasks = static_cast<int32_t>(routes.tasks.size());
  HopCounter counter(routes, topology);
  std::vector<double> load(workers);
  std::vector<int32_t> taken(workers), used, token;
  for (int32_t l = 0; l < routes.layers; ++l) {
    std::vector<std::vector<int32_t>> holders(routes.experts);
    for (int32_t w = 0; w < workers; ++w) {
      for (const int32_t e : layers[l][w]) holders[e].push_back(w);
    }
    std::fill(load.begin(), load.end(), 0);
    const LayerRoutes layer = LayerOf(routes, l);
    int64_t most = 0;
    for (const LayerRoutes::Task& task : layer.tasks) most = std::max(most, task.tokens);
    for (int64_t t = 0; t < most; ++t) {
      const auto source = static_cast<int32_t>(t % workers);
      for (int32_t f = 0; f < tasks; ++f) {
        if (t >= layer.tasks[f].tokens) continue;
        const double limit =
            (1 + options.theta) * std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(workers);
        std::fill(taken.begin(), taken.end(), 0);
        used.clear();
        token.clear();
        for (const int32_t e : layer.tasks[f].experts.subspan(t * routes.top_k, routes.top_k)) {
          if (e >= 0) token.push_back(e);
        }
        std::stable_partition(token.begin(), token.end(), [&](int32_t e) { return holders[e].size() == 1; });
        for (const int32_t e : token) {
          const bool guarded =
              std::any_of(holders[e].begin(), holders[e].end(), [&](int32_t w) { return load[w] <= limit; });
          const auto key = [&](int32_t w) {
            return std::tuple(guarded && load[w] > limit, taken[w] == 0, w != source,
                              TaskOfWorker(w, workers, tasks) != f, load[w], w);
          };
          int32_t best = -1;
          for (const int32_t w : holders[e]) {
            if (best < 0 || key(w) < key(best)) best = w;
          }
          BALLAST_CHECK(best >= 0) << "expert " << e << " of layer " << l << " has no replica";
          ++taken[best];
          used.push_back(best);
        }
        for (int32_t w = 0; w < workers; ++w) load[w] = options.decay * load[w] + taken[w];
        counter.Add(l, f, source, used);
      }
    }
  }
  return counter.Scores();
}

}  // namespace ballast
