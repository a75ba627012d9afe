// Eight tasks through four workers: experts grouped by task, with requests run by the homes of their tasks, beside
// experts placed level alone. Both groups are up at the same time and serve the same load in turns, so that what else
// the machine does falls on all; prints what a token sends between workers, throughput, latencies and the processors'
// time that the workers took for a token, and whether the answers are the same tokens.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "grpcpp/grpcpp.h"
#include "proto/base/clock.h"
#include "proto/base/flags.h"
#include "proto/base/grpc_status.h"
#include "proto/base/mutex.h"
#include "proto/base/status_macros.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/load.h"
#include "tests/cluster/metrics.h"

namespace ballast {
namespace {

struct Options {
  std::string bin = "bin";
  std::string model = "testdata/olmoe-9m";
  std::string prompts = "testdata/prompts.jsonl";
  std::string combine = "fast";
  int workers = 4;
  int slots_per_layer = 10;
  int turns = 6;
  int seconds = 5;
  int concurrency = 16;
  int max_tokens = 24;
  int64_t plan_tokens = 20000;
};

constexpr int kStagingSlots = 6;

// A way of serving, by one of the groups.
struct Variant {
  const char* name;
  const char* policy;
  // Labels that have no homes: requests stay where they come in.
  bool hide_tasks;
  // Clients go to the homes themselves when they are told to.
  bool follow_redirects;
};
constexpr Variant kVariants[] = {
    {"cost-aware", "cost-aware", false, false},
    {"task-aware, no homes", "task-aware", true, false},
    {"task-aware, homes", "task-aware", false, false},
    {"task-aware, redirects", "task-aware", false, true},
};

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(q * static_cast<double>(values.size())))];
}

// A group with experts placed by a policy.
class ServingGroup {
 public:
  ServingGroup(const char* policy, const Options& options, int layers)
      : policy_(policy), options_(options), layers_(layers) {}
  ~ServingGroup() {
    cluster_.reset();
    std::error_code ignored;
    if (!directory_.empty()) std::filesystem::remove_all(directory_, ignored);
  }

  absl::Status Start() {
    char pattern[] = "/tmp/ballast-tasks-XXXXXX";
    if (mkdtemp(pattern) == nullptr) return absl::InternalError("cannot make a folder under /tmp");
    directory_ = pattern;
    ClusterOptions cluster;
    cluster.controller_binary = options_.bin + "/ballast-controller";
    cluster.worker_binary = options_.bin + "/ballast-worker";
    cluster.model = options_.model;
    cluster.directory = directory_;
    cluster.combine = options_.combine;
    cluster.groups = {absl::StrCat("name=g,size=", options_.workers, ",mode=approve,policy=", policy_,
                                   ",combine=", options_.combine)};
    cluster.controller_flags = {"--load-window=600s", "--report-interval=500ms"};
    BALLAST_ASSIGN_OR_RETURN(cluster_, Cluster::Start(cluster));
    // A slot of the placement's layers is not of the staging ones; the model's layers are known once it is loaded.
    std::vector<WorkerOptions> workers;
    for (int i = 0; i < options_.workers; ++i) {
      workers.push_back({.name = absl::StrCat("w", i),
                         .group = "g",
                         .slots = options_.slots_per_layer * layers_ + kStagingSlots,
                         .extra_flags = {absl::StrCat("--staging-slots=", kStagingSlots)}});
    }
    BALLAST_RETURN_IF_ERROR(cluster_->StartWorkers(workers));
    BALLAST_ASSIGN_OR_RETURN(const v1::Group group, cluster_->AwaitServing("g", options_.workers, absl::Seconds(120)));
    hidden_ = group.model().hidden_size();
    for (int i = 0; i < options_.workers; ++i) {
      stubs_[absl::StrCat("w", i)] = cluster_->inference(absl::StrCat("w", i));
    }
    return absl::OkStatus();
  }

