#include "worker/moe/step_shares.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "proto/base/check.h"

namespace ballast {

StepShares::StepShares(int num_layers, int num_experts, CanSolve can_solve)
    : num_experts_(num_experts), can_solve_(std::move(can_solve)), layers_(num_layers) {}

void StepShares::Enter(int num_ranks, int rank, std::span<const uint32_t> speeds) {
  num_ranks_ = num_ranks;
  speeds_.assign(speeds.begin(), speeds.end());
  if (std::adjacent_find(speeds.begin(), speeds.end(), std::not_equal_to<>()) == speeds.end()) speeds_.clear();
  rank_ = rank;
  loads_.resize(num_ranks);
  taken_ = {};
  taken_layer_ = -1;
  for (Layer& layer : layers_) layer.open_known = layer.previous_known = false;
}

void StepShares::SetTables(std::vector<DispatchTable> tables) {
  BALLAST_CHECK(tables.size() == layers_.size()) << tables.size() << " layers";
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    layer.solver.reset();
    layer.solved = {};
    layer.table = std::move(tables[l]);
    layer.shared = false;
    for (int32_t e = 0; e < layer.table.num_experts(); ++e) {
      layer.shared |= layer.table.begin[e + 1] - layer.table.begin[e] > 1;
    }
    if (layer.shared && can_solve_) layer.shared = can_solve_(layer.table, num_ranks_);
  }
}

void StepShares::Take(int rank, std::span<const int32_t> counts) {
  BALLAST_CHECK(rank < num_ranks_ && static_cast<int>(counts.size()) == num_experts_) << counts.size() << " counts";
  taken_.resize(static_cast<size_t>(num_ranks_) * num_experts_);
  taken_layer_ = -1;
  std::copy(counts.begin(), counts.end(), taken_.begin() + static_cast<ptrdiff_t>(rank) * num_experts_);
}

void StepShares::Counted(int l) {
  Layer& layer = layers_[l];
  layer.open.assign(num_experts_, 0);
  for (size_t at = 0; at < taken_.size(); at += num_experts_) {
    for (int e = 0; e < num_experts_; ++e) layer.open[e] += taken_[at + e];
  }
  layer.open_known = true;
  taken_layer_ = l;
}

void StepShares::EndStep() {
  for (Layer& layer : layers_) {
    std::swap(layer.open, layer.previous);
    layer.previous_known = std::exchange(layer.open_known, false);
  }
}

StepQuotaSolver& StepShares::Solver(Layer& layer) {
  if (layer.solver == nullptr) layer.solver = std::make_unique<StepQuotaSolver>(layer.table, num_ranks_, speeds_);
  return *layer.solver;
}

// An expert that the step before did not need keeps the placement's weights.
void StepShares::SolvePrevious(Layer& layer) {
  StepQuotaSolver& solver = Solver(layer);
  // Where the tokens come from does not matter for this.
  solver.Solve(layer.previous, /*sources=*/1);
  if (layer.solved.begin.empty()) layer.solved = layer.table;
  const std::span<const int64_t> flow = solver.flow();
  for (int32_t e = 0; e < layer.table.num_experts(); ++e) {
    const int32_t first = layer.table.begin[e];
    const int32_t last = layer.table.begin[e + 1];
    int64_t sum = 0;
    for (int32_t r = first; r < last; ++r) sum += flow[r];
    for (int32_t r = first; r < last; ++r) {
      layer.solved.weight[r] = sum > 0 ? static_cast<uint32_t>(flow[r]) : layer.table.weight[r];
    }
  }
}

void StepShares::Quotas(int l, ShareForm form, std::span<const int32_t> own, uint32_t rotation,
                        std::span<int32_t> quotas) {
  Layer& layer = layers_[l];
  if (!layer.shared || (form == ShareForm::kPrevious && !layer.previous_known)) form = ShareForm::kFixed;
  switch (form) {
    case ShareForm::kFixed:
      SolveQuotas(layer.table, own, rotation, quotas);
      break;
    case ShareForm::kPrevious:
      SolvePrevious(layer);
      SolveQuotas(layer.solved, own, rotation, quotas);
      break;
    case ShareForm::kCurrent: {
      BALLAST_CHECK(taken_layer_ == l) << "layer " << l << " is not the one counted last, " << taken_layer_;
      StepQuotaSolver& solver = Solver(layer);
      solver.Solve(taken_, num_ranks_);
      solver.SplitOne(taken_, num_ranks_, rank_, quotas);
      break;
    }
  }
}

double StepShares::RelativeSpeed(int rank) const {
  if (speeds_.empty()) return 1;
  return static_cast<double>(speeds_[rank]) / *std::max_element(speeds_.begin(), speeds_.end());
}

double StepShares::Busiest(const DispatchTable& table, std::span<const int32_t> totals, int* rank) {
  std::fill(loads_.begin(), loads_.end(), 0.0);
  for (int e = 0; e < num_experts_; ++e) {
    uint64_t sum = 0;
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) sum += table.weight[r];
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      loads_[table.rank[r]] +=
          static_cast<double>(totals[e]) * static_cast<double>(table.weight[r]) / static_cast<double>(sum);
    }
  }
  for (int r = 0; r < num_ranks_; ++r) loads_[r] /= RelativeSpeed(r);
  const auto busiest = std::max_element(loads_.begin(), loads_.end());
  if (rank != nullptr) *rank = static_cast<int>(busiest - loads_.begin());
  return *busiest;
}

std::optional<ShareComparison> StepShares::Compare(int l) {
  Layer& layer = layers_[l];
  if (!layer.shared || !layer.open_known) return std::nullopt;
  ShareComparison out;
  out.fixed = Busiest(layer.table, layer.open, &out.busiest);
  out.busiest_speed = RelativeSpeed(out.busiest);
  out.previous = out.fixed;
  out.previous_known = layer.previous_known;
  if (layer.previous_known) {
    SolvePrevious(layer);
    out.previous = Busiest(layer.solved, layer.open, nullptr);
  }
  out.current = static_cast<double>(Solver(layer).Solve(layer.open, /*sources=*/1));
  return out;
}

}  // namespace ballast
