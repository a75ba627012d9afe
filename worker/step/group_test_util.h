// A group of workers in one process, over in-process meshes: real checkpoints, decoders, slots and step engines, each
// engine on its own thread.
#ifndef BALLAST_WORKER_STEP_GROUP_TEST_UTIL_H_
#define BALLAST_WORKER_STEP_GROUP_TEST_UTIL_H_

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/tokens.h"
#include "proto/base/check.h"
#include "worker/decoder/model_test_util.h"
#include "worker/experts/expert_store.h"
#include "worker/step/cpu_step_model.h"
#include "worker/step/step_engine.h"
#include "worker/transport/inproc.h"

namespace ballast {

// Generous: only a hang reaches it.
inline constexpr absl::Duration kTestPatience = absl::Seconds(120);

// Makes the meshes of views. Each member's Connect waits for all others. Thread-safe.
class InProcessViews {
 public:
  // Asked for every message of every view.
  using Hook = std::function<MessageFate(ViewId, const InProcessMessage&)>;

  // `clock` judges the deadlines of connecting and of the meshes.
  explicit InProcessViews(Clock* clock = &Clock::Real()) : clock_(*clock) {}

  std::unique_ptr<TransportFactory> Factory() { return std::make_unique<Factory_>(*this); }
  // For messages of meshes made from now on, and of those that have been made.
  void SetHook(Hook hook) BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    hook_ = std::move(hook);
    for (auto& [view, mesh] : meshes_) Arm(view, *mesh.mesh);
  }

 private:
  struct Mesh {
    std::unique_ptr<InProcessMesh> mesh;
    int joined = 0;
  };
  class Factory_ final : public TransportFactory {
   public:
    explicit Factory_(InProcessViews& views) : views_(views) {}
    absl::StatusOr<std::unique_ptr<Transport>> Connect(const GroupView& view, absl::Time deadline,
                                                       std::vector<int>& unreachable) override {
      return views_.Connect(view, deadline, *this);
    }
    void Cancel(ViewId view) override {
      MutexLock lock(views_.mu_);
      cancelled = std::max(cancelled, view);
      views_.changed_.NotifyAll();
    }
    ViewId cancelled;  // guarded by views_.mu_

   private:
    InProcessViews& views_;
  };

  absl::StatusOr<std::unique_ptr<Transport>> Connect(const GroupView& view, absl::Time deadline, Factory_& factory)
      BALLAST_EXCLUDES(mu_) {
    std::unique_ptr<Transport> transport;
    MutexLock lock(mu_);
    Mesh& mesh = meshes_[view.view];
    if (mesh.mesh == nullptr) {
      mesh.mesh = std::make_unique<InProcessMesh>(view.size(), InProcessOptions{.clock = &clock_});
      Arm(view.view, *mesh.mesh);
    }
    transport = mesh.mesh->Join(view.rank);
    ++mesh.joined;
    changed_.NotifyAll();
    while (mesh.joined < view.size()) {
      if (factory.cancelled >= view.view) return absl::CancelledError("connecting was cancelled");
      if (!clock_.WaitUntil(changed_, mu_, deadline)) return absl::DeadlineExceededError("a member is missing");
    }
    return transport;
  }
  void Arm(ViewId view, InProcessMesh& mesh) BALLAST_REQUIRES(mu_) {
    if (hook_ == nullptr) {
      mesh.SetHook(nullptr);
    } else {
      mesh.SetHook([hook = hook_, view](const InProcessMessage& message) { return hook(view, message); });
    }
  }

  Clock& clock_;
  Mutex mu_;
  CondVar changed_;
  std::map<ViewId, Mesh> meshes_ BALLAST_GUARDED_BY(mu_);
  Hook hook_ BALLAST_GUARDED_BY(mu_);
};

// One sequence to run: the tokens given, then `generate` greedy ones.
struct Job {
  std::vector<int32_t> tokens;
  int generate = 0;
  std::string task;
};

struct JobResult {
  absl::Status status;
  // Given and made.
  std::vector<int32_t> tokens;
  // [positions][vocab], of every position that was run.
  std::vector<float> logits;
};

