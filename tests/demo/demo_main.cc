// Ballast at work: one controller, four workers (on GPUs two), a real model and a load whose experts are skewed. The
// controller levels it while requests go on. Prints before and after, and checks every answer against one worker that
// holds every expert.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"
#include "proto/base/status_macros.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/load.h"

namespace ballast {
namespace {

constexpr char kGroup[] = "demo";
constexpr char kReferenceGroup[] = "reference";
constexpr char kReferenceWorker[] = "reference-0";

std::atomic<bool> interrupted{false};

struct Options {
  std::string bin = "bin";
  std::string model = "testdata/olmoe-9m";
  std::string prompts = "testdata/prompts.jsonl";
  std::string combine = "exact";
  std::string device = "cpu";
  // 0: as many as suit the device, or the number of workers.
  int workers = 0;
  int slots = 0;
  int seconds = 60;
  int concurrency = 16;
  int max_tokens = 24;
  bool keep_logs = false;
};

constexpr int kCpuWorkers = 4, kGpuWorkers = 2;
// Of all workers: every expert of the model once, staging, and some to spare.
constexpr int kAllSlots = 264;

// Waits for `duration`; false when the person has pressed Ctrl-C.
bool Pause(absl::Duration duration) {
  Mutex mu;
  CondVar never;
  MutexLock lock(mu);
  const absl::Time end = Clock::Real().Now() + duration;
  for (absl::Time now = Clock::Real().Now(); now < end && !interrupted; now = Clock::Real().Now()) {
    Clock::Real().WaitUntil(never, mu, std::min(end, now + absl::Milliseconds(100)));
  }
  return !interrupted;
}

absl::Status Call(const std::function<grpc::Status(grpc::ClientContext*)>& rpc, const char* what) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  const grpc::Status status = rpc(&context);
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      absl::StrCat(what, ": ", status.error_message()));
}

class Demo {
 public:
  explicit Demo(const Options& options) : options_(options), tty_(isatty(STDOUT_FILENO)) {}

  absl::Status Run() {
    BALLAST_ASSIGN_OR_RETURN(prompts_, ReadPrompts(options_.prompts));
    std::set<std::string> tasks;
    for (const Prompt& p : prompts_) tasks.insert(p.task);
    tasks_.assign(tasks.begin(), tasks.end());
    BALLAST_RETURN_IF_ERROR(StartCluster());

    std::map<std::string, std::shared_ptr<v1::Inference::Stub>> stubs;
    for (int i = 0; i < options_.workers; ++i) stubs[WorkerName(i)] = cluster_->inference(WorkerName(i));
    LoadGenerator::Options load_options;
    load_options.concurrency = options_.concurrency;
    load_options.max_tokens = options_.max_tokens;
    LoadGenerator load(prompts_, stubs, load_options);
    start_ = Clock::Real().Now();

    std::printf("\nServing %zu tasks, the controller only watches (mode observe).\n", tasks_.size());
    BALLAST_RETURN_IF_ERROR(Serve(load, options_.seconds * 0.3));
    BALLAST_ASSIGN_OR_RETURN(before_, GetLoad(absl::Seconds(options_.seconds * 0.2)));
    const double rate_before = RateSince(options_.seconds * 0.1);
    std::printf("%sNow it may act (mode auto): it plans, moves replicas, and requests go on.\n", tty_ ? "\n" : "");
    v1::SetModeRequest mode;
    mode.set_group(kGroup);
    mode.set_mode(v1::GROUP_MODE_AUTO);
    v1::SetModeResponse mode_set;
    BALLAST_RETURN_IF_ERROR(
        Call([&](grpc::ClientContext* c) { return cluster_->groups().SetMode(c, mode, &mode_set); }, "SetMode"));
    BALLAST_RETURN_IF_ERROR(Serve(load, options_.seconds));
    BALLAST_ASSIGN_OR_RETURN(after_, GetLoad(absl::Seconds(options_.seconds * 0.2)));
    const double rate_after = RateSince(options_.seconds * 0.8);
    load.Stop();
    if (tty_) std::printf("\n");
    BALLAST_RETURN_IF_ERROR(PrintTable(load));
    std::printf("Tokens a second  %.0f before, %.0f after\n", rate_before, rate_after);
    return CompareWithReference(load.answers());
  }

