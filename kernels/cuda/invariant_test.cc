#include "kernels/cuda/invariant.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/test_support.h"
#include "kernels/cuda/tokens.h"

namespace ballast {
namespace {

TEST(CudaInvariantProductTest, MatchesTheReferenceAndARowDependsOnItselfAlone) {
  for (const auto& [inputs, outputs] :
       std::vector<std::pair<int, int>>{{8, 1}, {40, 100}, {192, 576}, {1000, 65}, {2048, 512}}) {
    const int most = 200;
    DeviceArray<uint16_t> x(static_cast<size_t>(most) * inputs), weights(static_cast<size_t>(outputs) * inputs);
    CheckCuda(FillUniformBf16(x.data(), x.size(), 1, 1, nullptr));
    CheckCuda(FillUniformBf16(weights.data(), weights.size(), 2, 1, nullptr));
    DeviceArray<double> reference(static_cast<size_t>(most) * outputs);
    CheckCuda(ReferenceProduct(x.data(), nullptr, most, weights.data(), outputs, inputs, reference.data(), nullptr));
    const std::vector<double> wanted = reference.Read();
    std::vector<float> all;
    for (const int rows : {200, 129, 64, 17, 3, 1}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << inputs << " to " << outputs);
      // From another row on, so that rows lie elsewhere in their tiles.
      const int first = rows == most ? 0 : 5;
      DeviceArray<float> out(static_cast<size_t>(rows) * outputs);
      out.Fill(0xff);
      const absl::Status status = InvariantProduct(x.data() + static_cast<size_t>(first) * inputs, weights.data(), rows,
                                                   inputs, outputs, out.data(), nullptr);
      ASSERT_TRUE(status.ok()) << status;
      CheckCuda(cudaDeviceSynchronize());
      const std::vector<float> got = out.Read();
      if (rows == most) all = got;
      RelativeError error;
      for (size_t i = 0; i < got.size(); ++i) error.Add(got[i], wanted[static_cast<size_t>(first) * outputs + i]);
      EXPECT_LT(error.value(), 1e-5);
      ASSERT_EQ(std::memcmp(got.data(), &all[static_cast<size_t>(first) * outputs], got.size() * sizeof(float)), 0);
    }
  }
}

TEST(CudaInvariantExpertsTest, MatchesTheReferenceAndARowDependsOnItselfAlone) {
  struct Shape {
    int experts, top_k, hidden, intermediate;
  };
  for (const Shape shape : {Shape{5, 2, 40, 24}, {32, 4, 192, 64}, {128, 8, 2048, 768}, {70, 3, 72, 136}}) {
    const auto& [experts, top_k, hidden, intermediate] = shape;
    const size_t bytes = size_t{6} * hidden * intermediate, stride = (bytes + 255) / 256 * 256;
    DeviceArray<uint16_t> arena(stride * experts / 2);
    CheckCuda(FillUniformBf16(arena.data(), arena.size(), 1, 0.1f, nullptr));
    const ExpertArena slots = {.slots = arena.data(),
                               .slot_stride = stride,
                               .num_slots = experts,
                               .hidden_size = hidden,
                               .intermediate_size = intermediate};
    const int most = hidden == 2048 ? 33 : 150;
    DeviceArray<uint16_t> x(static_cast<size_t>(most) * hidden);
    CheckCuda(FillUniformBf16(x.data(), x.size(), 2, 1, nullptr));
    std::mt19937 random(3);
    std::vector<int32_t> ids, identity(experts), in_slot(experts);
    for (int t = 0; t < most; ++t) {
      std::vector<int32_t> own(experts);
      std::iota(own.begin(), own.end(), 0);
      std::shuffle(own.begin(), own.end(), random);
      // Skewed: the first expert is everybody's.
      std::swap(own[0], *std::find(own.begin(), own.end(), 0));
      ids.insert(ids.end(), own.begin(), own.begin() + top_k);
    }
    std::iota(identity.begin(), identity.end(), 0);
    in_slot = identity;
    std::shuffle(in_slot.begin(), in_slot.end(), random);
    const DeviceArray<int32_t> groups(identity), device_slots(in_slot);
    std::vector<std::vector<uint16_t>> of_pair(ids.size());
    for (const int tokens : {most, 17, 1}) {
      SCOPED_TRACE(testing::Message() << tokens << " tokens, " << experts << " experts, " << hidden << " x "
                                      << intermediate);
      const int first = tokens == most ? 0 : 3, pairs = tokens * top_k;
      const std::vector<int32_t> own(ids.begin() + first * top_k, ids.begin() + first * top_k + pairs);
      const DeviceArray<int32_t> device_ids(own);
      DeviceArray<int32_t> begin(experts + 1), order(pairs), row_of(pairs);
      DeviceArray<uint8_t> workspace(GroupPairsWorkspaceBytes(pairs, experts));
      ASSERT_TRUE(GroupPairs({device_ids.data(), pairs, groups.data(), experts, experts, begin.data(), order.data(),
                              row_of.data()},
                             workspace.data(), nullptr)
                      .ok());
      DeviceArray<uint16_t> activations(static_cast<size_t>(pairs) * intermediate),
          out(static_cast<size_t>(pairs) * hidden);
      out.Fill(0xff);
      const uint16_t* from = x.data() + static_cast<size_t>(first) * hidden;
      ExpertsStep step;
      step.x = from;
      step.order = order.data();
      step.pairs_per_token = top_k;
      step.begin = begin.data();
      step.slots = device_slots.data();
      step.num_groups = experts;
      step.out = out.data();
      const absl::Status status = InvariantExperts(slots, step, activations.data(), pairs, nullptr);
      ASSERT_TRUE(status.ok()) << status;
      CheckCuda(cudaDeviceSynchronize());
      const std::vector<uint16_t> got = out.Read();
      const std::vector<int32_t> rows = row_of.Read(), pairs_of_rows = order.Read();
      if (tokens == most) {
        std::vector<int32_t> token(pairs);
        std::vector<const void*> weights(pairs);
        for (int r = 0; r < pairs; ++r) {
          token[r] = pairs_of_rows[r] / top_k;
          weights[r] = arena.data() + in_slot[own[pairs_of_rows[r]]] * stride / 2;
        }
        const DeviceArray<int32_t> device_token(token);
        const DeviceArray<const void*> device_weights(weights);
        DeviceArray<double> wide(static_cast<size_t>(pairs) * intermediate), reference(out.size());
        CheckCuda(ReferenceExperts(ExpertForm::kSwiGlu, from, device_token.data(), device_weights.data(), pairs, hidden,
                                   intermediate, wide.data(), reference.data(), nullptr));
        const std::vector<double> wanted = reference.Read();
        RelativeError error;
        for (size_t i = 0; i < got.size(); ++i) error.Add(FromBf16(got[i]), wanted[i]);
        EXPECT_LT(error.value(), 4e-3);
      }
      for (int pair = 0; pair < pairs; ++pair) {
        const auto row = got.begin() + static_cast<ptrdiff_t>(rows[pair]) * hidden;
        std::vector<uint16_t>& known = of_pair[first * top_k + pair];
        if (known.empty()) known.assign(row, row + hidden);
        ASSERT_TRUE(std::equal(known.begin(), known.end(), row)) << "pair " << pair;
      }
    }
  }
}

TEST(CudaInvariantTest, ErrorsNameFieldValueAndLimit) {
  EXPECT_EQ(InvariantProduct(nullptr, nullptr, 1, 12, 1, nullptr, nullptr).message(),
            "inputs is 12, has to be a positive multiple of 8");
  ExpertArena arena = {.hidden_size = 8, .intermediate_size = 12};
  EXPECT_EQ(InvariantExperts(arena, {}, nullptr, 1, nullptr).message(),
            "intermediate_size is 12, has to be a positive multiple of 8");
  arena.intermediate_size = 16;
  EXPECT_EQ(InvariantExperts(arena, {}, nullptr, 1, nullptr).message(), "num_groups is 0, has to be 1 to 1024");
}

}  // namespace
}  // namespace ballast
