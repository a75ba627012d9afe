#include "proto/placement/step_quotas.h"

#include <algorithm>

#include "proto/base/check.h"

namespace ballast {
namespace {

uint32_t Fastest(std::span<const uint32_t> speed) {
  return speed.empty() ? 1 : *std::max_element(speed.begin(), speed.end());
}

// floor(count * flow / total) for count and flow at most total, total below 2^31. Below 2^26 the product is exact in a
// double and the correctly rounded quotient of two such integers never reaches the next integer from below, so the
// faster division gives the same.
int32_t Part(int32_t count, int64_t flow, int64_t total) {
  if (total < (int64_t{1} << 26)) {
    return static_cast<int32_t>(static_cast<double>(count * flow) / static_cast<double>(total));
  }
  return static_cast<int32_t>(count * flow / total);
}

}  // namespace

StepQuotaSolver::StepQuotaSolver(const DispatchTable& table, int32_t num_ranks, std::span<const uint32_t> speed)
    : table_(table),
      shares_(table, num_ranks, speed, Fastest(speed)),
      loads32_(table.num_experts()),
      loads_(table.num_experts()),
      flow_(table.num_replicas()) {
  size_t most = 0;
  for (int32_t e = 0; e < table.num_experts(); ++e) {
    const int32_t replicas = table.begin[e + 1] - table.begin[e];
    most = std::max<size_t>(most, replicas);
    if (replicas == 1) {
      single_.push_back(e);
      single_first_.push_back(table.begin[e]);
    } else if (replicas > 1) {
      shared_.push_back(e);
    }
  }
  left_.resize(most);
  order_.resize(most);
  parts_.resize(most * num_ranks);
}

int64_t StepQuotaSolver::Solve(std::span<const int32_t> counts, int32_t sources) {
  const size_t experts = loads_.size();
  BALLAST_CHECK(counts.size() == sources * experts) << counts.size() << " counts of " << sources << " sources";
  // In rows, and in 32 bits, so that the compiler can use vectors.
  std::fill(loads32_.begin(), loads32_.end(), 0);
  for (int32_t s = 0; s < sources; ++s) {
    const int32_t* const row = counts.data() + s * experts;
    int32_t* const sum = loads32_.data();
    for (size_t e = 0; e < experts; ++e) sum[e] += row[e];
  }
  std::copy(loads32_.begin(), loads32_.end(), loads_.begin());
  return shares_.Solve(loads_, flow_);
}

// Controlled rounding, expert by expert. All parts rounded down leave every source a few tokens (fewer than it has
// replicas to choose from) and every replica a few places; the exact parts show that a table of zeros and ones with
// these sums by source and by replica exists, and then serving sources one after the other from the replicas with the
// most places left finds one (Ryser).
template <typename Emit>
void StepQuotaSolver::SplitShared(std::span<const int32_t> counts, int32_t sources, const Emit& emit) {
  const size_t experts = loads_.size();
  for (const int32_t e : shared_) {
    const int32_t first = table_.begin[e];
    const int32_t n = table_.begin[e + 1] - first;
    const int64_t total = loads_[e];
    const int32_t* const column = counts.data() + e;
    int32_t* const parts = parts_.data();  // [sources][n]
    if (total == 0) {
      std::fill_n(parts, static_cast<size_t>(sources) * n, 0);
      emit(first, n, parts);
      continue;
    }
    if (n == 2) {
      SplitPair(e, column, sources);
      emit(first, n, parts);
      continue;
    }
    for (int32_t r = 0; r < n; ++r) left_[r] = flow_[first + r];
    for (int32_t s = 0; s < sources; ++s) {
      const int32_t count = column[s * experts];
      for (int32_t r = 0; r < n; ++r) {
        const int32_t part = Part(count, flow_[first + r], total);
        parts[s * n + r] = part;
        left_[r] -= part;
      }
    }
    for (int32_t s = 0; s < sources; ++s) {
      int32_t rest = column[s * experts];
      for (int32_t r = 0; r < n; ++r) rest -= parts[s * n + r];
      if (rest == 0) continue;
      const auto own = [&](int32_t r) { return table_.rank[first + r] == s; };
      // The `rest` replicas with the most places, by selection: both numbers are small.
      for (int32_t r = 0; r < n; ++r) order_[r] = r;
      for (int32_t i = 0; i < rest; ++i) {
        int32_t best = i;
        for (int32_t j = i + 1; j < n; ++j) {
          const int32_t a = order_[j];
          const int32_t b = order_[best];
          if (left_[a] > left_[b] || (left_[a] == left_[b] && (own(a) > own(b) || (own(a) == own(b) && a < b)))) {
            best = j;
          }
        }
        std::swap(order_[i], order_[best]);
        ++parts[s * n + order_[i]];
        --left_[order_[i]];
      }
    }
    emit(first, n, parts);
  }
}

// What the general way gives for two replicas, by one division a source: the second part is what is left, and where the
// division leaves a rest there is one token to place.
void StepQuotaSolver::SplitPair(int32_t expert, const int32_t* column, int32_t sources) {
  const size_t experts = loads_.size();
  const int32_t first = table_.begin[expert];
  const int64_t total = loads_[expert];
  const int64_t flow = flow_[first];
  int32_t* const parts = parts_.data();
  int64_t left = flow;
  int64_t rests = 0;
  for (int32_t s = 0; s < sources; ++s) {
    const int64_t count = column[s * experts];
    const int64_t part = Part(static_cast<int32_t>(count), flow, total);
    const bool rest = part * total != count * flow;
    // The other's part, rounded down too.
    parts[2 * s] = static_cast<int32_t>(part);
    parts[2 * s + 1] = static_cast<int32_t>(count - part - rest);
    left -= part;
    rests += rest;
  }
  int64_t other = rests - left;
  for (int32_t s = 0; s < sources; ++s) {
    const auto rest = static_cast<int32_t>(column[s * experts] - parts[2 * s] - parts[2 * s + 1]);
    const bool to_other = other > left || (other == left && table_.rank[first + 1] == s);
    parts[2 * s] += to_other ? 0 : rest;
    parts[2 * s + 1] += to_other ? rest : 0;
    left -= to_other ? 0 : rest;
    other -= to_other ? rest : 0;
  }
}

void StepQuotaSolver::Split(std::span<const int32_t> counts, int32_t sources, std::span<int32_t> quotas) {
  const size_t experts = loads_.size();
  const size_t replicas = flow_.size();
  BALLAST_CHECK(counts.size() == sources * experts && quotas.size() == sources * replicas &&
                static_cast<size_t>(sources) <= shares_.rank_loads().size())
      << counts.size() << " counts, " << quotas.size() << " quotas of " << sources << " sources";
  for (int32_t s = 0; s < sources; ++s) {
    const int32_t* const from = counts.data() + s * experts;
    int32_t* const to = quotas.data() + s * replicas;
    for (size_t i = 0; i < single_.size(); ++i) to[single_first_[i]] = from[single_[i]];
  }
  SplitShared(counts, sources, [&](int32_t first, int32_t n, const int32_t* parts) {
    for (int32_t s = 0; s < sources; ++s) {
      for (int32_t r = 0; r < n; ++r) quotas[s * replicas + first + r] = parts[s * n + r];
    }
  });
}

void StepQuotaSolver::SplitOne(std::span<const int32_t> counts, int32_t sources, int32_t source,
                               std::span<int32_t> quotas) {
  const size_t experts = loads_.size();
  BALLAST_CHECK(counts.size() == sources * experts && quotas.size() == flow_.size() && source < sources &&
                static_cast<size_t>(sources) <= shares_.rank_loads().size())
      << counts.size() << " counts, " << quotas.size() << " quotas of source " << source << " of " << sources;
  const int32_t* const from = counts.data() + source * experts;
  for (size_t i = 0; i < single_.size(); ++i) quotas[single_first_[i]] = from[single_[i]];
  SplitShared(counts, sources, [&](int32_t first, int32_t n, const int32_t* parts) {
    std::copy_n(parts + source * n, n, quotas.begin() + first);
  });
}

int64_t SolveStepQuotas(StepQuotaSolver& solver, std::span<const int32_t> counts, int32_t sources,
                        std::span<int32_t> quotas) {
  const int64_t bound = solver.Solve(counts, sources);
  solver.Split(counts, sources, quotas);
  return bound;
}

}  // namespace ballast
