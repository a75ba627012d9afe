#include "controller/planner/grouping/reasons.h"

#include <algorithm>
#include <tuple>

#include "proto/base/check.h"

namespace ballast {
namespace {

std::span<const int32_t> WorkersOf(const DispatchTable& table, int32_t e) {
  return std::span(table.rank).subspan(table.begin[e], table.begin[e + 1] - table.begin[e]);
}

// One layer, and the tokens of it that choose one expert.
class ExpertView {
 public:
  ExpertView(const LayerRoutes& layer, const DispatchTable& table, int32_t expert, int32_t workers)
      : layer_(layer), table_(table), expert_(expert), seen_(workers, -1) {
    for (size_t f = 0; f < layer.tasks.size(); ++f) {
      const std::span<const int32_t> experts = layer.tasks[f].experts;
      for (size_t at = 0; at < experts.size(); at += layer.top_k) {
        const auto token = experts.subspan(at, layer.top_k);
        if (std::find(token.begin(), token.end(), expert) != token.end()) tokens_.push_back({token, f});
      }
    }
  }

  // Workers that a token of the mix visits because it chooses the expert at all, were that on `held`.
  double Visits(std::span<const int32_t> held) {
    double sum = 0;
    int64_t turn = 0;
    for (const Token& token : tokens_) sum += Weight(token) * Visits(token, held, turn++);
    return sum;
  }

  // The part of the mix's tokens that choose the expert.
  double Part() const {
    double sum = 0;
    for (const Token& token : tokens_) sum += Weight(token);
    return sum;
  }

  std::vector<std::pair<int32_t, double>> Partners(int32_t worker) const {
    std::vector<double> together(layer_.experts);
    for (const Token& token : tokens_) {
      for (const int32_t e : token.experts) {
        if (e >= 0 && e != expert_) together[e] += Weight(token);
      }
    }
    std::vector<std::pair<int32_t, double>> out;
    for (int32_t e = 0; e < layer_.experts; ++e) {
      const auto held = WorkersOf(table_, e);
      if (together[e] > 0 && std::find(held.begin(), held.end(), worker) != held.end())
        out.emplace_back(e, together[e]);
    }
    return MostFirst(std::move(out));
  }

  std::vector<std::pair<std::string, double>> Tasks(const Routes& routes) const {
    std::vector<double> of_task(layer_.tasks.size());
    for (const Token& token : tokens_) of_task[token.task] += Weight(token);
    std::vector<std::pair<std::string, double>> out;
    for (size_t f = 0; f < of_task.size(); ++f) {
      if (of_task[f] > 0) out.emplace_back(routes.tasks[f].name, of_task[f]);
    }
    return MostFirst(std::move(out));
  }

 private:
  struct Token {
    std::span<const int32_t> experts;
    size_t task = 0;
  };

  double Weight(const Token& token) const {
    const LayerRoutes::Task& task = layer_.tasks[token.task];
    return task.weight / static_cast<double>(task.tokens);
  }

  template <typename Key>
  std::vector<std::pair<Key, double>> MostFirst(std::vector<std::pair<Key, double>> parts) const {
    std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    if (parts.size() > kMostPartners) parts.resize(kMostPartners);
    const double all = Part();
    for (auto& [key, part] : parts) part /= all;
    return parts;
  }

  int32_t Visits(const Token& token, std::span<const int32_t> held, int64_t turn) {
    ++mark_;
    int32_t visits = 0;
    const auto visit = [&](int32_t w) { visits += std::exchange(seen_[w], mark_) != mark_; };
    const auto workers = [&](int32_t e) { return e == expert_ ? held : WorkersOf(table_, e); };
    for (const int32_t e : token.experts) {
      if (e >= 0 && workers(e).size() == 1) visit(workers(e)[0]);
    }
    for (const int32_t e : token.experts) {
      if (e < 0 || workers(e).size() < 2) continue;
      const auto any = workers(e);
      if (std::any_of(any.begin(), any.end(), [&](int32_t w) { return seen_[w] == mark_; })) continue;
      visit(any[turn % static_cast<int64_t>(any.size())]);
    }
    return visits;
  }

  const LayerRoutes& layer_;
  const DispatchTable& table_;
  const int32_t expert_;
  std::vector<Token> tokens_;
  std::vector<int64_t> seen_;
  int64_t mark_ = 0;
};

}  // namespace

std::vector<ReplicaReason> ReasonsOf(ExpertId expert, std::span<const DispatchTable> before,
                                     std::span<const DispatchTable> after, const Routes& routes, int32_t workers) {
  const auto [l, e] = expert;
  BALLAST_CHECK(l >= 0 && l < routes.layers && e >= 0 && e < routes.experts) << "layer " << l << ", expert " << e;
  const LayerRoutes layer = LayerOf(routes, l);
  ExpertView view(layer, after[l], e, workers);
  const std::span<const int32_t> held = WorkersOf(after[l], e);
  const double visits = view.Visits(held);
  const std::span<const int32_t> old = before.empty() ? std::span<const int32_t>() : WorkersOf(before[l], e);
  std::vector<ReplicaReason> out;
  for (const int32_t w : held) {
    ReplicaReason& reason = out.emplace_back();
    reason.expert = expert;
    reason.worker = w;
    reason.moved = !old.empty() && std::find(old.begin(), old.end(), w) == old.end();
    reason.partners = view.Partners(w);
    reason.tasks = view.Tasks(routes);
    if (reason.moved) {
      reason.hops_saved = view.Visits(old) - visits;
    } else if (held.size() > 1) {
      std::vector<int32_t> others(held.begin(), held.end());
      others.erase(std::find(others.begin(), others.end(), w));
      reason.hops_saved = view.Visits(others) - visits;
    } else if (workers > 1) {
      for (int32_t other = 0; other < workers; ++other) {
        if (other != w) reason.hops_saved += view.Visits(std::span(&other, 1)) / (workers - 1);
      }
      reason.hops_saved -= visits;
    }
  }
  return out;
}

std::vector<ReplicaReason> ReasonsForMoves(std::span<const DispatchTable> before, std::span<const DispatchTable> after,
                                           const Routes& routes, int32_t workers, size_t most) {
  std::vector<ReplicaReason> out;
  for (int32_t l = 0; l < routes.layers && !before.empty(); ++l) {
    for (int32_t e = 0; e < routes.experts; ++e) {
      const auto old = WorkersOf(before[l], e), held = WorkersOf(after[l], e);
      const bool arrives = !old.empty() && std::any_of(held.begin(), held.end(), [&](int32_t w) {
        return std::find(old.begin(), old.end(), w) == old.end();
      });
      if (!arrives) continue;
      for (ReplicaReason& reason : ReasonsOf({l, e}, before, after, routes, workers)) {
        if (reason.moved) out.push_back(std::move(reason));
      }
    }
  }
  std::sort(out.begin(), out.end(), [](const ReplicaReason& a, const ReplicaReason& b) {
    return std::tuple(-a.hops_saved, a.expert, a.worker) < std::tuple(-b.hops_saved, b.expert, b.worker);
  });
  if (out.size() > most) out.resize(most);
  return out;
}

}  // namespace ballast