  // Serves until the window holds enough, then plans and rolls out until nothing more is gained.
  absl::Status Place(const std::vector<Prompt>& prompts) {
    {
      LoadGenerator load(prompts, stubs_, {.concurrency = options_.concurrency, .max_tokens = options_.max_tokens});
      const int64_t wanted = options_.plan_tokens;
      BALLAST_RETURN_IF_ERROR(cluster_
                                  ->AwaitGroup("g", absl::Seconds(600),
                                               [wanted](const v1::Group& g) { return g.window_tokens() >= wanted; })
                                  .status());
    }
    for (int round = 0; round < 3; ++round) {
      grpc::ClientContext create_context;
      v1::CreatePlanRequest create;
      create.set_group("g");
      v1::CreatePlanResponse created;
      BALLAST_RETURN_IF_ERROR(FromGrpc(cluster_->plans().CreatePlan(&create_context, create, &created)));
      if (created.plan().moves_total() == 0) break;
      grpc::ClientContext approve_context;
      v1::ApprovePlanRequest approve;
      approve.set_id(created.plan().id());
      v1::ApprovePlanResponse approved;
      BALLAST_RETURN_IF_ERROR(FromGrpc(cluster_->plans().ApprovePlan(&approve_context, approve, &approved)));
      v1::Plan plan;
      BALLAST_RETURN_IF_ERROR(cluster_
                                  ->AwaitGroup("g", absl::Seconds(300),
                                               [&](const v1::Group&) {
                                                 grpc::ClientContext context;
                                                 v1::GetPlanRequest get;
                                                 get.set_id(created.plan().id());
                                                 v1::GetPlanResponse got;
                                                 if (!cluster_->plans().GetPlan(&context, get, &got).ok()) return false;
                                                 plan = got.plan();
                                                 return plan.state() >= v1::PLAN_STATE_DONE;
                                               })
                                  .status());
      std::printf("%s: plan %s, %d moves, %s\n", policy_, plan.id().c_str(), plan.moves_done(),
                  v1::PlanState_Name(plan.state()).c_str());
      if (plan.state() != v1::PLAN_STATE_DONE) break;
    }
    grpc::ClientContext context;
    v1::GetPlacementRequest request;
    request.set_group("g");
    v1::GetPlacementResponse placement;
    BALLAST_RETURN_IF_ERROR(FromGrpc(cluster_->groups().GetPlacement(&context, request, &placement)));
    for (const v1::TaskHomes& task : placement.placement().task_homes()) {
      std::printf("  %-12s at home on", task.task().c_str());
      for (const v1::TaskHome& home : task.homes()) {
        std::printf(" %s (%u)", placement.placement().workers(home.worker()).c_str(), home.weight());
      }
      std::printf("\n");
    }
    return absl::OkStatus();
  }

  // Of all workers, by name with labels.
  absl::StatusOr<std::map<std::string, double>> Metrics() {
    std::map<std::string, double> sum;
    for (int i = 0; i < options_.workers; ++i) {
      BALLAST_ASSIGN_OR_RETURN(const auto metrics, ReadMetrics(cluster_->worker_metrics_address(absl::StrCat("w", i))));
      for (const auto& [name, value] : metrics) sum[name] += value;
    }
    return sum;
  }

  // Processors' time that the workers have used.
  absl::Duration cpu_time() {
    absl::Duration sum;
    for (int i = 0; i < options_.workers; ++i) sum += cluster_->worker(absl::StrCat("w", i)).cpu_time();
    return sum;
  }
  const std::map<std::string, std::shared_ptr<v1::Inference::Stub>>& stubs() const { return stubs_; }
  double hidden() const { return hidden_; }
  std::string policy() const { return policy_; }

 private:
  const char* const policy_;
  const Options& options_;
  const int layers_;
  std::string directory_;
  std::unique_ptr<Cluster> cluster_;
  std::map<std::string, std::shared_ptr<v1::Inference::Stub>> stubs_;
  double hidden_ = 0;
};

// A way of serving, and what came of it while it was measured.
class Side {
 public:
  Side(const Variant& variant, const Options& options, ServingGroup& group)
      : variant_(variant), options_(options), group_(group) {}

