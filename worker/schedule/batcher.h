// The requests of this worker between the services, which bring them, and the step engine, which runs them.
#ifndef BALLAST_WORKER_SCHEDULE_BATCHER_H_
#define BALLAST_WORKER_SCHEDULE_BATCHER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cpu/thread_pool.h"
#include "proto/base/clock.h"
#include "proto/base/mutex.h"
#include "worker/decoder/kv_cache.h"
#include "worker/decoder/sampling.h"
#include "worker/moe/load_counters.h"
#include "worker/schedule/scheduler.h"
#include "worker/step/step_engine.h"
#include "worker/telemetry/task_classifier.h"

namespace ballast {

// What a scored request learns of consecutive positions.
struct ScoredRows {
  int first_position = 0;
  // ln p of the token that follows each position; the request's last position has none.
  std::span<const float> logprobs;
  std::span<const int32_t> argmax;
  // XXH3-64 of each position's float32 logits in vocabulary order, little-endian; empty unless asked for.
  std::span<const uint64_t> digests;
  // [positions][route_layers][route_top_k]: what each chose in every MoE layer, in the router's order; empty unless
  // asked for.
  std::span<const int32_t> routes;
  int route_layers = 0;
  int route_top_k = 0;
};

// Where a request's results go. Called on the step thread, in order; must not block. Nothing follows OnEnd, and nothing
// begins after Batcher::Cancel has returned and the step that was open then has ended.
class RequestSink {
 public:
  virtual ~RequestSink() = default;
  // `logprob` means something when the request asked for it.
  virtual void OnToken(int32_t token, float logprob) {}
  virtual void OnScores(const ScoredRows& rows) {}
  // `finish` is kStop or kLength when `status` is OK.
  virtual void OnEnd(const absl::Status& status, FinishKind finish) = 0;
};

struct BatchedRequest {
  // `spec.id` is given by the batcher.
  SequenceSpec spec;
  SamplingOptions sampling;
  // kGenerate: each token's log-probability is wanted.
  bool logprobs = false;
  // kScore: digests of the logits, and the experts that each token chose, are wanted.
  bool digests = false;
  bool routes = false;
  std::shared_ptr<RequestSink> sink;
};

struct BatcherStats {
  int running = 0;
  int waiting = 0;
  double kv_used_ratio = 0;
};

struct BatchedRows {
  int prefill = 0;
  int decode = 0;
};

// With a classifier the first tokens of an unlabelled prompt (TaskClassifier::kTokens, or all) are held back from the
// counts until they tell its task (of one that ends before, they count as unlabelled); then they and all that follow
// count as the task's, and dispatch prefers its homes. The request stays on this worker, which has its keys and values
// by then. In exact no token changes.
//
// Thread-safe where a method says so; the StepSource methods are the step thread's. Outlives the engine that it feeds.
class Batcher final : public StepSource {
 public:
  // `cache`, `counters`, `classifier` and `pool` must outlive it; limits.kv_blocks and block_positions are set from the
  // cache. Without a classifier unlabelled requests stay so. The pool, the step thread's, shares out the reading of a
  // step's logits, which the next step waits for; without one the step thread reads them alone.
  // InvalidArgument as Validate.
  static absl::StatusOr<std::unique_ptr<Batcher>> Create(SchedulerLimits limits, int vocab_size, KvCache& cache,
                                                         LoadCounters& counters, Clock& clock,
                                                         const TaskClassifier* classifier = nullptr,
                                                         ThreadPool* pool = nullptr);

  // Called, from any thread that submits or cancels, when there is something for the step thread: NotifyWork. Set it
  // before the first Submit.
  void set_notify(std::function<void()> notify) { notify_ = std::move(notify); }

  // Any thread. Errors as Scheduler::Submit, and Unavailable once admission is closed; the sink hears nothing then.
  absl::StatusOr<SequenceId> Submit(BatchedRequest request) BALLAST_EXCLUDES(mu_);
  // Any thread. The request ends without a word before the next step; its sink is let go then.
  void Cancel(SequenceId id) BALLAST_EXCLUDES(mu_);
  // Any thread. From now on requests are refused with `reason`; those that were taken go on.
  void CloseAdmission(const absl::Status& reason) BALLAST_EXCLUDES(mu_);
  // Any thread. Blocks until no request is left or `deadline` comes; whether none is left.
  bool AwaitIdle(absl::Time deadline) BALLAST_EXCLUDES(mu_);
  // Any thread.
  BatcherStats stats() const BALLAST_EXCLUDES(mu_);
  const SchedulerLimits& limits() const { return limits_; }

