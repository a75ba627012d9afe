#include "kernels/cuda/experts.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/reference.h"
#include "kernels/cuda/test_support.h"

namespace ballast {
namespace {

struct Case {
  int hidden, intermediate, tokens, top_k;
  // Rows of each group; their sum is at most tokens * top_k.
  std::vector<int> rows;
  ExpertForm form = ExpertForm::kSwiGlu;
};

// Rows of `groups` groups, drawn by weights that fall as 1 / (1 + g).
std::vector<int> SkewedRows(int groups, int total, std::mt19937& random) {
  std::vector<double> weights(groups);
  for (int g = 0; g < groups; ++g) weights[g] = 1.0 / (1 + g);
  std::discrete_distribution<int> group(weights.begin(), weights.end());
  std::vector<int> rows(groups);
  for (int i = 0; i < total; ++i) ++rows[group(random)];
  std::shuffle(rows.begin(), rows.end(), random);
  return rows;
}

size_t ScaleBlocks(int elements) { return (elements + kScaleBlock - 1) / kScaleBlock; }

// Random slots of kSwiGluFp8 in `arena`, their scales differing by block, and tokens in fp8.
class Fp8 {
 public:
  Fp8(const Case& c, const DeviceArray<uint16_t>& arena, size_t stride)
      : c_(c),
        tokens_(static_cast<size_t>(c.tokens) * c.hidden),
        scales_(static_cast<size_t>(c.tokens) * ScaleBlocks(c.hidden)) {
    const size_t elements = size_t{3} * c.hidden * c.intermediate;
    const size_t scales = 3 * ScaleBlocks(c.hidden) * ScaleBlocks(c.intermediate);
    for (size_t slot = 0; slot < arena.size() * 2 / stride; ++slot) {
      uint8_t* const at = reinterpret_cast<uint8_t*>(arena.data()) + slot * stride;
      CheckCuda(FillUniformE4m3(at, elements, 7 + slot, 400, nullptr));
      CheckCuda(FillUniformFloat(reinterpret_cast<float*>(at + elements), scales, 1000 + slot, 1e-5f, 5e-4f, nullptr));
    }
    // NaN where nothing may be read for what it is.
    scales_.Fill(0xff);
  }

  void Quantize(const DeviceArray<uint16_t>& x) {
    ASSERT_TRUE(QuantizeRows({x.data(), c_.tokens, c_.hidden, tokens_.data(), scales_.data()}, nullptr).ok());
  }
  const uint8_t* tokens() const { return tokens_.data(); }
  const float* scales() const { return scales_.data(); }

 private:
  Case c_;
  DeviceArray<uint8_t> tokens_;
  DeviceArray<float> scales_;
};

class Fixture {
 public:
  explicit Fixture(const Case& c)
      : c_(c),
        pairs_(c.tokens * c.top_k),
        groups_(static_cast<int>(c.rows.size())),
        num_slots_(groups_ + 3),
        stride_(ExpertSlotBytes(c.form, c.hidden, c.intermediate) + 256),
        x_(static_cast<size_t>(c.tokens) * c.hidden),
        arena_(stride_ / 2 * num_slots_),
        out_(static_cast<size_t>(pairs_) * c.hidden),
        fp8_(c.form == ExpertForm::kSwiGluFp8 ? std::make_unique<Fp8>(c, arena_, stride_) : nullptr) {
    CheckCuda(FillUniformBf16(x_.data(), x_.size(), 1, 1, nullptr));
    if (fp8_ == nullptr) {
      CheckCuda(FillUniformBf16(arena_.data(), arena_.size(), 2, 0.1f, nullptr));
    } else {
      fp8_->Quantize(x_);
    }
    std::mt19937 random(3);
    order_.resize(pairs_);
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), random);
    begin_ = {0};
    for (const int rows : c.rows) begin_.push_back(begin_.back() + rows);
    slots_.resize(num_slots_);
    std::iota(slots_.begin(), slots_.end(), 0);
    std::shuffle(slots_.begin(), slots_.end(), random);
    slots_.resize(groups_);
  }

