#include "worker/telemetry/report_queue.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "proto/base/check.h"
#include "proto/placement/resample.h"

namespace ballast {
namespace {

void SetTime(absl::Time time, google::protobuf::Timestamp& out) {
  const int64_t nanos = absl::ToUnixNanos(time);
  out.set_seconds(nanos / 1'000'000'000);
  out.set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
}

// Tokens of the report that the sample was drawn from.
int64_t Population(const v1::LoadReport& report, const v1::RouteSample& sample) {
  const v1::TaskTokens& task = report.task_tokens(sample.task());
  return sample.phase() == v1::PHASE_DECODE ? task.decode_tokens() : task.prefill_tokens();
}

// Of both what stands for both.
void MergeSample(const v1::RouteSample& from, int64_t from_population, double offset, v1::RouteSample& to,
                 int64_t to_population) {
  const v1::RouteSample old = to;
  std::vector<double> weights(old.tokens() + from.tokens());
  for (int32_t t = 0; t < old.tokens(); ++t) weights[t] = static_cast<double>(to_population) / old.tokens();
  for (int32_t t = 0; t < from.tokens(); ++t) {
    weights[old.tokens() + t] = static_cast<double>(from_population) / from.tokens();
  }
  const int32_t width = old.experts_size() / old.tokens();
  to.clear_experts();
  const std::vector<int32_t> kept = Resample(weights, std::max(old.tokens(), from.tokens()), offset);
  for (const int32_t t : kept) {
    const v1::RouteSample& source = t < old.tokens() ? old : from;
    const int32_t token = t < old.tokens() ? t : t - old.tokens();
    for (int32_t i = 0; i < width; ++i) to.add_experts(source.experts(token * width + i));
  }
  to.set_tokens(static_cast<int32_t>(kept.size()));
}

}  // namespace

bool IsEmpty(const LoadWindow& window) {
  return window.counts.empty() &&
         std::all_of(window.balance.begin(), window.balance.end(),
                     [](const BalanceCount& balance) { return balance.steps == 0; }) &&
         std::all_of(window.tasks.begin(), window.tasks.end(),
                     [](const TaskCount& task) { return task.prefill_tokens == 0 && task.decode_tokens == 0; });
}

v1::LoadReport MakeReport(const LoadWindow& window, absl::Time start, absl::Time end) {
  v1::LoadReport report;
  SetTime(start, *report.mutable_start());
  SetTime(end, *report.mutable_end());
  std::vector<bool> used(window.tasks.size());
  for (size_t i = 0; i < window.tasks.size(); ++i) {
    used[i] = window.tasks[i].prefill_tokens > 0 || window.tasks[i].decode_tokens > 0;
  }
  for (const LoadCount& count : window.counts) used[count.task] = true;
  std::vector<int32_t> index(window.tasks.size(), -1);
  for (size_t i = 0; i < window.tasks.size(); ++i) {
    if (!used[i]) continue;
    index[i] = report.task_tokens_size();
    v1::TaskTokens& task = *report.add_task_tokens();
    task.set_task(window.tasks[i].task);
    task.set_classified(window.tasks[i].classified);
    task.set_prefill_tokens(window.tasks[i].prefill_tokens);
    task.set_decode_tokens(window.tasks[i].decode_tokens);
  }
  for (const LoadCount& count : window.counts) {
    v1::LoadCount& entry = *report.add_counts();
    entry.set_layer(count.expert.layer);
    entry.set_expert(count.expert.expert);
    entry.set_phase(count.phase == TokenPhase::kDecode ? v1::PHASE_DECODE : v1::PHASE_PREFILL);
    entry.set_task(index[count.task]);
    entry.set_tokens(count.tokens);
    entry.set_gate_mass(count.gate_mass);
  }
  for (const RouteSample& sample : window.samples) {
    v1::RouteSample& entry = *report.add_route_samples();
    entry.set_task(index[sample.task]);
    entry.set_phase(sample.phase == TokenPhase::kDecode ? v1::PHASE_DECODE : v1::PHASE_PREFILL);
    entry.set_tokens(sample.tokens);
    entry.mutable_experts()->Assign(sample.experts.begin(), sample.experts.end());
  }
  for (int phase = 0; phase < kTokenPhases; ++phase) {
    const BalanceCount& balance = window.balance[phase];
    if (balance.steps == 0) continue;
    report.set_step_balancedness_sum(report.step_balancedness_sum() + balance.balancedness_sum);
    report.set_steps(report.steps() + balance.steps);
    v1::StepBalance& out = *report.add_balance();
    out.set_phase(phase == static_cast<int>(TokenPhase::kDecode) ? v1::PHASE_DECODE : v1::PHASE_PREFILL);
    out.set_steps(balance.steps);
    out.set_balancedness_sum(balance.balancedness_sum);
    for (const int64_t steps : balance.buckets) out.add_buckets(steps);
    out.set_layers_with_fixed_shares(balance.layers_by_form[static_cast<int>(ShareForm::kFixed)]);
    out.set_layers_with_previous_shares(balance.layers_by_form[static_cast<int>(ShareForm::kPrevious)]);
    out.set_layers_with_current_shares(balance.layers_by_form[static_cast<int>(ShareForm::kCurrent)]);
  }
  report.set_epoch(window.epoch.value());
  return report;
}

void MergeReport(const v1::LoadReport& from, v1::LoadReport& to) {
  BALLAST_CHECK(from.first_sequence() == to.sequence() + 1)
      << "reports " << to.sequence() << " and " << from.first_sequence() << " are not adjacent";
  to.set_sequence(from.sequence());
  *to.mutable_end() = from.end();
  to.set_step_balancedness_sum(to.step_balancedness_sum() + from.step_balancedness_sum());
  to.set_steps(to.steps() + from.steps());
  to.set_epoch(std::max(to.epoch(), from.epoch()));
  for (const v1::StepBalance& balance : from.balance()) {
    const auto same = std::find_if(to.mutable_balance()->begin(), to.mutable_balance()->end(),
                                   [&](const v1::StepBalance& b) { return b.phase() == balance.phase(); });
    if (same == to.mutable_balance()->end()) {
      *to.add_balance() = balance;
      continue;
    }
    same->set_steps(same->steps() + balance.steps());
    same->set_balancedness_sum(same->balancedness_sum() + balance.balancedness_sum());
    for (int i = 0; i < balance.buckets_size(); ++i) same->set_buckets(i, same->buckets(i) + balance.buckets(i));
    same->set_layers_with_fixed_shares(same->layers_with_fixed_shares() + balance.layers_with_fixed_shares());
    same->set_layers_with_previous_shares(same->layers_with_previous_shares() + balance.layers_with_previous_shares());
    same->set_layers_with_current_shares(same->layers_with_current_shares() + balance.layers_with_current_shares());
  }

  // Populations are those before the tokens are added up.
  std::vector<int64_t> to_population;
  for (const v1::RouteSample& sample : to.route_samples()) to_population.push_back(Population(to, sample));

  std::map<std::pair<std::string, bool>, int32_t> task_index;
  for (int i = 0; i < to.task_tokens_size(); ++i) {
    task_index[{to.task_tokens(i).task(), to.task_tokens(i).classified()}] = i;
  }
  std::vector<int32_t> index_of(from.task_tokens_size());
  for (int i = 0; i < from.task_tokens_size(); ++i) {
    const v1::TaskTokens& task = from.task_tokens(i);
    const auto [place, is_new] = task_index.emplace(std::pair(task.task(), task.classified()), to.task_tokens_size());
    v1::TaskTokens& sum = is_new ? *to.add_task_tokens() : *to.mutable_task_tokens(place->second);
    sum.set_task(task.task());
    sum.set_classified(task.classified());
    sum.set_prefill_tokens(sum.prefill_tokens() + task.prefill_tokens());
    sum.set_decode_tokens(sum.decode_tokens() + task.decode_tokens());
    index_of[i] = place->second;
  }
  std::map<std::tuple<int, int, int, int>, v1::LoadCount*> cells;
  for (v1::LoadCount& count : *to.mutable_counts()) {
    cells[{count.task(), count.phase(), count.layer(), count.expert()}] = &count;
  }
  for (const v1::LoadCount& count : from.counts()) {
    const int32_t task = index_of[count.task()];
    v1::LoadCount*& cell = cells[{task, count.phase(), count.layer(), count.expert()}];
    if (cell == nullptr) {
      cell = to.add_counts();
      *cell = count;
      cell->set_task(task);
    } else {
      cell->set_tokens(cell->tokens() + count.tokens());
      cell->set_gate_mass(cell->gate_mass() + count.gate_mass());
    }
  }
  for (const v1::RouteSample& sample : from.route_samples()) {
    const int32_t task = index_of[sample.task()];
    int same = 0;
    while (same < static_cast<int>(to_population.size()) &&
           (to.route_samples(same).task() != task || to.route_samples(same).phase() != sample.phase())) {
      ++same;
    }
    if (same < static_cast<int>(to_population.size())) {
      MergeSample(sample, Population(from, sample), SpreadOffset(from.sequence()), *to.mutable_route_samples(same),
                  to_population[same]);
    } else {
      v1::RouteSample& entry = *to.add_route_samples();
      entry = sample;
      entry.set_task(task);
    }
  }
}

ReportQueue::ReportQueue(const Options& options) : options_(options) {
  BALLAST_CHECK(options.max_sent >= 1 && options.max_waiting >= 2)
      << "max_sent " << options.max_sent << ", max_waiting " << options.max_waiting;
}

void ReportQueue::Add(v1::LoadReport report) {
  report.set_sequence(++last_sequence_);
  report.set_first_sequence(last_sequence_);
  waiting_.push_back(std::move(report));
  if (waiting_.size() <= static_cast<size_t>(options_.max_waiting)) return;
  // The pair that covers the shortest span, the oldest of equals: so the windows stay about equally fine.
  size_t best = 0;
  const auto span = [this](size_t i) { return waiting_[i + 1].sequence() - waiting_[i].first_sequence(); };
  for (size_t i = 1; i + 1 < waiting_.size(); ++i) {
    if (span(i) < span(best)) best = i;
  }
  MergeReport(waiting_[best + 1], waiting_[best]);
  waiting_.erase(waiting_.begin() + static_cast<ptrdiff_t>(best) + 1);
}

std::vector<v1::LoadReport> ReportQueue::TakeUnsent() {
  std::vector<v1::LoadReport> out;
  while (!waiting_.empty() && sent_.size() < static_cast<size_t>(options_.max_sent)) {
    sent_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    out.push_back(sent_.back());
  }
  return out;
}

void ReportQueue::Stored(uint64_t sequence) {
  while (!sent_.empty() && sent_.front().sequence() <= sequence) sent_.pop_front();
}

}  // namespace ballast
