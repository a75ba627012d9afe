// What a daemon shows Prometheus, read once.
#ifndef BALLAST_TESTS_CLUSTER_METRICS_H_
#define BALLAST_TESTS_CLUSTER_METRICS_H_

#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ballast {

// By name with labels, as on the page: `ballast_dispatch_copies_total{link="node"}`. Unavailable: nobody listens at
// `address` (host:port).
absl::StatusOr<std::map<std::string, double>> ReadMetrics(const std::string& address);

// The sum over the series of `name` that have every one of `labels`, each like `link="node"`.
double SumOf(const std::map<std::string, double>& metrics, std::string_view name,
             std::initializer_list<std::string_view> labels = {});

}  // namespace ballast

#endif  // BALLAST_TESTS_CLUSTER_METRICS_H_
