// A sudden shift of the mix on the routes of DeepSeek-V2-Lite: how soon and at what cost plans follow.
//
// The folder that BALLAST_SHARED names has to hold data/deepseek_v2_lite_routes. Eight GPUs of ten slots a layer. Two
// of four tasks have 90 % of the tokens for 40 buckets of 10 s, then the two others; a window is 30 buckets. LAYERS=N
// takes every N-th layer alone, MOVES=N is the move budget of a plan. Printed: every bucket with a plan and the ends of
// the stretches, beside a plan from nothing for just that mix.
#include <cstdio>
#include <cstdlib>

#include "controller/planner/grouping/recorded_routes.h"
#include "controller/sim/mix_replay.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

void Print(const char* what, int bucket, const MixScore& score, int64_t moves, double megabytes) {
  std::printf(
      "%-10s bucket %3d  hops %7.3f  maxvio %.3f  a task alone %.3f, with its own shares %.3f  moves %4d, %.0f MB\n",
      what, bucket, score.hops, score.maxvio, score.task_maxvio, score.task_maxvio_solved, static_cast<int>(moves),
      megabytes);
}

int Number(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoi(value);
}

int Main() {
  const char* shared = std::getenv("BALLAST_SHARED");
  BALLAST_CHECK(shared != nullptr) << "BALLAST_SHARED is not set";
  const RouteSplit routes =
      ReadRecordedRoutes(std::string(shared) + "/data/deepseek_v2_lite_routes", Number("LAYERS", 1));
  MixReplayOptions options;
  options.topology = UniformTopology(8, 1, 10 * routes.planned.layers);
  options.slots_per_layer = 10;
  // bf16: 3 x 2048 x 1408.
  options.expert_bytes = 17'301'504;
  options.planner.limits = {.maxvio = .06, .task_maxvio = .3};
  options.planner.budget.max_moves = Number("MOVES", 512);
  const TaskMix mixes[] = {{{"intent", .45}, {"law", .45}, {"summary", .05}, {"translation", .05}},
                           {{"intent", .05}, {"law", .05}, {"summary", .45}, {"translation", .45}}};
  std::vector<TaskMix> schedule;
  for (const TaskMix& mix : mixes) schedule.insert(schedule.end(), 40, mix);
  const auto steps = ReplayMix(routes.planned, routes.held_out, schedule, options);
  BALLAST_CHECK(steps.ok()) << steps.status();
  for (size_t b = 0; b < steps->size(); ++b) {
    const MixStep& step = (*steps)[b];
    const double megabytes = static_cast<double>(step.bytes) / 1e6;
    if (step.planned) Print("plan", static_cast<int>(b), step.score, step.moves, megabytes);
    if (!step.planned && (b % 40 == 0 || b % 40 == 39)) Print("", static_cast<int>(b), step.score, 0, 0);
    if (b % 40 != 39) continue;
    const auto own = OwnPlan(routes.planned, routes.held_out, schedule[b], options);
    BALLAST_CHECK(own.ok()) << own.status();
    Print("own plan", static_cast<int>(b), *own, 0, 0);
  }
  return 0;
}

}  // namespace
}  // namespace ballast

int main() { return ballast::Main(); }
