#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/tensor/buffer.h"
#include "engine/tensor/dtype.h"
#include "engine/tensor/tensor_view.h"

namespace t6 {
namespace {

TEST(DTypeTest, Bfloat16RoundsToNearestEven) {
  EXPECT_EQ(RoundToBf16(1.0f), 1.0f);
  EXPECT_EQ(RoundToBf16(1.0f + 0x1p-8f), 1.0f);               // a tie, down to even
  EXPECT_EQ(RoundToBf16(1.0f + 0x3p-8f), 1.0f + 0x1p-6f);     // a tie, up to even
  EXPECT_EQ(RoundToBf16(1.0f + 0x1.01p-8f), 1.0f + 0x1p-7f);  // just above a tie
  EXPECT_EQ(RoundToBf16(std::numeric_limits<float>::max()), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(RoundToBf16(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(RoundToBf16(std::bit_cast<float>(0x7f800001u))))
      << "a NaN whose upper half is infinity's";
}

TEST(DTypeTest, EveryFloat16Converts) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = (bits >> 10) & 0x1f;
    const int mantissa = bits & 0x3ff;
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    const float got = ToFloat(f16{static_cast<uint16_t>(bits)});
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(got), mantissa != 0);
    } else {
      const float want =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      ASSERT_EQ(got, sign * want) << bits;
    }
  }
}

TEST(TensorViewTest, ConvertsAndDescribes) {
  const bf16 values[] = {ToBf16(1.5f), ToBf16(-2.0f)};
  float out[2];
  ConvertToFloat(values, DType::kBF16, 2, out);
  EXPECT_EQ(out[0], 1.5f);
  EXPECT_EQ(out[1], -2.0f);
  const TensorView view{values, DType::kBF16, {2, 1}};
  EXPECT_EQ(view.ShapeString(), "[2, 1]");
  EXPECT_EQ(view.n_bytes(), 4u);
}

TEST(HostBufferTest, IsAlignedZeroedAndRefusesTheImpossible) {
  for (size_t bytes : {size_t{1}, size_t{4096}, size_t{5} << 20}) {
    auto buffer = HostBuffer::Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % (bytes >= (2u << 20) ? 2u << 20 : 64), 0u);
    EXPECT_EQ(buffer->data()[0], 0);
    EXPECT_EQ(buffer->data()[bytes - 1], 0);
    buffer->data()[bytes - 1] = 1;
  }
  EXPECT_EQ(HostBuffer::Allocate(size_t{1} << 60).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace t6
