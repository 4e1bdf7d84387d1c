#include "lib/weights/safetensors.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;
using ::cox::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

std::string WithLength(uint64_t length, std::string_view json) {
  std::string out;
  for (int i = 0; i < 8; ++i) {
    out += static_cast<char>(length >> (8 * i) & 0xff);
  }
  return out + std::string(json);
}

absl::StatusOr<SafetensorsHeader> Parse(std::string_view json,
                                        uint64_t data_bytes) {
  const std::string prefix = WithLength(json.size(), json);
  return ParseSafetensorsHeader(prefix, prefix.size() + data_bytes);
}

auto DataLoss(const char* what) {
  return StatusIs(absl::StatusCode::kDataLoss, HasSubstr(what));
}

constexpr char kGood[] =
    R"({"__metadata__":{"format":"pt"},)"
    R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[24,28]},)"
    R"("a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})";

TEST(SafetensorsTest, ReadsEntriesByOffset) {
  ASSERT_OK_AND_ASSIGN(const SafetensorsHeader header, Parse(kGood, 28));
  ASSERT_EQ(header.entries.size(), 2u);
  EXPECT_EQ(header.entries[0].name, "a");
  EXPECT_THAT(header.entries[0].shape, ElementsAre(2, 3));
  EXPECT_EQ(header.entries[1].dtype, DType::kBF16);
  EXPECT_EQ(header.entries[1].begin, 24u);
  EXPECT_EQ(header.data_offset, 8 + sizeof(kGood) - 1);
  EXPECT_THAT(header.metadata, ElementsAre(Pair("format", "pt")));
}

TEST(SafetensorsTest, AcceptsOddButLegalHeaders) {
  EXPECT_THAT(Parse("{}", 0), IsOk());
  EXPECT_THAT(Parse("{}      ", 0), IsOk());
  EXPECT_THAT(Parse(R"({"__metadata__":null})", 0), IsOk());
  // Empty tensors share an offset; scalars have no dimension.
  EXPECT_THAT(
      Parse(R"({"a":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]},)"
            R"("b":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
            R"("c":{"dtype":"BOOL","shape":[0],"data_offsets":[4,4]}})",
            4),
      IsOk());
}

TEST(SafetensorsTest, WrittenHeadersReadBack) {
  ASSERT_OK_AND_ASSIGN(const SafetensorsHeader header, Parse(kGood, 28));
  std::vector<SafetensorsEntry> entries = header.entries;
  entries[0].name = "quote\" back\\slash \x01 \xc3\xa9";
  const std::string text = SerializeSafetensorsHeader(entries, header.metadata);
  EXPECT_EQ(text.size() % 8, 0u);
  ASSERT_OK_AND_ASSIGN(const SafetensorsHeader back,
                       ParseSafetensorsHeader(text, text.size() + 28));
  EXPECT_EQ(back.entries[0].name, entries[0].name);
  EXPECT_EQ(back.metadata, header.metadata);
}

