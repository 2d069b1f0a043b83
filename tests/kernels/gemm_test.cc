// Products against float64, on every kernel that this CPU has. Tolerances follow from how a float32 sum errs:
// |error| <= (k + few) * epsilon * sum |x_i w_i|, and in practice its square root; bf16 inputs are rounded in
// the reference too, so both types share the bound. Where a norm precedes bf16 rounding, an input may round
// the other way.
#include "engine/backend/cpu/gemm.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/cpu/gemm_onednn.h"
#include "engine/backend/cpu/gemm_tile.h"
#include "engine/backend/cpu/row_ops.h"
#include "tests/support/reference_ops.h"

namespace t6::cpu {
namespace {

constexpr double kEpsilonF32 = 1.1920929e-7;
constexpr double kEpsilonBf16 = 1.0 / 256;

struct Matrix {
  int n, k;
  std::vector<float> data;
  TensorView view() const { return {data.data(), DType::kF32, {n, k}}; }
  reference::Row row(int i) const { return reference::ToRow(data.data() + static_cast<size_t>(i) * k, k); }
};

Matrix RandomMatrix(int n, int k, uint32_t seed, bool round_to_bf16) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Matrix m{n, k, std::vector<float>(static_cast<size_t>(n) * k)};
  for (float& x : m.data) x = round_to_bf16 ? RoundToBf16(normal(random)) : normal(random);
  return m;
}

double Tolerance(int k, double abs_sum, DType dtype, bool norm) {
  double tolerance = 4.0 * (std::sqrt(k) + 8) * kEpsilonF32 * abs_sum;
  // One input in many may round the other way after a norm in float32; it moves the sum by an ulp of its own
  // term.
  if (dtype == DType::kBF16 && norm) tolerance += 8 * kEpsilonBf16 * abs_sum / k;
  return tolerance;
}

struct Case {
  DType dtype;
  int threads, n_rows, k, n;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << NameOf(c.dtype) << "_threads" << c.threads << "_rows" << c.n_rows << "_k" << c.k << "_n" << c.n;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int n_rows : {1, 2, 3, 5, 7, 8, 13, 16, 17, 33, 64, 130, 257})
      cases.push_back({dtype, 2, n_rows, 154, 70});
    // Each worker has these rows to itself, with no room for whole steps of rows: what reads those fails in
    // debug builds.
    cases.push_back({dtype, 2, 85, 192, 70});
    for (int n_rows : {1, 16, 65}) {
      cases.push_back({dtype, 1, n_rows, 384, 770});
      cases.push_back({dtype, 3, n_rows, 1, 1});
      cases.push_back({dtype, 3, n_rows, 31, 129});
      cases.push_back({dtype, 4, n_rows, 1420, 64});
      cases.push_back({dtype, 2, n_rows, 2730, 66});
    }
  }
  return cases;
}

class GemmTest : public testing::TestWithParam<Case> {
 protected:
  GemmTest() : pool_(GetParam().threads), gemm_(Gemm::Make(&pool_)) {}

  std::unique_ptr<PackedMatrix> Pack(const std::vector<TensorView>& parts, bool swiglu = false) {
    auto packed = gemm_->Pack(parts, GetParam().dtype, swiglu);
    EXPECT_TRUE(packed.ok()) << packed.status();
    return std::move(packed).value();
  }
  reference::Row Input(const Matrix& in, int row, const RmsNorm& norm) const {
    reference::Row x = in.row(row);
    if (norm.enabled) x = reference::RmsNorm(x, norm.eps, norm.weight);
    return GetParam().dtype == DType::kBF16 ? reference::RoundToBf16(x) : x;
  }

  ThreadPool pool_;
  std::unique_ptr<Gemm> gemm_;
};