 private:
  // Tokens a second from `from` seconds after the start to the last line of progress.
  double RateSince(double from) const {
    const auto first =
        std::find_if(progress_.begin(), progress_.end(), [from](const auto& p) { return p.first >= from; });
    if (first == progress_.end() || first->first == progress_.back().first) return 0;
    return static_cast<double>(progress_.back().second - first->second) / (progress_.back().first - first->first);
  }

  // The n-th of the workers on GPUs has the n-th GPU.
  std::vector<std::string> DeviceFlags(int worker) const {
    if (options_.device == "cpu") return {};
    return {absl::StrCat("--device=", options_.device, ":", worker)};
  }

  static std::string WorkerName(int i) { return absl::StrCat("worker-", i); }

  absl::Status StartCluster() {
    char pattern[] = "/tmp/ballast-demo-XXXXXX";
    if (mkdtemp(pattern) == nullptr) return absl::InternalError("cannot make a folder under /tmp");
    directory_ = pattern;
    ClusterOptions options;
    options.controller_binary = options_.bin + "/ballast-controller";
    options.worker_binary = options_.bin + "/ballast-worker";
    options.model = options_.model;
    options.directory = directory_;
    options.combine = options_.combine;
    options.groups = {
        absl::StrFormat("name=%s,size=%d,mode=observe,policy=cost-aware,combine=%s", kGroup, options_.workers,
                        options_.combine),
        absl::StrFormat("name=%s,size=1,mode=observe,policy=eplb,combine=%s", kReferenceGroup, options_.combine)};
    options.controller_flags = {"--planning-interval=3s", "--load-window=10s", "--report-interval=500ms"};
    std::printf("Starting one controller and %d workers on loopback (%s, device %s, combine %s).\n", options_.workers,
                options_.model.c_str(), options_.device.c_str(), options_.combine.c_str());
    BALLAST_ASSIGN_OR_RETURN(cluster_, Cluster::Start(options));
    std::vector<WorkerOptions> workers;
    for (int i = 0; i < options_.workers; ++i) {
      workers.push_back(
          {.name = WorkerName(i), .group = kGroup, .slots = options_.slots, .extra_flags = DeviceFlags(i)});
    }
    BALLAST_RETURN_IF_ERROR(cluster_->StartWorkers(workers));
    BALLAST_ASSIGN_OR_RETURN(const v1::Group group,
                             cluster_->AwaitServing(kGroup, options_.workers, absl::Seconds(30)));
    std::printf("Group '%s' serves: %d layers of %d experts, epoch %llu, every expert in one place.\n", kGroup,
                group.model().num_moe_layers(), group.model().num_experts(),
                static_cast<unsigned long long>(group.epoch()));
    std::printf("Look for yourself: bin/ballastctl --controller=%s get groups, or http://%s in a browser\n",
                cluster_->controller_address().c_str(), cluster_->controller_console_address().c_str());
    return absl::OkStatus();
  }

  // Keeps the load's mix and the progress line going until `until` seconds after the start.
  absl::Status Serve(LoadGenerator& load, double until) {
    while (true) {
      const double elapsed = absl::ToDoubleSeconds(Clock::Real().Now() - start_);
      if (elapsed >= until) return absl::OkStatus();
      // Two tasks at a time come to the fore, so that what is hot keeps changing.
      const auto fore = static_cast<size_t>(elapsed / options_.seconds * (tasks_.size() / 2.0)) % (tasks_.size() / 2);
      std::map<std::string, double> mix;
      for (size_t i = 0; i < tasks_.size(); ++i) mix[tasks_[i]] = i / 2 == fore ? 4 : 1;
      load.SetMix(mix);
      if (!Pause(absl::Seconds(1))) return absl::CancelledError("interrupted");
      BALLAST_RETURN_IF_ERROR(PrintProgress(load, elapsed, tasks_[2 * fore] + "+" + tasks_[2 * fore + 1]));
    }
  }

