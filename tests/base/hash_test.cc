#include "lib/base/hash.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/fs.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::cox::testing::TempDir;

// FIPS 180-4 examples.
constexpr char kEmpty[] =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc[] =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Sha256Test, MatchesPublishedVectors) {
  EXPECT_EQ(Sha256Hex(""), kEmpty);
  EXPECT_EQ(Sha256Hex("abc"), kAbc);
}

TEST(Sha256Test, IncrementalEqualsOneShot) {
  Sha256 sha;
  sha.Update("a");
  sha.Update("");
  sha.Update("bc");
  EXPECT_EQ(sha.HexDigest(), kAbc);
}

TEST(Sha256Test, HashesFiles) {
  TempDir dir;
  ASSERT_OK(WriteFileDurably(Fs::Real(), dir.Join("f"), "abc"));
  EXPECT_THAT(Sha256HexOfFile(dir.Join("f")), IsOkAndHolds(kAbc));
  EXPECT_THAT(Sha256HexOfFile(dir.Join("none")),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Sha256HexOfFile(dir.path()),
              StatusIs(absl::StatusCode::kInternal));
}

// Published XXH3-128 of the empty input with seed 0.
TEST(Xxh3Test, IsCanonicalBigEndian) {
  EXPECT_EQ(Xxh3_128(""), std::string("\x99\xaa\x06\xd3\x01\x47\x98\xd8\x60"
                                      "\x01\xc3\x24\x46\x8d\x49\x7f"));
}

}  // namespace
}  // namespace cox
