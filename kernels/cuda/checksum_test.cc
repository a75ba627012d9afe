#include "kernels/cuda/checksum.h"

#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/test_support.h"
#include "worker/model/checksum.h"

namespace ballast {
namespace {

TEST(CudaChecksumTest, IsTheCpus) {
  for (const size_t bytes : {size_t{256}, size_t{320}, size_t{384}, size_t{1024}, size_t{1088}, size_t{16320},
                             size_t{16384}, size_t{16448}, size_t{32704}, size_t{32768}, size_t{40000 * 64},
                             size_t{6} * 264 * 136, size_t{6} * 2048 * 768, size_t{6} * 7168 * 2048}) {
    SCOPED_TRACE(bytes);
    DeviceArray<uint16_t> data(bytes / 2);
    CheckCuda(FillUniformBf16(data.data(), data.size(), 1, 1, nullptr));
    DeviceArray<uint8_t> workspace(ChecksumExpertWorkspaceBytes(bytes));
    workspace.Fill(0);
    DeviceArray<uint64_t> out(2);
    for (int flip = 0; flip < 2; ++flip) {
      std::vector<uint16_t> host = data.Read();
      if (flip == 1) {
        host[host.size() / 3] ^= 1;
        CheckCuda(cudaMemcpy(data.data(), host.data(), bytes, cudaMemcpyHostToDevice));
      }
      out.Fill(0xff);
      const absl::Status status = ChecksumExpert(data.data(), bytes, out.data(), workspace.data(), nullptr);
      ASSERT_TRUE(status.ok()) << status;
      CheckCuda(cudaDeviceSynchronize());
      const std::vector<uint64_t> got = out.Read();
      EXPECT_EQ((Checksum{got[0], got[1]}).hex(), ComputeExpertChecksum(std::as_bytes(std::span(host))).hex());
    }
  }
}

TEST(CudaChecksumTest, ErrorsNameFieldValueAndLimit) {
  EXPECT_EQ(ChecksumExpert(nullptr, 100, nullptr, nullptr, nullptr).message(),
            "bytes is 100, has to be a multiple of 64 and at least 256");
  EXPECT_EQ(ChecksumExpert(reinterpret_cast<void*>(8), 256, nullptr, nullptr, nullptr).message(),
            "data is 8, has to be an address on 16 bytes");
}

}  // namespace
}  // namespace ballast
