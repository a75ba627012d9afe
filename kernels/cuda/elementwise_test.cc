#include "kernels/cuda/elementwise.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/attention.h"
#include "kernels/cpu/test_data.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

using internal::kCachePositions;
using internal::RandomBf16;
using internal::RandomFloats;
using internal::ToBf16;

// A value that was rounded to bf16 after float32 arithmetic.
void ExpectNear(uint16_t got, double wanted) { EXPECT_NEAR(FromBf16(got), wanted, std::abs(wanted) * 0.0045 + 1e-5); }

void Normalize(std::vector<double>& row, double epsilon, const float* weight) {
  double squares = 0;
  for (const double v : row) squares += v * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(row.size()) + epsilon);
  for (size_t i = 0; i < row.size(); ++i) row[i] *= scale * weight[i];
}

TEST(CudaNormRowsTest, MatchesTheReference) {
  constexpr float kEpsilon = 1e-5f;
  for (const int width : {8, 40, 192, 1000, 2048, 7168, 8192}) {
    for (const int rows : {1, 3, 17}) {
      for (const bool source_bf16 : {false, true}) {
        for (const int delta_kind : {0, 1, 2}) {  // none, f32, bf16
          for (const bool gathered : {false, true}) {
            SCOPED_TRACE(testing::Message() << rows << " x " << width << ", bf16 " << source_bf16 << ", delta "
                                            << delta_kind << ", gathered " << gathered);
            const size_t elements = static_cast<size_t>(2 * rows) * width;
            const std::vector<float> source = RandomFloats(elements, 1), delta = RandomFloats(elements, 2),
                                     bias = RandomFloats(width, 3), weight = RandomFloats(width, 4);
            const std::vector<uint16_t> source16 = RandomBf16(elements, 5), delta16 = RandomBf16(elements, 6);
            std::vector<int32_t> gather(rows);
            for (int r = 0; r < rows; ++r) gather[r] = (r * 5 + 1) % (2 * rows);
            const DeviceArray<float> device_source(source), device_delta(delta), device_bias(bias),
                device_weight(weight);
            const DeviceArray<uint16_t> device_source16(source16), device_delta16(delta16);
            const DeviceArray<int32_t> device_gather(gather);
            DeviceArray<float> sum(static_cast<size_t>(rows) * width);
            DeviceArray<uint16_t> out(sum.size());
            sum.Fill(0xff);
            out.Fill(0xff);
            CudaNormArgs args;
            args.source = source_bf16 ? static_cast<const void*>(device_source16.data()) : device_source.data();
            args.source_bf16 = source_bf16;
            if (delta_kind == 1) args.delta = device_delta.data();
            if (delta_kind == 2) args.delta = device_delta16.data();
            args.delta_bf16 = delta_kind == 2;
            if (delta_kind > 0) args.bias = device_bias.data();
            if (gathered) args.gather = device_gather.data();
            args.sum = sum.data();
            args.weight = device_weight.data();
            args.epsilon = kEpsilon;
            args.rows = rows;
            args.hidden_size = width;
            args.out = out.data();
            const absl::Status status = NormRows(args, nullptr);
            ASSERT_TRUE(status.ok()) << status;
            CheckCuda(cudaDeviceSynchronize());
            const std::vector<float> got_sum = sum.Read();
            const std::vector<uint16_t> got = out.Read();
            for (int r = 0; r < rows; ++r) {
              std::vector<double> row(width);
              for (int i = 0; i < width; ++i) {
                const size_t at = static_cast<size_t>(gathered ? gather[r] : r) * width + i;
                float v = source_bf16 ? FromBf16(source16[at]) : source[at];
                if (delta_kind == 1) v += delta[at];
                if (delta_kind == 2) v += FromBf16(delta16[at]);
                if (delta_kind > 0) v += bias[i];
                row[i] = v;
                ASSERT_EQ(got_sum[static_cast<size_t>(r) * width + i], v);
              }
              Normalize(row, kEpsilon, weight.data());
              for (int i = 0; i < width; ++i) ExpectNear(got[static_cast<size_t>(r) * width + i], row[i]);
              if (HasFailure()) return;
            }
          }
        }
      }
    }
  }
}