TEST_P(GemmTest, StoreAndAddMatchFloat64) {
  const auto [dtype, threads, n_rows, k, n] = GetParam();
  const Matrix in = RandomMatrix(n_rows, k, 1, false);
  const Matrix w = RandomMatrix(n, k, 2, dtype == DType::kBF16);
  const auto packed = Pack({w.view()});
  EXPECT_EQ(packed->n(), n);
  EXPECT_EQ(packed->k(), k);
  for (Epilogue epilogue : {Epilogue::kStore, Epilogue::kAdd}) {
    const size_t size = static_cast<size_t>(n_rows) * n;
    std::vector<float> out(size + 64, 7.0f);  // the last 64 must stay as they are
    ProjectParams p;
    p.in = in.data.data(), p.n_rows = n_rows, p.weight = packed.get(), p.epilogue = epilogue,
    p.out = out.data();
    gemm_->Project(p);
    for (int r = 0; r < n_rows; ++r) {
      const reference::Row x = Input(in, r, p.norm);
      for (int c = 0; c < n; ++c) {
        const double expected = reference::Dot(x, w.row(c)) + (epilogue == Epilogue::kAdd ? 7.0 : 0.0);
        ASSERT_NEAR(out[static_cast<size_t>(r) * n + c], expected,
                    Tolerance(k, 7 + reference::AbsDot(x, w.row(c)), dtype, false))
            << r << ", " << c;
      }
    }
    for (size_t i = size; i < out.size(); ++i) ASSERT_EQ(out[i], 7.0f) << "wrote past the end";
  }
}

TEST_P(GemmTest, NormAndRowIndexMatchFloat64) {
  const auto [dtype, threads, n_rows, k, n] = GetParam();
  const Matrix in = RandomMatrix(2 * n_rows, k, 3, false);
  const Matrix w = RandomMatrix(n, k, 4, dtype == DType::kBF16);
  const Matrix norm_weight = RandomMatrix(1, k, 5, false);
  const auto packed = Pack({w.view()});
  std::vector<int32_t> index(n_rows);
  for (int r = 0; r < n_rows; ++r) index[r] = 2 * n_rows - 1 - 2 * r;
  for (const float* weight : {static_cast<const float*>(nullptr), norm_weight.data.data()}) {
    std::vector<float> out(static_cast<size_t>(n_rows) * n);
    ProjectParams p;
    p.in = in.data.data(), p.row_index = index.data(), p.n_rows = n_rows, p.weight = packed.get(),
    p.out = out.data();
    p.norm = {true, 1e-6f, weight};
    gemm_->Project(p);
    for (int r = 0; r < n_rows; ++r) {
      const reference::Row x = Input(in, index[r], p.norm);
      for (int c = 0; c < n; ++c) {
        ASSERT_NEAR(out[static_cast<size_t>(r) * n + c], reference::Dot(x, w.row(c)),
                    Tolerance(k, reference::AbsDot(x, w.row(c)), dtype, true))
            << r << ", " << c;
      }
    }
  }
}

TEST_P(GemmTest, SwiGluMatchesFloat64) {
  const auto [dtype, threads, n_rows, k, n] = GetParam();
  const Matrix in = RandomMatrix(n_rows, k, 6, false);
  Matrix gate = RandomMatrix(n, k, 7, false);
  for (float& x : gate.data) x = RoundToBf16(x / std::sqrt(static_cast<float>(k)));
  const Matrix up = RandomMatrix(n, k, 8, true);
  const auto packed = Pack({gate.view(), up.view()}, true);
  std::vector<float> out(static_cast<size_t>(n_rows) * n);
  ProjectParams p;
  p.in = in.data.data(), p.n_rows = n_rows, p.weight = packed.get(), p.out = out.data();
  p.epilogue = Epilogue::kSwiGlu;
  gemm_->Project(p);
  for (int r = 0; r < n_rows; ++r) {
    const reference::Row x = Input(in, r, p.norm);
    for (int c = 0; c < n; ++c) {
      const double g = reference::Silu(reference::Dot(x, gate.row(c)));
      const double u = reference::Dot(x, up.row(c));
      // The product's rule, and the slope of silu is at most 1.1.
      const double tolerance =
          1.1 * std::abs(u) * Tolerance(k, reference::AbsDot(x, gate.row(c)), dtype, false) +
          std::abs(g) * Tolerance(k, reference::AbsDot(x, up.row(c)), dtype, false) +
          4 * kEpsilonF32 * std::abs(g * u);
      ASSERT_NEAR(out[static_cast<size_t>(r) * n + c], g * u, tolerance + 1e-12) << r << ", " << c;
    }
  }
}

