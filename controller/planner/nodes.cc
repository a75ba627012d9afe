#include "controller/planner/nodes.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "controller/planner/anneal.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

constexpr int64_t kTriesPerWorker = 64;

// Nodes numbered from 0, and the part of the workers on each.
struct Nodes {
  explicit Nodes(const Topology& topology) {
    std::vector<int32_t> names;
    for (const TopologyWorker& w : topology.workers) names.push_back(w.node);
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    part.resize(names.size());
    for (const TopologyWorker& w : topology.workers) {
      of.push_back(static_cast<int32_t>(std::lower_bound(names.begin(), names.end(), w.node) - names.begin()));
      part[of.back()] += 1.0 / static_cast<double>(topology.workers.size());
    }
  }
  std::vector<int32_t> of;   // [workers]
  std::vector<double> part;  // [nodes]
};

class Spreader {
 public:
  Spreader(const DispatchTable& table, std::span<const double> tokens, Nodes nodes, const DispatchTable* current,
           Packs& packs)
      : nodes_(std::move(nodes)),
        node_count_(nodes_.part.size()),
        tokens_(tokens),
        packs_(packs),
        part_(packs.size()),
        on_node_(tokens.size() * node_count_),
        held_(current != nullptr ? packs.size() : 0) {
    for (int32_t e = 0; e < table.num_experts(); ++e) {
      double sum = 0;
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) sum += table.weight[r];
      for (int32_t r = table.begin[e]; r < table.begin[e + 1]; ++r) {
        const int32_t w = table.rank[r];
        part_[w].push_back({e, table.weight[r] / sum});
        on_node_[e * node_count_ + nodes_.of[w]] += table.weight[r] / sum;
      }
      if (current == nullptr) continue;
      for (int32_t r = current->begin[e]; r < current->begin[e + 1]; ++r) held_[current->rank[r]].push_back(e);
    }
  }

  void Run(std::span<const int32_t> kind) {
    internal::Random random(1);
    const auto workers = static_cast<uint32_t>(packs_.size());
    for (int64_t i = 0; i < kTriesPerWorker * workers; ++i) {
      const uint64_t bits = random.Next();
      const auto a = static_cast<int32_t>(internal::Random::Below(static_cast<uint32_t>(bits), workers));
      const auto b = static_cast<int32_t>(internal::Random::Below(static_cast<uint32_t>(bits >> 32), workers));
      if (nodes_.of[a] == nodes_.of[b] || kind[a] != kind[b] || Gain(a, b) <= 1e-9) continue;
      if (!held_.empty() && Stays(a, b) + Stays(b, a) < Stays(a, a) + Stays(b, b)) continue;
      Swap(a, b);
    }
  }

 private:
  struct Part {
    int32_t expert;
    double part;
  };

  // Calls change(expert, what worker a's node loses of it to b's) for experts of either.
  template <typename Change>
  void ForEachChange(int32_t a, int32_t b, Change change) const {
    // Both by expert, ascending.
    auto of_a = part_[a].begin();
    auto of_b = part_[b].begin();
    while (of_a != part_[a].end() || of_b != part_[b].end()) {
      if (of_b == part_[b].end() || (of_a != part_[a].end() && of_a->expert < of_b->expert)) {
        change(of_a->expert, of_a->part);
        ++of_a;
      } else if (of_a == part_[a].end() || of_b->expert < of_a->expert) {
        change(of_b->expert, -of_b->part);
        ++of_b;
      } else {
        change(of_a->expert, of_a->part - of_b->part);
        ++of_a;
        ++of_b;
      }
    }
  }

  // Tokens that cross no more when packs a and b change places, over those that cross now.
  double Gain(int32_t a, int32_t b) const {
    const int32_t node_a = nodes_.of[a];
    const int32_t node_b = nodes_.of[b];
    const double most_a = nodes_.part[node_a];
    const double most_b = nodes_.part[node_b];
    double gain = 0;
    double size = 0;
    ForEachChange(a, b, [&](int32_t e, double less) {
      const double on_a = on_node_[e * node_count_ + node_a];
      const double on_b = on_node_[e * node_count_ + node_b];
      size += tokens_[e];
      gain += tokens_[e] * (std::min(most_a, on_a - less) + std::min(most_b, on_b + less) - std::min(most_a, on_a) -
                            std::min(most_b, on_b));
    });
    return size > 0 ? gain / size : 0;
  }

  void Swap(int32_t a, int32_t b) {
    ForEachChange(a, b, [&](int32_t e, double less) {
      on_node_[e * node_count_ + nodes_.of[a]] -= less;
      on_node_[e * node_count_ + nodes_.of[b]] += less;
    });
    std::swap(part_[a], part_[b]);
    std::swap(packs_[a], packs_[b]);
  }

  // Replicas of pack `from` that worker `to` holds now.
  int32_t Stays(int32_t from, int32_t to) const {
    int32_t count = 0;
    for (const Part& p : part_[from]) count += std::binary_search(held_[to].begin(), held_[to].end(), p.expert);
    return count;
  }

  const Nodes nodes_;
  const size_t node_count_;
  const std::span<const double> tokens_;
  Packs& packs_;
  std::vector<std::vector<Part>> part_;     // [workers], by expert
  std::vector<double> on_node_;             // [experts][nodes] parts of the expert's tokens
  std::vector<std::vector<int32_t>> held_;  // [workers] ascending; empty without `current`
};

}  // namespace

CrossNodeCounter::CrossNodeCounter(const Topology& topology) {
  Nodes nodes(topology);
  node_of_ = std::move(nodes.of);
  part_ = std::move(nodes.part);
  on_node_.resize(part_.size());
}

double CrossNodeCounter::Part(const DispatchTable& layer, std::span<const double> tokens) {
  if (part_.size() == 1) return 0;
  double total = 0;
  double inside = 0;
  for (int32_t e = 0; e < layer.num_experts(); ++e) {
    total += tokens[e];
    const int32_t first = layer.begin[e];
    const int32_t last = layer.begin[e + 1];
    if (last - first == 1) {
      inside += tokens[e] * part_[node_of_[layer.rank[first]]];
      continue;
    }
    if (first == last) continue;
    std::fill(on_node_.begin(), on_node_.end(), 0);
    double sum = 0;
    for (int32_t r = first; r < last; ++r) {
      on_node_[node_of_[layer.rank[r]]] += layer.weight[r];
      sum += layer.weight[r];
    }
    for (size_t n = 0; n < on_node_.size(); ++n) {
      if (on_node_[n] > 0) inside += tokens[e] * std::min(part_[n], on_node_[n] / sum);
    }
  }
  return total == 0 ? 0 : std::max(0.0, 1 - inside / total);
}

double CrossNodePart(const DispatchTable& layer, std::span<const double> tokens, const Topology& topology) {
  return CrossNodeCounter(topology).Part(layer, tokens);
}

void SpreadOverNodes(const DispatchTable& table, std::span<const double> tokens, const Topology& topology,
                     std::span<const int32_t> kind, const DispatchTable* current, Packs& packs) {
  BALLAST_CHECK(packs.size() == topology.workers.size() && kind.size() == packs.size()) << packs.size() << " packs";
  Nodes nodes(topology);
  if (nodes.part.size() > 1) Spreader(table, tokens, std::move(nodes), current, packs).Run(kind);
}

}  // namespace ballast
