// Split products on a Hopper GPU against float64, however they are divided among blocks: sums, norm, SwiGLU,
// residual and the next norm's rows and squares. What must not be read or written is NaN. Without such a GPU
// those are skipped.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "engine/backend/cuda/chip.h"
#include "engine/backend/cuda/product_shape.h"
#include "engine/backend/cuda/split_product.h"
#include "engine/tensor/dtype.h"
#include "tests/support/cuda_on_device.h"

namespace t6::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kEps = 1e-5f;

int Padded(int n) { return (n + 63) / 64 * 64; }

struct Case {
  Epilogue epilogue;
  int n, k, n_rows;
  cuda::SplitShape shape;
  bool normed;
};

std::string NameOf(const Case& c) {
  const char* epilogue = c.epilogue == Epilogue::kStore ? "store"
                         : c.epilogue == Epilogue::kAdd ? "add"
                                                        : "swiglu";
  return std::string(epilogue) + ", n " + std::to_string(c.n) + ", k " + std::to_string(c.k) + ", rows " +
         std::to_string(c.n_rows) + ", columns " + std::to_string(c.shape.tile_columns) + ", splits " +
         std::to_string(c.shape.n_splits) + (c.normed ? ", normed" : "");
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Epilogue epilogue : {Epilogue::kStore, Epilogue::kAdd, Epilogue::kSwiGlu}) {
    for (const int columns : {64, 128}) {
      for (const int rows : {17, 24, 32, 33, 49, 63, 64}) {
        for (const int splits : {1, 2, 3, 5, 8}) {
          const bool normed = epilogue != Epilogue::kAdd && splits % 2 == 1;
          cases.push_back({epilogue, 200, 576, rows, {columns, splits}, normed});
          // k of 21 chunks, the last of them half; n odd.
          cases.push_back({epilogue, 131, 1304, rows, {columns, splits}, normed});
        }
        cases.push_back({epilogue, 37, 41, rows, {columns, 1}, epilogue != Epilogue::kAdd});
      }
    }
  }
  return cases;
}

class SplitProductTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::CodeForThisChip() != cuda::ChipCode::kHopper) GTEST_SKIP() << "no Hopper GPU";
  }

  // Rows of `width` numbers, `stride` apart, with `rest` behind them.
  std::vector<float> Random(int rows, int width, int stride, float rest) {
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(rows) * stride, rest);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < width; ++i) x[static_cast<size_t>(r) * stride + i] = RoundToBf16(normal(random_));
    }
    return x;
  }
  static std::vector<bf16> Narrow(const std::vector<float>& x) {
    std::vector<bf16> y;
    for (const float v : x) y.push_back(ToBf16(v));
    return y;
  }

  void Check(const Case& c);

  std::mt19937 random_{7};
};

