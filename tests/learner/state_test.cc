#include "learner/state.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::testing::HasSubstr;
using testing::IsOkAndHolds;
using testing::StatusIs;

std::string Sample() {
  StateWriter writer;
  writer.PutInt("step", 7);
  writer.PutDouble("beta", 0.25);
  const std::vector<float> moments = {1.0f, -2.5f};
  writer.PutFloats("m", moments);
  return writer.Finish();
}

TEST(StateTest, ReadsBackWhatWasWritten) {
  const std::string bytes = Sample();
  ASSERT_OK_AND_ASSIGN(const StateReader reader, StateReader::Parse(bytes));
  EXPECT_THAT(reader.Int("step"), IsOkAndHolds(7));
  EXPECT_THAT(reader.Double("beta"), IsOkAndHolds(0.25));
  std::vector<float> moments(2);
  ASSERT_OK(reader.Floats("m", moments));
  EXPECT_THAT(moments, ::testing::ElementsAre(1.0f, -2.5f));
}

TEST(StateTest, NamesTheSectionThatIsMissingOrHasAnotherSize) {
  const std::string bytes = Sample();
  ASSERT_OK_AND_ASSIGN(const StateReader reader, StateReader::Parse(bytes));
  EXPECT_THAT(reader.Int("episodes"),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("episodes")));
  std::vector<float> three(3);
  EXPECT_THAT(reader.Floats("m", three),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("12 bytes")));
}

TEST(StateTest, RejectsEveryTruncation) {
  const std::string bytes = Sample();
  for (size_t length = 0; length < bytes.size(); ++length) {
    const auto reader = StateReader::Parse(bytes.substr(0, length));
    if (!reader.ok()) {
      EXPECT_EQ(reader.status().code(), absl::StatusCode::kDataLoss);
      continue;
    }
    // A cut between two sections parses, and then lacks the later ones.
    EXPECT_FALSE(reader->Int("step").ok()) << length;
  }
}

TEST(StateTest, RejectsSectionsOutOfOrder) {
  StateWriter a;
  a.PutInt("b", 1);
  StateWriter b;
  b.PutInt("a", 1);
  EXPECT_THAT(StateReader::Parse(a.Finish() + b.Finish().substr(8)),
              StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace cox