TEST_P(GemmTest, PartsStandOneBelowTheOther) {
  const auto [dtype, threads, n_rows, k, n] = GetParam();
  const Matrix in = RandomMatrix(n_rows, k, 9, false);
  const Matrix whole = RandomMatrix(n + 5, k, 10, true);
  std::vector<bf16> head(static_cast<size_t>(n) * k);
  ConvertToBf16(whole.data.data(), n * k, head.data());
  const TensorView top{head.data(), DType::kBF16, {n, k}};
  const TensorView bottom{whole.data.data() + static_cast<size_t>(n) * k, DType::kF32, {5, k}};
  const auto packed_whole = Pack({whole.view()});
  const auto packed_parts = Pack({top, bottom});
  std::vector<float> a(static_cast<size_t>(n_rows) * (n + 5)), b(a.size());
  ProjectParams p;
  p.in = in.data.data(), p.n_rows = n_rows;
  p.weight = packed_whole.get(), p.out = a.data();
  gemm_->Project(p);
  p.weight = packed_parts.get(), p.out = b.data();
  gemm_->Project(p);
  EXPECT_EQ(a, b);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GemmTest, testing::ValuesIn(Cases()), testing::PrintToStringParamName());

TEST(GemmPackTest, RefusesWhatItCannotPack) {
  ThreadPool pool(1);
  const auto gemm = Gemm::Make(&pool);
  const Matrix a = RandomMatrix(4, 8, 1, false), b = RandomMatrix(4, 9, 1, false),
               c = RandomMatrix(3, 8, 1, false);
  EXPECT_FALSE(gemm->Pack({}, DType::kF32, false).ok());
  EXPECT_FALSE(gemm->Pack({a.view()}, DType::kF16, false).ok());
  EXPECT_FALSE(gemm->Pack({a.view(), b.view()}, DType::kF32, false).ok());
  EXPECT_FALSE(gemm->Pack({a.view(), c.view()}, DType::kF32, true).ok());
  EXPECT_FALSE(gemm->Pack({a.view()}, DType::kF32, true).ok());
  EXPECT_TRUE(gemm->Pack({a.view(), c.view()}, DType::kF32, false).ok());
}

// A row's result must not depend on the rows beside it: never in bf16; in f32 on either side of oneDNN's
// first row.
TEST(GemmBitsTest, ARowIsTheSameInEveryBatch) {
  ThreadPool pool(2);
  const auto gemm = Gemm::Make(&pool);
  const Matrix w = RandomMatrix(200, 1000, 2, true);
  const Matrix in = RandomMatrix(300, 1000, 1, false);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const auto packed = gemm->Pack({w.view()}, dtype, false);
    ASSERT_TRUE(packed.ok());
    const auto run = [&](int n_rows) {
      std::vector<float> out(static_cast<size_t>(n_rows) * 200);
      ProjectParams p;
      p.in = in.data.data(), p.n_rows = n_rows, p.weight = packed->get(), p.out = out.data();
      gemm->Project(p);
      out.resize(200);
      return out;
    };
    for (int n_rows : {2, 3, 4, 6, 16, 17, 32, 63}) EXPECT_EQ(run(1), run(n_rows)) << NameOf(dtype) << n_rows;
    for (int n_rows : {65, 129, 200, 300}) EXPECT_EQ(run(64), run(n_rows)) << NameOf(dtype) << n_rows;
    if (dtype == DType::kBF16) {
      EXPECT_EQ(run(1), run(64));
    }
  }
}

