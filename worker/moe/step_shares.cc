#include "worker/moe/step_shares.h"

#include <algorithm>
#include <utility>

#include "proto/base/check.h"

namespace ballast {

StepShares::StepShares(int num_layers, int num_experts)
    : num_experts_(num_experts), layers_(num_layers), totals_(num_experts) {}

void StepShares::Enter(int num_ranks, int rank) {
  num_ranks_ = num_ranks;
  rank_ = rank;
  loads_.resize(num_ranks);
  for (Layer& layer : layers_) {
    layer.open.assign(static_cast<size_t>(num_ranks) * num_experts_, 0);
    layer.previous.assign(layer.open.size(), 0);
    layer.open_known = layer.previous_known = false;
  }
}

void StepShares::SetTables(std::vector<DispatchTable> tables) {
  BALLAST_CHECK(tables.size() == layers_.size()) << tables.size() << " layers";
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    // The solver refers to the table.
    layer.solver.reset();
    layer.table = std::move(tables[l]);
    layer.solved = layer.table;
    bool shared = false;
    for (int32_t e = 0; e < layer.table.num_experts(); ++e) {
      shared |= layer.table.begin[e + 1] - layer.table.begin[e] > 1;
    }
    if (shared) layer.solver = std::make_unique<StepQuotaSolver>(layer.table, num_ranks_);
  }
}

std::span<int32_t> StepShares::counts(int layer, int rank) {
  return std::span(layers_[layer].open).subspan(static_cast<size_t>(rank) * num_experts_, num_experts_);
}

void StepShares::EndStep() {
  for (Layer& layer : layers_) {
    std::swap(layer.open, layer.previous);
    layer.previous_known = std::exchange(layer.open_known, false);
  }
}

// An expert that the step before did not need keeps the placement's weights.
void StepShares::SolvePrevious(Layer& layer) {
  layer.solver->Solve(layer.previous, num_ranks_);
  const std::span<const int64_t> flow = layer.solver->flow();
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

void StepShares::Quotas(int l, ShareForm form, uint32_t rotation, std::span<int32_t> quotas) {
  Layer& layer = layers_[l];
  const std::span<const int32_t> own = counts(l, rank_);
  if (layer.solver == nullptr || (form == ShareForm::kPrevious && !layer.previous_known)) form = ShareForm::kFixed;
  switch (form) {
    case ShareForm::kFixed:
      SolveQuotas(layer.table, own, rotation, quotas);
      break;
    case ShareForm::kPrevious:
      SolvePrevious(layer);
      SolveQuotas(layer.solved, own, rotation, quotas);
      break;
    case ShareForm::kCurrent:
      BALLAST_CHECK(layer.open_known) << "layer " << l << " is not counted";
      layer.solver->Solve(layer.open, num_ranks_);
      layer.solver->SplitOne(layer.open, num_ranks_, rank_, quotas);
      break;
  }
}

double StepShares::Busiest(const DispatchTable& table, std::span<const int32_t> counts, int* rank) {
  std::fill(totals_.begin(), totals_.end(), 0);
  for (size_t at = 0; at < counts.size(); at += num_experts_) {
    for (int e = 0; e < num_experts_; ++e) totals_[e] += counts[at + e];
  }
  std::fill(loads_.begin(), loads_.end(), 0.0);
  for (int e = 0; e < num_experts_; ++e) {
    uint64_t sum = 0;
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) sum += table.weight[r];
    for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
      loads_[table.rank[r]] +=
          static_cast<double>(totals_[e]) * static_cast<double>(table.weight[r]) / static_cast<double>(sum);
    }
  }
  const auto busiest = std::max_element(loads_.begin(), loads_.end());
  if (rank != nullptr) *rank = static_cast<int>(busiest - loads_.begin());
  return *busiest;
}

std::optional<ShareComparison> StepShares::Compare(int l) {
  Layer& layer = layers_[l];
  if (layer.solver == nullptr || !layer.open_known) return std::nullopt;
  ShareComparison out;
  out.fixed = Busiest(layer.table, layer.open, &out.busiest);
  out.previous = out.fixed;
  if (layer.previous_known) {
    SolvePrevious(layer);
    out.previous = Busiest(layer.solved, layer.open, nullptr);
  }
  out.current = static_cast<double>(layer.solver->Solve(layer.open, num_ranks_));
  return out;
}

}  // namespace ballast
