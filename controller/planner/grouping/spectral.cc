#include "controller/planner/grouping/spectral.h"

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Eigenvalues>
#include <limits>
#include <numeric>
#include <utility>

#include "controller/planner/anneal.h"
#include "proto/base/check.h"

namespace ballast {
namespace {

using Rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

double Uniform(internal::Random& random) { return static_cast<double>(random.Next() >> 11) * 0x1p-53; }

// k-means++: each next centre is a point drawn with the square of its distance to the nearest centre so far.
Rows SeedCentres(const Rows& points, int32_t clusters, internal::Random& random) {
  const auto n = static_cast<int32_t>(points.rows());
  Rows centres(clusters, points.cols());
  Eigen::VectorXd distance = Eigen::VectorXd::Constant(n, std::numeric_limits<double>::max());
  int32_t next = static_cast<int32_t>(Uniform(random) * n);
  for (int32_t c = 0; c < clusters; ++c) {
    centres.row(c) = points.row(next);
    for (int32_t i = 0; i < n; ++i) {
      distance[i] = std::min(distance[i], (points.row(i) - centres.row(c)).squaredNorm());
    }
    double at = Uniform(random) * distance.sum();
    next = n - 1;
    for (int32_t i = 0; i < n; ++i) {
      at -= distance[i];
      if (at < 0) {
        next = i;
        break;
      }
    }
  }
  return centres;
}

double KMeans(const Rows& points, int32_t iterations, Rows& centres, std::vector<int32_t>& cluster) {
  const auto n = static_cast<int32_t>(points.rows());
  double inertia = 0;
  cluster.assign(n, -1);
  for (int32_t it = 0; it < iterations; ++it) {
    bool changed = false;
    inertia = 0;
    for (int32_t i = 0; i < n; ++i) {
      Eigen::Index best = 0;
      inertia += (centres.rowwise() - points.row(i)).rowwise().squaredNorm().minCoeff(&best);
      changed |= cluster[i] != best;
      cluster[i] = static_cast<int32_t>(best);
    }
    if (!changed) break;
    Rows sums = Rows::Zero(centres.rows(), centres.cols());
    std::vector<int32_t> size(centres.rows());
    for (int32_t i = 0; i < n; ++i) {
      sums.row(cluster[i]) += points.row(i);
      ++size[cluster[i]];
    }
    // An empty cluster keeps its centre.
    for (Eigen::Index c = 0; c < centres.rows(); ++c) {
      if (size[c] > 0) centres.row(c) = sums.row(c) / size[c];
    }
  }
  return inertia;
}

double ToPack(const Affinity& affinity, int32_t expert, const std::vector<int32_t>& pack) {
  double sum = 0;
  for (const int32_t other : pack) sum += affinity(expert, other);
  return sum;
}

}  // namespace

std::vector<int32_t> SpectralClusters(const Affinity& affinity, int32_t clusters, const SpectralOptions& options) {
  const int32_t n = affinity.experts;
  BALLAST_CHECK(clusters >= 1 && clusters <= n) << clusters << " clusters of " << n;
  const double max = *std::max_element(affinity.values.begin(), affinity.values.end());
  Eigen::MatrixXd a(n, n);
  for (int32_t i = 0; i < n; ++i) {
    for (int32_t j = 0; j < n; ++j) {
      a(i, j) = (max > 0 ? (affinity(i, j) + affinity(j, i)) / (2 * max) : 0) + (i == j ? options.jitter : 0);
    }
  }
  const Eigen::VectorXd scale = a.rowwise().sum().array().rsqrt();
  const Eigen::MatrixXd laplacian = Eigen::MatrixXd::Identity(n, n) - scale.asDiagonal() * a * scale.asDiagonal();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(laplacian);
  BALLAST_CHECK(solver.info() == Eigen::Success) << "eigenvectors of " << n << " experts";
  const Rows points = solver.eigenvectors().leftCols(clusters);

  internal::Random random(1);
  std::vector<int32_t> best, cluster;
  double least = std::numeric_limits<double>::max();
  for (int32_t run = 0; run < options.restarts; ++run) {
    Rows centres = SeedCentres(points, clusters, random);
    const double inertia = KMeans(points, options.iterations, centres, cluster);
    if (inertia < least) {
      least = inertia;
      best = cluster;
    }
  }
  return best;
}

Packs RepairSizes(const Affinity& affinity, std::span<const int32_t> cluster, std::span<const int32_t> sizes) {
  BALLAST_CHECK(std::accumulate(sizes.begin(), sizes.end(), 0) == affinity.experts &&
                static_cast<int32_t>(cluster.size()) == affinity.experts)
      << cluster.size() << " experts";
  Packs packs(sizes.size());
  for (int32_t e = 0; e < affinity.experts; ++e) packs[cluster[e]].push_back(e);
  std::vector<int32_t> overflow;
  for (size_t m = 0; m < packs.size(); ++m) {
    std::vector<int32_t>& pack = packs[m];
    if (static_cast<int32_t>(pack.size()) <= sizes[m]) continue;
    std::vector<std::pair<double, int32_t>> order;
    for (const int32_t e : pack) order.emplace_back(-ToPack(affinity, e, pack), e);
    std::sort(order.begin(), order.end());
    pack.clear();
    for (size_t i = 0; i < order.size(); ++i) {
      (static_cast<int32_t>(i) < sizes[m] ? pack : overflow).push_back(order[i].second);
    }
  }
  std::vector<std::pair<double, int32_t>> order;
  for (const int32_t e : overflow) {
    double most = 0;
    for (size_t m = 0; m < packs.size(); ++m) {
      if (static_cast<int32_t>(packs[m].size()) < sizes[m]) most = std::max(most, ToPack(affinity, e, packs[m]));
    }
    order.emplace_back(-most, e);
  }
  std::sort(order.begin(), order.end());
  for (const auto& [strength, e] : order) {
    size_t best = packs.size();
    double most = -1;
    for (size_t m = 0; m < packs.size(); ++m) {
      if (static_cast<int32_t>(packs[m].size()) == sizes[m]) continue;
      if (const double to = ToPack(affinity, e, packs[m]); to > most) {
        most = to;
        best = m;
      }
    }
    packs[best].push_back(e);
  }
  for (std::vector<int32_t>& pack : packs) std::sort(pack.begin(), pack.end());
  return packs;
}

double WithinAffinity(const Affinity& affinity, const Packs& packs) {
  double sum = 0;
  for (const std::vector<int32_t>& pack : packs) {
    for (const int32_t e : pack) sum += ToPack(affinity, e, pack);
  }
  return sum;
}

void SwapPacks(const Affinity& affinity, Packs& packs) {
  const int32_t n = affinity.experts;
  const auto m = static_cast<int32_t>(packs.size());
  // [experts][packs]
  std::vector<double> to(static_cast<size_t>(n) * m);
  std::vector<std::pair<int32_t, int32_t>> place(n);
  for (int32_t p = 0; p < m; ++p) {
    for (size_t i = 0; i < packs[p].size(); ++i) place[packs[p][i]] = {p, static_cast<int32_t>(i)};
  }
  for (int32_t e = 0; e < n; ++e) {
    for (int32_t p = 0; p < m; ++p) to[e * m + p] = ToPack(affinity, e, packs[p]);
  }
  // Above rounding: so that it ends.
  const double least = 1e-9 * (1 + WithinAffinity(affinity, packs));
  bool changed = true;
  while (changed) {
    changed = false;
    for (int32_t a = 0; a < n; ++a) {
      for (int32_t b = a + 1; b < n; ++b) {
        const auto [x, i] = place[a];
        const auto [y, j] = place[b];
        if (x == y) continue;
        if (to[a * m + y] - to[a * m + x] + to[b * m + x] - to[b * m + y] - 2 * affinity(a, b) <= least) continue;
        std::swap(packs[x][i], packs[y][j]);
        std::swap(place[a], place[b]);
        for (int32_t e = 0; e < n; ++e) {
          const double d = affinity(e, a) - affinity(e, b);
          to[e * m + x] -= d;
          to[e * m + y] += d;
        }
        changed = true;
      }
    }
  }
  for (std::vector<int32_t>& pack : packs) std::sort(pack.begin(), pack.end());
}

}  // namespace ballast
