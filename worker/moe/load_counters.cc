#include "worker/moe/load_counters.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "proto/base/check.h"

namespace ballast {

LoadCounters::LoadCounters(int32_t num_layers, int32_t num_experts, int32_t top_k, int32_t sampled_tokens)
    : num_layers_(num_layers), num_experts_(num_experts), top_k_(top_k), sampled_tokens_(sampled_tokens) {
  tasks_.reserve(kMaxTasks + 1);
}

int32_t LoadCounters::InternTask(std::string_view task, bool classified) {
  MutexLock lock(mu_);
  std::pair<std::string, bool> key(task, classified);
  if (const auto it = index_.find(key); it != index_.end()) return it->second;
  if (tasks_.size() == kMaxTasks) tasks_.push_back({.name = std::string(kOtherTasks)});
  if (tasks_.size() > kMaxTasks) return kMaxTasks;
  const auto index = static_cast<int32_t>(tasks_.size());
  tasks_.push_back({.name = key.first, .classified = classified});
  index_.emplace(std::move(key), index);
  return index;
}

std::string LoadCounters::TaskName(int32_t index) const {
  MutexLock lock(mu_);
  BALLAST_CHECK(index >= 0 && static_cast<size_t>(index) < tasks_.size()) << "task=" << index;
  return tasks_[index].name;
}

int64_t LoadCounters::NextPlace(Task::Sample& sample) {
  // Reservoir sampling (Vitter's algorithm R): after n tokens each is kept with the chance sampled_tokens_ / n.
  if (sample.seen == 0) sample.experts.resize(static_cast<size_t>(sampled_tokens_) * num_layers_ * top_k_);
  int64_t place = sample.seen++;
  // 2^31 - 2 values for at most that many tokens a window: the bias is below one in a million.
  if (place >= sampled_tokens_) place = static_cast<int64_t>(random_() % static_cast<uint64_t>(sample.seen));
  return place < sampled_tokens_ ? place : -1;
}

void LoadCounters::AddRows(Epoch epoch, std::span<const RowLabel> rows, std::span<const uint8_t> failed,
                           bool all_layers, const StepBalance& balance) {
  epoch_ = epoch;
  if (balance.balancedness >= 0) {
    BalanceCount& of_phase = balance_[static_cast<int>(balance.phase)];
    ++of_phase.steps;
    of_phase.balancedness_sum += balance.balancedness;
    ++of_phase.buckets[StepBalancednessBucket(balance.balancedness)];
    for (int form = 0; form < kShareForms; ++form) of_phase.layers_by_form[form] += balance.layers_by_form[form];
  }
  kept_routes_.clear();
  wanted_.clear();
  cells_.assign(rows.size(), -1);
  for (size_t row = 0; row < rows.size(); ++row) {
    const RowLabel& label = rows[row];
    BALLAST_CHECK(label.task >= 0 && static_cast<size_t>(label.task) < tasks_.size()) << "task=" << label.task;
    const int phase = static_cast<int>(label.phase);
    const bool held_back = label.held_back && all_layers;
    Wanted wanted{.row = static_cast<int32_t>(row), .keep = held_back || (label.keep_routes && all_layers)};
    if (!held_back && (failed.empty() || !failed[row])) {
      cells_[row] = label.task * kTokenPhases + phase;
      Task& task = tasks_[label.task];
      ++task.phase_tokens[phase];
      if (sampled_tokens_ > 0 && all_layers) {
        wanted.place = NextPlace(task.samples[phase]);
        if (wanted.place >= 0) wanted.sample = &task.samples[phase];
      }
    }
    if (wanted.keep || wanted.sample != nullptr) wanted_.push_back(wanted);
  }
}

void LoadCounters::KeepRoutes(std::span<const int32_t> routes) {
  const size_t of_row = static_cast<size_t>(num_layers_) * top_k_;
  // Without routes a sample keeps in these places what it had.
  if (routes.empty()) wanted_.clear();
  for (size_t i = 0; i < wanted_.size(); ++i) {
    const auto route = routes.subspan(i * of_row, of_row);
    if (wanted_[i].keep) kept_routes_.insert(kept_routes_.end(), route.begin(), route.end());
    if (wanted_[i].sample == nullptr) continue;
    std::copy(route.begin(), route.end(), wanted_[i].sample->experts.begin() + wanted_[i].place * of_row);
  }
  wanted_.clear();
}

void LoadCounters::KeepAsked() {
  if (elsewhere_ != nullptr && !wanted_.empty()) KeepRoutes(elsewhere_->Routes());
}

std::vector<LoadCounters::Cell>& LoadCounters::CellsOf(int32_t cell) {
  std::vector<Cell>& cells = tasks_[cell / kTokenPhases].cells[cell % kTokenPhases];
  if (cells.empty()) cells.resize(static_cast<size_t>(num_layers_) * num_experts_);
  return cells;
}

void LoadCounters::AddStep(Epoch epoch, std::span<const RowLabel> rows, std::span<const uint8_t> failed,
                           std::span<const RoutedLayer> layers, const StepBalance& balance) {
  MutexLock lock(mu_);
  AddRows(epoch, rows, failed, layers.size() == static_cast<size_t>(num_layers_), balance);
  for (size_t row = 0; row < rows.size(); ++row) {
    if (cells_[row] < 0) continue;
    std::vector<Cell>& cells = CellsOf(cells_[row]);
    for (const RoutedLayer& layer : layers) {
      Cell* const of_layer = cells.data() + static_cast<size_t>(layer.layer) * num_experts_;
      for (size_t pair = row * top_k_; pair < (row + 1) * top_k_; ++pair) {
        Cell& cell = of_layer[layer.experts[pair]];
        ++cell.tokens;
        cell.gate_mass += layer.weights[pair];
      }
    }
  }
  routes_.resize(wanted_.size() * num_layers_ * top_k_);
  for (size_t i = 0; i < wanted_.size(); ++i) {
    for (const RoutedLayer& layer : layers) {
      const auto of_row = layer.experts.subspan(static_cast<size_t>(wanted_[i].row) * top_k_, top_k_);
      std::copy(of_row.begin(), of_row.end(), routes_.begin() + (i * num_layers_ + layer.layer) * top_k_);
    }
  }
  KeepRoutes(routes_);
}

void LoadCounters::AddStep(Epoch epoch, std::span<const RowLabel> rows, std::span<const uint8_t> failed,
                           RoutedElsewhere& routed, const StepBalance& balance) {
  MutexLock lock(mu_);
  BALLAST_CHECK(elsewhere_ == nullptr || elsewhere_ == &routed) << "steps of two GPUs";
  elsewhere_ = &routed;
  KeepAsked();
  AddRows(epoch, rows, failed, /*all_layers=*/true, balance);
  routed.Count(cells_);
  if (wanted_.empty()) return;
  wanted_rows_.clear();
  bool now = false;
  for (const Wanted& wanted : wanted_) {
    wanted_rows_.push_back(wanted.row);
    now |= wanted.keep;
  }
  routed.Ask(wanted_rows_);
  // What goes into samples has time until the next step.
  if (now) KeepAsked();
}

void LoadCounters::AddTokens(int32_t task, TokenPhase phase, std::span<const int32_t> routes) {
  const size_t of_token = static_cast<size_t>(num_layers_) * top_k_;
  BALLAST_CHECK(routes.size() % of_token == 0) << routes.size() << " choices";
  MutexLock lock(mu_);
  BALLAST_CHECK(task >= 0 && static_cast<size_t>(task) < tasks_.size()) << "task=" << task;
  const int p = static_cast<int>(phase);
  std::vector<Cell>& cells = CellsOf(task * kTokenPhases + p);
  Task::Sample& sample = tasks_[task].samples[p];
  for (; !routes.empty(); routes = routes.subspan(of_token)) {
    const auto token = routes.first(of_token);
    ++tasks_[task].phase_tokens[p];
    for (size_t i = 0; i < of_token; ++i) ++cells[i / top_k_ * num_experts_ + token[i]].tokens;
    if (sampled_tokens_ == 0) continue;
    const int64_t place = NextPlace(sample);
    if (place < 0) continue;
    std::copy(token.begin(), token.end(), sample.experts.begin() + place * static_cast<ptrdiff_t>(of_token));
  }
}

void LoadCounters::TakeElsewhere() {
  if (elsewhere_ == nullptr) return;
  KeepAsked();
  for (const RoutedElsewhere::Counted& counted : elsewhere_->Take()) {
    std::vector<Cell>& cells = CellsOf(counted.cell);
    BALLAST_CHECK(counted.tokens.size() == cells.size() && counted.gate_mass.size() == cells.size())
        << counted.tokens.size() << " experts of all layers";
    for (size_t i = 0; i < cells.size(); ++i) {
      cells[i].tokens += static_cast<int64_t>(counted.tokens[i]);
      cells[i].gate_mass += std::ldexp(static_cast<double>(counted.gate_mass[i]), -32);
    }
  }
}

void LoadCounters::Forget(RoutedElsewhere& routed) {
  MutexLock lock(mu_);
  if (elsewhere_ != &routed) return;
  TakeElsewhere();
  elsewhere_ = nullptr;
}

std::vector<int32_t> LoadCounters::TakeKeptRoutes() {
  MutexLock lock(mu_);
  return std::exchange(kept_routes_, {});
}

LoadWindow LoadCounters::Take() {
  LoadWindow window;
  MutexLock lock(mu_);
  TakeElsewhere();
  window.epoch = epoch_;
  window.balance = std::exchange(balance_, {});
  for (size_t t = 0; t < tasks_.size(); ++t) {
    Task& task = tasks_[t];
    window.tasks.push_back({.task = task.name,
                            .prefill_tokens = std::exchange(task.phase_tokens[0], 0),
                            .decode_tokens = std::exchange(task.phase_tokens[1], 0),
                            .classified = task.classified});
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
