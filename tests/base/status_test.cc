#include "lib/base/status.h"

#include <memory>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::IsOk;
using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;

absl::StatusOr<std::unique_ptr<int>> Make(bool ok) {
  if (!ok) return absl::AbortedError("no");
  return std::make_unique<int>(3);
}

absl::StatusOr<int> Use(bool ok) {
  COX_ASSIGN_OR_RETURN(std::unique_ptr<int> value, Make(ok));
  COX_RETURN_IF_ERROR(absl::OkStatus());
  return *value;
}

TEST(StatusMacrosTest, PassValuesAndErrors) {
  EXPECT_THAT(Use(true), IsOkAndHolds(3));
  EXPECT_THAT(Use(false), StatusIs(absl::StatusCode::kAborted, "no"));
}

TEST(AnnotateTest, KeepsCodeAndPayload) {
  absl::Status status = absl::DataLossError("bad");
  status.SetPayload("url", absl::Cord("p"));
  const absl::Status annotated = Annotate(status, "file x");
  EXPECT_THAT(annotated, StatusIs(absl::StatusCode::kDataLoss, "file x: bad"));
  EXPECT_EQ(annotated.GetPayload("url"), absl::Cord("p"));
  EXPECT_THAT(Annotate(absl::OkStatus(), "x"), IsOk());
}

TEST(CheckTest, AbortsWithConditionAndPlace) {
  EXPECT_DEATH(COX_CHECK(1 + 1 == 3), "status_test.cc.*1 \\+ 1 == 3");
}

}  // namespace
}  // namespace cox
