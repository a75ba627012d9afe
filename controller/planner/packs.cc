#include "controller/planner/packs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "proto/base/check.h"

namespace ballast {
namespace {

constexpr int32_t kMostExact = 128;
// Slots that MakeDistinct looks at for replicas to change places with: far more than a layer of hundreds of workers
// takes. Where nearly all replicas are of one expert, as of a layer without load, it would take the square of the
// slots.
constexpr int64_t kMostSwapSearches = 20'000'000;
// Pairs of a pack and a worker that holds one of its experts, by expert: of more, some are looked at.
constexpr int64_t kMostPairs = 1'000'000;

bool Holds(const std::vector<int32_t>& pack, int32_t expert) {
  return std::find(pack.begin(), pack.end(), expert) != pack.end();
}

// (value, row, column)
using Values = std::vector<std::tuple<int64_t, int32_t, int32_t>>;

// The greatest first; the rest of the rows keep their column where it is free.
std::vector<int32_t> GreedyAssignment(Values values, int32_t n) {
  std::sort(values.begin(), values.end(), [](const auto& a, const auto& b) {
    return std::get<0>(a) != std::get<0>(b) ? std::get<0>(a) > std::get<0>(b) : a < b;
  });
  std::vector<int32_t> column(n, -1);
  std::vector<bool> taken(n);
  for (const auto& [value, row, col] : values) {
    if (column[row] >= 0 || taken[col]) continue;
    column[row] = col;
    taken[col] = true;
  }
  for (int32_t row = 0; row < n; ++row) {
    if (column[row] < 0 && !taken[row]) {
      column[row] = row;
      taken[row] = true;
    }
  }
  int32_t next = 0;
  for (int32_t row = 0; row < n; ++row) {
    if (column[row] >= 0) continue;
    while (taken[next]) ++next;
    column[row] = next;
    taken[next] = true;
  }
  return column;
}

// Pairs that are not in `values` count 0, or 1 on the diagonal.
std::vector<int32_t> Assign(const Values& values, int32_t n) {
  if (n > kMostExact) return GreedyAssignment(values, n);
  std::vector<int64_t> matrix(static_cast<size_t>(n) * n);
  for (int32_t i = 0; i < n; ++i) matrix[i * n + i] = 1;
  for (const auto& [value, row, column] : values) matrix[row * n + column] = value;
  return BestAssignment(matrix, n);
}

// How many of each pack's replicas each worker holds, for pairs with any; where there are very many pairs, for the
// worker that has the pack's place and some others. One more where the pack is: a tie leaves it in place.
Values Stays(const Packs& packs, const DispatchTable& current) {
  const auto workers = static_cast<int32_t>(packs.size());
  const int64_t tie = workers + 1;
  std::vector<int64_t> packs_of(current.num_experts());
  int64_t slots = 0;
  for (const auto& pack : packs) {
    slots += std::ssize(pack);
    for (const int32_t e : pack) ++packs_of[e];
  }
  int64_t pairs = 0;
  for (int32_t e = 0; e < current.num_experts(); ++e) pairs += packs_of[e] * (current.begin[e + 1] - current.begin[e]);
  // Holders of an expert that each of its packs looks at: the first pack at the first ones, the last at the last.
  const int64_t most = pairs <= kMostPairs ? workers : std::max<int64_t>(1, kMostPairs / slots);
  std::vector<int64_t> seen(packs_of.size());
  Values stays;
  std::vector<int64_t> row(workers);
  std::vector<int32_t> touched;
  const auto count = [&](int32_t w) {
    if (row[w]++ == 0) touched.push_back(w);
  };
  for (int32_t p = 0; p < workers; ++p) {
    for (const int32_t e : packs[p]) {
      const int64_t holders = current.begin[e + 1] - current.begin[e];
      if (holders <= most) {
        for (int32_t r = current.begin[e]; r < current.begin[e + 1]; ++r) count(current.rank[r]);
        continue;
      }
      const auto first = current.rank.begin() + current.begin[e];
      const auto last = first + holders;
      const int64_t from = std::min(seen[e]++ * holders / packs_of[e], holders - most);
      const auto here = std::lower_bound(first, last, p);
      if (here != last && *here == p && (here - first < from || here - first >= from + most)) count(p);
      std::for_each(first + from, first + from + most, count);
    }
    std::sort(touched.begin(), touched.end());
    for (const int32_t w : touched) {
      stays.push_back({tie * row[w] + (p == w), p, w});
      row[w] = 0;
    }
    touched.clear();
  }
  return stays;
}

}  // namespace

void MakeDistinct(std::span<const double> tokens, Packs& packs) {
  std::vector<int32_t> count(tokens.size());
  for (const auto& pack : packs) {
    for (const int32_t e : pack) ++count[e];
  }
  const auto part = [&](int32_t e) { return tokens[e] / count[e]; };
  int64_t left = kMostSwapSearches;
  std::vector<bool> here(tokens.size());
  for (auto& pack : packs) {
    BALLAST_CHECK(pack.size() <= tokens.size()) << pack.size() << " replicas of " << tokens.size() << " experts";
    for (const int32_t e : pack) here[e] = true;
    for (size_t i = 0; i < pack.size(); ++i) {
      const int32_t e = pack[i];
      if (std::find(pack.begin(), pack.begin() + i, e) == pack.begin() + i) continue;
      int32_t* best = nullptr;
      double nearest = std::numeric_limits<double>::infinity();
      for (auto other = packs.begin(); other != packs.end() && left > 0; ++other) {
        left -= std::ssize(*other);
        if (Holds(*other, e)) continue;
        for (int32_t& f : *other) {
          const double distance = std::abs(part(f) - part(e));
          if (distance < nearest && !here[f]) {
            nearest = distance;
            best = &f;
          }
        }
      }
      if (best != nullptr) {
        std::swap(*best, pack[i]);
        here[pack[i]] = true;
        continue;
      }
      int32_t hottest = -1;
      for (int32_t f = 0; f < static_cast<int32_t>(tokens.size()); ++f) {
        if (!here[f] && (hottest < 0 || part(f) > part(hottest))) hottest = f;
      }
      --count[e];
      ++count[hottest];
      pack[i] = hottest;
      here[hottest] = true;
    }
    for (const int32_t e : pack) here[e] = false;
  }
}

Packs Relabel(const Packs& packs, const DispatchTable& current, int32_t block) {
  const auto workers = static_cast<int32_t>(packs.size());
  if (block == workers) return Relabel(packs, current, std::vector<int32_t>(workers));
  // Each pair of blocks at its best, then the blocks.
  const int32_t blocks = workers / block;
  std::vector<Values> inner(blocks * blocks);
  for (const auto& [value, p, w] : Stays(packs, current)) {
    inner[p / block * blocks + w / block].push_back({value, p % block, w % block});
  }
  std::vector<std::vector<int32_t>> place(blocks * blocks);
  Values outer;
  for (int32_t i = 0; i < blocks * blocks; ++i) {
    place[i] = Assign(inner[i], block);
    int64_t sum = i / blocks == i % blocks ? 1 : 0;
    for (const auto& [value, p, w] : inner[i]) {
      if (place[i][p] == w) sum += (blocks + 1) * value;
    }
    outer.push_back({sum, i / blocks, i % blocks});
  }
  const std::vector<int32_t> block_of = Assign(outer, blocks);
  Packs out(workers);
  for (int32_t p = 0; p < workers; ++p) {
    const int32_t to = block_of[p / block];
    out[to * block + place[p / block * blocks + to][p % block]] = packs[p];
  }
  return out;
}

Packs Relabel(const Packs& packs, const DispatchTable& current, std::span<const int32_t> kind) {
  const std::vector<int32_t> to = StayingPlaces(packs, current, kind);
  Packs out(packs.size());
  for (size_t p = 0; p < packs.size(); ++p) out[to[p]] = packs[p];
  return out;
}

std::vector<int32_t> StayingPlaces(const Packs& packs, const DispatchTable& current, std::span<const int32_t> kind) {
  // Workers of a kind, and each worker's place among them.
  std::vector<int32_t> kinds(kind.begin(), kind.end());
  std::sort(kinds.begin(), kinds.end());
  kinds.erase(std::unique(kinds.begin(), kinds.end()), kinds.end());
  std::vector<std::vector<int32_t>> members(kinds.size());
  std::vector<int32_t> place(packs.size());
  const auto index = [&](int32_t w) { return std::lower_bound(kinds.begin(), kinds.end(), kind[w]) - kinds.begin(); };
  for (size_t w = 0; w < packs.size(); ++w) {
    auto& alike = members[index(static_cast<int32_t>(w))];
    place[w] = static_cast<int32_t>(alike.size());
    alike.push_back(static_cast<int32_t>(w));
  }
  std::vector<Values> stays(kinds.size());
  for (const auto& [value, p, w] : Stays(packs, current)) {
    if (kind[p] == kind[w]) stays[index(p)].push_back({value, place[p], place[w]});
  }
  std::vector<int32_t> out(packs.size());
  for (size_t k = 0; k < kinds.size(); ++k) {
    const std::vector<int32_t> to = Assign(stays[k], static_cast<int32_t>(members[k].size()));
    for (size_t i = 0; i < to.size(); ++i) out[members[k][i]] = members[k][to[i]];
  }
  return out;
}

DispatchTable ToTable(const Packs& packs, int32_t experts) {
  DispatchTable table;
  table.begin.assign(experts + 1, 0);
  for (const auto& pack : packs) {
    for (const int32_t e : pack) ++table.begin[e + 1];
  }
  for (int32_t e = 0; e < experts; ++e) table.begin[e + 1] += table.begin[e];
  table.rank.resize(table.begin[experts]);
  table.weight.assign(table.begin[experts], 0);
  std::vector<int32_t> next(table.begin.begin(), table.begin.end() - 1);
  for (size_t w = 0; w < packs.size(); ++w) {
    for (const int32_t e : packs[w]) table.rank[next[e]++] = static_cast<int32_t>(w);
  }
  return table;
}

std::vector<int32_t> BestAssignment(std::span<const int64_t> values, int32_t n) {
  // Shortest augmenting paths over costs -value, with potentials; rows and columns from 1, 0 is the root.
  constexpr int64_t kFar = std::numeric_limits<int64_t>::max() / 4;
  std::vector<int64_t> row_potential(n + 1);
  std::vector<int64_t> column_potential(n + 1);
  std::vector<int32_t> row_of(n + 1);
  std::vector<int32_t> before(n + 1);
  std::vector<int64_t> distance(n + 1);
  std::vector<bool> done(n + 1);
  for (int32_t row = 1; row <= n; ++row) {
    row_of[0] = row;
    std::fill(distance.begin(), distance.end(), kFar);
    std::fill(done.begin(), done.end(), false);
    int32_t column = 0;
    do {
      done[column] = true;
      const int32_t from = row_of[column];
      int64_t step = kFar;
      int32_t nearest = 0;
      for (int32_t j = 1; j <= n; ++j) {
        if (done[j]) continue;
        const int64_t cost =
            -values[static_cast<size_t>(from - 1) * n + j - 1] - row_potential[from] - column_potential[j];
        if (cost < distance[j]) {
          distance[j] = cost;
          before[j] = column;
        }
        if (distance[j] < step) {
          step = distance[j];
          nearest = j;
        }
      }
      for (int32_t j = 0; j <= n; ++j) {
        if (done[j]) {
          row_potential[row_of[j]] += step;
          column_potential[j] -= step;
        } else {
          distance[j] -= step;
        }
      }
      column = nearest;
    } while (row_of[column] != 0);
    do {
      row_of[column] = row_of[before[column]];
      column = before[column];
    } while (column != 0);
  }
  std::vector<int32_t> out(n);
  for (int32_t j = 1; j <= n; ++j) out[row_of[j] - 1] = j - 1;
  return out;
}

}  // namespace ballast
