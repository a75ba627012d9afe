#include "proto/base/metrics.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <map>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "prometheus/counter.h"
#include "prometheus/exposer.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"
#include "proto/base/check.h"
#include "proto/base/mutex.h"

namespace ballast {
namespace {

// Connects and goes away. Nobody need be there.
void Knock(const std::string& host, int port) {
  addrinfo* addresses = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), nullptr, &addresses) != 0) return;
  for (const addrinfo* at = addresses; at != nullptr; at = at->ai_next) {
    const int fd = socket(at->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    connect(fd, at->ai_addr, at->ai_addrlen);
    close(fd);
  }
  freeaddrinfo(addresses);
}

std::string_view TypeName(MetricType type) {
  switch (type) {
    case MetricType::kCounter:
      return "counter";
    case MetricType::kGauge:
      return "gauge";
    case MetricType::kHistogram:
      return "histogram";
  }
  return "";
}

std::string Row(const MetricDef& def) {
  const std::string labels =
      def.labels.empty()
          ? ""
          : absl::StrCat(
                "`",
                absl::StrJoin(def.labels, "`, `", [](std::string* out, std::string_view label) { out->append(label); }),
                "`");
  std::ostringstream row;
  row << "| `" << def.name << "` | " << TypeName(def.type) << " | " << def.unit << " | " << labels << " | "
      << def.meaning << " |";
  return std::move(row).str();
}

}  // namespace

void CounterHandle::Add(double amount) { counter_->Increment(amount); }
void GaugeHandle::Set(double value) { gauge_->Set(value); }
void HistogramHandle::Observe(double value) { histogram_->Observe(value); }
void HistogramHandle::Add(std::span<const double> counts, double sum) {
  histogram_->ObserveMultiple({counts.begin(), counts.end()}, sum);
}

struct Metrics::Impl {
  struct Series {
    prometheus::Counter* counter = nullptr;
    prometheus::Gauge* gauge = nullptr;
    prometheus::Histogram* histogram = nullptr;
  };
  struct Entry {
    std::string name;
    std::string meaning;
    MetricType type;
    std::vector<std::string> labels;
    std::vector<double> buckets;
    prometheus::Family<prometheus::Counter>* counters = nullptr;
    prometheus::Family<prometheus::Gauge>* gauges = nullptr;
    prometheus::Family<prometheus::Histogram>* histograms = nullptr;
    std::map<std::vector<std::string>, Series> series;
  };

  Series& Find(std::string_view name, MetricType type, const std::vector<std::string>& values) BALLAST_REQUIRES(mu) {
    auto it = entries.find(name);
    BALLAST_CHECK(it != entries.end()) << "metric " << name << " is not defined";
    Entry& entry = it->second;
    BALLAST_CHECK(entry.type == type) << "metric " << name << " is a " << TypeName(entry.type);
    BALLAST_CHECK(entry.labels.size() == values.size())
        << "metric " << name << " has " << entry.labels.size() << " labels, not " << values.size();
    auto [found, inserted] = entry.series.try_emplace(values);
    if (!inserted) return found->second;
    std::map<std::string, std::string> labels;
    for (size_t i = 0; i < values.size(); ++i) labels[entry.labels[i]] = values[i];
    switch (type) {
      case MetricType::kCounter:
        found->second.counter = &entry.counters->Add(labels);
        break;
      case MetricType::kGauge:
        found->second.gauge = &entry.gauges->Add(labels);
        break;
      case MetricType::kHistogram:
        found->second.histogram = &entry.histograms->Add(labels, entry.buckets);
        break;
    }
    return found->second;
  }

  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  Mutex mu;
  std::map<std::string, Entry, std::less<>> entries BALLAST_GUARDED_BY(mu);
  // Last: its threads stop before the registry goes.
  std::unique_ptr<prometheus::Exposer> exposer;
  // Where it listens.
  std::string host;
  int port = 0;
};

Metrics::Metrics(std::span<const MetricDef> defs, const std::map<std::string, std::string>& common)
    : impl_(std::make_unique<Impl>()) {
  const auto build = [&](auto builder, const Impl::Entry& entry) {
    return &builder.Name(entry.name).Help(entry.meaning).Labels(common).Register(*impl_->registry);
  };
  MutexLock lock(impl_->mu);
  for (const MetricDef& def : defs) {
    BALLAST_CHECK((def.type == MetricType::kHistogram) == !def.buckets.empty()) << def.name;
    Impl::Entry entry{.name = std::string(def.name),
                      .meaning = std::string(def.meaning),
                      .type = def.type,
                      .labels = {def.labels.begin(), def.labels.end()},
                      .buckets = def.buckets};
    switch (def.type) {
      case MetricType::kCounter:
        entry.counters = build(prometheus::BuildCounter(), entry);
        break;
      case MetricType::kGauge:
        entry.gauges = build(prometheus::BuildGauge(), entry);
        break;
      case MetricType::kHistogram:
        entry.histograms = build(prometheus::BuildHistogram(), entry);
        break;
    }
    const bool inserted = impl_->entries.try_emplace(std::string(def.name), std::move(entry)).second;
    BALLAST_CHECK(inserted) << "metric " << def.name << " is defined twice";
  }
}