TEST(OnednnProductTest, MatchesFloat64WhereItKnowsThePacking) {
  constexpr int kRows = 96, kK = 832, kN = 128;
  OnednnProducts products(2);
  const OnednnProduct* product = products.Find(kRows, kK, kN);
  EXPECT_EQ(products.Find(kRows, kK, kN), product) << "made twice";
  if (product == nullptr) GTEST_SKIP() << "no brgemm for float32 on this CPU";
  const Matrix a = RandomMatrix(kRows, kK, 1, false), w = RandomMatrix(kN, kK, 2, false);
  std::vector<float> packed(kN * kK), c(kRows * kN);
  for (int n = 0; n < kN; ++n) {
    for (int k = 0; k < kK; ++k) packed[(n / 64 * kK + k) * 64 + n % 64] = w.data[n * kK + k];
  }
  product->Run(a.data.data(), packed.data(), c.data(), 1);
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kN; ++n) {
      ASSERT_NEAR(c[r * kN + n], reference::Dot(a.row(r), w.row(n)),
                  Tolerance(kK, reference::AbsDot(a.row(r), w.row(n)), DType::kF32, false));
    }
  }
}

// Each block kernel by itself, on each target that Highway has code for and this CPU can run.
TEST(BlockKernelTest, EveryTargetMatchesFloat64) {
  constexpr int kK = 96, kRows = 37;
  const size_t stride = kK + 32;
  const Matrix in = RandomMatrix(kRows, kK, 1, true), w = RandomMatrix(64, kK, 2, true);
  std::vector<float> a_f32(64 * stride), b_f32(kK * 64);
  std::vector<bf16> a_bf16(64 * stride), b_bf16(kK * 64);
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kK; ++k) {
      a_f32[r * stride + k] = in.data[r * kK + k];
      a_bf16[r * stride + k] = ToBf16(in.data[r * kK + k]);
    }
  }
  for (int c = 0; c < 64; ++c) {
    for (int k = 0; k < kK; ++k) {
      b_f32[k * 64 + c] = w.data[c * kK + k];
      b_bf16[(k / 2 * 64 + c) * 2 + k % 2] = ToBf16(w.data[c * kK + k]);
    }
  }
  const auto check = [&](BlockKernel kernel, DType dtype, const std::string& name) {
    for (int n_rows : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 32, 33, kRows}) {
      std::vector<float> c(64 * 64, -1.0f);
      BlockProduct p;
      p.a = dtype == DType::kF32 ? static_cast<const void*>(a_f32.data()) : a_bf16.data();
      p.b = dtype == DType::kF32 ? static_cast<const void*>(b_f32.data()) : b_bf16.data();
      p.a_stride = stride, p.n_rows = n_rows, p.k_padded = kK, p.c = c.data(), p.c_stride = 64;
      kernel(p);
      for (int r = 0; r < n_rows; ++r) {
        for (int j = 0; j < 64; ++j) {
          ASSERT_NEAR(c[r * 64 + j], reference::Dot(in.row(r), w.row(j)),
                      Tolerance(kK, reference::AbsDot(in.row(r), w.row(j)), dtype, false))
              << name << " rows " << n_rows << " at " << r << ", " << j;
        }
      }
    }
  };
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    check(RowsF32, DType::kF32, hwy::TargetName(target));
    check(RowsBf16, DType::kBF16, hwy::TargetName(target));
  }
  hwy::SetSupportedTargetsForTest(0);
  if (HasAvx512Bf16()) check(RowsAvx512Bf16, DType::kBF16, "vdpbf16ps");
  if (HasAmxBf16()) check(RowsAmxBf16, DType::kBF16, "AMX");
}

}  // namespace
}  // namespace t6::cpu