  void Run(int times) {
    absl::StatusOr<CudaExperts> experts =
        CudaExperts::Create({arena_.data(), stride_, num_slots_, c_.hidden, c_.intermediate, c_.form});
    ASSERT_TRUE(experts.ok()) << experts.status();
    DeviceArray<uint8_t> workspace(experts->WorkspaceBytes(pairs_, groups_));
    workspace.Fill(0);
    DeviceArray<int32_t> order(order_), begin(begin_), slots(slots_);
    // Narrow tiles in runs and (with tiles enough) from a queue, wide ones, pairs of blocks, and tokens as rows.
    for (const int typical_rows : {0, 8 * groups_, 64 * groups_, 256 * groups_, std::numeric_limits<int>::max()}) {
      ExpertsStep step = {x_.data(),    order.data(), c_.top_k,     begin.data(),
                          slots.data(), groups_,      typical_rows, out_.data()};
      if (fp8_ != nullptr) {
        step.x = fp8_->tokens();
        step.x_scales = fp8_->scales();
      }
      std::vector<uint16_t> first;
      for (int i = 0; i < times; ++i) {
        out_.Fill(0xff);
        const absl::Status status = experts->Run(step, workspace.data(), pairs_, groups_, nullptr);
        ASSERT_TRUE(status.ok()) << status;
        CheckCuda(cudaDeviceSynchronize());
        if (i == 0) {
          first = out_.Read();
        } else {
          ASSERT_EQ(out_.Read(), first) << "run " << i;
        }
      }
      Verify(first);
    }
  }

 private:
  void Verify(const std::vector<uint16_t>& out) {
    const int rows = begin_.back();
    for (size_t i = static_cast<size_t>(rows) * c_.hidden; i < out.size(); ++i) ASSERT_EQ(out[i], 0xffff) << i;
    // All rows of a few, some of many.
    std::vector<int> checked;
    const int stride = std::max(1, rows / 500);
    for (int row = 0; row < rows; row += stride) checked.push_back(row);
    if (rows > 0) checked.push_back(rows - 1);
    std::vector<int32_t> tokens;
    std::vector<const void*> weights;
    for (const int row : checked) {
      tokens.push_back(order_[row] / c_.top_k);
      const auto group = std::upper_bound(begin_.begin(), begin_.end(), row) - begin_.begin() - 1;
      weights.push_back(reinterpret_cast<const uint8_t*>(arena_.data()) + stride_ * slots_[group]);
    }
    const int n = static_cast<int>(checked.size());
    DeviceArray<int32_t> device_tokens(tokens);
    DeviceArray<const void*> device_weights(weights);
    DeviceArray<double> activations(static_cast<size_t>(n) * c_.intermediate),
        wanted(static_cast<size_t>(n) * c_.hidden);
    if (fp8_ == nullptr) {
      CheckCuda(ReferenceExperts(c_.form, x_.data(), device_tokens.data(), device_weights.data(), n, c_.hidden,
                                 c_.intermediate, activations.data(), wanted.data(), nullptr));
    } else {
      CheckCuda(ReferenceExpertsFp8(fp8_->tokens(), fp8_->scales(), device_tokens.data(), device_weights.data(), n,
                                    c_.hidden, c_.intermediate, activations.data(), wanted.data(), nullptr));
    }
    const std::vector<double> reference = wanted.Read();
    RelativeError all;
    for (int r = 0; r < n; ++r) {
      RelativeError error;
      for (int d = 0; d < c_.hidden; ++d) {
        const float got = FromBf16(out[static_cast<size_t>(checked[r]) * c_.hidden + d]);
        const double expected = reference[static_cast<size_t>(r) * c_.hidden + d];
        error.Add(got, expected);
        all.Add(got, expected);
      }
      // The tensor cores add products of fp8 with fewer bits than float32 has, so that some activations round to a
      // neighbour, up to an eighth away: few of all, but they can be most of one row.
      ASSERT_LT(error.value(), fp8_ == nullptr ? 1e-2 : 0.125) << "row " << checked[r] << " of " << rows;
    }
    ASSERT_LT(all.value(), 1e-2);
  }

  Case c_;
  int pairs_, groups_, num_slots_;
  size_t stride_;
  DeviceArray<uint16_t> x_, arena_, out_;
  std::unique_ptr<Fp8> fp8_;
  std::vector<int32_t> order_, begin_, slots_;
};