  // Step thread. Rows of the step that was committed last.
  const BatchedRows& last_rows() const { return last_rows_; }

  bool HasWork() override BALLAST_EXCLUDES(mu_);
  StepRows Next(int capacity) override BALLAST_EXCLUDES(mu_);
  void Commit(const StepResult& result) override BALLAST_EXCLUDES(mu_);
  void Discard(const absl::Status& reason) override BALLAST_EXCLUDES(mu_);
  void NoView(const absl::Status& reason) override BALLAST_EXCLUDES(mu_);

 private:
  struct Entry {
    BatchedRequest request;
    // The rest is the step thread's, but for what it begins with.
    int32_t task = 0;
    std::unique_ptr<KvSequence> kv;
    // Its task is still to be told, by what its tokens chose: `held_back` [tokens][layers][top_k], which is not
    // counted.
    bool undecided = false;
    std::vector<int32_t> held_back;
  };

  // A row of logits, and what it says.
  struct Reading {
    const BatchedRequest* request = nullptr;
    int logit_row = 0;
    // The position that follows the row's.
    int position = 0;
    // The next token, or the one of the largest logit of a scored position; its logit is finite.
    int32_t token = 0;
    bool finite = false;
    // Of that token, or of the one that follows the scored position, where it is wanted.
    float logprob = 0;
    uint64_t digest = 0;
  };

  Batcher(const SchedulerLimits& limits, int vocab_size, KvCache& cache, LoadCounters& counters, Clock& clock,
          const TaskClassifier* classifier, ThreadPool* pool);

  void DropCancelled() BALLAST_REQUIRES(mu_);
  // What the piece's rows chose, of a request that is undecided; decides, once that is enough.
  void HoldBack(const StepPiece& piece, std::span<const int32_t> routes, Entry& entry);
  // Counts what was held back, as of the entry's task.
  void CountHeldBack(Entry& entry);
  // Ends what `updates` end, outside of the lock; `updates` of requests that go on are ignored here.
  void Deliver(const std::vector<SequenceUpdate>& updates) BALLAST_EXCLUDES(mu_);
  // Reads what `readings_` ask of the step's logits, on the pool's threads. A reading is a function of its row and its
  // request alone.
  void ReadLogits(const float* logits);
  void ReadRow(std::span<const float> row, Sampler& sampler, Reading& reading) const;
  // Tells the sink what was read for the piece, or nothing and why: Internal where a value is not finite. `routes`: of
  // the piece's rows, if they were kept.
  absl::Status TellScores(const StepPiece& piece, const Entry& entry, std::span<const Reading> readings,
                          std::span<const int32_t> routes);

  const SchedulerLimits limits_;
  const int vocab_size_;
  KvCache& cache_;
  LoadCounters& counters_;
  Clock& clock_;
  const TaskClassifier* const classifier_;
  ThreadPool* const pool_;
  std::function<void()> notify_;

  mutable Mutex mu_;
  CondVar idle_;
  Scheduler scheduler_ BALLAST_GUARDED_BY(mu_);
  // std::map: the step thread keeps pointers to entries while a step is open, and only it erases.
  std::map<SequenceId, Entry> entries_ BALLAST_GUARDED_BY(mu_);
  std::vector<SequenceId> cancelled_ BALLAST_GUARDED_BY(mu_);
  absl::Status closed_ BALLAST_GUARDED_BY(mu_);
  uint64_t last_id_ BALLAST_GUARDED_BY(mu_) = 0;

  // The step thread's alone: the open step, and memory kept between steps.
  StepPlan plan_;
  BatchedRows last_rows_;
  std::vector<Entry*> piece_entries_;
  std::vector<StepSequence> sequences_;
  std::vector<RowLabel> labels_;
  std::vector<PieceResult> results_;
  // In the order of the pieces: those of piece i begin at first_reading_[i].
  std::vector<Reading> readings_;
  std::vector<size_t> first_reading_;
  std::vector<float> logprobs_;
  std::vector<int32_t> argmax_;
  std::vector<uint64_t> digests_;
  // One for each part that the readings are shared out in.
  std::vector<Sampler> samplers_;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_SCHEDULE_BATCHER_H_
