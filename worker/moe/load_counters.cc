#include "worker/moe/load_counters.h"

#include <algorithm>
#include <utility>

#include "proto/base/check.h"

namespace ballast {

LoadCounters::LoadCounters(int32_t num_layers, int32_t num_experts, int32_t top_k, int32_t sampled_tokens)
    : num_layers_(num_layers), num_experts_(num_experts), top_k_(top_k), sampled_tokens_(sampled_tokens) {
  tasks_.reserve(kMaxTasks + 1);
}

int32_t LoadCounters::InternTask(std::string_view task) {
  MutexLock lock(mu_);
  std::string name(task);
  if (const auto it = index_.find(name); it != index_.end()) return it->second;
  if (tasks_.size() == kMaxTasks) tasks_.push_back({.name = std::string(kOtherTasks)});
  if (tasks_.size() > kMaxTasks) return kMaxTasks;
  const auto index = static_cast<int32_t>(tasks_.size());
  tasks_.push_back({.name = name});
  index_.emplace(std::move(name), index);
  return index;
}

void LoadCounters::AddStep(Epoch epoch, std::span<const RowLabel> rows, std::span<const uint8_t> failed,
                           std::span<const RoutedLayer> layers, const StepBalance& balance) {
  MutexLock lock(mu_);
  epoch_ = epoch;
  if (balance.balancedness >= 0) {
    BalanceCount& of_phase = balance_[static_cast<int>(balance.phase)];
    ++of_phase.steps;
    of_phase.balancedness_sum += balance.balancedness;
    ++of_phase.buckets[StepBalancednessBucket(balance.balancedness)];
    for (int form = 0; form < kShareForms; ++form) of_phase.layers_by_form[form] += balance.layers_by_form[form];
  }
  kept_routes_.clear();
  for (size_t row = 0; row < rows.size(); ++row) {
    const RowLabel& label = rows[row];
    BALLAST_CHECK(label.task >= 0 && static_cast<size_t>(label.task) < tasks_.size()) << "task=" << label.task;
    if (label.keep_routes && layers.size() == static_cast<size_t>(num_layers_)) {
      for (const RoutedLayer& layer : layers) {
        const auto of_row = layer.experts.subspan(row * top_k_, top_k_);
        kept_routes_.insert(kept_routes_.end(), of_row.begin(), of_row.end());
      }
    }
    if (!failed.empty() && failed[row]) continue;
    ++tasks_[label.task].phase_tokens[static_cast<int>(label.phase)];
    std::vector<Cell>& cells = tasks_[label.task].cells[static_cast<int>(label.phase)];
    Task::Sample& sample = tasks_[label.task].samples[static_cast<int>(label.phase)];
    if (cells.empty()) {
      cells.resize(static_cast<size_t>(num_layers_) * num_experts_);
      sample.experts.resize(static_cast<size_t>(sampled_tokens_) * num_layers_ * top_k_);
    }
    if (sampled_tokens_ > 0 && layers.size() == static_cast<size_t>(num_layers_)) AddSample(sample, row, layers);
    for (const RoutedLayer& layer : layers) {
      Cell* const of_layer = cells.data() + static_cast<size_t>(layer.layer) * num_experts_;
      for (size_t pair = row * top_k_; pair < (row + 1) * top_k_; ++pair) {
        Cell& cell = of_layer[layer.experts[pair]];
        ++cell.tokens;
        cell.gate_mass += layer.weights[pair];
      }
    }
  }
}

std::vector<int32_t> LoadCounters::TakeKeptRoutes() {
  MutexLock lock(mu_);
  return std::exchange(kept_routes_, {});
}

// Reservoir sampling (Vitter's algorithm R): after n tokens each is kept with the chance sampled_tokens_ / n.
void LoadCounters::AddSample(Task::Sample& sample, size_t row, std::span<const RoutedLayer> layers) {
  int64_t place = sample.seen++;
  if (place >= sampled_tokens_) {
    // 2^31 - 2 values for at most that many tokens a window: the bias is below one in a million.
    place = static_cast<int64_t>(random_() % static_cast<uint64_t>(sample.seen));
    if (place >= sampled_tokens_) return;
  }
  int32_t* const token = sample.experts.data() + place * num_layers_ * top_k_;
  for (const RoutedLayer& layer : layers) {
    std::copy_n(layer.experts.begin() + static_cast<ptrdiff_t>(row) * top_k_, top_k_, token + layer.layer * top_k_);
  }
}

LoadWindow LoadCounters::Take() {
  LoadWindow window;
  MutexLock lock(mu_);
  window.epoch = epoch_;
  window.balance = std::exchange(balance_, {});
  for (size_t t = 0; t < tasks_.size(); ++t) {
    Task& task = tasks_[t];
    window.tasks.push_back({.task = task.name,
                            .prefill_tokens = std::exchange(task.phase_tokens[0], 0),
                            .decode_tokens = std::exchange(task.phase_tokens[1], 0)});
    for (int phase = 0; phase < kTokenPhases; ++phase) {
      for (size_t i = 0; i < task.cells[phase].size(); ++i) {
        const Cell cell = std::exchange(task.cells[phase][i], Cell{});
        if (cell.tokens == 0) continue;
        window.counts.push_back(
            {.expert = {static_cast<int32_t>(i / num_experts_), static_cast<int32_t>(i % num_experts_)},
             .task = static_cast<int32_t>(t),
             .phase = static_cast<TokenPhase>(phase),
             .tokens = cell.tokens,
             .gate_mass = cell.gate_mass});
      }
      const int64_t seen = std::exchange(task.samples[phase].seen, 0);
      if (seen == 0) continue;
      const auto kept = static_cast<int32_t>(std::min<int64_t>(seen, sampled_tokens_));
      const auto begin = task.samples[phase].experts.begin();
      window.samples.push_back({.task = static_cast<int32_t>(t),
                                .phase = static_cast<TokenPhase>(phase),
                                .tokens = kept,
                                .experts = {begin, begin + static_cast<ptrdiff_t>(kept) * num_layers_ * top_k_}});
    }
  }
  return window;
}

}  // namespace ballast
