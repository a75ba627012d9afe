#include "proto/base/metrics.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const std::vector<MetricDef>& Defs() {
  static const auto& defs = *new std::vector<MetricDef>{
      {"ballast_b_bytes", MetricType::kGauge, "bytes", {"worker", "kind"}, "Bytes held."},
      {"ballast_a_total", MetricType::kCounter, "1", {}, "Things done."},
      {"ballast_c_seconds", MetricType::kHistogram, "seconds", {"stage"}, "Time taken.", {0.1, 1}},
  };
  return defs;
}

std::string Get(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
    EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, n);
  }
  close(fd);
  return answer;
}

TEST(Metrics, HandlesUpdateTheirSeries) {
  Metrics metrics(Defs());
  metrics.Counter("ballast_a_total").Add();
  metrics.Counter("ballast_a_total").Add(2);
  metrics.Gauge("ballast_b_bytes", {"w0", "weights"}).Set(7);
  metrics.Histogram("ballast_c_seconds", {"combine"}).Observe(0.5);
  const std::string text = metrics.Text();
  EXPECT_THAT(text, HasSubstr("ballast_a_total 3"));
  EXPECT_THAT(text, HasSubstr("ballast_b_bytes{kind=\"weights\",worker=\"w0\"} 7"));
  EXPECT_THAT(text, HasSubstr("ballast_c_seconds_bucket{stage=\"combine\",le=\"1\"} 1"));
}

TEST(Metrics, RemoveForgetsByPrefix) {
  Metrics metrics(Defs());
  metrics.Gauge("ballast_b_bytes", {"w0", "a"}).Set(1);
  metrics.Gauge("ballast_b_bytes", {"w0", "b"}).Set(1);
  metrics.Gauge("ballast_b_bytes", {"w1", "a"}).Set(1);
  metrics.Remove("ballast_b_bytes", {"w0"});
  EXPECT_THAT(metrics.Text(), Not(HasSubstr("worker=\"w0\"")));
  EXPECT_THAT(metrics.Text(), HasSubstr("worker=\"w1\""));
  metrics.Gauge("ballast_b_bytes", {"w0", "a"}).Set(5);
  EXPECT_THAT(metrics.Text(), HasSubstr("ballast_b_bytes{kind=\"a\",worker=\"w0\"} 5"));
}

TEST(Metrics, ServesOnAnyFreePort) {
  Metrics metrics(Defs());
  metrics.Counter("ballast_a_total").Add(4);
  const absl::StatusOr<int> port = metrics.Serve("127.0.0.1:0");
  ASSERT_TRUE(port.ok()) << port.status();
  EXPECT_GT(*port, 0);
  EXPECT_THAT(Get(*port), HasSubstr("ballast_a_total 4"));

  Metrics other(Defs());
  const absl::StatusOr<int> taken = other.Serve("127.0.0.1:" + std::to_string(*port));
  EXPECT_EQ(taken.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(taken.status().message()), HasSubstr(std::to_string(*port)));
}

TEST(Metrics, TableAndDefinitionsAreCompared) {
  const std::string table =
      "# Metrics\n\n## Part\n\n" + MetricsTable(Defs()) + "\n## Other\n\n| `ballast_x` | gauge |\n";
  EXPECT_THAT(CompareWithTable(table, "Part", Defs()), IsEmpty());
  EXPECT_THAT(CompareWithTable(table, "Nowhere", {}), ElementsAre("there is no heading '## Nowhere'"));
  EXPECT_THAT(CompareWithTable(table, "Other", {}), ElementsAre(HasSubstr("not in the code: | `ballast_x`")));
  EXPECT_THAT(CompareWithTable("## Part\n", "Part", std::span(Defs()).subspan(1, 1)),
              ElementsAre("missing: | `ballast_a_total` | counter | 1 |  | Things done. |"));
  EXPECT_THAT(CompareWithTable("## Part\n| `ballast_a_total` | counter | 1 |  | Things done. | Overview |", "Part",
                               std::span(Defs()).subspan(1, 1)),
              IsEmpty());
  EXPECT_THAT(CompareWithTable("## Part\n| `ballast_a_total` | gauge | 1 |  | Things done. |", "Part",
                               std::span(Defs()).subspan(1, 1)),
              ElementsAre(HasSubstr("should: | `ballast_a_total` | counter")));
}

TEST(MetricsDeathTest, MisuseDies) {
  Metrics metrics(Defs());
  EXPECT_DEATH(metrics.Counter("ballast_nothing"), "not defined");
  EXPECT_DEATH(metrics.Gauge("ballast_a_total"), "is a counter");
  EXPECT_DEATH(metrics.Gauge("ballast_b_bytes", {"w0"}), "has 2 labels, not 1");
}

}  // namespace
}  // namespace ballast