// Runs jobs in steps of random composition: which jobs, in which order, how many rows of each. Thread-safe besides the
// StepSource calls.
class RandomSource final : public StepSource {
 public:
  RandomSource(KvCache& cache, int vocab, LoadCounters& counters, uint32_t seed)
      : cache_(cache), vocab_(vocab), counters_(counters), random_(seed) {}

  void set_notify(std::function<void()> notify) { notify_ = std::move(notify); }
  // The job's number here.
  int Submit(Job job) BALLAST_EXCLUDES(mu_) {
    int number = 0;
    {
      MutexLock lock(mu_);
      number = static_cast<int>(results_.size());
      results_.emplace_back();
      new_.emplace_back(number, std::move(job));
    }
    notify_();
    return number;
  }
  // The result, or nothing after kTestPatience.
  std::unique_ptr<JobResult> Await(int number) BALLAST_EXCLUDES(mu_) {
    const absl::Time deadline = Clock::Real().Now() + kTestPatience;
    MutexLock lock(mu_);
    while (results_[number] == nullptr) {
      if (!Clock::Real().WaitUntil(changed_, mu_, deadline)) return nullptr;
    }
    return std::move(results_[number]);
  }
  // How often the engine asked for work; steps discarded; steps committed.
  int64_t polls() const { return polls_.load(); }
  int64_t discards() const { return discards_.load(); }
  int64_t commits() const { return commits_.load(); }

  bool HasWork() override {
    ++polls_;
    Admit();
    return !running_.empty();
  }

  StepRows Next(int capacity) override {
    BALLAST_CHECK(!open_) << "a step is open";
    open_ = true;
    std::vector<Running*> order;
    for (auto& [number, job] : running_) order.push_back(job.get());
    std::shuffle(order.begin(), order.end(), random_);
    order.resize(1 + random_() % order.size());
    tokens_.clear();
    pieces_.clear();
    sequences_.clear();
    logit_rows_.clear();
    labels_.clear();
    for (Running* job : order) {
      const int room = capacity - static_cast<int>(tokens_.size());
      if (room == 0) break;
      const int done = job->kv.committed();
      const int left = static_cast<int>(job->tokens.size()) - done;
      const int rows = std::min(room, 1 + static_cast<int>(random_() % left));
      BALLAST_CHECK(job->kv.Reserve(done + rows).ok());
      const int first = static_cast<int>(tokens_.size());
      pieces_.push_back({job, first, rows});
      sequences_.push_back({&job->kv, first, rows, done});
      for (int i = 0; i < rows; ++i) {
        tokens_.push_back(job->tokens[done + i]);
        logit_rows_.push_back(first + i);
        labels_.push_back({job->task, left == 1 ? TokenPhase::kDecode : TokenPhase::kPrefill});
      }
    }
    return {.input = {.token_ids = tokens_, .sequences = sequences_, .logit_rows = logit_rows_},
            .labels = labels_,
            .more_work = random_() % 2 == 0};
  }

  void Commit(const StepResult& result) override {
    BALLAST_CHECK(std::exchange(open_, false)) << "no step is open";
    ++commits_;
    for (const Piece& piece : pieces_) {
      Running& job = *piece.job;
      for (const RowFailure& failure : result.failures) {
        if (failure.row < piece.first || failure.row >= piece.first + piece.rows) continue;
        End(job, failure.ToStatus());
        break;
      }
      if (job.ended) continue;
      job.kv.Commit(piece.rows);
      const float* logits = result.logits + static_cast<size_t>(piece.first) * vocab_;
      job.logits.insert(job.logits.end(), logits, logits + static_cast<size_t>(piece.rows) * vocab_);
      if (job.kv.committed() < static_cast<int>(job.tokens.size())) continue;
      if (job.generate == 0) {
        End(job, absl::OkStatus());
        continue;
      }
      --job.generate;
      job.tokens.push_back(
          ArgMax({logits + static_cast<size_t>(piece.rows - 1) * vocab_, static_cast<size_t>(vocab_)}));
    }
    std::erase_if(running_, [](const auto& job) { return job.second->ended; });
  }

  void Discard(const absl::Status& reason) override {
    BALLAST_CHECK(std::exchange(open_, false)) << "no step is open";
    ++discards_;
    if (!absl::IsInvalidArgument(reason) && !absl::IsFailedPrecondition(reason)) return;
    for (const Piece& piece : pieces_) End(*piece.job, reason);
    std::erase_if(running_, [](const auto& job) { return job.second->ended; });
  }

