// Grouping on recorded routes: hops of tokens that were not planned for, and how level layers are.
//
// ROUTES names a folder with a file routes_TASK.csv.gz for each task, as `ballastctl trace record` writes them; by
// default it is data/deepseek_v2_lite_routes in the folder that BALLAST_SHARED names. Of every second sample of a task
// the tokens are planned for, of the others they are scored. LAYERS=N takes every N-th layer alone. Time is of planning
// all layers, of one thread; counters: `less`, the part of random placement's hops that goes away; `maxvio` and `jain`
// of layers, averaged, `worst` the worst layer's MaxVio and `task` the worst task's. Where all traffic is one task's,
// of the worst one: `alone` with shares chosen for its planned tokens, `own` for the traffic itself, `alone_bound` what
// no placement in as many slots can be below for that task; `worst_own` and `worst_bound` take each layer's worst task;
// `held` is the part of layers and tasks within .3 or a tenth above that bound. `maxvio_all` and `jain_all` are of
// loads summed over layers; `per_layer`, seconds of the processor.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "benchmark/benchmark.h"
#include "controller/planner/alias.h"
#include "controller/planner/anneal.h"
#include "controller/planner/grouping/coactivation.h"
#include "controller/planner/grouping/group_search.h"
#include "controller/planner/grouping/hops.h"
#include "controller/planner/grouping/recorded_routes.h"
#include "controller/planner/grouping/tacg.h"
#include "controller/planner/grouping/tasks_alone.h"
#include "controller/planner/score.h"
#include "controller/planner/search.h"
#include "proto/base/check.h"
#include "proto/base/test_data.h"

namespace ballast {
namespace {

DispatchTable Table(const Packs& packs, int32_t experts) {
  DispatchTable table = ToTable(packs, experts);
  std::fill(table.weight.begin(), table.weight.end(), 1);
  return table;
}

// Single-task traffic, MaxVio over held-out tokens.
struct AloneScore {
  // Averaged over layers, of the worst task: with shares chosen for its planned tokens, and for the held-out ones
  // themselves, as those of a step are; and what no placement in as many slots can be below for that task.
  double alone = 0;
  double own = 0;
  double bound = 0;
  // Of a layer's worst task, averaged over layers: with its own shares, and what no placement in as many slots is below
  // in all tasks.
  double worst = 0;
  double worst_bound = 0;
  // The part of layers and tasks that are, with their own shares, within .3 or a tenth above the layer's bound.
  double held = 0;
};
AloneScore Alone(std::span<const DispatchTable> layers, const RouteSplit& split, int32_t gpus) {
  AloneScore out;
  const Topology topology = UniformTopology(gpus, 1, 1 << 10);
  const auto tasks = static_cast<double>(split.planned.tasks.size());
  const double layer_part = 1 / static_cast<double>(layers.size());
  std::vector<double> worst(layers.size()), least;
  for (size_t l = 0; l < layers.size(); ++l) {
    std::vector<int32_t> slots(gpus);
    for (const int32_t w : layers[l].rank) ++slots[w];
    least.push_back(LeastTaskMaxVio(LayerOf(split.held_out, static_cast<int32_t>(l)), slots, {}));
    out.worst_bound += layer_part * least.back();
  }
  for (size_t f = 0; f < split.planned.tasks.size(); ++f) {
    double alone = 0, own = 0, bound = 0;
    for (size_t l = 0; l < layers.size(); ++l) {
      std::vector<double> planned(split.planned.experts), held_out(split.planned.experts);
      for (const int32_t e : split.planned.tasks[f].experts[l]) ++planned[e];
      for (const int32_t e : split.held_out.tasks[f].experts[l]) ++held_out[e];
      const auto maxvio = [&](std::span<const double> solved_for) {
        DispatchTable table = layers[l];
        SolveWeights(solved_for, {}, gpus, table);
        return 1 / Balancedness(WorkerLoads(table, held_out, topology)) - 1;
      };
      alone += layer_part * maxvio(planned);
      const double with_own = maxvio(held_out);
      own += layer_part * with_own;
      worst[l] = std::max(worst[l], with_own);
      out.held += layer_part / tasks * (with_own <= std::max(.3, 1.1 * (1 + least[l]) - 1) ? 1 : 0);
      bound += layer_part * (1 / UpperBound(held_out, layers[l].num_replicas(), gpus) - 1);
    }
    out.alone = std::max(out.alone, alone);
    out.own = std::max(out.own, own);
    out.bound = std::max(out.bound, bound);
  }
  for (const double w : worst) out.worst += layer_part * w;
  return out;
}

// The guard has no shares to choose.
AloneScore Alone(std::span<const Packs>, const RouteSplit&, int32_t) { return {}; }

// Registers what is compared on so many GPUs.
class Comparison {
 public:
  // `split` outlives the benchmarks.
  Comparison(const RouteSplit& split, int32_t gpus) : split_(split), gpus_(gpus) {}

