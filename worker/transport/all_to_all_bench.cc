// Exchanges among processes as the steps of a group make them: each of N ranks sends one message to every other, waits
// for all of theirs, again and again, with some computation between exchanges or none.
//
//   all_to_all_bench [ROUNDS [FILTER]]     cases whose name contains FILTER
//
// Prints a table on stderr and JSON, in the form of google-benchmark's, on stdout. UCX's variables hold.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
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

int Main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(std::atoi(argv[1]), 10) : 1000;
  const std::string filter = argc > 2 ? argv[2] : "";
  std::vector<Case> cases;
  for (const char* tls : {"", "tcp,self"}) {
    for (const size_t bytes : {size_t{64}, size_t{12288}, size_t{49152}}) {
      for (const double compute : {0.0, 100e-6}) {
        for (const int spin_us : {0, 5, 20, 100}) {
          cases.push_back({tls, bytes, compute, absl::Microseconds(spin_us)});
        }
      }
    }
  }
  std::fprintf(stderr, "%-60s %10s %10s %10s %8s %9s\n", "", "median us", "p99 us", "mean us", "cpu us", "MB/s");
  std::printf("{\"benchmarks\": [");
  const char* separator = "\n";
  for (const Case& c : cases) {
    const std::string name = Name(c);
    if (name.find(filter) == std::string::npos) continue;
    const Result r = RunCase(c, c.bytes > 500000 ? rounds / 10 : rounds);
    const double rate = static_cast<double>(c.bytes) * (kRanks - 1) * kRanks / r.mean;
    std::fprintf(stderr, "%-60s %10.1f %10.1f %10.1f %8.1f %9.0f\n", name.c_str(), r.median * 1e6, r.p99 * 1e6,
                 r.mean * 1e6, r.cpu * 1e6, rate / 1e6);
    std::printf(
        "%s{\"name\": \"%s\", \"real_time\": %.3f, \"cpu_time\": %.3f, \"time_unit\": \"us\", \"p99\": %.3f, "
        "\"mean\": %.3f, \"bytes_per_second\": %.0f}",
        separator, name.c_str(), r.median * 1e6, r.cpu * 1e6, r.p99 * 1e6, r.mean * 1e6, rate);
    std::fflush(stdout);
    separator = ",\n";
  }
  std::printf("\n]}\n");
  return 0;
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) { return ballast::Main(argc, argv); }
