// Exchanges among four processes as the steps of a group make them: each rank sends one message to every other and
// waits for all of theirs, again and again, with some computation between exchanges or none.
//
// Time is the median of one exchange; `cpu_us` is what it takes of a rank's core, the measure that counts when ranks
// share cores, and the steadier one on a busy machine. UCX's environment variables hold where a case does not set them.
#include <algorithm>
#include <cmath>
#include <ctime>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "benchmark/benchmark.h"
#include "proto/base/check.h"
#include "proto/base/clock.h"
#include "worker/transport/process_mesh.h"

namespace ballast {
namespace {

constexpr int kRanks = 4;

double Seconds() { return absl::ToDoubleSeconds(Clock::Real().Now() - absl::UnixEpoch()); }

// Computes for about `seconds` of this core's time.
void Compute(double seconds) {
  timespec t;
  const auto cpu = [&t] {
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
  };
  const double end = cpu() + seconds;
  while (cpu() < end) {
  }
}

struct Case {
  std::string tls;
  size_t bytes;
  double compute;
  absl::Duration spin;
};

std::string Name(const Case& c) {
  return absl::StrCat("all_to_all/tls:", c.tls.empty() ? "default" : c.tls, "/bytes:", c.bytes,
                      "/compute_us:", std::lround(c.compute * 1e6), "/spin_us:", absl::ToInt64Microseconds(c.spin));
}

// Seconds.
struct Result {
  double median = 0, p99 = 0, mean = 0;
  // Of one rank's core time, the computation left out: what an exchange costs when ranks share cores.
  double cpu = 0;
};

Result RunCase(const Case& c, int rounds) {
  ProcessMesh::Environment environment;
  if (!c.tls.empty()) environment.push_back({"UCX_TLS", c.tls});
  int fds[2];
  BALLAST_CHECK(pipe(fds) == 0);
  {
    ProcessMesh mesh(kRanks, environment,
                     [&](std::unique_ptr<Transport> me, const ParentLine&) {
                       std::vector<std::vector<std::byte>> in(kRanks), out(kRanks);
                       std::vector<double> times;
                       std::vector<RequestId> receives, sends;
                       const int warm = rounds / 10 + 1;
                       double cpu_start = 0, start = 0;
                       for (int round = 0; round < rounds + warm; ++round) {
                         if (round == warm) {
                           start = Seconds();
                           cpu_start = double(std::clock()) / CLOCKS_PER_SEC;
                         }
                         const double before = Seconds();
                         receives.clear();
                         sends.clear();
                         for (int peer = 0; peer < kRanks; ++peer) {
                           if (peer == me->rank()) continue;
                           in[peer].resize(c.bytes);
                           receives.push_back(me->Receive(peer, round, in[peer]));
                         }
                         for (int peer = 0; peer < kRanks; ++peer) {
                           if (peer == me->rank()) continue;
                           out[peer].resize(c.bytes);
                           sends.push_back(me->Send(peer, round, out[peer]));
                         }
                         const absl::Time deadline = Clock::Real().Now() + absl::Seconds(60);
                         if (!me->Wait(receives, deadline).ok() || !me->Wait(sends, deadline).ok()) return 1;
                         if (round >= warm) times.push_back(Seconds() - before);
                         if (c.compute > 0) Compute(c.compute);
                       }
                       const double elapsed = Seconds() - start;
                       const double cpu = double(std::clock()) / CLOCKS_PER_SEC - cpu_start;
                       // A last exchange of nothing, so that nobody leaves before all have arrived.
                       if (me->rank() == 0) {
                         std::sort(times.begin(), times.end());
                         const Result result{.median = times[times.size() / 2],
                                             .p99 = times[times.size() * 99 / 100],
                                             .mean = elapsed / rounds,
                                             .cpu = cpu / rounds - c.compute};
                         BALLAST_CHECK(write(fds[1], &result, sizeof result) == sizeof result);
                       }
                       std::vector<RequestId> last;
                       for (int peer = 0; peer < kRanks; ++peer) {
                         if (peer == me->rank()) continue;
                         last.push_back(me->Receive(peer, kMaxTag, {}));
                         last.push_back(me->Send(peer, kMaxTag, {}));
                       }
                       static_cast<void>(me->Wait(last, Clock::Real().Now() + absl::Seconds(5)));
                       return 0;
                     },
                     {.spin = c.spin});
    for (int rank = 0; rank < kRanks; ++rank) BALLAST_CHECK(mesh.Join(rank) == 0) << "rank " << rank;
  }
  Result result;
  BALLAST_CHECK(read(fds[0], &result, sizeof result) == sizeof result);
  close(fds[0]);
  close(fds[1]);
  return result;
}

void Run(benchmark::State& state, const Case& c) {
  const int rounds = c.bytes > 500'000 ? 100 : 1000;
  for (auto _ : state) {
    const Result r = RunCase(c, rounds);
    state.SetIterationTime(r.median);
    state.counters["p99_us"] = r.p99 * 1e6;
    state.counters["mean_us"] = r.mean * 1e6;
    state.counters["cpu_us"] = r.cpu * 1e6;
    state.counters["bytes_per_second"] = static_cast<double>(c.bytes) * (kRanks - 1) * kRanks / r.mean;
  }
}

void Register() {
  for (const char* tls : {"", "tcp,self"}) {
    for (const size_t bytes : {size_t{64}, size_t{64} * 192 * 4 / kRanks, size_t{64} * 192 * 4, size_t{1} << 20}) {
      for (const double compute : {0.0, 100e-6}) {
        for (const int spin_us : {0, 20}) {
          const Case c{tls, bytes, compute, absl::Microseconds(spin_us)};
          benchmark::RegisterBenchmark(Name(c).c_str(), [c](benchmark::State& state) { Run(state, c); })
              ->UseManualTime()
              ->Iterations(1)
              ->Unit(benchmark::kMicrosecond);
        }
      }
    }
  }
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  ballast::Register();
  benchmark::RunSpecifiedBenchmarks();
}
