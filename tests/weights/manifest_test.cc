#include "lib/weights/manifest.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/hash.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

Manifest Small() {
  Manifest manifest = LayOut("policy", "{\"a\":\"\\n\"}", DType::kF32,
                             {{"w", {2, 3}}, {"b", {20}}, {"s", {}}});
  for (TensorInfo& tensor : manifest.tensors) {
    tensor.sha256 = Sha256Hex(tensor.name);
  }
  return manifest;
}

TEST(LayOutTest, AlignsToSixtyFourBytes) {
  const Manifest manifest = Small();
  // w: 24 bytes; b: 80 bytes -> ends at 144; s: a scalar at 192.
  EXPECT_EQ(manifest.tensors[0].offset, 0u);
  EXPECT_EQ(manifest.tensors[1].offset, 64u);
  EXPECT_EQ(manifest.tensors[1].bytes, 80u);
  EXPECT_EQ(manifest.tensors[2].offset, 192u);
  EXPECT_EQ(manifest.tensors[2].bytes, 4u);
  EXPECT_EQ(manifest.arena_bytes, 256u);
  EXPECT_OK(manifest.Validate());
}

TEST(LayOutTest, OverflowIsCaughtByValidate) {
  const int64_t huge = int64_t{1} << 32;
  EXPECT_THAT(LayOut("m", "", DType::kF32, {{"w", {huge, huge}}}).Validate(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'w'")));
  EXPECT_THAT(LayOut("m", "", DType::kF32, {{"w", {-1}}}).Validate(),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

// Recorded runs carry these hashes: a change of the text breaks them all.
TEST(ManifestTest, CanonicalTextIsFixedForEver) {
  Manifest manifest =
      LayOut("policy", "{\"a\":\"\n\"}", DType::kBF16, {{"w", {2, 3}}});
  manifest.tensors[0].sha256 = std::string(64, 'a');
  const std::string expected =
      "{\"arena_bytes\":64,\"config_json\":\"{\\\"a\\\":\\\"\\u000a\\\"}\","
      "\"model\":\"policy\",\"tensors\":[{\"bytes\":12,\"dtype\":\"BF16\","
      "\"name\":\"w\",\"offset\":0,\"sha256\":\"" +
      std::string(64, 'a') + "\",\"shape\":[2,3]}]}";
  EXPECT_EQ(manifest.CanonicalText(), expected);
  EXPECT_EQ(manifest.ContentHash(),
            "f91119d9876fb3116900c769b015916d25a9ddd5654e6c97dc0021b7d9a10d20");
}

TEST(ManifestTest, TextRoundTrips) {
  const Manifest manifest = Small();
  ASSERT_OK_AND_ASSIGN(const Manifest back,
                       Manifest::FromCanonicalText(manifest.CanonicalText()));
  EXPECT_EQ(back.CanonicalText(), manifest.CanonicalText());
  EXPECT_EQ(back.ContentHash(), manifest.ContentHash());
  EXPECT_EQ(back.config_json, manifest.config_json);
  EXPECT_EQ(back.tensors[1].shape, manifest.tensors[1].shape);
}

TEST(ManifestTest, HashDependsOnEveryField) {
  const std::string base = Small().ContentHash();
  Manifest changed = Small();
  changed.model = "critic";
  EXPECT_NE(changed.ContentHash(), base);
  changed = Small();
  changed.config_json += " ";
  EXPECT_NE(changed.ContentHash(), base);
  changed = Small();
  changed.tensors[0].sha256 = Sha256Hex("other");
  EXPECT_NE(changed.ContentHash(), base);
  changed = Small();
  changed.tensors[0].shape = {3, 2};
  EXPECT_NE(changed.ContentHash(), base);
}

TEST(ManifestTest, AnyDamageToTheTextIsDataLoss) {
  const std::string text = Small().CanonicalText();
  for (size_t length = 0; length < text.size(); ++length) {
    ASSERT_THAT(Manifest::FromCanonicalText(text.substr(0, length)),
                StatusIs(absl::StatusCode::kDataLoss));
  }
  for (size_t i = 0; i < text.size(); ++i) {
    for (const char replacement : {'\0', ' ', '"', '9', '[', '\xff'}) {
      std::string damaged = text;
      damaged[i] = replacement;
      const auto parsed = Manifest::FromCanonicalText(damaged);
      // Either refused, or a different text that says what it says.
      if (parsed.ok()) {
        ASSERT_EQ(parsed->CanonicalText(), damaged);
      } else {
        ASSERT_THAT(parsed, StatusIs(absl::StatusCode::kDataLoss));
      }
    }
  }
}

TEST(ManifestTest, OtherSpellingsAreRefused) {
  const std::string text = Small().CanonicalText();
  EXPECT_THAT(Manifest::FromCanonicalText(text + "\n"),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("canonical")));
  std::string duplicate = text;
  duplicate.insert(1, "\"arena_bytes\":1,");
  EXPECT_THAT(Manifest::FromCanonicalText(duplicate),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(Manifest::FromCanonicalText(std::string(100000, '[')),
              StatusIs(absl::StatusCode::kDataLoss));
}

TEST(ManifestTest, ValidateNamesWhatIsWrong) {
  const auto broken = [](auto change) {
    Manifest manifest = Small();
    change(manifest);
    return manifest.Validate();
  };
  const auto invalid = [](const char* what) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what));
  };
  EXPECT_THAT(broken([](Manifest& m) { m.tensors[1].offset = 32; }),
              invalid("multiple of 64"));
  EXPECT_THAT(broken([](Manifest& m) { m.tensors[1].offset = 0; }),
              invalid("'b'"));
  EXPECT_THAT(broken([](Manifest& m) { m.tensors[1].bytes = 76; }),
              invalid("needs 80"));
  EXPECT_THAT(broken([](Manifest& m) { m.tensors[1].name = "w"; }),
              invalid("twice"));
  EXPECT_THAT(broken([](Manifest& m) { m.tensors[1].name = ""; }),
              invalid("empty name"));
  EXPECT_THAT(broken([](Manifest& m) { m.tensors[1].sha256 = "zz"; }),
              invalid("sha256"));
  EXPECT_THAT(broken([](Manifest& m) {
                m.tensors[0].shape = {1, 1, 1, 1, 1, 1, 1, 2, 3};
              }),
              invalid("rank 9"));
  EXPECT_THAT(broken([](Manifest& m) { m.arena_bytes = 1 << 20; }),
              invalid("arena_bytes"));
  EXPECT_THAT(broken([](Manifest& m) { m.tensors[2].offset = ~uint64_t{63}; }),
              invalid("'s'"));
  // 2^62 * 4 wraps to exactly 0.
  EXPECT_THAT(broken([](Manifest& m) {
                m.tensors[0].shape = {int64_t{1} << 62};
                m.tensors[0].bytes = 0;
              }),
              invalid("overflow"));
}

TEST(DTypeTest, NamesRoundTrip) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF64,
                            DType::kI64, DType::kU8, DType::kBool}) {
    EXPECT_THAT(ParseDType(DTypeName(dtype)), IsOkAndHolds(dtype));
  }
  EXPECT_EQ(DTypeBytes(DType::kBF16), 2);
  EXPECT_THAT(ParseDType("f32"), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace cox
