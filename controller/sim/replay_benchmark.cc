// A day of drifting load through strategies, as tables in docs/measurements.md: real workloads of DeepSeek-R1 whose
// phases alternate and whose mixtures drift (where BALLAST_SHARED has them), and Zipf popularity that no file shows.
//
//   bazel run -c opt //controller/sim:replay_benchmark -- --benchmark_out=replay.json --benchmark_out_format=json
//
// One day is 86,400 steps, one a simulated second; of every 60 the first is executed by itself. Counters of a run:
// balancedness (mean of the executed steps), worst_hour, gigabytes and moves, plans, step_us and tokens_per_s by the
// default cost model. The time of a benchmark is the simulation's.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "benchmark/benchmark.h"
#include "controller/formats/load_file.h"
#include "controller/planner/budget.h"
#include "controller/planner/eplb.h"
#include "controller/planner/level.h"
#include "controller/sim/load_source.h"
#include "controller/sim/replay.h"
#include "proto/base/check.h"
#include "proto/base/test_data.h"

namespace ballast {
namespace {

constexpr int32_t kGpus = 32;
constexpr int32_t kNodes = 4;
// Room for one extra replica a layer.
constexpr int32_t kSlots = 9;
constexpr int64_t kExpertBytes = 88'080'384;
constexpr int64_t kDay = 86'400;
constexpr int32_t kCraftReplicas = 8;

LoadMatrix Read(const std::string& folder, const char* name) {
  auto file = ReadLoad(folder + "/" + name + ".json");
  BALLAST_CHECK(file.ok()) << file.status();
  const NamedLoads named[] = {{name, {*std::move(file)}}};
  auto set = MakeLoadSet(named);
  BALLAST_CHECK(set.ok()) << set.status();
  return set->scenarios[0].load;
}

std::unique_ptr<LoadSource> RealDay(const std::string& folder, int64_t prefill_steps, int64_t decode_steps) {
  auto day = DaySource::Make(
      {{"prefill",
        prefill_steps,
        {Read(folder, "prefill_in1024"), Read(folder, "prefill_in2000out100"), Read(folder, "prefill_in4096"),
         Read(folder, "prefill_in1000out1000")}},
       {"decode", decode_steps, {Read(folder, "decode_in1000out1000"), Read(folder, "decode_in2000out100")}}},
      kDay);
  BALLAST_CHECK(day.ok()) << day.status();
  return std::make_unique<DaySource>(*std::move(day));
}

std::unique_ptr<LoadSource> ZipfDay(int64_t swap_every, int64_t jump_every) {
  return std::make_unique<ZipfSource>(ZipfOptions{
      .layers = 16, .experts = 256, .exponent = 0.7, .swap_every = swap_every, .jump_every = jump_every, .seed = 7});
}

Ground Start(const LoadSource& source) {
  Ground ground{.topology = UniformTopology(kGpus, kNodes, kSlots * source.layers()), .expert_bytes = kExpertBytes};
  Placement& placement = ground.placement;
  placement.num_layers = source.layers();
  placement.num_experts = source.experts();
  for (const TopologyWorker& w : ground.topology.workers) placement.workers.push_back(w.name);
  std::vector<int32_t> used(kGpus);
  for (int32_t l = 0; l < source.layers(); ++l) {
    for (int32_t e = 0; e < source.experts(); ++e) {
      const int32_t w = e * kGpus / source.experts();
      placement.replicas.push_back({{l, e}, w, used[w]++, 1});
    }
  }
  return ground;
}

using MakeStrategy = std::unique_ptr<Strategy> (*)();

std::unique_ptr<PlannerPolicy> Eplb() { return std::make_unique<EplbPolicy>(1, EplbPolicy::Split::kEqual); }

constexpr struct {
  const char* name;
  MakeStrategy make;
} kStrategies[] = {
    {"contiguous", [] { return StayStrategy("contiguous"); }},
    {"EPLB once", [] { return PeriodicStrategy({.name = "EPLB once", .every = 0}, Eplb()); }},
    {"EPLB every 3000", [] { return PeriodicStrategy({.name = "EPLB every 3000"}, Eplb()); }},
    {"CRAFT once",
     [] {
       return PeriodicStrategy({.name = "CRAFT once", .every = 0, .replicas_per_worker = kCraftReplicas},
                               std::make_unique<CraftPolicy>());
     }},
    {"CRAFT every 3000",
     [] {
       return PeriodicStrategy({.name = "CRAFT every 3000", .replicas_per_worker = kCraftReplicas},
                               std::make_unique<CraftPolicy>());
     }},
    {"Ballast", [] { return DriftStrategy({}, std::make_unique<CostAwarePolicy>(20'000)); }},
    {"Ballast, R = 8",
     [] { return DriftStrategy({.replicas_per_worker = kCraftReplicas}, std::make_unique<CostAwarePolicy>(20'000)); }},
    {"Ballast, equal split",
     [] {
       return DriftStrategy({.split = StepSplit::kEqual, .drift = {.shares = ShareMode::kFixed}},
                            std::make_unique<CostAwarePolicy>(20'000, Split::kEqual));
     }},
};

void Day(benchmark::State& state, const LoadSource& source, double burstiness, MakeStrategy make) {
  const Ground ground = Start(source);
  const ReplayOptions options{.steps = kDay, .sample_every = 60, .sample = {.burstiness = burstiness}};
  for (auto _ : state) {
    std::vector<std::unique_ptr<Strategy>> strategies;
    strategies.push_back(make());
    const auto results = Replay(source, ground, options, strategies);
    BALLAST_CHECK(results.ok()) << results.status();
    const ReplayResult& r = results->front();
    state.counters["balancedness"] = r.balancedness;
    state.counters["worst_hour"] = r.worst_hour;
    state.counters["gigabytes"] = static_cast<double>(r.bytes) * 1e-9;
    state.counters["moves"] = static_cast<double>(r.moves);
    state.counters["plans"] = static_cast<double>(r.plans);
    state.counters["step_us"] = r.step_microseconds;
    state.counters["tokens_per_s"] = r.tokens_per_second;
  }
}

void Register(const std::string& name, std::unique_ptr<LoadSource> source, double burstiness = 0) {
  const std::shared_ptr<LoadSource> shared = std::move(source);
  for (const auto& strategy : kStrategies) {
    benchmark::RegisterBenchmark(
        absl::StrCat(name, "/", strategy.name).c_str(),
        [shared, burstiness, make = strategy.make](benchmark::State& state) { Day(state, *shared, burstiness, make); })
        ->Iterations(1)
        ->Unit(benchmark::kSecond);
  }
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const std::string folder = ballast::internal::SharedPath("data/deepseek_r1_counts");
  if (folder.empty()) {
    std::fprintf(stderr, "skipped: the real loads, data/deepseek_r1_counts in the folder BALLAST_SHARED\n");
  } else {
    ballast::Register("real, phases of 10 min", ballast::RealDay(folder, 600, 600));
    ballast::Register("real, phases of 10 min, bursty", ballast::RealDay(folder, 600, 600), 0.5);
    ballast::Register("real, phases of 10 s and 90 s", ballast::RealDay(folder, 10, 90));
  }
  ballast::Register("zipf, drifting", ballast::ZipfDay(600, 0));
  ballast::Register("zipf, drifting, jumps of 6 h", ballast::ZipfDay(600, 21'600));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
