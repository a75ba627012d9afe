#include "kernels/cuda/sru.h"

#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

struct Case {
  int steps, batch, width, gate_blocks;
  bool has_x, has_start, tanh, backward;
};

std::vector<float> Random(size_t size, std::mt19937& random) {
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(size);
  for (float& v : values) v = uniform(random);
  return values;
}

double Sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

// The equations, in float64.
struct Reference {
  std::vector<double> out, end;
};
Reference Compute(const Case& c, const std::vector<uint16_t>& gates, const std::vector<uint16_t>& x, float x_scale,
                  const std::vector<float>& parameters, const std::vector<float>& start) {
  const size_t units = static_cast<size_t>(c.batch) * c.width;
  Reference result = {std::vector<double>(c.steps * units), std::vector<double>(units)};
  for (size_t i = 0; i < units; ++i) {
    const float* p = parameters.data() + i % c.width;
    const double vf = p[0], vr = p[c.width], bf = p[2 * c.width], br = p[3 * c.width];
    double state = c.has_start ? start[i] : 0;
    for (int step = 0; step < c.steps; ++step) {
      const size_t at = (c.backward ? c.steps - 1 - step : step) * units + i;
      const uint16_t* u = gates.data() + at * c.gate_blocks;
      const double f = Sigmoid(FromBf16(u[1]) + vf * state + bf), r = Sigmoid(FromBf16(u[2]) + vr * state + br);
      state = f * state + (1 - f) * FromBf16(u[0]);
      const double s = c.gate_blocks == 4 ? FromBf16(u[3]) : c.has_x ? x_scale * FromBf16(x[at]) : 0;
      result.out[at] = r * (c.tanh ? std::tanh(state) : state) + (1 - r) * s;
    }
    result.end[i] = state;
  }
  return result;
}

TEST(CudaSruTest, IsTheEquations) {
  std::mt19937 random(1);
  for (const Case& c : std::vector<Case>{{1, 1, 2, 3, true, false, false, false},
                                         {7, 3, 10, 3, true, true, false, false},
                                         {8, 5, 34, 3, false, true, true, false},
                                         {9, 1, 256, 4, false, false, false, true},
                                         {17, 2, 130, 4, false, true, true, true},
                                         {100, 33, 66, 3, true, true, true, true},
                                         {64, 4, 1024, 3, true, false, false, false}}) {
    SCOPED_TRACE(testing::Message() << c.steps << " steps, " << c.batch << " x " << c.width);
    const size_t units = static_cast<size_t>(c.batch) * c.width, stride = c.width + 6;
    DeviceArray<uint16_t> gates(c.steps * units * c.gate_blocks), x(c.steps * units), out(c.steps * c.batch * stride);
    CheckCuda(FillUniformBf16(gates.data(), gates.size(), 1, 2, nullptr));
    CheckCuda(FillUniformBf16(x.data(), x.size(), 2, 2, nullptr));
    out.Fill(0xff);
    const std::vector<float> parameters = Random(4 * c.width, random), start = Random(units, random);
    DeviceArray<float> device_parameters(parameters), state(start);
    SruArgs args;
    args.steps = c.steps;
    args.batch = c.batch;
    args.width = c.width;
    args.gates = gates.data();
    args.gate_blocks = c.gate_blocks;
    args.x = c.has_x ? x.data() : nullptr;
    args.x_scale = 1.25f;
    args.forget_weight = device_parameters.data();
    args.reset_weight = device_parameters.data() + c.width;
    args.forget_bias = device_parameters.data() + 2 * c.width;
    args.reset_bias = device_parameters.data() + 3 * c.width;
    args.start = c.has_start ? state.data() : nullptr;
    args.tanh = c.tanh;
    args.backward = c.backward;
    args.out = out.data();
    args.out_stride = stride;
    args.end = state.data();
    const absl::Status status = RunSru(args, nullptr);
    ASSERT_TRUE(status.ok()) << status;
    CheckCuda(cudaDeviceSynchronize());
    const Reference wanted = Compute(c, gates.Read(), x.Read(), args.x_scale, parameters, start);
    const std::vector<uint16_t> got = out.Read();
    const std::vector<float> end = state.Read();
    for (size_t i = 0; i < units; ++i) ASSERT_NEAR(end[i], wanted.end[i], 1e-5) << "unit " << i;
    for (size_t row = 0; row < static_cast<size_t>(c.steps) * c.batch; ++row) {
      for (size_t j = 0; j < stride; ++j) {
        const uint16_t value = got[row * stride + j];
        if (j >= static_cast<size_t>(c.width)) {
          ASSERT_EQ(value, 0xffff) << "row " << row << ", column " << j;
        } else {
          const double want = wanted.out[row * c.width + j];
          ASSERT_NEAR(FromBf16(value), want, std::abs(want) / 250 + 1e-5) << "row " << row << ", column " << j;
        }
      }
    }
  }
}

TEST(CudaSruTest, ErrorsNameFieldValueAndLimit) {
  SruArgs args;
  args.width = 5;
  EXPECT_EQ(RunSru(args, nullptr).message(), "width is 5, has to be a positive multiple of 2");
  args.width = 4;
  args.gate_blocks = 5;
  EXPECT_EQ(RunSru(args, nullptr).message(), "gate_blocks is 5, has to be 3 or 4");
  args.gate_blocks = 3;
  args.out_stride = 2;
  EXPECT_EQ(RunSru(args, nullptr).message(), "out_stride is 2, has to be even, at least width, 4");
}

}  // namespace
}  // namespace ballast
