// A layer's products, chained as the model chains them, on every device and in both types, against float64 on
// what the device itself was given. Tolerances: float32 sums err by about sqrt(k) epsilon of the sum of |x
// w|; where an input is rounded to bfloat16, each term by up to 2^-9 of itself, at random.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/kernels/backend_world.h"
#include "tests/support/reference_ops.h"

namespace t6::testing {
namespace {

struct Shape {
  const char* name;
  int width, mlp_width, attention_width, qkv, vocab;
};

struct Case {
  std::string device;
  DType dtype;
  Shape shape;
  int n_rows;
};

std::vector<Case> Cases() {
  const Shape tiny{"tiny", 40, 106, 24, 75, 131}, odd{"odd", 37, 41, 33, 29, 50},
      wide{"wide", 320, 853, 832, 270, 1000}, broad{"broad", 72, 4300, 130, 200, 8600};
  std::vector<Case> cases;
  for (const std::string& device : Devices()) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      for (int n_rows : {1, 2, 5, 8, 9, 16, 17, 31, 33, 50, 64, 65, 130}) {
        cases.push_back({device, dtype, wide, n_rows});
        if (n_rows < 20) cases.push_back({device, dtype, tiny, n_rows});
        if (n_rows < 20 || n_rows == 33) cases.push_back({device, dtype, odd, n_rows});
        if (n_rows == 17 || n_rows == 50) cases.push_back({device, dtype, broad, n_rows});
      }
      for (const Shape& shape : {tiny, odd}) cases.push_back({device, dtype, shape, 800});
    }
  }
  return cases;
}

void PrintTo(const Case& c, std::ostream* out) {
  *out << c.device << "_" << NameOf(c.dtype) << "_" << c.shape.name << "_rows" << c.n_rows;
}

class BackendProjectTest : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr float kEps = 1e-5f;

  void SetUp() override {
    if (!on_.Make(GetParam().device)) GTEST_SKIP() << on_.reason();
  }

  std::vector<float> Random(size_t n, float deviation) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> x(n);
    for (float& v : x) v = GetParam().dtype == DType::kBF16 ? RoundToBf16(normal(random_)) : normal(random_);
    return x;
  }
  std::unique_ptr<PackedMatrix> Pack(const std::vector<const std::vector<float>*>& parts, int k,
                                     bool swiglu) {
    std::vector<TensorView> views;
    for (const auto* part : parts) {
      views.push_back({part->data(), DType::kF32, {static_cast<int64_t>(part->size()) / k, k}});
    }
    auto packed = on_->Pack(views, GetParam().dtype, swiglu);
    EXPECT_TRUE(packed.ok()) << packed.status();
    return std::move(packed).value();
  }

  // Rows of a device's buffer of `dtype`, widened.
  std::vector<float> Rows(const void* data, DType dtype, int n_rows, int width, int stride) {
    const size_t n = static_cast<size_t>(n_rows) * stride;
    std::vector<float> all(n), rows;
    if (dtype == DType::kBF16) {
      const std::vector<bf16> narrow = on_.Get(static_cast<const bf16*>(data), n);
      for (size_t i = 0; i < n; ++i) all[i] = ToFloat(narrow[i]);
    } else {
      all = on_.Get(static_cast<const float*>(data), n);
    }
    for (int r = 0; r < n_rows; ++r) {
      rows.insert(rows.end(), all.begin() + r * stride, all.begin() + r * stride + width);
    }
    return rows;
  }

  // The product of one row and one weight row, and how much it may err.
  struct Expected {
    double value, tolerance;
  };
  Expected Product(const float* in, const float* w, int k, bool norm) const {
    reference::Row x = reference::ToRow(in, k);
    if (norm) x = reference::RmsNorm(x, kEps, nullptr);
    const reference::Row row = reference::ToRow(w, k);
    double squares = 0;
    for (int i = 0; i < k; ++i) squares += x[i] * row[i] * x[i] * row[i];
    const double sum = 8 * (std::sqrt(k) + 8) * 1.2e-7 * (reference::AbsDot(x, row) + 1);
    const bool rounds = GetParam().dtype == DType::kBF16;
    return {reference::Dot(x, row), sum + (rounds ? 5 * 0x1p-9 * std::sqrt(squares) : 0.0)};
  }

  std::mt19937 random_{11};
  OnDevice on_;
};