TEST(CudaExpertsTest, TokensOfOneGroup) {
  for (const int tokens : {1, 3, 8, 9, 17, 64, 127, 128, 129, 130, 257, 1000}) {
    SCOPED_TRACE(tokens);
    Fixture({256, 128, tokens, 1, {tokens}}).Run(2);
  }
}

TEST(CudaExpertsTest, SizesThatTilesDoNotDivide) {
  for (const auto& [hidden, intermediate] : std::vector<std::pair<int, int>>{
           {8, 8}, {64, 128}, {72, 40}, {192, 64}, {256, 64}, {264, 136}, {520, 1000}, {1000, 520}, {768, 3072}}) {
    SCOPED_TRACE(testing::Message() << hidden << " x " << intermediate);
    Fixture({hidden, intermediate, 20, 2, {0, 17, 0, 3, 20, 0}}).Run(2);
    Fixture({hidden, intermediate, 300, 1, {150, 0, 131, 19}}).Run(2);
  }
}

TEST(CudaExpertsTest, ExpertsWithoutGates) {
  for (const auto& [hidden, intermediate] :
       std::vector<std::pair<int, int>>{{8, 8}, {72, 40}, {264, 136}, {520, 1000}, {768, 3072}}) {
    SCOPED_TRACE(testing::Message() << hidden << " x " << intermediate);
    Fixture({hidden, intermediate, 20, 2, {0, 17, 0, 3, 20, 0}, ExpertForm::kRelu}).Run(2);
    Fixture({hidden, intermediate, 300, 1, {150, 0, 131, 19}, ExpertForm::kRelu}).Run(2);
  }
}

TEST(CudaExpertsTest, Fp8) {
  constexpr ExpertForm kFp8 = ExpertForm::kSwiGluFp8;
  for (const int tokens : {1, 3, 8, 17, 63, 64, 65, 128, 129, 257, 1000}) {
    SCOPED_TRACE(tokens);
    Fixture({256, 128, tokens, 1, {tokens}, kFp8}).Run(2);
  }
  for (const auto& [hidden, intermediate] : std::vector<std::pair<int, int>>{
           {16, 16}, {64, 128}, {80, 48}, {128, 256}, {272, 144}, {400, 1008}, {1008, 528}, {768, 3072}}) {
    SCOPED_TRACE(testing::Message() << hidden << " x " << intermediate);
    Fixture({hidden, intermediate, 20, 2, {0, 17, 0, 3, 20, 0}, kFp8}).Run(2);
    Fixture({hidden, intermediate, 400, 1, {150, 0, 200, 0, 50}, kFp8}).Run(2);
  }
  Fixture({256, 128, 4, 2, {0, 0, 0}, kFp8}).Run(2);
  Fixture({256, 128, 100, 8, {1, 200, 0, 77}, kFp8}).Run(2);
}

TEST(CudaExpertsTest, Fp8InModelShapes) {
  std::mt19937 random(8);
  struct Model {
    int hidden, intermediate, groups, top_k;
  };
  for (const Model& m : {Model{2048, 768, 128, 8}, Model{7168, 2048, 8, 1}}) {
    for (const int tokens : {1, 3, 17, 64, 129, 1000, 4096, 16384}) {
      SCOPED_TRACE(testing::Message() << m.hidden << " x " << m.intermediate << ", " << tokens << " tokens");
      Fixture({m.hidden, m.intermediate, tokens, m.top_k, SkewedRows(m.groups, tokens * m.top_k, random),
               ExpertForm::kSwiGluFp8})
          .Run(2);
    }
  }
}

TEST(CudaExpertsTest, NoRows) { Fixture({256, 128, 4, 2, {0, 0, 0}}).Run(3); }

TEST(CudaExpertsTest, FewerRowsThanPairs) { Fixture({256, 128, 100, 8, {1, 200, 0, 77}}).Run(2); }

TEST(CudaExpertsTest, ModelShapesAtDecodeAndPrefillSizes) {
  std::mt19937 random(4);
  struct Model {
    int hidden, intermediate, groups, top_k;
  };
  for (const Model& m : {Model{2048, 768, 128, 8}, Model{2048, 1024, 64, 8}, Model{7168, 2048, 8, 1}}) {
    for (const int tokens : {1, 3, 17, 64, 129, 1000, 4096}) {
      SCOPED_TRACE(testing::Message() << m.hidden << " x " << m.intermediate << ", " << tokens << " tokens");
      Fixture({m.hidden, m.intermediate, tokens, m.top_k, SkewedRows(m.groups, tokens * m.top_k, random)}).Run(2);
    }
  }
}

