#include "worker/daemon/config.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ballast {
namespace {

using ::testing::HasSubstr;

WorkerConfig Good() { return {.model = "models/olmoe-9m/", .group = "g"}; }

TEST(WorkerConfigTest, FillsInWhatIsEmpty) {
  WorkerConfig config = Good();
  ASSERT_EQ(FinishConfig(config, "host7", 4), absl::OkStatus());
  EXPECT_EQ(config.model_name, "olmoe-9m");
  EXPECT_EQ(config.name, "host7");
  EXPECT_EQ(config.node, "host7");
  EXPECT_EQ(config.compute_threads, 4);
  EXPECT_EQ(config.advertise_host, "");
}

TEST(WorkerConfigTest, DevicesHaveNames) {
  EXPECT_FALSE(ParseDevice("cpu")->cuda);
  EXPECT_TRUE(ParseDevice("cuda")->cuda);
  EXPECT_EQ(ParseDevice("cuda")->index, 0);
  EXPECT_EQ(ParseDevice("cuda:12")->index, 12);
}

TEST(WorkerConfigTest, Refuses) {
  struct Case {
    const char* text;
    void (*change)(WorkerConfig&);
  };
  const Case cases[] = {
      {"--model is needed", [](WorkerConfig& c) { c.model.clear(); }},
      {"--group is needed", [](WorkerConfig& c) { c.group.clear(); }},
      {"--role is 'both'; allowed are mixed, prefill, decode", [](WorkerConfig& c) { c.role = "both"; }},
      {"--device is 'gpu'; allowed are cpu, cuda, cuda:N with N from 0 to 1023",
       [](WorkerConfig& c) { c.device = "gpu"; }},
      {"--device is 'cuda:'", [](WorkerConfig& c) { c.device = "cuda:"; }},
      {"--device is 'cuda:1x'", [](WorkerConfig& c) { c.device = "cuda:1x"; }},
      {"--device is 'cuda:-1'", [](WorkerConfig& c) { c.device = "cuda:-1"; }},
      {"--combine is 'slow'", [](WorkerConfig& c) { c.combine = "slow"; }},
      {"--step-shares is 'best'; allowed are auto, current, previous, fixed",
       [](WorkerConfig& c) { c.step_shares = "best"; }},
      {"--route-samples is -1; it must be between 0 and 4096", [](WorkerConfig& c) { c.route_samples = -1; }},
      {"--classify-tasks is 1.5; it must be between 0 and 1", [](WorkerConfig& c) { c.classify_tasks = 1.5; }},
      {"--capacity is 0; it must be between 1 and 65536", [](WorkerConfig& c) { c.capacity = 0; }},
      {"--max-running is 300; it must be between 1 and 256", [](WorkerConfig& c) { c.max_running = 300; }},
      {"--speed is 1025; it must be between 1 and 1024", [](WorkerConfig& c) { c.speed = 1025; }},
      {"--slots is 2; it must be above --staging-slots, 2", [](WorkerConfig& c) { c.slots = 2; }},
      {"--listen: '7080' is not host:port", [](WorkerConfig& c) { c.listen = "7080"; }},
      {"--metrics-listen: '127.0.0.1:70000'", [](WorkerConfig& c) { c.metrics_listen = "127.0.0.1:70000"; }},
      {"beyond loopback, and there is no TLS", [](WorkerConfig& c) { c.listen = "0.0.0.0:7080"; }},
      {"--group-secret-file is needed",
       [](WorkerConfig& c) {
         c.data_listen = "0.0.0.0:7082";
         c.allow_insecure = true;
       }},
  };
  for (const Case& c : cases) {
    WorkerConfig config = Good();
    c.change(config);
    EXPECT_THAT(std::string(FinishConfig(config, "h", 1).message()), HasSubstr(c.text));
  }
}

TEST(WorkerConfigTest, WildcardIsAdvertisedByTheHostsName) {
  WorkerConfig config = Good();
  config.listen = "0.0.0.0:0";
  config.allow_insecure = true;
  ASSERT_EQ(FinishConfig(config, "host7", 1), absl::OkStatus());
  EXPECT_EQ(config.advertise_host, "host7");
}

TEST(WorkerConfigTest, TlsMayLeaveTheMachine) {
  WorkerConfig config = Good();
  config.listen = "0.0.0.0:0";
  config.tls = {.certificate = "c", .key = "k", .authorities = "a"};
  EXPECT_EQ(FinishConfig(config, "host7", 1), absl::OkStatus());
}

TEST(HostPortTest, ThereAndBack) {
  for (const char* address : {"127.0.0.1:80", "[::1]:0", "host.example:7080"}) {
    const auto parsed = ParseHostPort(address);
    ASSERT_EQ(parsed.status(), absl::OkStatus());
    EXPECT_EQ(JoinHostPort(parsed->host, parsed->port), address);
  }
  for (const char* address : {"", "80", ":80", "::1:80", "a:b", "a:", "a:-1", "a:65536", "a:1x"}) {
    EXPECT_EQ(ParseHostPort(address).status().code(), absl::StatusCode::kInvalidArgument) << address;
  }
}

TEST(MemoryDefaultsTest, Slots) {
  const MemoryNeeds needs{.experts = 100, .expert_bytes = 10, .available_bytes = 10000};
  EXPECT_EQ(DefaultSlots(needs, 2), 102);
  MemoryNeeds small = needs;
  small.available_bytes = 400;
  EXPECT_EQ(DefaultSlots(small, 2), 30);
  small.available_bytes = 10;
  EXPECT_EQ(DefaultSlots(small, 2), 3);
}

TEST(MemoryDefaultsTest, KvBlocks) {
  MemoryNeeds needs{.kv_block_bytes = 1 << 20, .kv_blocks_per_request = 8, .available_bytes = int64_t{1} << 40};
  EXPECT_EQ(DefaultKvBlocks(needs, 64), 512);
  EXPECT_EQ(DefaultKvBlocks(needs, 1000), 1024);
  needs.available_bytes = 1 << 24;
  EXPECT_EQ(DefaultKvBlocks(needs, 64), 8);
}

TEST(MaxLogitRowsTest, DoNotGrowWithTheCapacity) {
  const struct {
    int capacity, max_running, rows;
  } cases[] = {{256, 64, 256}, {8, 4, 8}, {8, 8, 8}, {8192, 64, 256}, {8192, 1000, 1000}, {1024, 1, 256}};
  for (const auto& c : cases) {
    WorkerConfig config;
    config.capacity = c.capacity;
    config.max_running = c.max_running;
    EXPECT_EQ(MaxLogitRows(config), c.rows) << c.capacity << " " << c.max_running;
  }
}

}  // namespace
}  // namespace ballast