// The HTTP server looks at whether it is to stop when somebody connects, or else every two seconds.
Metrics::~Metrics() {
  if (impl_->exposer == nullptr) return;
  std::atomic<bool> stopped = false;
  std::thread stop([&] {
    impl_->exposer.reset();
    stopped = true;
  });
  while (!stopped) {
    Knock(impl_->host, impl_->port);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stop.join();
}

CounterHandle Metrics::Counter(std::string_view name, const std::vector<std::string>& label_values) {
  MutexLock lock(impl_->mu);
  CounterHandle handle;
  handle.counter_ = impl_->Find(name, MetricType::kCounter, label_values).counter;
  return handle;
}

GaugeHandle Metrics::Gauge(std::string_view name, const std::vector<std::string>& label_values) {
  MutexLock lock(impl_->mu);
  GaugeHandle handle;
  handle.gauge_ = impl_->Find(name, MetricType::kGauge, label_values).gauge;
  return handle;
}

HistogramHandle Metrics::Histogram(std::string_view name, const std::vector<std::string>& label_values) {
  MutexLock lock(impl_->mu);
  HistogramHandle handle;
  handle.histogram_ = impl_->Find(name, MetricType::kHistogram, label_values).histogram;
  return handle;
}

void Metrics::Remove(std::string_view name, const std::vector<std::string>& label_values_prefix) {
  MutexLock lock(impl_->mu);
  auto it = impl_->entries.find(name);
  BALLAST_CHECK(it != impl_->entries.end()) << "metric " << name << " is not defined";
  Impl::Entry& entry = it->second;
  for (auto series = entry.series.begin(); series != entry.series.end();) {
    const std::vector<std::string>& values = series->first;
    if (label_values_prefix.size() > values.size() ||
        !std::equal(label_values_prefix.begin(), label_values_prefix.end(), values.begin())) {
      ++series;
      continue;
    }
    if (series->second.counter != nullptr) entry.counters->Remove(series->second.counter);
    if (series->second.gauge != nullptr) entry.gauges->Remove(series->second.gauge);
    if (series->second.histogram != nullptr) entry.histograms->Remove(series->second.histogram);
    series = entry.series.erase(series);
  }
}

std::string Metrics::Text() const { return prometheus::TextSerializer().Serialize(impl_->registry->Collect()); }

absl::StatusOr<int> Metrics::Serve(const std::string& address) {
  BALLAST_CHECK(impl_->exposer == nullptr) << "Serve is called once";
  try {
    impl_->exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/1);
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("metrics: cannot listen on ", address, ": ", e.what()));
  }
  impl_->exposer->RegisterCollectable(impl_->registry);
  const std::vector<int> ports = impl_->exposer->GetListeningPorts();
  if (ports.empty()) return absl::UnavailableError(absl::StrCat("metrics: cannot listen on ", address));
  const absl::string_view all = address;
  const absl::string_view host = all.substr(0, all.rfind(':'));
  impl_->host = std::string(absl::StripSuffix(absl::StripPrefix(host, "["), "]"));
  impl_->port = ports[0];
  return ports[0];
}

std::vector<std::string> CompareWithTable(std::string_view markdown, std::string_view section,
                                          std::span<const MetricDef> defs) {
  std::vector<std::string> differences;
  std::map<std::string, std::string> rows;
  bool inside = false;
  bool found = false;
  for (const auto line : absl::StrSplit(absl::string_view(markdown.data(), markdown.size()), '\n')) {
    const std::string text(absl::StripAsciiWhitespace(line));
    if (text.starts_with("## ")) {
      inside = text.substr(3) == section;
      found = found || inside;
    }
    if (!inside || !text.starts_with("| `")) continue;
    const size_t end = text.find('`', 3);
    const std::string name = text.substr(3, end == std::string::npos ? end : end - 3);
    if (!rows.emplace(name, text).second) differences.push_back(absl::StrCat(name, ": two rows"));
  }
  if (!found) differences.push_back(absl::StrCat("there is no heading '## ", std::string(section), "'"));
  for (const MetricDef& def : defs) {
    const std::string want = Row(def);
    auto row = rows.find(std::string(def.name));
    if (row == rows.end()) {
      differences.push_back(absl::StrCat("missing: ", want));
    } else {
      if (!row->second.starts_with(want))
        differences.push_back(absl::StrCat("is:     ", row->second, "\nshould: ", want));
      rows.erase(row);
    }
  }
  for (const auto& [name, row] : rows) differences.push_back(absl::StrCat("not in the code: ", row));
  return differences;
}

std::string MetricsTable(std::span<const MetricDef> defs) {
  std::vector<std::string> rows;
  for (const MetricDef& def : defs) rows.push_back(Row(def));
  std::sort(rows.begin(), rows.end());
  return absl::StrCat("| name | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n",
                      absl::StrJoin(rows, "\n"), "\n");
}

}  // namespace ballast
