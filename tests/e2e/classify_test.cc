// A worker that tells the task of unlabelled requests by what its controller has learned from labelled ones, beside one
// that does not; nobody can tell from an answer.

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/cluster/metrics.h"
#include "tests/e2e/fixture.h"

namespace ballast {
namespace {

class ClassifyTest : public ClusterTest {
 protected:
  static std::vector<std::vector<int32_t>> Answers(Cluster& cluster, const std::string& worker,
                                                   const std::vector<Prompt>& prompts) {
    std::vector<std::vector<int32_t>> tokens;
    const auto stub = cluster.inference(worker);
    for (const Prompt& prompt : prompts) {
      const Answer answer = Generate(*stub, prompt.text, prompt.task, 8, kPatience);
      EXPECT_TRUE(answer.status.ok()) << answer.status;
      tokens.push_back(answer.token_ids);
    }
    return tokens;
  }

  // Requests that the worker looked at, of which it left so many unlabelled.
  struct Looked {
    double all = 0;
    double left = 0;
  };
  static Looked LookedAt(Cluster& cluster, const std::string& worker) {
    const auto metrics = ReadMetrics(cluster.worker_metrics_address(worker));
    EXPECT_TRUE(metrics.ok()) << metrics.status();
    if (!metrics.ok()) return {};
    return {SumOf(*metrics, "ballast_requests_classified_total"),
            SumOf(*metrics, "ballast_requests_classified_total", {"task=\"\""})};
  }
};

TEST_F(ClassifyTest, UnlabelledRequestsAreTakenForTasks_WhereAWorkerIsToldTo) {
  const std::vector<Prompt> labelled = SomePrompts();
  std::vector<Prompt> unlabelled = labelled;
  for (Prompt& prompt : unlabelled) prompt.task.clear();
  const auto cluster = Serving({.workers = 2,
                                .slots_per_layer = kExperts,
                                .controller_flags = {"--load-window=24h"},
                                .first_worker_flags = {"--classify-tasks=0.9"}});
  ASSERT_NE(cluster, nullptr);
  // Nothing is known of any task yet.
  const auto expected = Answers(*cluster, "w0", unlabelled);
  EXPECT_EQ(LookedAt(*cluster, "w0").all, 0);
  {
    LoadGenerator load(labelled, Stubs(*cluster, 2), {.concurrency = 8, .max_tokens = 2});
    const auto loaded =
        cluster->AwaitGroup("g", kPatience, [](const v1::Group& g) { return g.window_tokens() > 25000; });
    ASSERT_TRUE(loaded.ok()) << loaded.status();
  }
  const absl::Status told = cluster->AwaitLog("w0", "task profiles", kPatience);
  ASSERT_TRUE(told.ok()) << told;

  EXPECT_EQ(Answers(*cluster, "w0", unlabelled), expected);
  EXPECT_EQ(Answers(*cluster, "w1", unlabelled), expected);
  const Looked on = LookedAt(*cluster, "w0");
  EXPECT_EQ(on.all, static_cast<double>(unlabelled.size()));
  EXPECT_LT(on.left, on.all);
  EXPECT_EQ(LookedAt(*cluster, "w1").all, 0);
}

}  // namespace
}  // namespace ballast