  absl::Status PrintProgress(LoadGenerator& load, double elapsed, const std::string& fore) {
    v1::GetGroupRequest request;
    request.set_group(kGroup);
    v1::GetGroupResponse response;
    BALLAST_RETURN_IF_ERROR(
        Call([&](grpc::ClientContext* c) { return cluster_->groups().GetGroup(c, request, &response); }, "GetGroup"));
    const LoadGenerator::Totals totals = load.totals();
    progress_.emplace_back(elapsed, totals.tokens);
    if (!tty_ && static_cast<int>(elapsed) % 5 != 0) return absl::OkStatus();
    std::printf("%s%3ds  %6lld tokens  %5lld requests  %lld failed  epoch %-3llu balancedness %.3f  mostly %s%s",
                tty_ ? "\r\033[K" : "", static_cast<int>(elapsed), static_cast<long long>(totals.tokens),
                static_cast<long long>(totals.requests), static_cast<long long>(totals.failed),
                static_cast<unsigned long long>(response.group().epoch()), response.group().balancedness(),
                fore.c_str(), tty_ ? "" : "\n");
    std::fflush(stdout);
    return absl::OkStatus();
  }

  absl::StatusOr<v1::GetLoadResponse> GetLoad(absl::Duration window) {
    v1::GetLoadRequest request;
    request.set_group(kGroup);
    request.mutable_window()->set_seconds(std::max<int64_t>(1, absl::ToInt64Seconds(window)));
    v1::GetLoadResponse response;
    BALLAST_RETURN_IF_ERROR(
        Call([&](grpc::ClientContext* c) { return cluster_->groups().GetLoad(c, request, &response); }, "GetLoad"));
    return response;
  }

  absl::Status PrintTable(LoadGenerator& load) {
    v1::ListPlansRequest request;
    request.set_group(kGroup);
    request.set_page_size(1000);
    v1::ListPlansResponse plans;
    BALLAST_RETURN_IF_ERROR(
        Call([&](grpc::ClientContext* c) { return cluster_->plans().ListPlans(c, request, &plans); }, "ListPlans"));
    int rollouts = 0;
    int64_t moves = 0, bytes = 0;
    double gain = 0;
    for (const v1::Plan& plan : plans.plans()) {
      if (plan.state() == v1::PLAN_STATE_DONE) gain = std::max(gain, plan.effect().gain_ratio());
      rollouts += plan.state() == v1::PLAN_STATE_DONE;
      moves += plan.moves_done();
      bytes += plan.bytes_done();
    }
    std::printf("\nBalancedness by layer (mean/max of the workers' tokens; 1 is level)\n");
    std::printf("  layer   before    after\n");
    double mean_before = 0, mean_after = 0;
    for (int l = 0; l < before_.layers_size() && l < after_.layers_size(); ++l) {
      mean_before += before_.layers(l).balancedness() / before_.layers_size();
      mean_after += after_.layers(l).balancedness() / after_.layers_size();
      std::printf("  %5d   %6.3f   %6.3f\n", l, before_.layers(l).balancedness(), after_.layers(l).balancedness());
    }
    std::printf("   mean   %6.3f   %6.3f\n", mean_before, mean_after);
    const LoadGenerator::Totals totals = load.totals();
    std::printf("\nTokens served    %lld\nRequests         %lld, failed %lld\n", static_cast<long long>(totals.tokens),
                static_cast<long long>(totals.requests), static_cast<long long>(totals.failed));
    std::printf("Rollouts         %d\nReplicas moved   %lld (%.1f MB)\n", rollouts, static_cast<long long>(moves),
                static_cast<double>(bytes) / 1e6);
    std::printf("Predicted        the busiest workers have %.1f %% less to do (the best plan)\n", 100 * gain);
    for (const Answer& a : load.answers()) {
      if (!a.status.ok()) return absl::InternalError(absl::StrCat("a request failed: ", a.status.ToString()));
    }
    if (rollouts == 0) return absl::InternalError("the controller rolled no plan out");
    if (mean_after <= mean_before) return absl::InternalError("the load is not more level than before");
    return absl::OkStatus();
  }

