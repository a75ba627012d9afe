#include "worker/schedule/batcher.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/work.h"
#include "kernels/tokens.h"
#include "proto/base/check.h"
#include "proto/base/status_macros.h"
#include "xxhash.h"

namespace ballast {

absl::StatusOr<std::unique_ptr<Batcher>> Batcher::Create(SchedulerLimits limits, int vocab_size, KvCache& cache,
                                                         LoadCounters& counters, Clock& clock,
                                                         const TaskClassifier* classifier, ThreadPool* pool) {
  limits.kv_blocks = cache.num_blocks();
  limits.block_positions = kKvBlockPositions;
  BALLAST_RETURN_IF_ERROR(Validate(limits));
  return std::unique_ptr<Batcher>(new Batcher(limits, vocab_size, cache, counters, clock, classifier, pool));
}

Batcher::Batcher(const SchedulerLimits& limits, int vocab_size, KvCache& cache, LoadCounters& counters, Clock& clock,
                 const TaskClassifier* classifier, ThreadPool* pool)
    : limits_(limits),
      vocab_size_(vocab_size),
      cache_(cache),
      counters_(counters),
      clock_(clock),
      classifier_(classifier),
      pool_(pool),
      scheduler_(limits),
      samplers_(pool != nullptr ? pool->threads() : 1) {}

absl::StatusOr<SequenceId> Batcher::Submit(BatchedRequest request) {
  const int32_t task = counters_.InternTask(request.spec.task);
  const bool undecided = classifier_ != nullptr && request.spec.task.empty() && classifier_->ready();
  const absl::Time now = clock_.Now();
  SequenceId id;
  {
    MutexLock lock(mu_);
    BALLAST_RETURN_IF_ERROR(closed_);
    id = SequenceId(last_id_ + 1);
    request.spec.id = id;
    BALLAST_RETURN_IF_ERROR(scheduler_.Submit(request.spec, now));
    last_id_ = id.value();
    Entry& entry = entries_[id];
    entry.request = std::move(request);
    entry.task = task;
    entry.undecided = undecided;
  }
  if (notify_) notify_();
  return id;
}

void Batcher::Cancel(SequenceId id) {
  {
    MutexLock lock(mu_);
    if (entries_.find(id) == entries_.end()) return;
    // The open step may hold the request: the step thread drops it.
    cancelled_.push_back(id);
  }
  if (notify_) notify_();
}

void Batcher::CloseAdmission(const absl::Status& reason) {
  MutexLock lock(mu_);
  closed_ = reason;
}

bool Batcher::AwaitIdle(absl::Time deadline) {
  MutexLock lock(mu_);
  while (!entries_.empty()) {
    if (!clock_.WaitUntil(idle_, mu_, deadline)) return entries_.empty();
  }
  return true;
}

BatcherStats Batcher::stats() const {
  MutexLock lock(mu_);
  const int total = limits_.kv_blocks;
  return {.running = scheduler_.running(),
          .waiting = scheduler_.waiting(),
          .kv_used_ratio = static_cast<double>(total - scheduler_.free_blocks()) / total};
}

void Batcher::DropCancelled() {
  for (const SequenceId id : cancelled_) {
    scheduler_.Cancel(id);
    const auto entry = entries_.find(id);
    if (entry == entries_.end()) continue;
    CountHeldBack(entry->second);
    entries_.erase(entry);
  }
  cancelled_.clear();
  if (entries_.empty()) idle_.NotifyAll();
}

bool Batcher::HasWork() {
  const absl::Time now = clock_.Now();
  std::vector<SequenceUpdate> expired;
  {
    MutexLock lock(mu_);
    DropCancelled();
    expired = scheduler_.Expire(now);
  }
  Deliver(expired);
  MutexLock lock(mu_);
  return scheduler_.has_work();
}

StepRows Batcher::Next(int capacity) {
  MutexLock lock(mu_);
  DropCancelled();
  plan_ = scheduler_.NextStep(capacity);
  sequences_.clear();
  labels_.clear();
  piece_entries_.clear();
  for (const StepPiece& piece : plan_.pieces) {
    Entry& entry = entries_.at(piece.id);
    if (entry.kv == nullptr) {
      entry.kv = std::make_unique<KvSequence>(cache_);
      const absl::Status reserved = entry.kv->Reserve(scheduler_.reserved_positions(piece.id));
      BALLAST_CHECK(reserved.ok()) << "blocks that the scheduler had set aside: " << reserved;
    }
    piece_entries_.push_back(&entry);
    sequences_.push_back({.kv = entry.kv.get(),
                          .first_row = piece.first_row,
                          .num_rows = piece.num_rows,
                          .start_position = piece.start_position});
    labels_.insert(labels_.end(), piece.num_rows,
                   {.task = entry.task,
                    .phase = piece.decode ? TokenPhase::kDecode : TokenPhase::kPrefill,
                    .keep_routes = entry.request.routes,
                    .held_back = entry.undecided});
  }
  return {.input = {.token_ids = plan_.token_ids, .sequences = sequences_, .logit_rows = plan_.logit_rows},
          .labels = labels_,
          .more_work = scheduler_.more_after_step()};
}

void Batcher::ReadRow(std::span<const float> row, Sampler& sampler, Reading& reading) const {
  const BatchedRequest& request = *reading.request;
  const bool scores = request.spec.kind == SequenceKind::kScore;
  reading.token = scores ? ArgMax(row) : sampler.Sample(row, request.sampling, reading.position);
  reading.finite = std::isfinite(row[reading.token]);
  if (!reading.finite) return;
  const std::vector<int32_t>& tokens = request.spec.tokens;
  if (!scores) {
    if (request.logprobs) reading.logprob = LogProbability(row, reading.token);
    return;
  }
  const auto next = static_cast<size_t>(reading.position);
  if (next < tokens.size()) reading.logprob = LogProbability(row, tokens[next]);
  if (request.digests) reading.digest = XXH3_64bits(row.data(), row.size_bytes());
}

void Batcher::ReadLogits(const float* logits) {
  const auto read = [&](size_t part, size_t parts) {
    for (size_t i = part; i < readings_.size(); i += parts) {
      const float* const row = logits + static_cast<size_t>(readings_[i].logit_row) * vocab_size_;
      ReadRow(std::span(row, vocab_size_), samplers_[part], readings_[i]);
    }
  };
  // Some three passes over a row, and about 20 flops an element.
  const double elements = static_cast<double>(readings_.size()) * vocab_size_;
  const size_t parts = std::min(samplers_.size(), readings_.size());
  if (pool_ == nullptr || parts < 2 || !internal::WorthWaking(*pool_, 20 * elements, 3 * sizeof(float) * elements)) {
    read(0, 1);
    return;
  }
  pool_->ParallelFor(static_cast<int>(parts), [&](int part) { read(static_cast<size_t>(part), parts); });
}

absl::Status Batcher::TellScores(const StepPiece& piece, const Entry& entry, std::span<const Reading> readings,
                                 std::span<const int32_t> routes) {
  logprobs_.clear();
  argmax_.clear();
  digests_.clear();
  for (const Reading& reading : readings) {
    argmax_.push_back(reading.token);
    if (!reading.finite) {
      return absl::InternalError(absl::StrCat("the logits of position ", reading.position - 1, " are not finite"));
    }
    if (static_cast<size_t>(reading.position) < entry.request.spec.tokens.size()) {
      logprobs_.push_back(reading.logprob);
      if (!std::isfinite(reading.logprob)) {
        return absl::InternalError(
            absl::StrCat("the log probability of position ", reading.position, " is not finite"));
      }
    }
    if (entry.request.digests) digests_.push_back(reading.digest);
  }
  entry.request.sink->OnScores({.first_position = piece.start_position,
                                .logprobs = logprobs_,
                                .argmax = argmax_,
                                .digests = digests_,
                                .routes = routes,
                                .route_layers = counters_.num_layers(),
                                .route_top_k = counters_.top_k()});
  return absl::OkStatus();
}

void Batcher::HoldBack(const StepPiece& piece, std::span<const int32_t> routes, Entry& entry) {
  entry.held_back.insert(entry.held_back.end(), routes.begin(), routes.end());
  const size_t token_routes = static_cast<size_t>(counters_.num_layers()) * counters_.top_k();
  const bool whole_prompt =
      static_cast<size_t>(piece.start_position) + piece.num_rows >= entry.request.spec.tokens.size();
  if (!whole_prompt && entry.held_back.size() < TaskClassifier::kTokens * token_routes) return;
  const Classification told = classifier_->Classify(entry.held_back);
  if (!told.task.empty()) entry.task = counters_.InternTask(told.task, /*classified=*/true);
  entry.undecided = false;
  CountHeldBack(entry);
}

void Batcher::CountHeldBack(Entry& entry) {
  if (entry.held_back.empty()) return;
  counters_.AddTokens(entry.task, TokenPhase::kPrefill, entry.held_back);
  entry.held_back = {};
}

void Batcher::Commit(const StepResult& result) {
  last_rows_ = {};
  for (const StepPiece& piece : plan_.pieces) (piece.decode ? last_rows_.decode : last_rows_.prefill) += piece.num_rows;
  if (plan_.empty()) return;
  results_.assign(plan_.pieces.size(), PieceResult{});
  readings_.clear();
  first_reading_.clear();
  const std::vector<int32_t> kept_routes = counters_.TakeKeptRoutes();
  const size_t token_routes = static_cast<size_t>(counters_.num_layers()) * counters_.top_k();
  size_t routes_used = 0;
  std::vector<std::span<const int32_t>> piece_routes(plan_.pieces.size());
  // Pieces, failures and routes are all in row order.
  auto failure = result.failures.begin();
  for (size_t i = 0; i < plan_.pieces.size(); ++i) {
    const StepPiece& piece = plan_.pieces[i];
    Entry& entry = *piece_entries_[i];
    first_reading_.push_back(readings_.size());
    const int end = piece.first_row + piece.num_rows;
    std::span<const int32_t> routes;
    if (entry.request.routes || entry.undecided) {
      const size_t wanted = static_cast<size_t>(piece.num_rows) * token_routes;
      if (routes_used + wanted <= kept_routes.size()) {
        routes = std::span(kept_routes).subspan(routes_used, wanted);
        routes_used += wanted;
      } else if (entry.request.routes) {
        results_[i].status = absl::UnimplementedError("expert_routes: this worker's layers do not tell them");
      }
    }
    for (; failure != result.failures.end() && failure->row < end; ++failure) {
      if (results_[i].status.ok()) results_[i].status = failure->ToStatus();
    }
    if (!results_[i].status.ok()) continue;
    if (entry.undecided && !routes.empty()) HoldBack(piece, routes, entry);
    entry.kv->Commit(piece.num_rows);
    if (entry.request.routes) piece_routes[i] = routes;
    // One that generates has a row of logits behind its prompt alone; one that scores has a row a position.
    const bool scores = entry.request.spec.kind == SequenceKind::kScore;
    for (int j = 0; j < piece.num_logits; ++j) {
      readings_.push_back({.request = &entry.request,
                           .logit_row = piece.first_logit + j,
                           .position = piece.start_position + (scores ? j + 1 : piece.num_rows)});
    }
  }
  first_reading_.push_back(readings_.size());

  ReadLogits(result.logits);
  for (size_t i = 0; i < plan_.pieces.size(); ++i) {
    const auto readings =
        std::span<const Reading>(readings_).subspan(first_reading_[i], first_reading_[i + 1] - first_reading_[i]);
    if (readings.empty()) continue;
    Entry& entry = *piece_entries_[i];
    if (entry.request.spec.kind == SequenceKind::kScore) {
      results_[i].status = TellScores(plan_.pieces[i], entry, readings, piece_routes[i]);
      continue;
    }
    const Reading& reading = readings[0];
    results_[i].token = reading.token;
    if (!reading.finite) {
      results_[i].status = absl::InternalError("the next token's logits are not finite");
    } else if (!std::isfinite(reading.logprob)) {
      results_[i].status = absl::InternalError("the next token's log probability is not finite");
    }
  }

  std::vector<SequenceUpdate> updates;
  {
    MutexLock lock(mu_);
    updates = scheduler_.EndStep(results_);
  }
  // In the order of the pieces, as the updates are.
  size_t i = 0;
  for (const SequenceUpdate& update : updates) {
    while (plan_.pieces[i].id != update.id) ++i;
    if (update.token.has_value()) {
      piece_entries_[i]->request.sink->OnToken(*update.token, readings_[first_reading_[i]].logprob);
    }
  }
  plan_ = StepPlan{};
  Deliver(updates);
}

void Batcher::Deliver(const std::vector<SequenceUpdate>& updates) {
  for (const SequenceUpdate& update : updates) {
    if (update.finish == FinishKind::kNone) continue;
    std::shared_ptr<RequestSink> sink;
    {
      MutexLock lock(mu_);
      const auto entry = entries_.find(update.id);
      BALLAST_CHECK(entry != entries_.end()) << "request " << update.id;
      sink = std::move(entry->second.request.sink);
      CountHeldBack(entry->second);
      entries_.erase(entry);
      if (entries_.empty()) idle_.NotifyAll();
    }
    sink->OnEnd(update.status, update.finish);
  }
}

void Batcher::Discard(const absl::Status& reason) {
  if (plan_.empty()) return;
  const bool rows_are_bad = absl::IsInvalidArgument(reason) || absl::IsFailedPrecondition(reason);
  std::vector<SequenceUpdate> updates;
  if (rows_are_bad) {
    results_.assign(
        plan_.pieces.size(),
        PieceResult{.status = absl::InternalError(absl::StrCat("the step was refused: ", reason.message()))});
    MutexLock lock(mu_);
    updates = scheduler_.EndStep(results_);
  }
  plan_ = StepPlan{};
  Deliver(updates);
}

void Batcher::NoView(const absl::Status& reason) {
  std::vector<SequenceUpdate> updates;
  {
    MutexLock lock(mu_);
    DropCancelled();
    updates = scheduler_.FailAll(reason);
  }
  Deliver(updates);
}

}  // namespace ballast
