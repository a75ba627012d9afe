// Steps of groups of worker processes over UCX against one process with every expert, on the same cores: decode steps
// of `tokens` rows in all, each row a sequence of its own over real text; steps take turns with `sets` sets of rows, so
// that a step's counts are not those of the step before.
//
// There is a group with a contiguous placement, without replicas; and for each way to choose shares (fixed, previous,
// current, auto) one with a placement that is level for the mean load of the text and shares experts between
// neighbours. All take turns; each figure is the median of the rounds, in time and in processor time over all
// processes. Prints a table on stderr and JSON, in the form of google-benchmark's, on stdout.
//
//   step_bench [--model=DIR] [--workers=4] [--tokens=256] [--sets=4] [--rounds=5] [--steps=100] [--combine=fast|exact]
//   [--threads=N]
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/tokens.h"
#include "proto/base/check.h"
#include "proto/base/clock.h"
#include "proto/placement/shares.h"
#include "worker/decoder/decoder.h"
#include "worker/decoder/local_moe.h"
#include "worker/experts/expert_store.h"
#include "worker/model/checkpoint.h"
#include "worker/model/safetensors.h"
#include "worker/step/cpu_step_model.h"
#include "worker/step/step_engine.h"
#include "worker/transport/process_mesh.h"

namespace ballast {
namespace {

struct Settings {
  std::string model = "testdata/olmoe-9m";
  int workers = 4;
  int tokens = 256;
  int sets = 4;
  int rounds = 5;
  int steps = 100;
  // Where the JSON goes; empty: standard output. Named as google-benchmark names it, so that one script runs them all.
  std::string out;
  CombineMode combine = CombineMode::kExact;
  // Of the single process; a worker of the group has one.
  int threads = static_cast<int>(std::thread::hardware_concurrency());
};

// What a process tells the parent, in shared memory, before it says that it is done.
struct Report {
  double seconds_a_step;
  double cpu_a_step;
  // Means over the steps, in seconds.
  double route, share, dispatch, experts, combine, step;
  double balancedness;
};

// What this process has used of the processors.
double CpuSeconds() {
  timespec t;
  BALLAST_CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

template <typename T>
T Value(absl::StatusOr<T> value) {
  BALLAST_CHECK(value.ok()) << value.status();
  return *std::move(value);
}

// Steps take turns with `sets` sets of `rows` rows: nothing is committed, so contexts keep their length.
class FixedRows final : public StepSource, public StepEvents {
 public:
  FixedRows(KvCache& cache, Decoder& decoder, MoeLayer& prefill, const std::string& model, int first, int rows,
            int sets)
      : vocab_(decoder.config().vocab_size), rows_(rows), sets_(sets) {
    const auto reference = Value(SafetensorsFile::Open(model + "/reference.safetensors"));
    std::span<const int32_t> ids;
    int length = 0;
    for (const TensorView& tensor : reference->tensors()) {
      if (tensor.name != "input_ids") continue;
      ids = tensor.as<int32_t>();
      length = static_cast<int>(tensor.shape[1]);
    }
    BALLAST_CHECK(length > 0) << "no input_ids";
    const int texts = static_cast<int>(ids.size()) / length;
    std::vector<float> logits(vocab_);
    for (int i = 0; i < rows * sets; ++i) {
      // Positions from the middle of the text to its end.
      const int number = first * sets + i;
      const auto text = ids.subspan(static_cast<size_t>(number % texts) * length, length);
      const int context = length / 2 + number / texts * 7 % (length / 2 - 1);
      kv_.push_back(std::make_unique<KvSequence>(cache));
      BALLAST_CHECK(kv_.back()->Reserve(context + 1).ok());
      const StepSequence whole{kv_.back().get(), 0, context, 0};
      const absl::Status status = decoder.Forward(
          {.token_ids = text.first(context), .sequences = {&whole, 1}, .logit_rows = {}}, prefill, logits.data());
      BALLAST_CHECK(status.ok()) << status;
      kv_.back()->Commit(context);
      tokens_.push_back(text[context]);
      sequences_.push_back({kv_.back().get(), i % rows, 1, context});
    }
    for (int i = 0; i < rows; ++i) {
      logit_rows_.push_back(i);
      labels_.push_back({0, TokenPhase::kDecode});
    }
  }

  // Lets `steps` steps run, and times the last nine tenths of them.
  void Start(int steps) {
    warm_ = std::max(1, steps / 10);
    ended_ = 0;
    report_ = Report{};
    left_.store(steps);
  }
  bool done() const { return left_.load() == 0; }
  Report report() const { return report_; }

  bool HasWork() override { return left_.load() > 0; }
  StepRows Next(int capacity) override {
    BALLAST_CHECK(rows_ <= capacity);
    // Every rank counts the same steps.
    const auto set = static_cast<size_t>(left_.load() % sets_ * rows_);
    return {.input = {.token_ids = std::span(tokens_).subspan(set, rows_),
                      .sequences = std::span(sequences_).subspan(set, rows_),
                      .logit_rows = logit_rows_},
            .labels = labels_,
            .more_work = left_.load() > 1};
  }
  void Commit(const StepResult& result) override {
    for (int i = 0; i < rows_; ++i) {
      sampled_ += ArgMax({result.logits + static_cast<size_t>(i) * vocab_, static_cast<size_t>(vocab_)});
    }
  }
  void Discard(const absl::Status& reason) override { BALLAST_CHECK(false) << reason; }
  void NoView(const absl::Status& reason) override {}
  void StepEnded(const StepRecord& record) override {
    if (record.rows == 0 || left_.load() == 0) return;
    ++ended_;
    const absl::Time now = Clock::Real().Now();
    if (ended_ == warm_) {
      start_ = now;
      cpu_start_ = CpuSeconds();
    }
    if (ended_ > warm_) {
      report_.route += absl::ToDoubleSeconds(record.moe->route);
      report_.share += absl::ToDoubleSeconds(record.moe->share);
      report_.dispatch += absl::ToDoubleSeconds(record.moe->dispatch);
      report_.experts += absl::ToDoubleSeconds(record.moe->experts);
      report_.combine += absl::ToDoubleSeconds(record.moe->combine);
      report_.step += absl::ToDoubleSeconds(record.duration);
      report_.balancedness += record.moe->balancedness;
    }
    if (left_.load() == 1) {
      const double steps = ended_ - warm_;
      report_.seconds_a_step = absl::ToDoubleSeconds(now - start_) / steps;
      report_.cpu_a_step = (CpuSeconds() - cpu_start_) / steps;
      for (double* sum : {&report_.route, &report_.share, &report_.dispatch, &report_.experts, &report_.combine,
                          &report_.step, &report_.balancedness}) {
        *sum /= steps;
      }
    }
    left_.fetch_sub(1);
  }

 private:
  const int vocab_;
  const int rows_;
  const int sets_;
  std::vector<std::unique_ptr<KvSequence>> kv_;
  std::vector<int32_t> tokens_;
  std::vector<StepSequence> sequences_;
  std::vector<int32_t> logit_rows_;
  std::vector<RowLabel> labels_;
  int64_t sampled_ = 0;
  std::atomic<int> left_{0};
  int warm_ = 0;
  int ended_ = 0;
  absl::Time start_;
  double cpu_start_ = 0;
  Report report_;
};

// Gives out the one mesh that the processes made.
class GivenTransport final : public TransportFactory {
 public:
  explicit GivenTransport(std::unique_ptr<Transport> transport) : transport_(std::move(transport)) {}
  absl::StatusOr<std::unique_ptr<Transport>> Connect(const GroupView&, absl::Time, std::vector<int>&) override {
    return std::move(transport_);
  }
  void Cancel(ViewId) override {}

 private:
  std::unique_ptr<Transport> transport_;
};

// Every worker the same number of experts of each layer, in order.
Placement Contiguous(const ModelConfig& config, int workers) {
  Placement p{.epoch = Epoch(1),
              .shares_version = SharesVersion(1),
              .num_layers = config.num_moe_layers(),
              .num_experts = config.num_experts};
  for (int w = 0; w < workers; ++w) p.workers.push_back(absl::StrCat("w", w));
  std::vector<int32_t> next_slot(workers, 0);
  for (int32_t layer = 0; layer < p.num_layers; ++layer) {
    for (int32_t e = 0; e < p.num_experts; ++e) {
      const int32_t w = e * workers / p.num_experts;
      p.replicas.push_back({.expert = {layer, e}, .worker = w, .slot = next_slot[w]++});
    }
  }
  p.Sort();
  return p;
}

// Pairs by expert that the text brings, [layers][experts].
std::vector<std::vector<int64_t>> MeanLoad(const Settings& settings) {
  const auto checkpoint = Value(Checkpoint::Open(settings.model));
  const ModelConfig& config = checkpoint->config();
  ThreadPool pool(1);
  const auto decoder = Value(Decoder::Create(*checkpoint, pool, {.max_rows = 256}));
  const auto cache = Value(KvCache::Create(decoder->kv_shape(), 256));
  const auto moe = Value(LocalMoe::Create(*checkpoint, *decoder, pool));
  std::vector<std::vector<int64_t>> load(config.num_moe_layers(), std::vector<int64_t>(config.num_experts));
  moe->set_trace([&](const LocalMoe::Trace& trace) {
    for (const int32_t expert : trace.ids) ++load[trace.moe_layer][expert];
  });
  const auto reference = Value(SafetensorsFile::Open(settings.model + "/reference.safetensors"));
  std::vector<float> logits(config.vocab_size);
  for (const TensorView& tensor : reference->tensors()) {
    if (tensor.name != "input_ids") continue;
    const auto ids = tensor.as<int32_t>();
    const auto length = std::min<size_t>(tensor.shape[1], 256);
    for (size_t at = 0; at + length <= ids.size(); at += tensor.shape[1]) {
      KvSequence kv(*cache);
      BALLAST_CHECK(kv.Reserve(static_cast<int>(length)).ok());
      const StepSequence whole{&kv, 0, static_cast<int>(length), 0};
      const absl::Status status = decoder->Forward(
          {.token_ids = ids.subspan(at, length), .sequences = {&whole, 1}, .logit_rows = {}}, *moe, logits.data());
      BALLAST_CHECK(status.ok()) << status;
    }
  }
  return load;
}

// Workers filled up one after the other, hot and cold experts by turns; one that does not fit goes on in the next
// worker, with the shares that are level for `load`. The last worker shares its last expert with the first.
Placement Chained(const std::vector<std::vector<int64_t>>& load, int workers) {
  Placement p{.epoch = Epoch(1),
              .shares_version = SharesVersion(1),
              .num_layers = static_cast<int32_t>(load.size()),
              .num_experts = static_cast<int32_t>(load[0].size())};
  for (int w = 0; w < workers; ++w) p.workers.push_back(absl::StrCat("w", w));
  std::vector<int32_t> next_slot(workers, 0);
  for (int32_t layer = 0; layer < p.num_layers; ++layer) {
    const std::vector<int64_t>& of_expert = load[layer];
    std::vector<int32_t> order(of_expert.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return of_expert[a] > of_expert[b]; });
    const int64_t total = std::accumulate(of_expert.begin(), of_expert.end(), int64_t{0});
    std::vector<std::vector<int32_t>> on(of_expert.size());
    int64_t filled = 0;
    int32_t w = 0;
    for (size_t low = 0, high = order.size(), i = 0; low < high; ++i) {
      const int32_t e = i % 2 == 0 ? order[low++] : order[--high];
      on[e].push_back(w);
      filled += of_expert[e];
      while (filled * workers > total * (w + 1) && w + 1 < workers) on[e].push_back(++w);
      if (low == high && workers > 1 && on[e].front() != 0) on[e].push_back(0);
    }
    DispatchTable table{.begin = {0}};
    for (std::vector<int32_t>& ranks : on) {
      std::sort(ranks.begin(), ranks.end());
      table.rank.insert(table.rank.end(), ranks.begin(), ranks.end());
      table.begin.push_back(static_cast<int32_t>(table.rank.size()));
    }
    table.weight.assign(table.rank.size(), 1);
    std::vector<int64_t> flow(table.rank.size());
    ShareSolver(table, workers).Solve(of_expert, flow);
    FlowToWeights(flow, table);
    for (int32_t e = 0; e < p.num_experts; ++e) {
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        p.replicas.push_back({.expert = {layer, e},
                              .worker = table.rank[r],
                              .slot = next_slot[table.rank[r]]++,
                              .weight = table.weight[r]});
      }
    }
  }
  p.Sort();
  return p;
}

// A group: one of the contestants.
struct Contestant {
  std::string name;
  int workers = 1;
  Placement placement;
  ShareMode shares = ShareMode::kFixed;
};

int RunWorker(const Settings& settings, const Contestant& contestant, std::unique_ptr<Transport> transport,
              const ParentLine& parent, Report* report) {
  const int workers = contestant.workers;
  const int rank = transport == nullptr ? 0 : transport->rank();
  const auto checkpoint = Value(Checkpoint::Open(settings.model));
  ThreadPool pool(workers == 1 ? settings.threads : 1);
  const auto decoder = Value(Decoder::Create(*checkpoint, pool, {.max_rows = settings.tokens}));
  const auto cache = Value(KvCache::Create(decoder->kv_shape(), settings.tokens * settings.sets * 5));
  const CheckpointExperts experts(*checkpoint);
  const Placement& placement = contestant.placement;
  const auto store = Value(ExpertStore::Create(
      experts, {.worker = placement.workers[rank],
                .capacity = {.slots = experts.num_layers() * experts.num_experts() + 2, .staging_slots = 2}}));
  LoadCounters counters(experts.num_layers(), experts.num_experts(), checkpoint->config().experts_per_token);
  counters.InternTask("bench");
  std::unique_ptr<LocalMoe> local = Value(LocalMoe::Create(*checkpoint, *decoder, pool));
  const int rows = settings.tokens / workers;
  FixedRows source(*cache, *decoder, *local, settings.model, rank * rows, rows, settings.sets);
  local.reset();
  GivenTransport transports(std::move(transport));
  const auto model =
      Value(MakeCpuStepModel(*decoder, pool, {.combine = settings.combine, .capacity = settings.tokens}));
  StepEngine engine({.step_timeout = absl::Seconds(60), .step_shares = contestant.shares}, {.model = model.get(),
                                                                                            .experts = store.get(),
                                                                                            .transports = &transports,
                                                                                            .source = &source,
                                                                                            .events = &source,
                                                                                            .counters = &counters});
  GroupView view{.view = ViewId(1), .rank = rank};
  for (const std::string& worker : placement.workers) view.members.push_back({.worker = worker});
  BALLAST_CHECK(engine.InstallView(view, placement).ok());
  while (engine.last_step() == StepId()) std::this_thread::yield();
  parent.Say('r');
  while (parent.Hear() == 'g') {
    source.Start(settings.steps);
    engine.NotifyWork();
    while (!source.done()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    report[rank] = source.report();
    parent.Say('d');
  }
  return 0;
}

void Expect(const ProcessMesh& mesh, int ranks, char word) {
  for (int rank = 0; rank < ranks; ++rank) BALLAST_CHECK(mesh.Hear(rank) == word) << "rank " << rank;
}

// Rank 0's report, with the processor time of all.
Report RunOnce(const ProcessMesh& mesh, int ranks, const Report* shared) {
  for (int rank = 0; rank < ranks; ++rank) mesh.Say(rank, 'g');
  Expect(mesh, ranks, 'd');
  Report report = shared[0];
  for (int rank = 1; rank < ranks; ++rank) report.cpu_a_step += shared[rank].cpu_a_step;
  return report;
}

Report Median(std::vector<Report> reports) {
  std::sort(reports.begin(), reports.end(),
            [](const Report& a, const Report& b) { return a.seconds_a_step < b.seconds_a_step; });
  return reports[reports.size() / 2];
}

int Main(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const std::string name = arg.substr(0, arg.find('='));
    const std::string value = arg.find('=') == std::string::npos ? "" : arg.substr(arg.find('=') + 1);
    int* number = name == "--workers"   ? &settings.workers
                  : name == "--tokens"  ? &settings.tokens
                  : name == "--sets"    ? &settings.sets
                  : name == "--rounds"  ? &settings.rounds
                  : name == "--steps"   ? &settings.steps
                  : name == "--threads" ? &settings.threads
                                        : nullptr;
    if (number != nullptr && absl::SimpleAtoi(value, number) && *number > 0) continue;
    if (name == "--model") {
      settings.model = value;
    } else if (name == "--benchmark_out") {
      settings.out = value;
    } else if (name == "--benchmark_out_format" && value == "json") {
      // The only one there is.
    } else if (name == "--combine" && (value == "fast" || value == "exact")) {
      settings.combine = value == "fast" ? CombineMode::kFast : CombineMode::kExact;
    } else {
      std::fprintf(stderr, "step_bench: cannot use %s\n", arg.c_str());
      return 2;
    }
  }
  std::vector<Contestant> contestants;
  {
    const auto checkpoint = Value(Checkpoint::Open(settings.model));
    const auto load = MeanLoad(settings);
    const Placement chained = Chained(load, settings.workers);
    contestants = {{absl::StrCat("1 worker, ", settings.threads, " threads"), 1, Contiguous(checkpoint->config(), 1)},
                   {"no replicas", settings.workers, Contiguous(checkpoint->config(), settings.workers)},
                   {"fixed shares", settings.workers, chained, ShareMode::kFixed},
                   {"previous shares", settings.workers, chained, ShareMode::kPrevious},
                   {"current shares", settings.workers, chained, ShareMode::kCurrent},
                   {"auto shares", settings.workers, chained, ShareMode::kAuto}};
  }
  const size_t room = contestants.size() * settings.workers * sizeof(Report);
  auto* const shared =
      static_cast<Report*>(mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  BALLAST_CHECK(shared != MAP_FAILED);
  std::vector<std::unique_ptr<ProcessMesh>> meshes;
  std::vector<std::vector<Report>> reports(contestants.size());
  for (size_t c = 0; c < contestants.size(); ++c) {
    Report* const own = shared + c * settings.workers;
    meshes.push_back(
        std::make_unique<ProcessMesh>(contestants[c].workers, ProcessMesh::Environment{},
                                      [&, c, own](std::unique_ptr<Transport> transport, const ParentLine& parent) {
                                        return RunWorker(settings, contestants[c], std::move(transport), parent, own);
                                      }));
    Expect(*meshes[c], contestants[c].workers, 'r');
  }
  for (int round = 0; round < settings.rounds; ++round) {
    for (size_t c = 0; c < contestants.size(); ++c) {
      reports[c].push_back(RunOnce(*meshes[c], contestants[c].workers, shared + c * settings.workers));
    }
  }
  const char* combine = settings.combine == CombineMode::kFast ? "fast" : "exact";
  std::FILE* const out = settings.out.empty() ? stdout : std::fopen(settings.out.c_str(), "w");
  BALLAST_CHECK(out != nullptr) << settings.out;
  std::fprintf(stderr, "%d workers, %s, %d rows a step; ms a step of rank 0\n", settings.workers, combine,
               settings.tokens);
  std::fprintf(stderr, "%-22s %9s %9s %9s %9s %9s %9s %9s %9s %7s %7s\n", "", "step", "cpu, all", "route", "share",
               "dispatch", "experts", "combine", "tokens/s", "level", "ratio");
  std::fprintf(out, "{\"benchmarks\": [\n");
  const Report one = Median(reports[0]);
  for (size_t c = 0; c < contestants.size(); ++c) {
    const Report r = Median(reports[c]);
    const double ratio = one.seconds_a_step / r.seconds_a_step;
    std::fprintf(stderr, "%-22s %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %9.0f %7.4f %7.3f\n",
                 contestants[c].name.c_str(), r.seconds_a_step * 1e3, r.cpu_a_step * 1e3, r.route * 1e3, r.share * 1e3,
                 r.dispatch * 1e3, r.experts * 1e3, r.combine * 1e3, settings.tokens / r.seconds_a_step, r.balancedness,
                 ratio);
    std::fprintf(out,
                 "{\"name\": \"step/%s/tokens:%d/workers:%d/%s\", \"real_time\": %.3f, \"time_unit\": \"us\", "
                 "\"items_per_second\": %.1f, \"balancedness\": %.4f, \"share_us\": %.1f, "
                 "\"ratio_to_one_worker\": %.3f, \"cpu_ratio\": %.3f}%s\n",
                 combine, settings.tokens, contestants[c].workers, contestants[c].name.c_str(), r.seconds_a_step * 1e6,
                 settings.tokens / r.seconds_a_step, r.balancedness, r.share * 1e6, ratio,
                 one.cpu_a_step / r.cpu_a_step, c + 1 == contestants.size() ? "" : ",");
  }
  std::fprintf(out, "]}\n");
  if (out != stdout) std::fclose(out);
  for (size_t c = 0; c < contestants.size(); ++c) {
    for (int rank = 0; rank < contestants[c].workers; ++rank) meshes[c]->Say(rank, 'q');
  }
  return 0;
}

}  // namespace
}  // namespace ballast

int main(int argc, char** argv) { return ballast::Main(argc, argv); }