void SplitProductTest::Check(const Case& c) {
  SCOPED_TRACE(NameOf(c));
  const bool swiglu = c.epilogue == Epilogue::kSwiGlu, adds = c.epilogue == Epilogue::kAdd;
  const int stride = Padded(c.k), parts = swiglu ? 2 : 1, pieces = cuda::SplitPieces(c.n), in_pieces = 3;
  const int in_k = (c.k + 7) / 8 * 8, out_stride = Padded(c.n) + 64;
  // A part's rows are padded with zeros; behind the last input row lies what must not be read.
  std::vector<float> weights = Random(parts * Padded(c.n), c.k, stride, 0.0f);
  for (int part = 0; part < parts; ++part) {
    for (int row = c.n; row < Padded(c.n); ++row) {
      std::fill_n(weights.begin() + static_cast<size_t>(part * Padded(c.n) + row) * stride, stride, 0.0f);
    }
  }
  std::vector<float> in = Random(c.n_rows, c.k, stride, 0.0f);
  for (int r = 0; r < c.n_rows; ++r) {
    std::fill(in.begin() + r * stride + in_k, in.begin() + (r + 1) * stride, kNaN);
  }
  std::vector<float> in_and_rest = in;
  in_and_rest.resize(in.size() + 64 * stride, kNaN);
  std::vector<float> squares;
  std::uniform_real_distribution<float> uniform(0.1f, 1.0f);
  for (int i = 0; i < c.n_rows * in_pieces; ++i) squares.push_back(uniform(random_) * c.k);
  const int room = 80;
  std::vector<float> old = Random(room, c.n, out_stride, kNaN);
  for (size_t i = static_cast<size_t>(c.n_rows) * out_stride; i < old.size(); ++i) old[i] = kNaN;
  if (!adds) std::fill(old.begin(), old.end(), kNaN);

  const OnDevice<bf16> device_weights(Narrow(weights)), device_in(Narrow(in_and_rest));
  const OnDevice<float> device_squares(squares), device_out(old);
  const OnDevice<bf16> narrow_out(Narrow(std::vector<float>(old.size(), kNaN)));
  const OnDevice<bf16> device_rows(Narrow(std::vector<float>(static_cast<size_t>(room) * Padded(c.n), kNaN)));
  const OnDevice<float> device_pieces(std::vector<float>(static_cast<size_t>(room) * pieces, kNaN));
  cuda::SkinnyCall call;
  call.weight = device_weights.get(), call.n = c.n, call.up_row = Padded(c.n);
  call.k = in_k, call.k_stride = call.in_stride = stride;
  call.in = device_in.get(), call.n_rows = c.n_rows, call.epilogue = c.epilogue;
  if (c.normed) {
    call.squares = device_squares.get(), call.n_pieces = in_pieces;
    call.norm_width = c.k, call.norm_eps = kEps;
  }
  call.out = swiglu ? static_cast<void*>(narrow_out.get()) : device_out.get(), call.out_stride = out_stride;
  if (adds) call.stats = {device_rows.get(), Padded(c.n), device_pieces.get(), pieces};
  ASSERT_EQ(cudaSuccess, LaunchSplitProduct(call, c.shape, nullptr));
  ASSERT_EQ(cudaSuccess, cudaDeviceSynchronize());

  std::vector<float> out = device_out.Read();
  if (swiglu) {
    const std::vector<bf16> narrow = narrow_out.Read();
    for (size_t i = 0; i < out.size(); ++i) out[i] = ToFloat(narrow[i]);
  }
  const std::vector<bf16> rows = device_rows.Read();
  const std::vector<float> got_pieces = device_pieces.Read();
  for (int r = 0; r < room; ++r) {
    double scale = 1.0;
    if (c.normed && r < c.n_rows) {
      double square = 0.0;
      for (int i = 0; i < in_pieces; ++i) square += squares[r * in_pieces + i];
      scale = 1.0 / std::sqrt(square / c.k + kEps);
    }
    // A product's sum and how much it may err: float32 sums of exact products.
    const auto product = [&](int column) {
      double sum = 0.0, most = 0.0;
      for (int i = 0; i < c.k; ++i) {
        const double x = static_cast<double>(in[static_cast<size_t>(r) * stride + i]) *
                         weights[static_cast<size_t>(column) * stride + i];
        sum += x, most += std::abs(x);
      }
      return std::pair(sum * scale, (std::sqrt(c.k) + 8) * 0x1p-22 * (most * scale + 1));
    };
    std::vector<double> piece_squares(pieces);
    for (int column = 0; column < out_stride; ++column) {
      const float got = out[static_cast<size_t>(r) * out_stride + column];
      if (r >= c.n_rows || column >= c.n) {
        // SwiGLU stores pairs of columns: the padding's first may be zero.
        if (!(swiglu && r < c.n_rows && column == c.n && got == 0.0f)) {
          ASSERT_TRUE(std::isnan(got)) << "row " << r << ", column " << column << " was written: " << got;
        }
        continue;
      }
      const auto [sum, error] = product(column);
      if (swiglu) {
        const auto [up, up_error] = product(Padded(c.n) + column);
        const double silu = sum / (1 + std::exp(-sum)), want = silu * up;
        ASSERT_NEAR(got, want,
                    0x1p-8 * std::abs(want) + 1.1 * error * std::abs(up) + up_error * std::abs(silu) + 1e-6)
            << "row " << r << ", column " << column;
        continue;
      }
      const double want = sum + (adds ? old[static_cast<size_t>(r) * out_stride + column] : 0.0);
      ASSERT_NEAR(got, want, error) << "row " << r << ", column " << column;
      if (!adds) continue;
      ASSERT_EQ(ToFloat(rows[static_cast<size_t>(r) * Padded(c.n) + column]), RoundToBf16(got));
      piece_squares[column / 32] += static_cast<double>(got) * got;
    }
    for (int i = 0; adds && i < pieces; ++i) {
      const float got = got_pieces[static_cast<size_t>(r) * pieces + i];
      if (r < c.n_rows) {
        ASSERT_NEAR(got, piece_squares[i], 1e-5 * piece_squares[i]) << "row " << r << ", piece " << i;
      } else {
        ASSERT_TRUE(std::isnan(got)) << "row " << r << ", piece " << i << " was written";
      }
    }
  }
}

// A residual's second tile in a block would be added from sums that nobody has formed.
TEST(ProductShape, FewRowsTakeAResidualOfOneTileABlock) {
  constexpr int kWarps = 12;
  for (const int n_sms : {16, 78, 132}) {
    for (const int width : {256, 1248, 1249, 1600, 2112, 2113, 2560}) {
      cuda::SkinnyCall call;
      call.n = width, call.k_stride = 640;
      const auto shape = cuda::ProductShape::Make(call, n_sms, kWarps);
      EXPECT_TRUE(shape.TakesFewRows(kWarps, Epilogue::kStore));
      EXPECT_EQ(shape.TakesFewRows(kWarps, Epilogue::kAdd), width <= 16 * n_sms) << width << " on " << n_sms;
    }
  }
}

TEST_F(SplitProductTest, EveryDivisionMatchesFloat64) {
  for (const Case& c : Cases()) {
    Check(c);
    if (HasFatalFailure()) return;
  }
}

// Of T6-XL's own sizes, as the backend divides them.
TEST_F(SplitProductTest, LargeShapesMatchFloat64) {
  int n_sms = 0;
  ASSERT_EQ(cudaSuccess, cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, 0));
  for (const auto& [epilogue, n, k] :
       {std::tuple(Epilogue::kStore, 1420, 1600), std::tuple(Epilogue::kAdd, 1600, 4992),
        std::tuple(Epilogue::kSwiGlu, 4266, 1600), std::tuple(Epilogue::kAdd, 1600, 4266)}) {
    const int weight_rows = Padded(n) * (epilogue == Epilogue::kSwiGlu ? 2 : 1);
    const cuda::SplitShape shape = cuda::SplitShape::Make(weight_rows, Padded(k), n_sms);
    Check({epilogue, n, k, 33, shape, epilogue != Epilogue::kAdd});
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace t6::testing
