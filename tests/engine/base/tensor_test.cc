#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "engine/tensor/buffer.h"
#include "engine/tensor/dtype.h"
#include "engine/tensor/tensor_view.h"
#include "tests/support/reference_fp8.h"

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

TEST(DTypeTest, EveryFp8NumberConverts) {
  for (int bits = 0; bits < 127; ++bits) {
    const float want = static_cast<float>(testing::Fp8Numbers()[bits]);
    EXPECT_EQ(ToFloat(fp8{static_cast<uint8_t>(bits)}), want);
    EXPECT_EQ(ToFloat(fp8{static_cast<uint8_t>(bits | 0x80)}), -want);
    EXPECT_EQ(ToFp8(want).bits, bits);
    EXPECT_EQ(ToFp8(-want).bits, bits | 0x80);
  }
  EXPECT_TRUE(std::isnan(ToFloat(fp8{0x7f})) && std::isnan(ToFloat(fp8{0xff})));
}

TEST(DTypeTest, Fp8RoundsToNearestEvenAndStopsAt448) {
  for (int bits = 0; bits < 126; ++bits) {
    const double low = testing::Fp8Numbers()[bits], high = testing::Fp8Numbers()[bits + 1];
    const auto tie = static_cast<float>((low + high) / 2);
    for (const float x : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1000.0f)})
      ASSERT_EQ(ToFp8(x).bits, testing::NearestFp8(x)) << x;
  }
  for (const float x : {449.0f, 463.9f, 464.0f, 480.0f, 1e30f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(ToFp8(x).bits, 0x7e) << x;
    EXPECT_EQ(ToFp8(-x).bits, 0xfe) << x;
  }
  EXPECT_EQ(ToFp8(1e-40f).bits, 0);
  EXPECT_EQ(ToFp8(std::numeric_limits<float>::quiet_NaN()).bits & 0x7f, 0x7f);
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
