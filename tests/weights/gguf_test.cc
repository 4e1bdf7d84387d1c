#include "lib/weights/gguf.h"

#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fault_fs.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"
#include "tests/weights/gguf_writer.h"

namespace cox {
namespace {

using ::cox::testing::Bytes;
using ::cox::testing::GgufWriter;
using ::cox::testing::LengthAnd;
using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

GgufWriter Small() {
  GgufWriter out;
  out.U32("n", 7);
  out.Pair("negative", 5, Bytes<int32_t>(-3));
  out.F32("eps", 0.5f);
  out.Flag("yes", true);
  out.Text("name", "tiny");
  out.Texts("list", {"a", "", "c"});
  out.I32s("types", {1, -2, 3});
  out.Floats("w", {2, 3}, {1, 2, 3, 4, 5, 6});
  out.Tensor("h", {2}, 1, Bytes<uint16_t>(0x3c00) + Bytes<uint16_t>(0xc000));
  return out;
}

absl::StatusOr<GgufHeader> Parse(const std::string& file) {
  return ParseGgufHeader(file, file.size());
}

auto IsLoss(const std::string& text) {
  return StatusIs(absl::StatusCode::kDataLoss, HasSubstr(text));
}

TEST(GgufTest, ReadsValuesAndTensors) {
  const std::string file = Small().File();
  ASSERT_OK_AND_ASSIGN(const GgufHeader header, Parse(file));
  EXPECT_EQ(header.Integer("n").value(), 7);
  EXPECT_EQ(header.Integer("negative").value(), -3);
  EXPECT_EQ(header.Number("eps").value(), 0.5);
  EXPECT_EQ(header.Number("n").value(), 7.0);
  EXPECT_EQ(header.Flag("yes").value(), true);
  EXPECT_EQ(header.Text("name").value(), "tiny");
  EXPECT_THAT(*header.Texts("list").value(), ElementsAre("a", "", "c"));
  EXPECT_THAT(*header.Integers("types").value(), ElementsAre(1, -2, 3));
  EXPECT_FALSE(header.Integer("absent").value().has_value());
  EXPECT_EQ(header.Texts("absent").value(), nullptr);
  EXPECT_THAT(header.Integer("name"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("'name': expected an integer")));
  ASSERT_EQ(header.tensors.size(), 2u);
  const GgufTensor& h = header.tensors[0];
  const GgufTensor& w = header.tensors[1];
  EXPECT_EQ(h.type, GgufType::kF16);
  EXPECT_THAT(w.shape, ElementsAre(2, 3));
  EXPECT_EQ(w.bytes, 24u);
  std::vector<float> values(6);
  ASSERT_OK(DequantizeGguf(w.type, std::string_view(file).substr(w.offset, 24),
                           values));
  EXPECT_THAT(values, ElementsAre(1, 2, 3, 4, 5, 6));
  values.resize(2);
  ASSERT_OK(DequantizeGguf(h.type, std::string_view(file).substr(h.offset, 4),
                           values));
  EXPECT_THAT(values, ElementsAre(1.0f, -2.0f));
}

TEST(GgufTest, EveryTruncationIsRefused) {
  const std::string file = Small().File();
  for (size_t size = 0; size < file.size(); ++size) {
    const auto cut = Parse(file.substr(0, size));
    EXPECT_THAT(cut, StatusIs(absl::StatusCode::kDataLoss)) << size;
  }
}

TEST(GgufTest, AShortPrefixAsksForMore) {
  const std::string file = Small().File();
  const size_t header = Small().Header().size();
  for (size_t size = 0; size < file.size(); ++size) {
    const auto read = ParseGgufHeader(file.substr(0, size), file.size());
    if (size < header) {
      EXPECT_THAT(read, StatusIs(absl::StatusCode::kOutOfRange)) << size;
    } else {
      EXPECT_OK(read) << size;
    }
  }
}

TEST(GgufTest, EveryFlippedBitIsReadOrRefused) {
  const std::string file = Small().File();
  for (size_t bit = 0; bit < Small().Header().size() * 8; ++bit) {
    std::string damaged = file;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    const auto read = Parse(damaged);
    if (!read.ok()) {
      EXPECT_TRUE(absl::IsDataLoss(read.status()) ||
                  absl::IsFailedPrecondition(read.status()) ||
                  absl::IsInvalidArgument(read.status()))
          << read.status();
      continue;
    }
    for (const GgufTensor& tensor : read->tensors) {
      EXPECT_LE(tensor.offset + tensor.bytes, damaged.size());
    }
  }
}

TEST(GgufTest, LargeCountsAreRefusedBeforeMemoryIsTaken) {
  constexpr uint64_t kHuge = ~uint64_t{0};
  for (const uint64_t count : {kHuge, kHuge / 2, uint64_t{1} << 40}) {
    const std::string v3 = "GGUF" + Bytes<uint32_t>(3);
    EXPECT_THAT(Parse(v3 + Bytes(count) + Bytes<uint64_t>(0)),
                IsLoss("tensors cannot be in a file"));
    EXPECT_THAT(Parse(v3 + Bytes<uint64_t>(0) + Bytes(count)),
                IsLoss("keys cannot be in a file"));
    GgufWriter text;
    text.Pair("k", 8, Bytes(count));
    EXPECT_THAT(Parse(text.File()), IsLoss("string of"));
    GgufWriter list;
    list.Pair("k", 9, Bytes<uint32_t>(8) + Bytes(count));
    EXPECT_THAT(Parse(list.File()), IsLoss("strings cannot be in a file"));
    GgufWriter numbers;
    numbers.Pair("k", 9, Bytes<uint32_t>(12) + Bytes(count));
    EXPECT_THAT(Parse(numbers.File()), IsLoss("numbers cannot be in a file"));
  }
}

TEST(GgufTest, ImpossibleShapesAreRefused) {
  const std::vector<std::vector<uint64_t>> shapes = {
      {0},
      {uint64_t{1} << 63},
      {uint64_t{1} << 32, uint64_t{1} << 32},
      {uint64_t{1} << 24, uint64_t{1} << 24, 4},
      {4, ~uint64_t{0}},
  };
  for (const auto& shape : shapes) {
    GgufWriter out;
    out.TensorAt("w", shape, 0, 0);
    EXPECT_THAT(Parse(out.File()), IsLoss("is not possible"));
  }
  for (const auto& shape :
       {std::vector<uint64_t>{}, std::vector<uint64_t>{1, 1, 1, 1, 1}}) {
    GgufWriter out;
    out.TensorAt("w", shape, 0, 0);
    // A tensor without dimensions is also shorter than the smallest one.
    EXPECT_THAT(Parse(out.File() + std::string(64, '\0')),
                IsLoss("expected 1 to 4 dimensions"));
  }
  GgufWriter large;
  large.TensorAt("w", {uint64_t{1} << 40}, 0, 0);
  EXPECT_THAT(Parse(large.File()), IsLoss("of a data section of"));
}

TEST(GgufTest, PlacesOfTensorsAreChecked) {
  GgufWriter misaligned;
  misaligned.TensorAt("w", {1}, 0, 4);
  EXPECT_THAT(Parse(misaligned.File() + std::string(64, '\0')),
              IsLoss("offset 4 is no multiple of 32"));
  GgufWriter beyond;
  beyond.TensorAt("w", {1}, 0, ~uint64_t{31});
  EXPECT_THAT(Parse(beyond.File() + std::string(64, '\0')),
              IsLoss("of a data section of 64"));
  GgufWriter overlap;
  overlap.TensorAt("a", {16}, 0, 0);
  overlap.TensorAt("b", {1}, 0, 32);
  EXPECT_THAT(Parse(overlap.File() + std::string(64, '\0')),
              IsLoss("'a' and 'b' overlap"));
  for (const uint32_t alignment : {0u, 3u, 1u << 30}) {
    GgufWriter out;
    out.U32("general.alignment", alignment);
    EXPECT_THAT(Parse(out.File()), IsLoss("expected a power of two"));
  }
  GgufWriter wide;
  wide.alignment = 64;
  wide.U32("general.alignment", 64);
  wide.Floats("a", {1}, {1.5f});
  wide.Floats("b", {1}, {2.5f});
  ASSERT_OK_AND_ASSIGN(const GgufHeader header, Parse(wide.File()));
  EXPECT_EQ(header.tensors[1].offset, header.tensors[0].offset + 64);
}

TEST(GgufTest, DuplicatesAndUnknownsAreRefused) {
  GgufWriter keys;
  keys.U32("k", 1);
  keys.U32("k", 2);
  EXPECT_THAT(Parse(keys.File()), IsLoss("key 'k' twice"));
  GgufWriter tensors;
  tensors.Floats("w", {1}, {1});
  tensors.Floats("w", {1}, {1});
  EXPECT_THAT(Parse(tensors.File()), IsLoss("tensor 'w' twice"));
  GgufWriter value;
  value.Pair("k", 13, Bytes<uint64_t>(0));
  EXPECT_THAT(Parse(value.File()), IsLoss("unknown value type 13"));
  GgufWriter nested;
  nested.Pair("k", 9, Bytes<uint32_t>(9) + Bytes<uint64_t>(0));
  EXPECT_THAT(Parse(nested.File()), IsLoss("lists of type 9"));
  GgufWriter type;
  type.TensorAt("w", {256}, 14, 0);
  EXPECT_THAT(Parse(type.File() + std::string(512, '\0')),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("tensor 'w': type 14 is not read")));
  GgufWriter rows;
  rows.TensorAt("w", {2, 48}, 8, 0);
  EXPECT_THAT(Parse(rows.File() + std::string(512, '\0')),
              IsLoss("rows of 48 elements are not whole blocks of Q8_0"));
}

TEST(GgufTest, OtherVersionsAreRefused) {
  for (const uint32_t version : {0u, 1u, 4u, 0x03000000u}) {
    GgufWriter out = Small();
    out.version = version;
    EXPECT_THAT(Parse(out.File()), IsLoss("expected version 2 or 3"));
  }
  std::string other = Small().File();
  other[0] = 'g';
  EXPECT_THAT(Parse(other), IsLoss("does not begin with 'GGUF'"));
}

TEST(GgufTest, HeadersBeyondTheFirstReadAreFound) {
  FaultFs fs;
  GgufWriter out;
  out.Text("long", std::string(3 << 20, 'x'));
  out.Floats("w", {1}, {1});
  ASSERT_OK(WriteFileDurably(fs, "m.gguf", out.File()));
  ASSERT_OK_AND_ASSIGN(const GgufHeader header, ReadGgufHeader(fs, "m.gguf"));
  EXPECT_EQ(header.Text("long").value()->size(), size_t{3} << 20);
  EXPECT_THAT(ReadGgufHeader(fs, "none.gguf"),
              StatusIs(absl::StatusCode::kNotFound));
  ASSERT_OK(
      WriteFileDurably(fs, "cut.gguf", out.File().substr(0, size_t{2} << 20)));
  EXPECT_THAT(ReadGgufHeader(fs, "cut.gguf"), IsLoss("cut.gguf"));
}

// Nibble i of byte j: low = element j, high = element j + 16.
TEST(DequantizeGgufTest, ExpandsBlocks) {
  std::string nibbles;
  for (int j = 0; j < 16; ++j) {
    nibbles += static_cast<char>(j | (15 - j) << 4);
  }
  const std::string half = Bytes<uint16_t>(0x3800);       // 0.5
  const std::string minus_two = Bytes<uint16_t>(0xc000);  // -2
  std::vector<float> out(32);
  ASSERT_OK(DequantizeGguf(GgufType::kQ4_0, half + nibbles, out));
  for (int j = 0; j < 16; ++j) {
    EXPECT_EQ(out[j], 0.5f * static_cast<float>(j - 8));
    EXPECT_EQ(out[j + 16], 0.5f * static_cast<float>(15 - j - 8));
  }
  ASSERT_OK(DequantizeGguf(GgufType::kQ4_1, half + minus_two + nibbles, out));
  for (int j = 0; j < 16; ++j) {
    EXPECT_EQ(out[j], 0.5f * static_cast<float>(j) - 2.0f);
    EXPECT_EQ(out[j + 16], 0.5f * static_cast<float>(15 - j) - 2.0f);
  }
  std::string bytes;
  for (int j = 0; j < 32; ++j) bytes += static_cast<char>(8 * j - 128);
  ASSERT_OK(DequantizeGguf(GgufType::kQ8_0, half + bytes, out));
  for (int j = 0; j < 32; ++j) {
    EXPECT_EQ(out[j], 0.5f * static_cast<float>(8 * j - 128));
  }
  // A negative scale makes a negative zero of q = 8, as in the reference.
  ASSERT_OK(DequantizeGguf(GgufType::kQ4_0, minus_two + nibbles, out));
  EXPECT_TRUE(out[8] == 0.0f && std::signbit(out[8]));
  EXPECT_THAT(DequantizeGguf(GgufType::kQ4_0, half + nibbles + "x", out),
              StatusIs(absl::StatusCode::kInvalidArgument));
  out.resize(31);
  EXPECT_THAT(DequantizeGguf(GgufType::kQ4_0, half + nibbles, out),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace cox
