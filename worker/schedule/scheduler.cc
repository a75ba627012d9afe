#include "worker/schedule/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

absl::Status AtLeast(const char* field, int value, int limit) {
  if (value >= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be at least ", limit));
}

}  // namespace

absl::Status Validate(const SchedulerLimits& limits) {
  for (const auto& [field, value] : {std::pair("max_rows", limits.max_rows),
                                     {"max_running", limits.max_running},
                                     {"max_waiting", limits.max_waiting},
                                     {"kv_blocks", limits.kv_blocks},
                                     {"block_positions", limits.block_positions},
                                     {"max_positions", limits.max_positions}}) {
    if (absl::Status status = AtLeast(field, value, 1); !status.ok()) return status;
  }
  if (limits.max_running > limits.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_running is ", limits.max_running, "; it must be at most max_rows, ", limits.max_rows));
  }
  return AtLeast("max_logit_rows", limits.max_logit_rows, limits.max_running);
}

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits), free_blocks_(limits.kv_blocks) {
  BALLAST_CHECK(Validate(limits).ok()) << Validate(limits);
}

int Scheduler::PositionsOf(const SequenceSpec& spec) const {
  const int given = static_cast<int>(spec.tokens.size());
  if (spec.kind == SequenceKind::kScore) return given;
  if (spec.max_tokens > 0) return given + spec.max_tokens;
  return std::max(given + 1, std::min(limits_.max_positions, limits_.kv_blocks * limits_.block_positions));
}

absl::Status Scheduler::Submit(SequenceSpec spec, absl::Time now) {
  if (spec.tokens.empty()) return absl::InvalidArgumentError("the prompt has no tokens; at least 1 is needed");
  if (spec.tokens.size() > static_cast<size_t>(limits_.max_positions)) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", spec.tokens.size(), " tokens; the model has ",
                                                   limits_.max_positions, " positions"));
  }
  const int given = static_cast<int>(spec.tokens.size());
  if (spec.kind == SequenceKind::kGenerate) {
    const int room = limits_.max_positions - given;
    if (spec.max_tokens < 0 || spec.max_tokens > room || room == 0) {
      return absl::InvalidArgumentError(absl::StrCat("max_tokens is ", spec.max_tokens, "; after a prompt of ", given,
                                                     " tokens the model has ", room, " positions left"));
    }
  }
  const int positions = PositionsOf(spec);
  if (BlocksFor(positions) > limits_.kv_blocks) {
    return absl::ResourceExhaustedError(
        absl::StrCat("prompt and max_tokens need ", positions, " positions of KV cache; this worker has ",
                     static_cast<int64_t>(limits_.kv_blocks) * limits_.block_positions, ". Ask for fewer"));
  }
  if (spec.deadline <= now) return absl::DeadlineExceededError("the deadline passed before the request was queued");
  if (waiting_count_ >= limits_.max_waiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", waiting_count_, " requests wait, the limit. Retry later or elsewhere"));
  }

  auto queue = std::find_if(waiting_.begin(), waiting_.end(), [&](const TaskQueue& q) { return q.task == spec.task; });
  if (queue == waiting_.end()) {
    waiting_.push_back(TaskQueue{spec.task, {}});
    queue = std::prev(waiting_.end());
  }
  Sequence sequence;
  sequence.reserved_positions = positions;
  sequence.spec = std::move(spec);
  queue->sequences.push_back(std::move(sequence));
  ++waiting_count_;
  return absl::OkStatus();
}

void Scheduler::Release(const Sequence& sequence) { free_blocks_ += BlocksFor(sequence.reserved_positions); }

void Scheduler::DropOffer() { offered_ = StepPlan{}; }

