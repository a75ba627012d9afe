// Prometheus metrics: definitions that a program states up front, handles that code holds, an HTTP exposer.
//
//   Metrics metrics(kMyMetrics);
//   metrics.Counter("ballast_move_bytes_total", {worker, "peer"}).Add(bytes);
//   absl::StatusOr<int> port = metrics.Serve("127.0.0.1:0");
//
// Thread-safe. Handles are cheap to copy, stay valid as long as the Metrics they come from (a removed series' handle
// must not be used any more), and updating one is a few atomic instructions: hold them rather than looking them up on a
// hot path.
#ifndef BALLAST_PROTO_BASE_METRICS_H_
#define BALLAST_PROTO_BASE_METRICS_H_

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
}  // namespace prometheus

namespace ballast {

enum class MetricType { kCounter, kGauge, kHistogram };

// One row of dashboards/metrics.md.
struct MetricDef {
  // "ballast_..." with the unit at its end.
  std::string_view name;
  MetricType type;
  // "tokens", "bytes", "seconds", "ratio", or "1" for plain counts and numbers.
  std::string_view unit;
  std::vector<std::string_view> labels;
  // One sentence.
  std::string_view meaning;
  // Of histograms: upper bounds, ascending.
  std::vector<double> buckets;
};

class CounterHandle {
 public:
  // `amount` is at least 0.
  void Add(double amount = 1);

 private:
  friend class Metrics;
  prometheus::Counter* counter_ = nullptr;
};

class GaugeHandle {
 public:
  void Set(double value);

 private:
  friend class Metrics;
  prometheus::Gauge* gauge_ = nullptr;
};

class HistogramHandle {
 public:
  void Observe(double value);
  // Values counted elsewhere: `counts` by bucket, one more than the definition has bounds, and their sum.
  void Add(std::span<const double> counts, double sum);

 private:
  friend class Metrics;
  prometheus::Histogram* histogram_ = nullptr;
};

class Metrics {
 public:
  // `defs` are copied. Every series has the labels `common` beside those of its definition. Checks that names are
  // unique and that only histograms have buckets.
  explicit Metrics(std::span<const MetricDef> defs, const std::map<std::string, std::string>& common = {});
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  // The series of `name` with these label values, in the definition's order; made by the first call. Checks that `name`
  // is defined with this type and as many labels.
  CounterHandle Counter(std::string_view name, const std::vector<std::string>& label_values = {});
  GaugeHandle Gauge(std::string_view name, const std::vector<std::string>& label_values = {});
  HistogramHandle Histogram(std::string_view name, const std::vector<std::string>& label_values = {});

  // Forgets series of `name` whose first labels have these values (none: all of them), so that what is gone is not
  // shown for ever.
  void Remove(std::string_view name, const std::vector<std::string>& label_values_prefix = {});

  // What a scrape sees: Prometheus' text format, definitions without a series left out.
  std::string Text() const;

  // Serves GET /metrics on "host:port" until destroyed; port 0 takes any free one. Returns the port. Call once.
  //   Unavailable  the address cannot be bound.
  absl::StatusOr<int> Serve(const std::string& address);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Empty when `markdown` (dashboards/metrics.md) has exactly one row that begins with
// `| name | type | unit | labels | meaning |` for each of `defs` in the table under the heading `## <section>`, and no
// other row there; otherwise one line a difference. What follows in a row is the dashboards' (dashboards/generate.py).
std::vector<std::string> CompareWithTable(std::string_view markdown, std::string_view section,
                                          std::span<const MetricDef> defs);

// The rows as CompareWithTable wants them, sorted by name; with the table's head.
std::string MetricsTable(std::span<const MetricDef> defs);

}  // namespace ballast

#endif  // BALLAST_PROTO_BASE_METRICS_H_