TEST(CudaExpertsTest, ManyGroups) {
  std::mt19937 random(5);
  Fixture({128, 64, 500, 4, SkewedRows(kMaxGroups, 2000, random)}).Run(2);
}

// So many that tiles come from a queue; few that have rows, so that all tiles of down are cut into parts, then more.
TEST(CudaExpertsTest, QueueAtSizesThatTilesDoNotDivide) {
  for (const ExpertForm form : {ExpertForm::kSwiGlu, ExpertForm::kRelu}) {
    for (const auto& [hidden, intermediate] :
         std::vector<std::pair<int, int>>{{8, 136}, {72, 136}, {264, 136}, {136, 1000}, {1000, 264}}) {
      SCOPED_TRACE(testing::Message() << hidden << " x " << intermediate);
      std::vector<int> rows(kMaxGroups);
      Fixture({hidden, intermediate, 1, 1, rows, form}).Run(2);
      rows[1] = rows[1000] = 1;
      rows[17] = 48;
      rows[18] = 131;
      Fixture({hidden, intermediate, 100, 2, rows, form}).Run(2);
      for (int g = 100; g < 400; ++g) rows[g] = g % 3;
      Fixture({hidden, intermediate, 100, 6, rows, form}).Run(2);
    }
  }
}

struct CombineCase {
  int hidden, intermediate, tokens, top_k, experts;
  ExpertForm form = ExpertForm::kSwiGlu;
};