  absl::Status Measure(std::vector<Prompt> prompts, uint64_t seed) {
    if (variant_.hide_tasks) {
      for (Prompt& prompt : prompts) prompt.task = "-" + prompt.task;
    }
    BALLAST_ASSIGN_OR_RETURN(const auto before, group_.Metrics());
    const absl::Duration cpu_before = group_.cpu_time();
    const absl::Time start = Clock::Real().Now();
    LoadGenerator load(prompts, group_.stubs(),
                       {.concurrency = options_.concurrency,
                        .max_tokens = options_.max_tokens,
                        .seed = seed,
                        .follow_redirects = variant_.follow_redirects});
    Mutex mu;
    CondVar never;
    {
      MutexLock lock(mu);
      const absl::Time end = start + absl::Seconds(options_.seconds);
      while (Clock::Real().Now() < end) Clock::Real().WaitUntil(never, mu, end);
    }
    load.Stop();
    const double seconds = absl::ToDoubleSeconds(Clock::Real().Now() - start);
    cpu_time_ += group_.cpu_time() - cpu_before;
    BALLAST_ASSIGN_OR_RETURN(const auto after, group_.Metrics());
    for (const auto& [name, value] : after) counted_[name] += value - (before.contains(name) ? before.at(name) : 0);
    double tokens = 0;
    for (const Answer& answer : load.answers()) {
      BALLAST_RETURN_IF_ERROR(answer.status);
      tokens += static_cast<double>(answer.token_ids.size());
      first_.push_back(absl::ToDoubleMilliseconds(answer.time_to_first_token));
      if (answer.token_ids.size() > 1) {
        each_.push_back(absl::ToDoubleMilliseconds(answer.latency - answer.time_to_first_token) /
                        static_cast<double>(answer.token_ids.size() - 1));
      }
      const auto [place, fresh] = answers_.emplace(answer.prompt, answer.token_ids);
      unsteady_ += !fresh && place->second != answer.token_ids;
    }
    rates_.push_back(tokens / seconds);
    tokens_ += tokens;
    return absl::OkStatus();
  }

  void Print() const {
    const double entered = SumOf(counted_, "ballast_worker_tokens_total");
    const double sent = SumOf(counted_, "ballast_dispatch_copies_total") -
                        SumOf(counted_, "ballast_dispatch_copies_total", {"link=\"self\""});
    const double routed = SumOf(counted_, "ballast_requests_routed_total");
    const double at_home = SumOf(counted_, "ballast_requests_routed_total", {"route=\"home\""}) +
                           SumOf(counted_, "ballast_requests_routed_total", {"route=\"here\""});
    std::printf("%-22s %10.3f %12.0f %10.1f %10.3f %8.1f %8.1f %8.2f %8.2f %8.3f\n", variant_.name, sent / entered,
                2 * 4 * group_.hidden() * sent / entered, Quantile(rates_, .5),
                absl::ToDoubleMilliseconds(cpu_time_) / tokens_, Quantile(first_, .5), Quantile(first_, .99),
                Quantile(each_, .5), Quantile(each_, .99), routed == 0 ? 0 : at_home / routed);
  }

  const std::map<int, std::vector<int32_t>>& answers() const { return answers_; }
  int unsteady() const { return unsteady_; }

 private:
  const Variant& variant_;
  const Options& options_;
  ServingGroup& group_;
  std::map<std::string, double> counted_;
  std::vector<double> rates_, first_, each_;
  double tokens_ = 0;
  absl::Duration cpu_time_;
  std::map<int, std::vector<int32_t>> answers_;
  int unsteady_ = 0;
};

// MoE layers of the checkpoint: slots are counted over all of them.
absl::StatusOr<int> LayersOf(const std::string& model) {
  std::ifstream file(model + "/config.json");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const size_t at = text.find("\"num_hidden_layers\"");
  const size_t colon = at == std::string::npos ? at : text.find(':', at);
  const int layers = colon == std::string::npos ? 0 : std::atoi(text.c_str() + colon + 1);
  if (layers < 1) return absl::InvalidArgumentError(absl::StrCat(model, "/config.json does not say num_hidden_layers"));
  return layers;
}

