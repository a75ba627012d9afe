#include "worker/transport/ucx_transport.h"

#include <thread>
#include <utility>

#include "gtest/gtest.h"
#include "worker/transport/conformance.h"

namespace ballast {
namespace {

std::shared_ptr<UcxContext> Context() {
  static std::shared_ptr<UcxContext>& context = *new std::shared_ptr<UcxContext>(UcxContext::Create().value());
  return context;
}

// A mesh between threads of this process, over whatever UCX picks.
Mesh MakeMesh(int ranks) {
  std::vector<std::unique_ptr<MeshListener>> listeners;
  MeshView view{.view = ViewId(1)};
  for (int rank = 0; rank < ranks; ++rank) {
    listeners.push_back(
        MeshListener::Start({.host = "127.0.0.1", .identity = {.group = "g", .secret = "s", .fingerprint = "f"}})
            .value());
    view.members.push_back(
        {.address = "127.0.0.1:" + std::to_string(listeners.back()->port()), .incarnation = Incarnation(rank + 1)});
  }
  Mesh mesh(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      MeshView mine = view;
      mine.rank = rank;
      absl::StatusOr<std::unique_ptr<Transport>> end = ConnectUcx(Context(), *listeners[rank], mine, Soon());
      EXPECT_EQ(end.status(), absl::OkStatus());
      mesh[rank] = *std::move(end);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return mesh;
}

INSTANTIATE_TEST_SUITE_P(Ucx, TransportTest, ::testing::Values(MeshMaker{"Default", MakeMesh}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace ballast
