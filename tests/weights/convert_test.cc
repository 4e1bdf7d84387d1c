#include "lib/weights/convert.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::StatusIs;
using ::testing::ElementsAre;

template <typename T>
std::string_view BytesOf(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()),
          values.size() * sizeof(T)};
}

TEST(ConvertTest, F16KnownValues) {
  EXPECT_EQ(F16ToFloat(0x3c00), 1.0f);
  EXPECT_EQ(F16ToFloat(0xc000), -2.0f);
  EXPECT_EQ(F16ToFloat(0x7bff), 65504.0f);
  EXPECT_EQ(F16ToFloat(0x0400), 0x1p-14f);  // smallest normal
  EXPECT_EQ(F16ToFloat(0x0001), 0x1p-24f);  // smallest subnormal
  EXPECT_EQ(F16ToFloat(0x83ff), -1023 * 0x1p-24f);
  EXPECT_TRUE(std::signbit(F16ToFloat(0x8000)));
  EXPECT_EQ(F16ToFloat(0x8000), 0.0f);
  EXPECT_EQ(F16ToFloat(0xfc00), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(F16ToFloat(0x7e00)));
}

TEST(ConvertTest, Bf16RoundsToNearestEven) {
  const auto round = [](uint32_t bits) {
    return FloatToBf16(std::bit_cast<float>(bits));
  };
  EXPECT_EQ(round(0x3f800000), 0x3f80);
  EXPECT_EQ(round(0x3f808000), 0x3f80);  // tie, even below
  EXPECT_EQ(round(0x3f818000), 0x3f82);  // tie, even above
  EXPECT_EQ(round(0x3f808001), 0x3f81);  // just above the tie
  EXPECT_EQ(round(0x3f807fff), 0x3f80);
  EXPECT_EQ(round(0x7f7fffff), 0x7f80);  // overflows to infinity
  EXPECT_EQ(round(0xff800000), 0xff80);
  // A NaN whose payload lies in the low half must not become infinity.
  EXPECT_TRUE(std::isnan(Bf16ToFloat(round(0x7f800001))));
  EXPECT_TRUE(std::isnan(Bf16ToFloat(round(0x7fffffff))));
}

TEST(ConvertTest, EveryBf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = Bf16ToFloat(half);
    if (std::isnan(value)) continue;
    ASSERT_EQ(FloatToBf16(value), half);
  }
}

TEST(ConvertTest, ConvertsEachType) {
  std::vector<float> out(2);
  ASSERT_OK(
      ConvertToFloat(DType::kF64, BytesOf(std::vector<double>{1.5, -2}), out));
  EXPECT_THAT(out, ElementsAre(1.5f, -2.0f));
  ASSERT_OK(ConvertToFloat(
      DType::kBF16, BytesOf(std::vector<uint16_t>{0x3f80, 0xc000}), out));
  EXPECT_THAT(out, ElementsAre(1.0f, -2.0f));
  ASSERT_OK(ConvertToFloat(
      DType::kF16, BytesOf(std::vector<uint16_t>{0x3c00, 0xc000}), out));
  EXPECT_THAT(out, ElementsAre(1.0f, -2.0f));
  ASSERT_OK(
      ConvertToFloat(DType::kF32, BytesOf(std::vector<float>{3, 4}), out));
  EXPECT_THAT(out, ElementsAre(3.0f, 4.0f));
}

TEST(ConvertTest, RejectsWrongSizesAndIntegers) {
  std::vector<float> out(2);
  EXPECT_THAT(ConvertToFloat(DType::kF32, "1234", out),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ConvertToFloat(DType::kF32, "123456789", out),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ConvertToFloat(DType::kU8, "12", out),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace cox