  void NoView(const absl::Status& reason) override {
    Admit();
    for (auto& [number, job] : running_) End(*job, reason);
    running_.clear();
  }

 private:
  struct Running {
    Running(KvCache& cache) : kv(cache) {}
    int number = 0;
    KvSequence kv;
    std::vector<int32_t> tokens;
    int generate = 0;
    int32_t task = 0;
    std::vector<float> logits;
    bool ended = false;
  };
  struct Piece {
    Running* job;
    int first;
    int rows;
  };

  void Admit() BALLAST_EXCLUDES(mu_) {
    MutexLock lock(mu_);
    for (auto& [number, job] : new_) {
      auto running = std::make_unique<Running>(cache_);
      running->number = number;
      running->tokens = std::move(job.tokens);
      running->generate = job.generate;
      running->task = counters_.InternTask(job.task);
      running_[number] = std::move(running);
    }
    new_.clear();
  }
  void End(Running& job, const absl::Status& status) BALLAST_EXCLUDES(mu_) {
    job.ended = true;
    MutexLock lock(mu_);
    results_[job.number] = std::make_unique<JobResult>(
        JobResult{.status = status, .tokens = std::move(job.tokens), .logits = std::move(job.logits)});
    changed_.NotifyAll();
  }

  KvCache& cache_;
  const int vocab_;
  LoadCounters& counters_;
  std::function<void()> notify_;
  std::atomic<int64_t> polls_{0}, discards_{0}, commits_{0};

  // The step thread's.
  std::mt19937 random_;
  std::map<int, std::unique_ptr<Running>> running_;
  bool open_ = false;
  std::vector<int32_t> tokens_;
  std::vector<Piece> pieces_;
  std::vector<StepSequence> sequences_;
  std::vector<int32_t> logit_rows_;
  std::vector<RowLabel> labels_;

  Mutex mu_;
  CondVar changed_;
  std::deque<std::pair<int, Job>> new_ BALLAST_GUARDED_BY(mu_);
  std::vector<std::unique_ptr<JobResult>> results_ BALLAST_GUARDED_BY(mu_);
};

// What an engine said, and a way to wait for it. Thread-safe.
class RecordedEvents final : public StepEvents {
 public:
  struct Loss {
    ViewId view;
    std::vector<int> ranks;
    absl::Status reason;
  };

  void ViewInstalled(ViewId view, const absl::Status& status, std::span<const int> unreachable) override {
    MutexLock lock(mu_);
    installed_[view] = status;
    changed_.NotifyAll();
  }
  void PeerLost(ViewId view, std::span<const int> ranks, const absl::Status& reason) override {
    MutexLock lock(mu_);
    losses_.push_back({.view = view, .ranks = {ranks.begin(), ranks.end()}, .reason = reason});
    changed_.NotifyAll();
  }
  void VersionInForce(ViewId view, PlacementVersion version, StepId first_step) override {
    MutexLock lock(mu_);
    BALLAST_CHECK(in_force_ <= version) << "versions only grow";
    in_force_ = version;
    changed_.NotifyAll();
  }
  void StepEnded(const StepRecord& record) override {
    MutexLock lock(mu_);
    BALLAST_CHECK(std::pair(last_.view, last_.step) < std::pair(record.view, record.step)) << "steps only grow";
    BALLAST_CHECK(last_.version <= record.version) << "versions only grow";
    last_ = record;
    for (int form = 0; form < kShareForms; ++form) layers_by_form_[form] += record.moe->layers_by_form[form];
    if (record.moe->balancedness >= 0) balancedness_.push_back(record.moe->balancedness);
  }

  void ProcessorLost(const absl::Status& reason) override {
    MutexLock lock(mu_);
    processor_lost_.push_back(reason);
    changed_.NotifyAll();
  }