template <typename Ends>
std::vector<SequenceId> Scheduler::RemoveIf(const Ends& ends) {
  std::vector<SequenceId> removed;
  std::vector<Sequence> kept;
  kept.reserve(running_.size());
  for (Sequence& sequence : running_) {
    if (!ends(sequence)) {
      kept.push_back(std::move(sequence));
      continue;
    }
    removed.push_back(sequence.spec.id);
    Release(sequence);
  }
  // Any change among the running makes the offered rows stale.
  if (!removed.empty()) DropOffer();
  running_ = std::move(kept);
  for (TaskQueue& queue : waiting_) {
    std::deque<Sequence> left;
    for (Sequence& sequence : queue.sequences) {
      if (ends(sequence)) {
        removed.push_back(sequence.spec.id);
        --waiting_count_;
      } else {
        left.push_back(std::move(sequence));
      }
    }
    queue.sequences = std::move(left);
  }
  std::erase_if(waiting_, [](const TaskQueue& queue) { return queue.sequences.empty(); });
  return removed;
}

bool Scheduler::Cancel(SequenceId id) {
  return !RemoveIf([id](const Sequence& sequence) { return sequence.spec.id == id; }).empty();
}

std::vector<SequenceUpdate> Scheduler::FailAll(const absl::Status& status) {
  std::vector<SequenceUpdate> updates;
  for (const SequenceId id : RemoveIf([](const Sequence&) { return true; })) {
    updates.push_back({.id = id, .finish = FinishKind::kFailed, .status = status});
  }
  return updates;
}

std::vector<SequenceUpdate> Scheduler::Expire(absl::Time now) {
  const auto expired = [now](const Sequence& sequence) { return sequence.spec.deadline <= now; };
  std::vector<SequenceUpdate> updates;
  // The usual case first, without touching the queues.
  bool any = std::any_of(running_.begin(), running_.end(), expired);
  for (const TaskQueue& queue : waiting_) {
    any = any || std::any_of(queue.sequences.begin(), queue.sequences.end(), expired);
  }
  if (!any) return updates;
  for (const SequenceId id : RemoveIf(expired)) {
    updates.push_back({.id = id,
                       .finish = FinishKind::kFailed,
                       .status = absl::DeadlineExceededError("the request's deadline passed")});
  }
  return updates;
}

void Scheduler::StartWaiting() {
  while (!waiting_.empty() && running() < limits_.max_running) {
    TaskQueue& queue = waiting_.front();
    const int blocks = BlocksFor(queue.sequences.front().reserved_positions);
    if (blocks > free_blocks_) return;
    free_blocks_ -= blocks;
    running_.push_back(std::move(queue.sequences.front()));
    queue.sequences.pop_front();
    --waiting_count_;
    TaskQueue served = std::move(queue);
    waiting_.pop_front();
    if (!served.sequences.empty()) waiting_.push_back(std::move(served));
  }
}

void Scheduler::AddPiece(const Sequence& sequence, int rows) {
  StepPiece piece{.id = sequence.spec.id,
                  .first_row = static_cast<int>(offered_.token_ids.size()),
                  .num_rows = rows,
                  .start_position = sequence.done,
                  .first_logit = static_cast<int>(offered_.logit_rows.size()),
                  .decode = sequence.decoding()};
  const int given = static_cast<int>(sequence.spec.tokens.size());
  for (int i = 0; i < rows; ++i) {
    const int position = sequence.done + i;
    offered_.token_ids.push_back(position < given ? sequence.spec.tokens[position] : sequence.last_token);
    const bool wanted = sequence.spec.kind == SequenceKind::kScore || position >= given - 1;
    if (!wanted) continue;
    offered_.logit_rows.push_back(piece.first_row + i);
    ++piece.num_logits;
  }
  offered_.pieces.push_back(piece);
}