TEST(SafetensorsTest, HostileHeaderLengths) {
  const uint64_t sizes[] = {~uint64_t{0}, ~uint64_t{0} - 7, uint64_t{1} << 63,
                            kMaxSafetensorsHeaderBytes + 1, 11};
  for (const uint64_t length : sizes) {
    EXPECT_THAT(ParseSafetensorsHeader(WithLength(length, "{}"), 10),
                DataLoss("header length"));
  }
  // Within the file, but beyond the limit.
  EXPECT_THAT(
      ParseSafetensorsHeader(WithLength(kMaxSafetensorsHeaderBytes + 1, "{}"),
                             ~uint64_t{0}),
      DataLoss("header length"));
  EXPECT_THAT(ParseSafetensorsHeader("1234567", 7), DataLoss("7 bytes"));
  EXPECT_THAT(ParseSafetensorsHeader("", 0), DataLoss("0 bytes"));
  // The caller's fault: the file has more than was handed in.
  EXPECT_THAT(ParseSafetensorsHeader(WithLength(100, "{}"), 200),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(SafetensorsTest, HostileOffsetsAndShapes) {
  const auto one = [](const char* dtype, const char* shape, const char* offsets,
                      uint64_t data_bytes) {
    return Parse(absl::StrCat(R"({"t":{"dtype":")", dtype, R"(","shape":[)",
                              shape, R"(],"data_offsets":[)", offsets, "]}}"),
                 data_bytes);
  };
  EXPECT_THAT(one("F32", "1", "4,0", 4), DataLoss("begins at 4"));
  EXPECT_THAT(one("F32", "1", "18446744073709551612,0", 4),
              DataLoss("begins at"));
  EXPECT_THAT(one("F99", "1", "0,4", 4), DataLoss("unknown dtype 'F99'"));
  EXPECT_THAT(one("F32", "2", "0,4", 4), DataLoss("needs 8 bytes, found 4"));
  // Products that wrap: 2^32 * 2^32 = 0, 2^62 * 4 bytes = 0.
  EXPECT_THAT(one("F32", "4294967296,4294967296", "0,0", 0),
              DataLoss("overflows"));
  EXPECT_THAT(one("F32", "4611686018427387904", "0,0", 0),
              DataLoss("overflows"));
  EXPECT_THAT(one("F32", "18446744073709551615", "0,4", 4),
              DataLoss("whole number"));
  EXPECT_THAT(one("F32", "-1", "0,4", 4), DataLoss("whole number"));
  EXPECT_THAT(one("F32", "1.0", "0,4", 4), DataLoss("whole number"));
  EXPECT_THAT(one("F32", "1", "0,4,8", 4), DataLoss("two whole numbers"));
  EXPECT_THAT(one("F32", "1", "-4,0", 4), DataLoss("two whole numbers"));
  EXPECT_THAT(one("F32", "1", "4,8", 8), DataLoss("hole"));
  EXPECT_THAT(one("F32", "1", "0,4", 5), DataLoss("data section has 5"));
  EXPECT_THAT(one("F32", "1", "0,4", 3), DataLoss("data section has 3"));
}

TEST(SafetensorsTest, OverlapsAndHolesBetweenTensors) {
  const auto two = [](const char* second) {
    return Parse(
        absl::StrCat(
            R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)",
            R"("b":{"dtype":"F32","shape":[1],"data_offsets":[)", second,
            "]}}"),
        12);
  };
  EXPECT_THAT(two("8,12"), IsOk());
  EXPECT_THAT(two("4,8"), DataLoss("overlap"));
  EXPECT_THAT(two("0,4"), DataLoss("overlap"));
  EXPECT_THAT(two("9,13"), DataLoss("hole"));
}

TEST(SafetensorsTest, HostileJson) {
  EXPECT_THAT(Parse("", 0), DataLoss("'{'"));
  EXPECT_THAT(Parse(" {}", 0), DataLoss("'{'"));
  EXPECT_THAT(Parse("[]", 0), DataLoss("'{'"));
  EXPECT_THAT(Parse("{", 0), DataLoss("JSON"));
  EXPECT_THAT(Parse("{}x", 0), DataLoss("JSON"));
  EXPECT_THAT(Parse(R"({"a":1})", 0), DataLoss("'a'"));
  EXPECT_THAT(Parse(R"({"a":{}})", 0), DataLoss("dtype"));
  EXPECT_THAT(Parse("{\"\xff\":{}}", 0), DataLoss("JSON"));
  EXPECT_THAT(Parse(R"({"__metadata__":{"k":1}})", 0), DataLoss("'k'"));
  EXPECT_THAT(Parse(R"({"__metadata__":[]})", 0), DataLoss("__metadata__"));
  EXPECT_THAT(Parse(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                    R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                    4),
              DataLoss("twice"));
  EXPECT_THAT(Parse(R"({"a":{"dtype":"F32","dtype":"U8","shape":[1],)"
                    R"("data_offsets":[0,4]}})",
                    4),
              DataLoss("twice"));
  EXPECT_THAT(Parse("{\"a\":" + std::string(1 << 20, '['), 0),
              StatusIs(absl::StatusCode::kDataLoss));
}

TEST(SafetensorsTest, EveryTruncationIsDataLoss) {
  const std::string json(kGood);
  const std::string file = WithLength(json.size(), json) + std::string(28, 'x');
  ASSERT_OK(ParseSafetensorsHeader(file, file.size()));
  for (size_t size = 0; size < file.size(); ++size) {
    ASSERT_THAT(ParseSafetensorsHeader(file.substr(0, size), size),
                StatusIs(absl::StatusCode::kDataLoss))
        << size;
  }
}

TEST(SafetensorsTest, RandomDamageNeverBreaksTheInvariant) {
  const std::string json(kGood);
  const std::string file = WithLength(json.size(), json) + std::string(28, 'x');
  CounterRng rng(1, "damage");
  for (int round = 0; round < 20000; ++round) {
    std::string damaged = file;
    for (uint64_t n = 1 + rng.NextBelow(3); n > 0; --n) {
      damaged[rng.NextBelow(damaged.size())] =
          static_cast<char>(rng.NextBelow(256));
    }
    const auto header = ParseSafetensorsHeader(damaged, damaged.size());
    if (!header.ok()) {
      ASSERT_THAT(header, StatusIs(absl::StatusCode::kDataLoss));
      continue;
    }
    uint64_t end = 0;
    for (const SafetensorsEntry& entry : header->entries) {
      ASSERT_EQ(entry.begin, end);
      end = entry.end;
    }
    ASSERT_EQ(header->data_offset + end, damaged.size());
  }
}

}  // namespace
}  // namespace cox