  absl::Status AwaitInstalled(ViewId view) {
    const bool came = Await([&]() BALLAST_REQUIRES(mu_) { return installed_.contains(view); });
    MutexLock lock(mu_);
    return came ? installed_[view] : absl::DeadlineExceededError("the view was not installed");
  }
  bool AwaitInForce(PlacementVersion version) {
    return Await([&]() BALLAST_REQUIRES(mu_) { return in_force_ >= version; });
  }
  bool AwaitLoss(ViewId view) {
    return Await([&]() BALLAST_REQUIRES(mu_) { return !losses_.empty() && losses_.back().view >= view; });
  }
  std::vector<absl::Status> processor_lost() const {
    MutexLock lock(mu_);
    return processor_lost_;
  }
  std::vector<Loss> losses() const {
    MutexLock lock(mu_);
    return losses_;
  }
  // Layers run with shares of the form.
  int64_t layers_in(ShareForm form) const {
    MutexLock lock(mu_);
    return layers_by_form_[static_cast<int>(form)];
  }
  std::vector<double> balancedness() const {
    MutexLock lock(mu_);
    return balancedness_;
  }

 private:
  // `done` is called with mu_ held.
  bool Await(const std::function<bool()>& done) BALLAST_NO_THREAD_SAFETY_ANALYSIS {
    const absl::Time deadline = Clock::Real().Now() + kTestPatience;
    MutexLock lock(mu_);
    while (!done()) {
      if (!Clock::Real().WaitUntil(changed_, mu_, deadline)) return false;
    }
    return true;
  }

  mutable Mutex mu_;
  CondVar changed_;
  std::map<ViewId, absl::Status> installed_ BALLAST_GUARDED_BY(mu_);
  std::vector<Loss> losses_ BALLAST_GUARDED_BY(mu_);
  std::vector<absl::Status> processor_lost_ BALLAST_GUARDED_BY(mu_);
  PlacementVersion in_force_ BALLAST_GUARDED_BY(mu_);
  StepRecord last_ BALLAST_GUARDED_BY(mu_);
  std::vector<double> balancedness_ BALLAST_GUARDED_BY(mu_);
  int64_t layers_by_form_[kShareForms] BALLAST_GUARDED_BY(mu_) = {};
};

struct TestWorkerOptions {
  CombineMode combine = CombineMode::kExact;
  int capacity = 32;
  // Of a group's workers, where they differ.
  std::vector<int> capacities;
  int threads = 1;
  absl::Duration view_patience = kTestPatience;
  // Of the engines and their transports.
  Clock* clock = &Clock::Real();
  // Of one worker, the others' being kTestPatience.
  int hasty_worker = -1;
  absl::Duration hasty_step_timeout;
  // In the steps that the worker leads. Not given: in a group each worker has another mode (kGroupShareModes), so that
  // the form changes with the leader.
  std::optional<ShareMode> step_shares;
  // What the engines run in place of the model.
  std::function<std::unique_ptr<StepModel>(std::unique_ptr<StepModel>)> wrap_model;
};

inline constexpr ShareMode kGroupShareModes[] = {ShareMode::kCurrent, ShareMode::kPrevious, ShareMode::kAuto,
                                                 ShareMode::kFixed};

// One worker without services.
class TestWorker {
 public:
  TestWorker(const Checkpoint& checkpoint, const std::string& name, InProcessViews& views,
             const TestWorkerOptions& options, absl::Duration step_timeout, uint32_t seed)
      : name(name),
        pool(options.threads),
        experts(checkpoint),
        counters(checkpoint.config().num_moe_layers(), checkpoint.config().num_experts,
                 checkpoint.config().experts_per_token),
        transports(views.Factory()) {
    decoder = Value(Decoder::Create(checkpoint, pool, {.max_rows = options.capacity}));
    cache = Value(KvCache::Create(decoder->kv_shape(), 512));
    // Room for a whole model, and for the next placement beside the one in force.
    const int slots = 2 * experts.num_layers() * experts.num_experts() + 2;
    store = Value(ExpertStore::Create(experts, {.worker = name, .capacity = {.slots = slots, .staging_slots = 2}}));
    source = std::make_unique<RandomSource>(*cache, checkpoint.config().vocab_size, counters, seed);
    model = Value(MakeCpuStepModel(*decoder, pool,
                                   {.combine = options.combine, .capacity = options.capacity, .tasks = &counters}));
    if (options.wrap_model) model = options.wrap_model(std::move(model));
    logits.resize(static_cast<size_t>(options.capacity) * checkpoint.config().vocab_size);
    engine =
        std::make_unique<StepEngine>(StepEngineOptions{.step_timeout = step_timeout,
                                                       .connect_timeout = kTestPatience,
                                                       .view_patience = options.view_patience,
                                                       .step_shares = options.step_shares.value_or(ShareMode::kAuto),
                                                       .clock = options.clock},
                                     StepEngineParts{.model = model.get(),
                                                     .experts = store.get(),
                                                     .transports = transports.get(),
                                                     .source = source.get(),
                                                     .events = &events,
                                                     .counters = &counters,
                                                     .logits = logits});
    source->set_notify([this] { engine->NotifyWork(); });
  }
  ~TestWorker() { engine->Stop(); }