  // Greedy answers do not depend on what else was served, so each distinct prompt is asked once.
  absl::Status CompareWithReference(const std::vector<Answer>& answers) {
    std::printf("\nChecking the answers against one worker with all experts ...\n");
    WorkerOptions worker;
    worker.name = kReferenceWorker;
    worker.group = kReferenceGroup;
    worker.compute_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    worker.extra_flags = DeviceFlags(0);
    BALLAST_RETURN_IF_ERROR(cluster_->StartWorker(worker));
    BALLAST_RETURN_IF_ERROR(cluster_->AwaitServing(kReferenceGroup, 1, absl::Seconds(30)).status());

    std::vector<int> distinct;
    for (const Answer& a : answers) distinct.push_back(a.prompt);
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    std::vector<Answer> reference(prompts_.size());
    std::atomic<size_t> next{0};
    std::vector<std::thread> clients;
    for (int c = 0; c < options_.concurrency; ++c) {
      clients.emplace_back([&] {
        const auto stub = cluster_->inference(kReferenceWorker);
        for (size_t i; (i = next++) < distinct.size() && !interrupted;) {
          const Prompt& p = prompts_[distinct[i]];
          reference[distinct[i]] = Generate(*stub, p.text, p.task, options_.max_tokens, absl::Seconds(60));
        }
      });
    }
    for (std::thread& t : clients) t.join();
    if (interrupted) return absl::CancelledError("interrupted");
    size_t equal = 0;
    for (const Answer& a : answers) {
      if (!reference[a.prompt].status.ok()) return reference[a.prompt].status;
      equal += a.token_ids == reference[a.prompt].token_ids;
    }
    std::printf("%zu of %zu answers (%zu prompts) are the same, token by token.\n", equal, answers.size(),
                distinct.size());
    // Only exact promises the same tokens; fast adds in another order.
    if (options_.combine == "exact" && equal != answers.size()) {
      return absl::InternalError("answers differ from the single worker's");
    }
    return absl::OkStatus();
  }

 public:
  // Removes what the demo made; keeps it when there is something to look into.
  void CleanUp(bool keep) {
    cluster_.reset();
    if (directory_.empty()) return;
    if (keep) {
      std::printf("Logs and store are kept in %s\n", directory_.c_str());
      return;
    }
    std::error_code ignored;
    std::filesystem::remove_all(directory_, ignored);
  }

 private:
  const Options options_;
  const bool tty_;
  std::string directory_;
  std::vector<Prompt> prompts_;
  std::vector<std::string> tasks_;
  std::unique_ptr<Cluster> cluster_;
  absl::Time start_;
  // Seconds since the start, and tokens served until then.
  std::vector<std::pair<double, int64_t>> progress_;
  v1::GetLoadResponse before_;
  v1::GetLoadResponse after_;
};

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  ballast::Options options;
  CLI::App app("Serves a small MoE model with a few workers and levels its experts live.", "demo");
  app.add_option("--bin", options.bin, "Folder of ballast-controller and ballast-worker")->capture_default_str();
  app.add_option("--model", options.model, "Checkpoint folder")->capture_default_str();
  app.add_option("--prompts", options.prompts, "Prompts, a JSON object a line")->capture_default_str();
  app.add_option("--combine", options.combine, "exact proves that no token changes; fast is how one serves")
      ->check(CLI::IsMember({"exact", "fast"}))
      ->capture_default_str();
  app.add_option("--device", options.device, "Where the workers compute; cuda: each on a GPU of its own")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--workers", options.workers, "Workers; not given: 4, on GPUs 2")->check(CLI::Range(2, 16));
  app.add_option("--slots", options.slots, "Expert slots a worker, staging included; not given: 264 over the workers");
  app.add_option("--seconds", options.seconds, "How long to serve")->check(CLI::Range(10, 3600))->capture_default_str();
  app.add_option("--concurrency", options.concurrency, "Requests at a time")->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens, "Tokens a request")->capture_default_str();
  app.add_flag("--keep-logs", options.keep_logs, "Keep the logs when all went well, too");
  if (const auto status = ballast::ParseFlags(app, argc, argv)) return *status;

  if (options.workers == 0) options.workers = options.device == "cpu" ? ballast::kCpuWorkers : ballast::kGpuWorkers;
  if (options.slots == 0) options.slots = ballast::kAllSlots / options.workers;

  // A second Ctrl-C kills at once: the children die with this process.
  struct sigaction action = {};
  action.sa_handler = [](int) { ballast::interrupted = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);

  ballast::Demo demo(options);
  const absl::Status status = demo.Run();
  demo.CleanUp(options.keep_logs || (!status.ok() && !ballast::interrupted));
  if (ballast::interrupted) {
    std::printf("\nStopped.\n");
    return 130;
  }
  if (!status.ok()) {
    std::fprintf(stderr, "demo: %s\n", status.ToString().c_str());
    return 1;
  }
  std::printf("Done: every process is stopped.\n");
  return 0;
}