TEST_P(BackendProjectTest, ALayerAndTheHeadMatchFloat64) {
  const auto& [device, dtype, shape, n_rows] = GetParam();
  const int width = shape.width;
  const StepLimits limits{.max_rows = 800, .max_sequences = 4, .max_outputs = 800, .max_context = 1024};
  const std::vector<float> table = Random(static_cast<size_t>(n_rows) * width, 1.0f);
  const std::vector<float> qkv_w = Random(static_cast<size_t>(shape.qkv) * width, 1.0f);
  const std::vector<float> out_w = Random(static_cast<size_t>(width) * shape.attention_width, 0.1f);
  const std::vector<float> gate_w = Random(static_cast<size_t>(shape.mlp_width) * width, 0.1f);
  const std::vector<float> up_w = Random(static_cast<size_t>(shape.mlp_width) * width, 1.0f);
  const std::vector<float> mlp_w = Random(static_cast<size_t>(width) * shape.mlp_width, 0.1f);
  const std::vector<float> head_w = Random(static_cast<size_t>(shape.vocab) * width, 1.0f);
  const auto qkv = Pack({&qkv_w}, width, false), out = Pack({&out_w}, shape.attention_width, false);
  const auto gate_up = Pack({&gate_w, &up_w}, width, true), mlp = Pack({&mlp_w}, shape.mlp_width, false);
  const auto head = Pack({&head_w}, width, false);
  EXPECT_EQ(qkv->n(), shape.qkv);
  EXPECT_EQ(qkv->k(), width);
  ASSERT_TRUE(
      on_->Reserve(limits, SmallSpec(),
                   {.width = width, .mlp_width = shape.mlp_width, .vocab = shape.vocab, .compute = dtype})
          .ok());

  std::vector<int32_t> ids(n_rows);
  for (int i = 0; i < n_rows; ++i) ids[i] = n_rows - 1 - i;
  StepPlan plan = PlanOf(ids);
  if (n_rows > 1) plan.output_rows.erase(plan.output_rows.begin()), plan.sampling.pop_back();
  ASSERT_TRUE(on_->BeginStep(plan, SmallSpec()).ok());
  const DType activation = on_->activation_dtype(dtype);
  const int mlp_stride = on_->activation_stride(shape.mlp_width);
  const auto floats = [&](int w) { return on_.Put(std::vector<float>(static_cast<size_t>(n_rows) * w)); };
  float *x = floats(width), *projected = floats(shape.qkv), *logits = floats(shape.vocab);
  void* hidden = floats(std::max(mlp_stride, shape.attention_width));
  const RmsNorm norm{.enabled = true, .eps = kEps};

  ASSERT_TRUE(on_->Embed({on_.Put(table), DType::kF32, width, x}).ok());
  std::vector<float> stream = on_.Get(x, static_cast<size_t>(n_rows) * width);
  ProjectParams p{.in = x, .n_rows = n_rows, .norm = norm, .weight = qkv.get(), .out = projected};
  ASSERT_TRUE(on_->Project(p).ok());
  const auto check = [&](const std::vector<float>& got, const std::vector<float>& in,
                         const std::vector<float>& w, int k, int n, bool normed,
                         const std::vector<float>* old) {
    for (int r = 0; r < static_cast<int>(got.size()) / n; ++r) {
      for (int c = 0; c < n; ++c) {
        const Expected e =
            Product(in.data() + static_cast<size_t>(r) * k, w.data() + static_cast<size_t>(c) * k, k, normed);
        const double want = e.value + (old != nullptr ? (*old)[static_cast<size_t>(r) * n + c] : 0.0);
        ASSERT_NEAR(got[static_cast<size_t>(r) * n + c], want, e.tolerance)
            << "row " << r << ", column " << c;
      }
    }
  };
  check(on_.Get(projected, static_cast<size_t>(n_rows) * shape.qkv), stream, qkv_w, width, shape.qkv, true,
        nullptr);

  // Attention's output, then the residual.
  const std::vector<float> attention = Random(static_cast<size_t>(n_rows) * shape.attention_width, 1.0f);
  std::vector<bf16> narrow;
  for (float v : attention) narrow.push_back(ToBf16(v));
  const bool is_bf16 = activation == DType::kBF16;
  ASSERT_TRUE(on_->Upload(hidden, is_bf16 ? static_cast<const void*>(narrow.data()) : attention.data(),
                          attention.size() * SizeOf(activation))
                  .ok());
  p = ProjectParams();
  p.in = hidden, p.in_dtype = activation, p.n_rows = n_rows, p.weight = out.get(), p.out = x;
  p.epilogue = Epilogue::kAdd;
  ASSERT_TRUE(on_->Project(p).ok());
  std::vector<float> after = on_.Get(x, stream.size());
  check(after, attention, out_w, shape.attention_width, width, false, &stream);
  stream = after;

  p = {.in = x, .n_rows = n_rows, .norm = norm, .weight = gate_up.get(), .epilogue = Epilogue::kSwiGlu};
  p.out = hidden, p.out_dtype = activation, p.out_stride = mlp_stride;
  ASSERT_TRUE(on_->Project(p).ok());
  const std::vector<float> swiglu = Rows(hidden, activation, n_rows, shape.mlp_width, mlp_stride);
  for (int r = 0; r < n_rows; ++r) {
    for (int c = 0; c < shape.mlp_width; ++c) {
      const float* in = stream.data() + static_cast<size_t>(r) * width;
      const Expected gate = Product(in, gate_w.data() + static_cast<size_t>(c) * width, width, true);
      const Expected up = Product(in, up_w.data() + static_cast<size_t>(c) * width, width, true);
      const double want = reference::Silu(gate.value) * up.value;
      // Gate, up and the result are each rounded to bfloat16 once.
      const double rounding = dtype == DType::kBF16 ? 3 * 0x1p-8 * std::abs(want) : 1e-6 * std::abs(want);
      ASSERT_NEAR(swiglu[static_cast<size_t>(r) * shape.mlp_width + c], want,
                  1.1 * gate.tolerance * std::abs(up.value) +
                      (std::abs(gate.value) + gate.tolerance) * up.tolerance + rounding)
          << "row " << r << ", column " << c;
    }
  }

  p = ProjectParams();
  p.in = hidden, p.in_dtype = activation, p.in_stride = mlp_stride, p.n_rows = n_rows, p.weight = mlp.get();
  p.epilogue = Epilogue::kAdd, p.out = x;
  ASSERT_TRUE(on_->Project(p).ok());
  after = on_.Get(x, stream.size());
  check(after, swiglu, mlp_w, shape.mlp_width, width, false, &stream);
  stream = after;

  p = {.in = x, .row_index = on_->output_rows(), .n_rows = plan.n_outputs(), .norm = norm};
  p.weight = head.get(), p.out = logits;
  ASSERT_TRUE(on_->Project(p).ok());
  if (n_rows > 1) stream.erase(stream.begin(), stream.begin() + width);
  check(on_.Get(logits, static_cast<size_t>(plan.n_outputs()) * shape.vocab), stream, head_w, width,
        shape.vocab, true, nullptr);
}

INSTANTIATE_TEST_SUITE_P(All, BackendProjectTest, ::testing::ValuesIn(Cases()),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace t6::testing