  template <typename T>
  static T Value(absl::StatusOr<T> value) {
    BALLAST_CHECK(value.ok()) << value.status();
    return *std::move(value);
  }

  const std::string name;
  ThreadPool pool;
  CheckpointExperts experts;
  LoadCounters counters;
  std::unique_ptr<TransportFactory> transports;
  std::vector<float> logits;
  std::unique_ptr<Decoder> decoder;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<ExpertStore> store;
  std::unique_ptr<RandomSource> source;
  RecordedEvents events;
  std::unique_ptr<StepModel> model;
  std::unique_ptr<StepEngine> engine;
};

// Every expert on one to three random workers, with random weights. Replicas that `current` has too keep their slots,
// new ones go to slots that it does not use.
inline Placement RandomPlacement(const Checkpoint& checkpoint, const std::vector<std::string>& workers,
                                 const Placement* current, uint64_t epoch, std::mt19937& random, int min_replicas = 1) {
  const int n = static_cast<int>(workers.size());
  Placement p{.epoch = Epoch(epoch),
              .shares_version = SharesVersion(1),
              .num_layers = checkpoint.config().num_moe_layers(),
              .num_experts = checkpoint.config().num_experts,
              .workers = workers};
  std::vector<std::set<int32_t>> used(n);
  std::map<std::pair<ExpertId, int32_t>, int32_t> slot_of;
  if (current != nullptr) {
    BALLAST_CHECK(current->workers == workers);
    for (const Replica& r : current->replicas) {
      used[r.worker].insert(r.slot);
      slot_of[{r.expert, r.worker}] = r.slot;
    }
  }
  for (int32_t layer = 0; layer < p.num_layers; ++layer) {
    for (int32_t e = 0; e < p.num_experts; ++e) {
      std::vector<int32_t> order(n);
      for (int i = 0; i < n; ++i) order[i] = i;
      std::shuffle(order.begin(), order.end(), random);
      const int replicas = std::clamp(1 + static_cast<int>(random() % 3), std::min(min_replicas, n), n);
      for (int i = 0; i < replicas; ++i) {
        const int32_t w = order[i];
        int32_t slot = 0;
        if (const auto kept = slot_of.find({{layer, e}, w}); kept != slot_of.end()) {
          slot = kept->second;
        } else {
          while (used[w].contains(slot)) ++slot;
          used[w].insert(slot);
        }
        p.replicas.push_back(
            {.expert = {layer, e}, .worker = w, .slot = slot, .weight = 1 + static_cast<uint32_t>(random() % 9)});
      }
    }
  }
  p.Sort();
  return p;
}

class TestGroup {
 public:
  TestGroup(const std::string& model, int workers, const TestWorkerOptions& options = {}, uint32_t seed = 1)
      : options_(options), random_(seed), views_(options.clock) {
    checkpoint_ = TestWorker::Value(Checkpoint::Open(model));
    for (int i = 0; i < workers; ++i) {
      names_.push_back(absl::StrCat("w", i));
      workers_.push_back(Make(i));
    }
    placement_ = RandomPlacement(*checkpoint_, names_, nullptr, 1, random_);
  }
  ~TestGroup() {
    // All at once, so that none waits for the others.
    for (auto& worker : workers_) {
      if (worker != nullptr) worker->engine->Stop();
    }
  }