// All ways of RunAndCombine, against the weighted sums of the float64 experts. The first expert is everybody's choice
// (but where each has one), and a quarter of the others has no group.
void ExpectCombined(const CombineCase& c) {
  SCOPED_TRACE(testing::Message() << c.hidden << " x " << c.intermediate << ", " << c.tokens << " tokens, top "
                                  << c.top_k << " of " << c.experts
                                  << (c.form == ExpertForm::kRelu ? ", no gates" : ""));
  std::mt19937 random(6);
  const int pairs = c.tokens * c.top_k;
  std::vector<int32_t> group_of(c.experts, -1), ids, slots;
  int groups = 0;
  for (int e = 0; e < c.experts; ++e) {
    if (e == 0 || random() % 4 != 0) group_of[e] = groups++;
  }
  for (int t = 0; t < c.tokens; ++t) {
    std::vector<int32_t> others(c.experts - 1);
    std::iota(others.begin(), others.end(), 1);
    std::shuffle(others.begin(), others.end(), random);
    ids.push_back(c.top_k == 1 ? static_cast<int32_t>(random() % c.experts) : 0);
    ids.insert(ids.end(), others.begin(), others.begin() + c.top_k - 1);
  }
  slots.resize(groups);
  std::iota(slots.begin(), slots.end(), 0);
  std::shuffle(slots.begin(), slots.end(), random);
  std::vector<float> weights(pairs);
  for (float& w : weights) w = std::uniform_real_distribution<float>(0, 1)(random);
  const size_t stride = size_t{6} * c.hidden * c.intermediate;
  DeviceArray<uint16_t> x(static_cast<size_t>(c.tokens) * c.hidden), arena(stride / 2 * groups),
      rows(static_cast<size_t>(pairs) * c.hidden), out(x.size());
  CheckCuda(FillUniformBf16(x.data(), x.size(), 1, 1, nullptr));
  CheckCuda(FillUniformBf16(arena.data(), arena.size(), 2, 0.1f, nullptr));
  DeviceArray<int32_t> device_ids(ids), device_group_of(group_of), device_slots(slots), begin(groups + 1), order(pairs),
      row_of(pairs);
  DeviceArray<float> device_weights(weights);
  DeviceArray<uint8_t> group_workspace(GroupPairsWorkspaceBytes(pairs, groups));
  ASSERT_TRUE(GroupPairs({device_ids.data(), pairs, device_group_of.data(), c.experts, groups, begin.data(),
                          order.data(), row_of.data()},
                         group_workspace.data(), nullptr)
                  .ok());
  std::vector<int32_t> tokens;
  std::vector<const void*> matrices;
  for (int p = 0; p < pairs; ++p) {
    tokens.push_back(p / c.top_k);
    const int group = std::max(0, group_of[ids[p]]);
    matrices.push_back(reinterpret_cast<const uint8_t*>(arena.data()) + stride * slots[group]);
  }
  DeviceArray<int32_t> device_tokens(tokens);
  DeviceArray<const void*> device_matrices(matrices);
  DeviceArray<double> activations(static_cast<size_t>(pairs) * c.intermediate), reference(rows.size());
  CheckCuda(ReferenceExperts(c.form, x.data(), device_tokens.data(), device_matrices.data(), pairs, c.hidden,
                             c.intermediate, activations.data(), reference.data(), nullptr));
  const std::vector<double> outputs = reference.Read();
  absl::StatusOr<CudaExperts> experts =
      CudaExperts::Create({arena.data(), stride, groups, c.hidden, c.intermediate, c.form});
  ASSERT_TRUE(experts.ok()) << experts.status();
  DeviceArray<uint8_t> workspace(experts->WorkspaceBytes(pairs, groups));
  workspace.Fill(0);
  for (const int typical_rows : {0, 8 * groups, 64 * groups, 256 * groups, std::numeric_limits<int>::max()}) {
    std::vector<uint16_t> first;
    for (int run = 0; run < 2; ++run) {
      out.Fill(0xff);
      const absl::Status status = experts->RunAndCombine(
          {x.data(), order.data(), c.top_k, begin.data(), device_slots.data(), groups, typical_rows, rows.data()},
          {rows.data(), row_of.data(), device_ids.data(), device_weights.data(), c.tokens, c.top_k, c.hidden,
           out.data()},
          workspace.data(), pairs, groups, nullptr);
      ASSERT_TRUE(status.ok()) << status;
      CheckCuda(cudaDeviceSynchronize());
      if (run == 0) first = out.Read();
    }
    ASSERT_EQ(out.Read(), first);
    if (c.top_k == 1 && typical_rows > 4 * groups) {
      // One kernel writes what two would.
      const CombineArgs combine = {rows.data(), row_of.data(), device_ids.data(), device_weights.data(),
                                   c.tokens,    c.top_k,       c.hidden,          out.data()};
      out.Fill(0xff);
      ASSERT_TRUE(experts
                      ->Run({x.data(), order.data(), c.top_k, begin.data(), device_slots.data(), groups, typical_rows,
                             rows.data()},
                            workspace.data(), pairs, groups, nullptr)
                      .ok());
      ASSERT_TRUE(CombineRows(combine, nullptr).ok());
      CheckCuda(cudaDeviceSynchronize());
      ASSERT_EQ(out.Read(), first) << "typical_rows " << typical_rows;
    }
    for (int t = 0; t < c.tokens; ++t) {
      RelativeError error;
      for (int d = 0; d < c.hidden; ++d) {
        double sum = 0;
        for (int p = t * c.top_k; p < (t + 1) * c.top_k; ++p) {
          if (group_of[ids[p]] >= 0) sum += weights[p] * outputs[static_cast<size_t>(p) * c.hidden + d];
        }
        error.Add(FromBf16(first[static_cast<size_t>(t) * c.hidden + d]), sum);
      }
      ASSERT_LT(error.value(), 1e-2) << "token " << t << ", typical_rows " << typical_rows;
    }
  }
}

TEST(CudaExpertsTest, CombinedAtSizesThatTilesDoNotDivide) {
  for (const ExpertForm form : {ExpertForm::kSwiGlu, ExpertForm::kRelu}) {
    for (const auto& [hidden, intermediate] :
         std::vector<std::pair<int, int>>{{8, 8}, {72, 40}, {264, 136}, {520, 1000}, {1000, 520}, {2200, 72}}) {
      for (const int tokens : {1, 3, 17, 64, 128, 129}) {
        ExpectCombined({hidden, intermediate, tokens, 1, 5, form});
        ExpectCombined({hidden, intermediate, tokens, 5, 40, form});
      }
    }
  }
}

TEST(CudaExpertsTest, CombinedWithOneChoiceOfMany) {
  for (const int tokens : {129, 1000, 4096}) ExpectCombined({264, 136, tokens, 1, 5});
}