  // Replicas are dispatched as workers do, by the tables' shares.
  void Add(const std::string& name, std::function<DispatchTable(const LayerRoutes&, int32_t)> place) const {
    Register<DispatchTable>(name, std::move(place),
                            [](const std::vector<DispatchTable>& layers, const RouteSplit& split,
                               const Topology& topology, int64_t& replicas) {
                              for (const DispatchTable& layer : layers) replicas += layer.num_replicas();
                              return ScoreHops(layers, split.held_out, topology);
                            });
  }

  // Served with the published guard.
  void AddGuarded(const std::string& name, double theta,
                  std::function<Packs(const LayerRoutes&, int32_t)> place) const {
    Register<Packs>(name, std::move(place),
                    [theta](const std::vector<Packs>& layers, const RouteSplit& split, const Topology& topology,
                            int64_t& replicas) {
                      for (const Packs& packs : layers) {
                        for (const auto& pack : packs) replicas += static_cast<int64_t>(pack.size());
                      }
                      return ScoreGuarded(layers, split.held_out, topology, {.theta = theta});
                    });
  }

 private:
  template <typename Layer, typename Score>
  void Register(const std::string& name, std::function<Layer(const LayerRoutes&, int32_t)> place, Score score) const {
    const auto run = [place = std::move(place), score, &split = split_, gpus = gpus_](benchmark::State& state) {
      const int32_t count = split.planned.layers;
      std::vector<Layer> layers;
      for (auto _ : state) {
        layers.clear();
        for (int32_t l = 0; l < count; ++l) layers.push_back(place(LayerOf(split.planned, l), l));
      }
      int64_t replicas = 0;
      const std::vector<HopScore> scores = score(layers, split, UniformTopology(gpus, 1, 1 << 10), replicas);
      const HopScore& mix = scores[0];
      double task = 0;
      for (size_t f = 1; f < scores.size(); ++f) task = std::max(task, scores[f].balance.maxvio_layer);
      const double random =
          count * RandomPlacementHops(std::vector<int32_t>(gpus, split.planned.experts / gpus), split.planned.top_k);
      const AloneScore alone = Alone(layers, split, gpus);
      state.counters["alone"] = alone.alone;
      state.counters["own"] = alone.own;
      state.counters["alone_bound"] = alone.bound;
      state.counters["worst_own"] = alone.worst;
      state.counters["worst_bound"] = alone.worst_bound;
      state.counters["held"] = alone.held;
      state.counters["replicas"] = static_cast<double>(replicas) / count;
      state.counters["hops"] = mix.hops;
      state.counters["less"] = 1 - mix.hops / random;
      state.counters["maxvio"] = mix.balance.maxvio_layer;
      state.counters["worst"] = mix.balance.maxvio_worst_layer;
      state.counters["jain"] = mix.balance.jain_layer;
      state.counters["maxvio_all"] = mix.balance.maxvio_all;
      state.counters["jain_all"] = mix.balance.jain_all;
      state.counters["task"] = task;
      state.counters["per_layer"] =
          benchmark::Counter(count, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
    };
    benchmark::RegisterBenchmark(absl::StrCat(gpus_, " GPUs, ", name).c_str(), run)
        ->Iterations(1)
        ->Unit(benchmark::kSecond);
  }

  const RouteSplit& split_;
  const int32_t gpus_;
};

void Register(const RouteSplit& split, int32_t gpus) {
  const Comparison report(split, gpus);
  const int32_t experts = split.planned.experts;
  const std::vector<int32_t> homes(gpus, experts / gpus);
  // A quarter more slots, where they do not come out even one more on the first GPUs.
  std::vector<int32_t> quarter_more;
  for (int32_t g = 0; g < gpus; ++g) quarter_more.push_back((experts * 5 / 4 + gpus - 1 - g) / gpus);
  report.Add("random", [gpus](const LayerRoutes& layer, int32_t l) {
    internal::Random random(static_cast<uint64_t>(l));
    std::vector<int32_t> order(layer.experts);
    for (int32_t e = 0; e < layer.experts; ++e) order[e] = e;
    for (int32_t e = layer.experts - 1; e > 0; --e) {
      std::swap(order[e], order[internal::Random::Below(static_cast<uint32_t>(random.Next()), e + 1)]);
    }
    Packs packs(gpus);
    for (int32_t e = 0; e < layer.experts; ++e) packs[e % gpus].push_back(order[e]);
    return Table(packs, layer.experts);
  });
  report.Add("contiguous", [gpus](const LayerRoutes& layer, int32_t) {
    Packs packs(gpus);
    for (int32_t e = 0; e < layer.experts; ++e) packs[e * gpus / layer.experts].push_back(e);
    return Table(packs, layer.experts);
  });
  report.Add("greedy on load", [homes](const LayerRoutes& layer, int32_t) {
    return Table(PackGreedily(MixLoad(layer), homes), layer.experts);
  });
  const auto tacg = [homes](const LayerRoutes& layer, const TacgOptions& options) {
    return PlaceTacg(Statistics(layer), homes, options);
  };
  for (const bool swaps : {false, true}) {
    report.Add(swaps ? "pooled co-activation, swaps" : "pooled co-activation", [=](const LayerRoutes& layer, int32_t) {
      return Table(PlaceCoactivation(layer, homes, swaps), layer.experts);
    });
    for (const double alpha : {.25, .5, 1.}) {
      report.Add(absl::StrFormat("TACG, alpha %.2f%s", alpha, swaps ? ", swaps" : ""),
                 [=](const LayerRoutes& layer, int32_t) {
                   return Table(tacg(layer, {.alpha = alpha, .swaps = swaps}), layer.experts);
                 });
    }
  }
  for (const double alpha : {0., .25}) {
    for (const bool swaps : {false, true}) {
      report.AddGuarded(absl::StrFormat("%s%s + GESR, guard .15", alpha > 0 ? "TACG" : "pooled co-activation",
                                        swaps ? ", swaps" : ""),
                        .15, [=](const LayerRoutes& layer, int32_t) {
                          const TacgOptions options{.alpha = alpha, .swaps = swaps};
                          const auto tasks = Statistics(layer);
                          Packs packs = PlaceTacg(tasks, homes, options);
                          ReplicateGeneric(tasks, TaskAffinity(tasks, options), {.experts = layer.experts / 8}, {},
                                           packs);
                          return packs;
                        });
    }
  }
  report.Add("cost-aware (level by shares), + 1/4", [gpus, quarter_more](const LayerRoutes& layer, int32_t) {
    DispatchTable table = ToTable(PlaceLevel(MixLoad(layer), quarter_more), layer.experts);
    SolveWeights(MixLoad(layer), {}, gpus, table);
    return table;
  });
  // As the policy places several loads at once: the worst of them counts.
  report.Add("cost-aware, a scenario for each task, + 1/4", [gpus, quarter_more](const LayerRoutes& layer, int32_t) {
    LayerProblem problem;
    for (const LayerRoutes::Task& task : layer.tasks) {
      std::vector<double>& tokens = problem.tokens.emplace_back(layer.experts);
      for (const int32_t e : task.experts) {
        if (e >= 0) ++tokens[e];
      }
    }
    Packs packs = PackGreedily(MixLoad(layer), quarter_more);
    ImprovePacks(problem, {}, packs);
    DispatchTable table = ToTable(packs, layer.experts);
    SolveWeights(MixLoad(layer), {}, gpus, table);
    return table;
  });
  constexpr double kNoLimit = std::numeric_limits<double>::infinity();
  const struct {
    const char* name;
    const std::vector<int32_t>* slots;
    GroupLimits limits;
    int64_t proposals;
  } ours[] = {
      {"task-aware, no replicas, no limit", &homes, {kNoLimit, kNoLimit}, 0},
      {"task-aware, no replicas, limit .10", &homes, {.1, kNoLimit}, 0},
      {"task-aware, no replicas, limit .06", &homes, {.06, kNoLimit}, 0},
      {"task-aware + 1/4, no limit", &quarter_more, {kNoLimit, kNoLimit}, 0},
      {"task-aware + 1/4, limit .30", &quarter_more, {.3, kNoLimit}, 0},
      {"task-aware + 1/4, limit .10", &quarter_more, {.1, kNoLimit}, 0},
      {"task-aware + 1/4, limit .06", &quarter_more, {.06, kNoLimit}, 0},
      {"task-aware + 1/4, limit .06, 60,000 proposals", &quarter_more, {.06, kNoLimit}, 60'000},
      {"task-aware + 1/4, limit .06, 1.2 M proposals", &quarter_more, {.06, kNoLimit}, 1'200'000},
      {"task-aware + 1/4, limit .06, task .30", &quarter_more, {.06, .3}, 0},
  };
  for (const auto& o : ours) {
    report.Add(o.name, [o, slots = *o.slots](const LayerRoutes& layer, int32_t) {
      GroupProblem problem{&layer, slots};
      problem.limits = o.limits;
      problem.proposals = o.proposals;
      return GroupExpertsByRoutes(problem).table;
    });
  }
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const char* const routes = std::getenv("ROUTES");
  const std::string folder =
      routes == nullptr ? ballast::internal::SharedPath("data/deepseek_v2_lite_routes") : std::string(routes);
  if (folder.empty()) {
    std::fprintf(stderr, "skipped: the routes, data/deepseek_v2_lite_routes in the folder BALLAST_SHARED\n");
    return 0;
  }
  const char* every = std::getenv("LAYERS");
  const ballast::RouteSplit split =
      ballast::ReadRecordedRoutes(folder, every == nullptr ? 1 : std::max(1, std::atoi(every)));
  for (const int32_t gpus : {16, 8}) ballast::Register(split, gpus);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
