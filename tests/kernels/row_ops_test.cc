// Norms, rounding and epilogues against float64, on every vector target that this CPU has.
#include "engine/backend/cpu/row_ops.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/cpu/sample_ops.h"
#include "tests/support/reference_ops.h"

namespace t6::cpu {
namespace {

constexpr double kEpsilonF32 = 1.1920929e-7;

std::vector<float> RandomRow(int n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row(n);
  for (float& x : row) x = normal(random);
  return row;
}

class RowOpsTest : public testing::TestWithParam<int64_t> {
 protected:
  RowOpsTest() { hwy::SetSupportedTargetsForTest(GetParam()); }
  ~RowOpsTest() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(RowOpsTest, PrepareRowNormalisesAndPads) {
  for (int k : {1, 15, 16, 31, 64, 100, 384, 2730}) {
    const int k_padded = (k + 31) / 32 * 32;
    const std::vector<float> in = RandomRow(k, k), weight = RandomRow(k, k + 1);
    for (const float* w : {static_cast<const float*>(nullptr), weight.data()}) {
      std::vector<float> out(k_padded + 1, 9.0f);
      PrepareRow(in.data(), k, k_padded, {true, 1e-5f, w}, out.data());
      const reference::Row expected = reference::RmsNorm(reference::ToRow(in.data(), k), 1e-5, w);
      for (int i = 0; i < k; ++i)
        ASSERT_NEAR(out[i], expected[i], 6 * kEpsilonF32 * std::abs(expected[i])) << k;
      for (int i = k; i < k_padded; ++i) ASSERT_EQ(out[i], 0.0f);
      ASSERT_EQ(out[k_padded], 9.0f) << "wrote past the end";
    }
    std::vector<float> out(k_padded);
    PrepareRow(in.data(), k, k_padded, RmsNorm(), out.data());
    for (int i = 0; i < k; ++i) ASSERT_EQ(out[i], in[i]);
  }
}

TEST_P(RowOpsTest, Bf16RoundsToNearestEvenAndKeepsNaN) {
  std::vector<float> in = RandomRow(200, 3);
  in[0] = std::bit_cast<float>(0x3f808000u);  // ties: down to even, up to even
  in[1] = std::bit_cast<float>(0x3f818000u);
  in[2] = std::numeric_limits<float>::infinity();
  in[3] = std::bit_cast<float>(0x7fffffffu);  // a NaN that plain rounding would turn into -0
  in[4] = std::numeric_limits<float>::max();
  in[5] = -0.0f;
  in[6] = 1e-40f;
  std::vector<bf16> out(224);
  PrepareRow(in.data(), 200, 224, RmsNorm(), out.data());
  for (int i = 0; i < 200; ++i) {
    if (std::isnan(in[i])) {
      EXPECT_TRUE(std::isnan(ToFloat(out[i])));
    } else {
      EXPECT_EQ(out[i].bits, ToBf16(in[i]).bits) << i << ": " << in[i];
    }
  }
  for (int i = 200; i < 224; ++i) EXPECT_EQ(out[i].bits, 0);
  std::vector<float> wide(224);
  WidenRow(out.data(), 221, wide.data());
  for (int i = 0; i < 221; ++i) {
    if (i != 3) {
      EXPECT_EQ(wide[i], ToFloat(out[i])) << i;
    }
  }
  EXPECT_EQ(wide[221], 0.0f);
}

TEST_P(RowOpsTest, FinishTileWritesOnlyItsColumns) {
  const std::vector<float> c = RandomRow(3 * 128, 5);
  for (int n_columns : {1, 7, 16, 33, 64}) {
    for (Epilogue kind : {Epilogue::kStore, Epilogue::kAdd, Epilogue::kSwiGlu}) {
      std::vector<float> out(3 * 70, 2.0f);
      TileEpilogue t;
      t.kind = kind, t.c = c.data(), t.c_up = c.data() + 64, t.c_stride = 128, t.n_rows = 3,
      t.n_columns = n_columns;
      t.out = out.data(), t.out_stride = 70;
      FinishTile(t);
      for (int r = 0; r < 3; ++r) {
        for (int i = 0; i < 70; ++i) {
          const double x = c[r * 128 + std::min(i, 63)];
          double expected = x;
          if (kind == Epilogue::kAdd) expected = 2.0 + x;
          if (kind == Epilogue::kSwiGlu) expected = reference::Silu(x) * c[r * 128 + 64 + std::min(i, 63)];
          if (i >= n_columns) expected = 2.0;
          ASSERT_NEAR(out[r * 70 + i], expected, 8 * kEpsilonF32 * (1 + std::abs(expected))) << i;
        }
      }
      if (kind == Epilogue::kAdd) continue;
      std::vector<bf16> rounded(3 * 70, ToBf16(2.0f));
      t.out = rounded.data(), t.out_dtype = DType::kBF16;
      FinishTile(t);
      for (int i = 0; i < 3 * 70; ++i) ASSERT_EQ(rounded[i].bits, ToBf16(out[i]).bits) << i;
    }
  }
}

TEST_P(RowOpsTest, SwiGluOfLargeGatesStaysFinite) {
  std::vector<float> c(128, 1.0f);
  const float gates[] = {-1e30f, -200.0f, -90.0f, 0.0f, 90.0f, 200.0f, 1e30f};
  std::copy(std::begin(gates), std::end(gates), c.begin());
  std::vector<float> out(64);
  TileEpilogue t;
  t.kind = Epilogue::kSwiGlu, t.c = c.data(), t.c_up = c.data() + 64, t.c_stride = 128, t.n_rows = 1;
  t.n_columns = 64, t.out = out.data(), t.out_stride = 64;
  FinishTile(t);
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(out[i], 0.0f, 1e-8f) << gates[i];
  EXPECT_EQ(out[3], 0.0f);
  for (int i = 4; i < 7; ++i) EXPECT_EQ(out[i], gates[i]);
}

TEST_P(RowOpsTest, SampleOpsMatchFloat64) {
  for (int n : {1, 3, 16, 64, 65, 511, 513, 1031, 8192}) {
    std::vector<float> x = RandomRow(n, n);
    float max = x[0];
    for (float v : x) max = std::max(max, v);
    const RowScan scan = ScanRow(x.data(), n);
    EXPECT_EQ(scan.max, max);
    EXPECT_TRUE(scan.finite);
    EXPECT_EQ(FirstIndexOf(x.data(), n, max), std::find(x.begin(), x.end(), max) - x.begin());
    EXPECT_EQ(FirstIndexOf(x.data(), n, 1e9f), n);
    double sum = 0;
    for (float v : x) sum += std::exp(static_cast<double>(v) - max);
    EXPECT_NEAR(SumExp(x.data(), n, max), sum, 2e-6 * sum);
    std::vector<float> weights(n + 1, -1.0f);
    std::vector<double> sums((n + kSumBlock - 1) / kSumBlock);
    ExpRow(x.data(), n, max, 0.5f, weights.data(), sums.data());
    for (int i = 0; i < n; ++i) ASSERT_NEAR(weights[i], std::exp((x[i] - max) * 0.5), 4e-7);
    EXPECT_EQ(weights[n], -1.0f) << "wrote past the end";
    x[n - 1] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_FALSE(ScanRow(x.data(), n).finite) << n;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, RowOpsTest, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& info) { return std::string(hwy::TargetName(info.param)); });

}  // namespace
}  // namespace t6::cpu