const StepPlan& Scheduler::NextStep(int capacity) {
  const int rows = std::min(capacity, limits_.max_rows);
  if (!offered_.empty() && offered_capacity_ == rows) return offered_;
  DropOffer();
  offered_capacity_ = rows;
  StartWaiting();

  // Decoding requests in the order they started, but beginning with the one whose turn it is: a capacity below
  // limits.max_rows may leave some without a row.
  int left = rows;
  std::vector<const Sequence*> decoding;
  for (const Sequence& sequence : running_) {
    if (sequence.decoding()) decoding.push_back(&sequence);
  }
  const size_t first = decoding.empty() ? 0 : decode_turn_ % decoding.size();
  for (size_t i = 0; i < decoding.size() && left > 0; ++i, --left) {
    AddPiece(*decoding[decoding.size() <= static_cast<size_t>(rows) ? i : (first + i) % decoding.size()], 1);
  }
  for (const Sequence& sequence : running_) {
    if (left == 0) break;
    if (sequence.decoding()) continue;
    int take = std::min(left, static_cast<int>(sequence.spec.tokens.size()) - sequence.done);
    if (sequence.spec.kind == SequenceKind::kScore) {
      take = std::min(take, limits_.max_logit_rows - static_cast<int>(offered_.logit_rows.size()));
    } else if (static_cast<int>(offered_.logit_rows.size()) >= limits_.max_logit_rows) {
      // No logits left for the last row of the prompt.
      take = std::min(take, static_cast<int>(sequence.spec.tokens.size()) - sequence.done - 1);
    }
    if (take <= 0) continue;
    AddPiece(sequence, take);
    left -= take;
  }
  return offered_;
}

std::vector<SequenceUpdate> Scheduler::EndStep(std::span<const PieceResult> results) {
  BALLAST_CHECK(!offered_.empty() && results.size() == offered_.pieces.size())
      << "results for " << results.size() << " of " << offered_.pieces.size() << " pieces";
  std::vector<SequenceUpdate> updates;
  std::vector<SequenceId> ended;
  size_t decoded = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const StepPiece& piece = offered_.pieces[i];
    if (piece.decode) ++decoded;
    const auto found = std::find_if(running_.begin(), running_.end(),
                                    [&](const Sequence& sequence) { return sequence.spec.id == piece.id; });
    BALLAST_CHECK(found != running_.end()) << "sequence " << piece.id << " is not running";
    Sequence& sequence = *found;
    SequenceUpdate update{.id = piece.id};
    if (!results[i].status.ok()) {
      update.finish = FinishKind::kFailed;
      update.status = results[i].status;
    } else {
      sequence.done += piece.num_rows;
      if (sequence.spec.kind == SequenceKind::kScore) {
        if (sequence.done == static_cast<int>(sequence.spec.tokens.size())) update.finish = FinishKind::kStop;
      } else if (piece.num_logits > 0) {
        const int32_t token = results[i].token;
        const auto& stops = sequence.spec.stop_tokens;
        if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
          update.finish = FinishKind::kStop;
        } else {
          sequence.last_token = token;
          ++sequence.generated;
          update.token = token;
          const int limit = sequence.reserved_positions - static_cast<int>(sequence.spec.tokens.size());
          if (sequence.generated >= limit) update.finish = FinishKind::kLength;
        }
      }
    }
    if (update.finish != FinishKind::kNone) ended.push_back(piece.id);
    if (update.token.has_value() || update.finish != FinishKind::kNone) updates.push_back(std::move(update));
  }
  decode_turn_ += decoded;
  DropOffer();
  if (!ended.empty()) {
    RemoveIf([&](const Sequence& sequence) {
      return std::find(ended.begin(), ended.end(), sequence.spec.id) != ended.end();
    });
  }
  return updates;
}

bool Scheduler::more_after_step() const {
  if (waiting_count_ > 0) return true;
  size_t ending = 0;
  for (const StepPiece& piece : offered_.pieces) {
    const auto sequence =
        std::find_if(running_.begin(), running_.end(), [&](const Sequence& s) { return s.spec.id == piece.id; });
    if (sequence == running_.end()) continue;
    // A score ends with its last position; an answer with the token sampled for the last one that was set aside.
    const int last = sequence->reserved_positions - (sequence->spec.kind == SequenceKind::kGenerate ? 1 : 0);
    if (piece.start_position + piece.num_rows >= last) ++ending;
  }
  return running_.size() > ending;
}

int Scheduler::reserved_positions(SequenceId id) const {
  for (const Sequence& sequence : running_) {
    if (sequence.spec.id == id) return sequence.reserved_positions;
  }
  return 0;
}

}  // namespace ballast