TEST(CudaStoreQkvTest, NormsTurnsAndStores) {
  constexpr float kEpsilon = 1e-6f;
  struct Shape {
    int heads, kv_heads, dim;
  };
  for (const Shape shape : {Shape{3, 3, 64}, {4, 1, 16}, {32, 4, 128}, {5, 5, 32}}) {
    for (const CudaHeadNorm norm : {CudaHeadNorm::kNone, CudaHeadNorm::kHead, CudaHeadNorm::kAll}) {
      for (const bool biased : {false, true}) {
        SCOPED_TRACE(testing::Message() << shape.heads << " heads of " << shape.dim << ", norm "
                                        << static_cast<int>(norm) << ", biased " << biased);
        const int rows = 5, dim = shape.dim, q_width = shape.heads * dim, kv_width = shape.kv_heads * dim;
        const int width = q_width + 2 * kv_width, max_positions = 100;
        const float clip = biased ? 0.8f : std::numeric_limits<float>::infinity();
        const std::vector<int32_t> positions = {0, 17, 99, 15, 64}, blocks = {3, 0, 1, 4, 2};
        const std::vector<float> qkv = RandomFloats(static_cast<size_t>(rows) * width, 1),
                                 bias = RandomFloats(width, 2), q_weight = RandomFloats(q_width, 3),
                                 k_weight = RandomFloats(kv_width, 4);
        const RotaryTable table(dim, 10000, max_positions);
        const DeviceArray<float> device_qkv(qkv), device_bias(bias), device_q_weight(q_weight),
            device_k_weight(k_weight), cosine(std::vector<float>(table.cosines().begin(), table.cosines().end())),
            sine(std::vector<float>(table.sines().begin(), table.sines().end()));
        const DeviceArray<int32_t> device_positions(positions), device_blocks(blocks);
        const size_t stride = AttentionBlockElements(shape.kv_heads, dim) + 40;
        DeviceArray<uint16_t> cache(5 * stride), q(static_cast<size_t>(rows) * q_width);
        cache.Fill(0x55);
        q.Fill(0xff);
        CudaQkvArgs args;
        args.qkv = device_qkv.data();
        if (biased) args.bias = device_bias.data();
        args.norm = norm;
        args.q_weight = device_q_weight.data();
        args.k_weight = device_k_weight.data();
        args.epsilon = kEpsilon;
        args.clip = clip;
        args.cosine = cosine.data();
        args.sine = sine.data();
        args.position = device_positions.data();
        args.block = device_blocks.data();
        args.cache = cache.data();
        args.block_stride = stride;
        args.rows = rows;
        args.num_heads = shape.heads;
        args.num_kv_heads = shape.kv_heads;
        args.head_dim = dim;
        args.q = q.data();
        const absl::Status status = StoreQkv(args, nullptr);
        ASSERT_TRUE(status.ok()) << status;
        CheckCuda(cudaDeviceSynchronize());
        const std::vector<uint16_t> got_q = q.Read(), got_cache = cache.Read();
        size_t written = 0;
        for (int r = 0; r < rows; ++r) {
          std::vector<double> row(width);
          for (int i = 0; i < width; ++i) row[i] = qkv[static_cast<size_t>(r) * width + i] + (biased ? bias[i] : 0);
          const auto normed = [&](int first, int count, const float* weight) {
            std::vector<double> part(row.begin() + first, row.begin() + first + count);
            Normalize(part, kEpsilon, weight);
            std::copy(part.begin(), part.end(), row.begin() + first);
          };
          if (norm == CudaHeadNorm::kAll) {
            normed(0, q_width, q_weight.data());
            normed(q_width, kv_width, k_weight.data());
          } else if (norm == CudaHeadNorm::kHead) {
            for (int h = 0; h < shape.heads; ++h) normed(h * dim, dim, q_weight.data());
            for (int h = 0; h < shape.kv_heads; ++h) normed(q_width + h * dim, dim, k_weight.data());
          }
          for (double& v : row) v = std::clamp<double>(v, -clip, clip);
          for (int head = 0; head < shape.heads + shape.kv_heads; ++head) {
            std::vector<float> turned(row.begin() + head * dim, row.begin() + (head + 1) * dim);
            table.Rotate(turned.data(), positions[r]);
            std::copy(turned.begin(), turned.end(), row.begin() + head * dim);
          }
          for (int i = 0; i < q_width; ++i) ExpectNear(got_q[static_cast<size_t>(r) * q_width + i], row[i]);
          for (int kv = 0; kv < shape.kv_heads; ++kv) {
            for (const int value : {0, 1}) {
              for (int d = 0; d < dim; ++d, ++written) {
                const size_t at = blocks[r] * stride +
                                  ((kv * 2 + value) * kCachePositions + positions[r] % kCachePositions) * dim + d;
                ExpectNear(got_cache[at], row[q_width + value * kv_width + kv * dim + d]);
              }
            }
          }
          if (HasFailure()) return;
        }
        // Nothing else is touched.
        EXPECT_EQ(static_cast<size_t>(std::count(got_cache.begin(), got_cache.end(), 0x5555)),
                  got_cache.size() - written);
      }
    }
  }
}

TEST(CudaSwiGluRowsTest, MatchesTheReference) {
  for (const int width : {8, 72, 1000}) {
    for (const int rows : {1, 3, 129}) {
      const std::vector<float> gate_up = RandomFloats(static_cast<size_t>(rows) * 2 * width, 1, 4);
      const DeviceArray<float> device(gate_up);
      DeviceArray<uint16_t> out(static_cast<size_t>(rows) * width);
      out.Fill(0xff);
      const absl::Status status = SwiGluRows(device.data(), rows, width, out.data(), nullptr);
      ASSERT_TRUE(status.ok()) << status;
      CheckCuda(cudaDeviceSynchronize());
      const std::vector<uint16_t> got = out.Read();
      for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < width; ++i) {
          const double gate = gate_up[static_cast<size_t>(r) * 2 * width + i];
          const double up = gate_up[static_cast<size_t>(r) * 2 * width + width + i];
          ExpectNear(got[static_cast<size_t>(r) * width + i], gate / (1 + std::exp(-gate)) * up);
        }
      }
    }
  }
}

TEST(CudaElementwiseTest, ErrorsNameFieldValueAndLimit) {
  CudaNormArgs norm;
  norm.hidden_size = 12;
  EXPECT_EQ(NormRows(norm, nullptr).message(), "hidden_size is 12, has to be a positive multiple of 8, at most 8192");
  CudaQkvArgs qkv;
  qkv.num_heads = qkv.num_kv_heads = 1;
  qkv.head_dim = 16;
  EXPECT_EQ(StoreQkv(qkv, nullptr).message(), "clip is 0, has to be positive");
  EXPECT_EQ(SwiGluRows(nullptr, 1, 4, nullptr, nullptr).message(), "width is 4, has to be a positive multiple of 8");
}

}  // namespace
}  // namespace ballast