absl::Status Run(const Options& options) {
  BALLAST_ASSIGN_OR_RETURN(const std::vector<Prompt> prompts, ReadPrompts(options.prompts));
  BALLAST_ASSIGN_OR_RETURN(const int layers, LayersOf(options.model));
  std::vector<std::unique_ptr<ServingGroup>> groups;
  std::vector<std::unique_ptr<Side>> sides;
  for (const Variant& variant : kVariants) {
    if (groups.empty() || groups.back()->policy() != variant.policy) {
      groups.push_back(std::make_unique<ServingGroup>(variant.policy, options, layers));
      BALLAST_RETURN_IF_ERROR(groups.back()->Start());
      BALLAST_RETURN_IF_ERROR(groups.back()->Place(prompts));
    }
    sides.push_back(std::make_unique<Side>(variant, options, *groups.back()));
  }
  for (int turn = 0; turn < options.turns; ++turn) {
    for (const auto& side : sides) BALLAST_RETURN_IF_ERROR(side->Measure(prompts, static_cast<uint64_t>(turn) + 1));
  }
  std::printf("\n%s, %d workers, combine %s, %d requests at a time; medians over %d turns of %d s\n",
              options.model.c_str(), options.workers, options.combine.c_str(), options.concurrency, options.turns,
              options.seconds);
  std::printf("%-22s %10s %12s %10s %10s %8s %8s %8s %8s %8s\n", "", "copies", "bytes", "tokens/s", "cpu ms", "first",
              "p99", "each", "p99", "at home");
  std::printf("%-22s %10s %12s %10s %10s %8s %8s %8s %8s\n", "", "a token", "a token", "", "a token", "ms", "ms", "ms",
              "ms");
  for (const auto& side : sides) side->Print();
  size_t same = 0, compared = 0, unsteady = 0;
  for (const auto& side : sides) {
    unsteady += side->unsteady();
    for (const auto& [prompt, tokens] : side->answers()) {
      const auto other = sides[0]->answers().find(prompt);
      if (side == sides[0] || other == sides[0]->answers().end()) continue;
      ++compared;
      same += other->second == tokens;
    }
  }
  std::printf("%zu of %zu prompts answered with the tokens of %s; %zu answers differ from an earlier one\n", same,
              compared, kVariants[0].name, unsteady);
  // Only exact promises the same tokens; fast adds in another order.
  if (options.combine == "exact" && (same != compared || unsteady > 0)) {
    return absl::InternalError("answers differ");
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) {
  ballast::Options options;
  CLI::App app("Serves tasks with experts grouped by them, and with experts placed level alone.", "live_tasks");
  app.add_option("--bin", options.bin, "Folder of ballast-controller and ballast-worker")->capture_default_str();
  app.add_option("--model", options.model, "Checkpoint folder")->capture_default_str();
  app.add_option("--prompts", options.prompts, "Prompts, a JSON object a line")->capture_default_str();
  app.add_option("--combine", options.combine, "exact proves that no token changes; fast is how one serves")
      ->check(CLI::IsMember({"exact", "fast"}))
      ->capture_default_str();
  app.add_option("--workers", options.workers, "Workers of each group")
      ->check(CLI::Range(2, 16))
      ->capture_default_str();
  app.add_option("--slots-per-layer", options.slots_per_layer, "Slots of a layer on each worker")
      ->capture_default_str();
  app.add_option("--turns", options.turns, "Turns of each group")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--seconds", options.seconds, "Length of a turn")->check(CLI::Range(1, 3600))->capture_default_str();
  app.add_option("--concurrency", options.concurrency, "Requests at a time")->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens, "Tokens a request")->capture_default_str();
  app.add_option("--plan-tokens", options.plan_tokens, "Tokens to plan from")->capture_default_str();
  if (const auto status = ballast::ParseFlags(app, argc, argv)) return *status;
  if (const absl::Status status = ballast::Run(options); !status.ok()) {
    std::fprintf(stderr, "live_tasks: %s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
