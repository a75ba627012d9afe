#include "kernels/cuda/linear.h"

#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

TEST(CudaLinearTest, MatchesTheReference) {
  const auto linear = CudaLinear::Create();
  ASSERT_TRUE(linear.ok()) << linear.status();
  std::printf("cuBLASLt %zu\n", (*linear)->version());
  for (const auto& [inputs, outputs] :
       std::vector<std::pair<int, int>>{{8, 1}, {40, 100}, {192, 576}, {1000, 65}, {2048, 5120}}) {
    for (const int rows : {1, 3, 17, 64, 129, 1000}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << inputs << " to " << outputs);
      DeviceArray<uint16_t> x(static_cast<size_t>(rows) * inputs), weights(static_cast<size_t>(outputs) * inputs);
      CheckCuda(FillUniformBf16(x.data(), x.size(), 1, 1, nullptr));
      CheckCuda(FillUniformBf16(weights.data(), weights.size(), 2, 1, nullptr));
      DeviceArray<double> reference(static_cast<size_t>(rows) * outputs);
      CheckCuda(ReferenceProduct(x.data(), nullptr, rows, weights.data(), outputs, inputs, reference.data(), nullptr));
      DeviceArray<float> out(reference.size());
      out.Fill(0xff);
      const absl::Status status =
          (*linear)->Product(x.data(), weights.data(), rows, inputs, outputs, out.data(), nullptr);
      ASSERT_TRUE(status.ok()) << status;
      CheckCuda(cudaDeviceSynchronize());
      const std::vector<float> got = out.Read();
      const std::vector<double> wanted = reference.Read();
      RelativeError error;
      for (size_t i = 0; i < got.size(); ++i) error.Add(got[i], wanted[i]);
      EXPECT_LT(error.value(), 1e-5);
    }
  }
}

TEST(CudaLinearTest, ErrorsNameFieldValueAndLimit) {
  const auto linear = CudaLinear::Create();
  ASSERT_TRUE(linear.ok()) << linear.status();
  EXPECT_EQ((*linear)->Product(nullptr, nullptr, 1, 12, 8, nullptr, nullptr).message(),
            "inputs is 12, has to be a positive multiple of 8");
}

}  // namespace
}  // namespace ballast
