// What the end-to-end tests share: where the binaries and the model are, a cluster of a given shape, and scoring.
#ifndef BALLAST_TESTS_E2E_FIXTURE_H_
#define BALLAST_TESTS_E2E_FIXTURE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/load.h"

namespace ballast {

// olmoe-9m: 6 layers of 32 experts.
constexpr int kLayers = 6;
constexpr int kExperts = 32;
constexpr int kStagingSlots = 6;

class ClusterTest : public ::testing::Test {
 protected:
  struct Shape {
    int workers = 4;
    std::string combine = "exact";
    std::string mode = "approve";
    std::string policy = "eplb";
    // Slots of one layer that placements may use on each worker.
    int slots_per_layer = 10;
    std::vector<std::string> controller_flags;
    // Of those too that a test starts later.
    std::vector<std::string> worker_flags;
    // Of w0, beside the others.
    std::vector<std::string> first_worker_flags;
    TlsFiles tls;
    std::string controller_binary = "controller/ballast-controller";
    std::string worker_binary = "worker/ballast-worker";
  };

  // A cluster that serves; the group is "g", its workers w0, w1, ...
  std::unique_ptr<Cluster> Serving(const Shape& shape);

  // A worker of the cluster, to be started again.
  static WorkerOptions OneOf(const std::string& name, int slots_per_layer);

  // Every eighth of the committed prompts, cut to `max_bytes`.
  static std::vector<Prompt> SomePrompts(size_t max_bytes = 400);

  // The digests of the logits at every position of every prompt, asked of `worker` all at once in `order`.
  static std::vector<std::vector<uint64_t>> Digests(Cluster& cluster, const std::string& worker,
                                                    const std::vector<Prompt>& prompts);

  // Makes a plan from the load seen so far and waits until it is rolled out.
  static absl::StatusOr<v1::Plan> PlanAndRollOut(Cluster& cluster);
  // Waits until the plan has ended, in whatever way.
  static absl::StatusOr<v1::Plan> AwaitPlan(Cluster& cluster, const std::string& id);

  // The stubs of all of the group's workers, for LoadGenerator.
  static std::map<std::string, std::shared_ptr<v1::Inference::Stub>> Stubs(Cluster& cluster, int workers);
};

std::string WorkerName(int i);

// For a call that waits for a controller or worker that is being started: kPatience at most.
void SetDeadline(grpc::ClientContext& context);

}  // namespace ballast

#endif  // BALLAST_TESTS_E2E_FIXTURE_H_
