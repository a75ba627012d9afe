// Continuous batching: which rows of which requests the next step of this rank has.
//
// Policy:
//   * A request is admitted to a bounded queue and starts when the KV blocks of its whole life (prompt plus max_tokens)
//     are free: they are set aside at once, so that a started request is never preempted and never runs out.
//   * Waiting requests of one task start in the order they came; tasks take turns. The request whose turn it is waits
//   for
//     its blocks and nothing overtakes it, so a large one is not starved.
//   * A step has one row for every request that decodes, then chunks of prompts in the order their requests started.
//     Never more requests run than a step has rows, so prompts always get on.
//   * Planning changes nothing that a discarded step would have to undo: a step that was discarded is offered again as
//     it was, unless one of its requests has ended since.
#ifndef BALLAST_WORKER_SCHEDULE_SCHEDULER_H_
#define BALLAST_WORKER_SCHEDULE_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/base/ids.h"

namespace ballast {

// A request within this process; given by whoever submits it, never used twice.
using SequenceId = StrongInt<struct SequenceTag, uint64_t>;

enum class SequenceKind {
  // Make tokens after the prompt.
  kGenerate,
  // Only look at the given tokens; logits of every position are wanted.
  kScore,
};

// What the scheduler needs to know of a request.
struct SequenceSpec {
  SequenceId id;
  SequenceKind kind = SequenceKind::kGenerate;
  // The prompt, or the tokens to score. Not empty.
  std::vector<int32_t> tokens;
  // kGenerate: at least 1, or 0 for as many as fit the model's positions and the cache.
  int max_tokens = 0;
  // Tokens that end the request; they are not part of the answer.
  std::vector<int32_t> stop_tokens;
  // Label that takes turns with others; may be empty.
  std::string task;
  absl::Time deadline = absl::InfiniteFuture();
};

struct SchedulerLimits {
  // Rows of one step at most.
  int max_rows = 256;
  // Rows of one step whose logits may be wanted; at least max_running.
  int max_logit_rows = 256;
  // Requests that hold KV blocks at a time; at most max_rows.
  int max_running = 64;
  // Requests that wait.
  int max_waiting = 256;
  int kv_blocks = 0;
  int block_positions = 16;
  // Positions of the model.
  int max_positions = 0;
};

// InvalidArgument names the field, the value and the limit.
absl::Status Validate(const SchedulerLimits& limits);

// A request's part of a step: rows [first_row, first_row + num_rows) are positions from start_position on.
struct StepPiece {
  SequenceId id;
  int first_row = 0;
  int num_rows = 0;
  int start_position = 0;
  // Its logits are rows [first_logit, first_logit + num_logits) of the step's: of every row for kScore, of the last row
  // when the next token is to be sampled.
  int first_logit = 0;
  int num_logits = 0;
  // The row makes a token out of one made before; otherwise the rows are of the prompt.
  bool decode = false;
  friend bool operator==(const StepPiece&, const StepPiece&) = default;
};

struct StepPlan {
  // One a row.
  std::vector<int32_t> token_ids;
  // In row order, covering every row once.
  std::vector<StepPiece> pieces;
  // Ascending.
  std::vector<int32_t> logit_rows;
  bool empty() const { return pieces.empty(); }
  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

// How a piece fared.
struct PieceResult {
  // Not OK: the request ends with it (an expert without a live replica).
  absl::Status status;
  // The token sampled from the piece's last logits; kGenerate with num_logits == 1 alone.
  int32_t token = 0;
};

enum class FinishKind { kNone, kStop, kLength, kFailed };

// What a step or a time limit did to a request.
struct SequenceUpdate {
  SequenceId id;
  // A token of the answer.
  std::optional<int32_t> token;
  // Not kNone: the request has ended, its KV blocks are free.
  FinishKind finish = FinishKind::kNone;
  // kFailed: why.
  absl::Status status;
};

// Pure bookkeeping: no clock, no I/O, no memory of its own kind. Used by one thread.
//
//   scheduler.Submit(spec, now);
//   for (const auto& update : scheduler.Expire(now)) ...;
//   const StepPlan& plan = scheduler.NextStep(capacity);   // again after a discarded step
//   for (const auto& update : scheduler.EndStep(results)) ...;
class Scheduler {
 public:
  // REQUIRES: Validate(limits).ok().
  explicit Scheduler(const SchedulerLimits& limits);

  // Puts a request in the queue.
  //   InvalidArgument     no tokens, more tokens than the model has positions, or with max_tokens more than it has
  //   ResourceExhausted   the queue is full, or prompt plus max_tokens need more blocks than the cache has
  //   DeadlineExceeded    the deadline has passed
  absl::Status Submit(SequenceSpec spec, absl::Time now);

  // Ends a request; false when it is not known (any more). Nothing is said of it afterwards.
  bool Cancel(SequenceId id);
  // Ends every request with `status`.
  std::vector<SequenceUpdate> FailAll(const absl::Status& status);
  // Ends requests whose deadline has come with DeadlineExceeded.
  std::vector<SequenceUpdate> Expire(absl::Time now);

  // The rows of the next step, at most min(capacity, limits.max_rows). Starts requests that wait. Empty when there is
  // nothing to do. The reference holds until the next call of anything here.
  const StepPlan& NextStep(int capacity);
  // The step planned last has ended; `results` in the order of its pieces. REQUIRES: a plan with pieces is open.
  std::vector<SequenceUpdate> EndStep(std::span<const PieceResult> results);

  // Whether requests will be left after the step planned last, unless one meets a stop token or fails.
  bool more_after_step() const;

  // KV positions set aside for a started request; 0 when it is unknown or waits.
  int reserved_positions(SequenceId id) const;
  bool has_work() const { return !running_.empty() || waiting_count_ > 0; }
  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return waiting_count_; }
  int free_blocks() const { return free_blocks_; }
  const SchedulerLimits& limits() const { return limits_; }

 private:
  struct Sequence {
    SequenceSpec spec;
    // Positions whose step has ended.
    int done = 0;
    int generated = 0;
    int reserved_positions = 0;
    int32_t last_token = 0;
    bool decoding() const {
      return spec.kind == SequenceKind::kGenerate && done >= static_cast<int>(spec.tokens.size());
    }
  };
  struct TaskQueue {
    std::string task;
    std::deque<Sequence> sequences;
  };

  int BlocksFor(int positions) const { return (positions + limits_.block_positions - 1) / limits_.block_positions; }
  // The whole life of a request, in positions.
  int PositionsOf(const SequenceSpec& spec) const;
  void StartWaiting();
  void AddPiece(const Sequence& sequence, int rows);
  void Release(const Sequence& sequence);
  void DropOffer();
  // Removes what `ends` says from both queues; gives the removed ids, running ones first.
  template <typename Ends>
  std::vector<SequenceId> RemoveIf(const Ends& ends);

  const SchedulerLimits limits_;
  // In the order they started.
  std::vector<Sequence> running_;
  // The task whose turn it is comes first; none is empty.
  std::deque<TaskQueue> waiting_;
  int waiting_count_ = 0;
  int free_blocks_;
  // The plan that was given out and has not ended.
  StepPlan offered_;
  int offered_capacity_ = 0;
  // Which decoding request goes first when not all have a row: the one after this many.
  size_t decode_turn_ = 0;
};

}  // namespace ballast

#endif  // BALLAST_WORKER_SCHEDULE_SCHEDULER_H_