  const Checkpoint& checkpoint() const { return *checkpoint_; }
  int size() const { return static_cast<int>(workers_.size()); }
  // Null once it was killed.
  TestWorker* worker(int i) { return workers_[i].get(); }
  InProcessViews& views() { return views_; }
  const Placement& placement() const { return placement_; }
  std::mt19937& random() { return random_; }
  ViewId view() const { return view_; }
  const std::vector<std::string>& names() const { return names_; }
  // Every worker, the given one first: who leads a view of them.
  std::vector<int> LedBy(int leader) const {
    std::vector<int> members;
    for (int i = 0; i < size(); ++i) members.push_back((leader + i) % size());
    return members;
  }

  // The process is gone.
  void Kill(int i) { workers_[i].reset(); }
  // It comes back as a new incarnation.
  void Restart(int i) {
    BALLAST_CHECK(workers_[i] == nullptr);
    workers_[i] = Make(i);
  }

  // A view of the living workers, in this order of ranks (empty: by name), with `placement` in force.
  void Install(const Placement& placement, std::vector<int> members = {}) {
    placement_ = placement;
    view_ = view_.next();
    if (members.empty()) {
      for (int i = 0; i < size(); ++i) {
        if (workers_[i] != nullptr) members.push_back(i);
      }
    }
    GroupView view{.view = view_};
    for (const int i : members) view.members.push_back({.worker = names_[i], .node = i < 2 ? "n0" : "n1"});
    leader_ = members.front();
    for (size_t rank = 0; rank < members.size(); ++rank) {
      view.rank = static_cast<int32_t>(rank);
      ASSERT_EQ(workers_[members[rank]]->engine->InstallView(view, placement), absl::OkStatus());
    }
    for (const int i : members) ASSERT_EQ(workers_[i]->events.AwaitInstalled(view_), absl::OkStatus());
    members_ = std::move(members);
  }

  // Prepares `next` on every member, from the checkpoint.
  void Prepare(const Placement& next) {
    for (const int i : members_) {
      const auto staged = workers_[i]->store->Prepare(next);
      ASSERT_EQ(staged.status(), absl::OkStatus()) << names_[i];
      for (const StagedReplica& replica : *staged) {
        ASSERT_EQ(workers_[i]->store->StageFromSource(replica), absl::OkStatus());
      }
    }
  }
  // Brings it into force and waits until it is everywhere.
  void Commit(const Placement& next) {
    placement_ = next;
    for (const int i : members_) {
      ASSERT_EQ(workers_[i]->engine->CommitVersion(VersionOf(next)), absl::OkStatus());
    }
    for (const int i : members_) ASSERT_TRUE(workers_[i]->events.AwaitInForce(VersionOf(next))) << names_[i];
  }

 private:
  std::unique_ptr<TestWorker> Make(int i) {
    const absl::Duration step_timeout = i == options_.hasty_worker ? options_.hasty_step_timeout : kTestPatience;
    TestWorkerOptions options = options_;
    if (!options_.capacities.empty()) options.capacity = options_.capacities[i];
    options.step_shares = options_.step_shares.value_or(kGroupShareModes[i % std::size(kGroupShareModes)]);
    return std::make_unique<TestWorker>(*checkpoint_, names_[i], views_, options, step_timeout,
                                        static_cast<uint32_t>(random_()));
  }

  const TestWorkerOptions options_;
  std::mt19937 random_;
  std::unique_ptr<Checkpoint> checkpoint_;
  InProcessViews views_;
  std::vector<std::string> names_;
  std::vector<std::unique_ptr<TestWorker>> workers_;
  Placement placement_;
  ViewId view_;
  int leader_ = 0;
  std::vector<int> members_;
};

// What one process with every expert answers to `job`.
inline JobResult Reference(TestModel& model, const Job& job) {
  JobResult result{.tokens = job.tokens};
  result.logits = model.Logits(result.tokens, static_cast<int>(result.tokens.size()));
  const size_t vocab = model.config().vocab_size;
  for (int i = 0; i < job.generate; ++i) {
    result.tokens.push_back(ArgMax({result.logits.data() + result.logits.size() - vocab, vocab}));
    // Chunking changes nothing, so the whole sequence again is as good as one more row.
    result.logits = model.Logits(result.tokens, static_cast<int>(result.tokens.size()));
  }
  return result;
}

}  // namespace ballast

#endif  // BALLAST_WORKER_STEP_GROUP_TEST_UTIL_H_