TEST(CudaExpertsTest, CombinedInModelShapes) {
  for (const int tokens : {1, 3, 17, 64}) {
    ExpectCombined({2048, 768, tokens, 8, 128});
    ExpectCombined({7168, 2048, tokens, 1, 8});
    ExpectCombined({768, 3072, tokens, 1, 128, ExpertForm::kRelu});
  }
}

TEST(CudaExpertsTest, OneGraphServesEveryRouting) {
  const int hidden = 256, intermediate = 192, groups = 5, tokens = 64;
  const size_t stride = size_t{6} * hidden * intermediate;
  DeviceArray<uint16_t> x(tokens * hidden), arena(stride / 2 * groups), out(tokens * hidden);
  CheckCuda(FillUniformBf16(x.data(), x.size(), 1, 1, nullptr));
  CheckCuda(FillUniformBf16(arena.data(), arena.size(), 2, 0.1f, nullptr));
  absl::StatusOr<CudaExperts> experts = CudaExperts::Create({arena.data(), stride, groups, hidden, intermediate});
  ASSERT_TRUE(experts.ok()) << experts.status();
  DeviceArray<uint8_t> workspace(experts->WorkspaceBytes(tokens, groups));
  workspace.Fill(0);
  std::vector<int32_t> all(tokens);
  std::iota(all.begin(), all.end(), 0);
  DeviceArray<int32_t> order(all), begin(groups + 1), slots(std::vector<int32_t>{0, 1, 2, 3, 4});
  const ExpertsStep step = {x.data(), order.data(), 1, begin.data(), slots.data(), groups, 0, out.data()};
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CheckCuda(cudaStreamCreate(&stream));
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ASSERT_TRUE(experts->Run(step, workspace.data(), tokens, groups, stream).ok());
  CheckCuda(cudaStreamEndCapture(stream, &graph));
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  for (const std::vector<int32_t>& routing : std::vector<std::vector<int32_t>>{
           {0, 64, 64, 64, 64, 64}, {0, 0, 1, 1, 30, 64}, {0, 0, 0, 0, 0, 0}, {0, 10, 20, 30, 40, 50}}) {
    CheckCuda(cudaMemcpy(begin.data(), routing.data(), sizeof(int32_t) * routing.size(), cudaMemcpyHostToDevice));
    out.Fill(0xff);
    CheckCuda(cudaGraphLaunch(executable, stream));
    CheckCuda(cudaStreamSynchronize(stream));
    const std::vector<uint16_t> replayed = out.Read();
    out.Fill(0xff);
    ASSERT_TRUE(experts->Run(step, workspace.data(), tokens, groups, nullptr).ok());
    CheckCuda(cudaDeviceSynchronize());
    EXPECT_EQ(out.Read(), replayed);
  }
  CheckCuda(cudaGraphExecDestroy(executable));
  CheckCuda(cudaGraphDestroy(graph));
  CheckCuda(cudaStreamDestroy(stream));
}

TEST(CudaExpertsTest, ErrorsNameFieldValueAndLimit) {
  DeviceArray<uint16_t> arena(3 * 64 * 64);
  EXPECT_EQ(CudaExperts::Create({arena.data(), 6 * 64 * 64, 1, 60, 64}).status().message(),
            "hidden_size is 60, has to be a positive multiple of 8");
  EXPECT_EQ(CudaExperts::Create({arena.data(), 6 * 64 * 64, 0, 64, 64}).status().message(),
            "num_slots is 0, has to be at least 1");
  EXPECT_EQ(CudaExperts::Create({arena.data(), 16, 1, 64, 64}).status().message(),
            "slot_stride is 16, has to be a multiple of 16 and at least 24576");
  EXPECT_EQ(CudaExperts::Create({arena.data(), 6 * 64 * 64, 1, 64, 72, ExpertForm::kSwiGluFp8}).status().message(),
            "intermediate_size is 72, has to be a positive multiple of 16");
  absl::StatusOr<CudaExperts> experts = CudaExperts::Create({arena.data(), 6 * 64 * 64, 1, 64, 64});
  ASSERT_TRUE(experts.ok()) << experts.status();
  ExpertsStep step;
  step.num_groups = 5;
  EXPECT_EQ(experts->Run(step, nullptr, 1, 4, nullptr).message(), "num_groups is 5, has to be 1 to max_groups, 4");
}

}  // namespace
}  // namespace ballast
