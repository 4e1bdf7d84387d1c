#include "lib/data/trajectory.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/rng.h"
#include "tests/testing/status_matchers.h"

namespace cox {
namespace {

using ::cox::testing::IsOkAndHolds;
using ::cox::testing::StatusIs;
using ::testing::HasSubstr;

Trajectory MakeTrajectory(int32_t prompt, int32_t sample) {
  Trajectory t;
  t.id = {{2, 7, 1}, prompt, sample};
  t.prompt_id = 0xFEDCBA9876543210U;
  t.prompt_ids = {5, 6, 7};
  t.instruction_ids = {9};
  t.response_ids = {11, 12, 0};
  t.behaviour_logprobs = {-0.5F, -1.25F, -2.0F};
  t.reference_logprobs = {-0.5F, -1.0F, -3.0F};
  t.finish = FinishReason::kLength;
  t.reward_total = -0.125;
  t.reward_parts = {{"sentiment", 0.5}, {"length", -0.625}};
  t.policy_hash = std::string(64, 'a');
  t.version = {2, 6};
  return t;
}

std::string Serialized(const std::vector<Trajectory>& trajectories) {
  absl::StatusOr<std::string> bytes = SerializeUnit(trajectories);
  COX_CHECK(bytes.ok());
  return *bytes;
}

TEST(TrajectoryTest, ParseUndoesSerialize) {
  Trajectory bare;
  bare.id = {{2, 7, 1}, 4, 0};
  const std::vector<Trajectory> unit = {MakeTrajectory(3, 0),
                                        MakeTrajectory(3, 1), bare};
  EXPECT_THAT(ParseUnit(Serialized(unit)), IsOkAndHolds(unit));
  EXPECT_THAT(ParseUnit(Serialized({})),
              IsOkAndHolds(std::vector<Trajectory>()));
}

TEST(TrajectoryTest, BytesFollowTheDocumentedFormat) {
  Trajectory t;
  t.id = {{1, 2, 3}, 4, 5};
  t.prompt_id = 6;
  t.response_ids = {0x01020304};
  const std::string bytes = Serialized({t});
  // 8 magic + 4 count + 32 identity + 1 finish + 12 version + 4 hash +
  // lists 4 + 4 + 8 + 4 + 4 + reward 1 + 8 + parts 4.
  EXPECT_EQ(bytes.size(), 98U);
  EXPECT_EQ(bytes.substr(0, 8), "COXTRAJ1");
  EXPECT_EQ(bytes.substr(8, 4), std::string("\1\0\0\0", 4));
  EXPECT_EQ(bytes.substr(16, 8), std::string("\2\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(bytes.substr(73, 4), std::string("\4\3\2\1", 4));
}

TEST(TrajectoryTest, TheHashIsOfTheContentOnly) {
  const std::string a = Serialized({MakeTrajectory(0, 0)});
  const std::string b = Serialized({MakeTrajectory(0, 0)});
  EXPECT_EQ(UnitResultHash(a), UnitResultHash(b));
  Trajectory changed = MakeTrajectory(0, 0);
  changed.behaviour_logprobs[0] = std::nextafterf(-0.5F, 0.0F);
  EXPECT_NE(UnitResultHash(Serialized({changed})), UnitResultHash(a));
}

TEST(TrajectoryTest, TruncationAtEveryByteIsAnError) {
  const std::string bytes =
      Serialized({MakeTrajectory(0, 0), MakeTrajectory(0, 1)});
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(ParseUnit(std::string_view(bytes).substr(0, size)),
                StatusIs(absl::StatusCode::kDataLoss))
        << size;
  }
  EXPECT_THAT(ParseUnit(bytes + '\0'),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("too many")));
}

// Whatever parses must be canonical: it serialises to the same bytes.
TEST(TrajectoryTest, DamagedBytesNeverCrashAndNeverParseDifferently) {
  const std::string bytes =
      Serialized({MakeTrajectory(0, 0), MakeTrajectory(0, 1)});
  CounterRng rng(3, "trajectory-test");
  for (int i = 0; i < 5000; ++i) {
    std::string damaged = bytes;
    const uint64_t changes = 1 + rng.NextBelow(3);
    for (uint64_t k = 0; k < changes; ++k) {
      damaged[rng.NextBelow(damaged.size())] =
          static_cast<char>(rng.NextBelow(256));
    }
    const absl::StatusOr<std::vector<Trajectory>> parsed = ParseUnit(damaged);
    if (parsed.ok()) {
      EXPECT_THAT(SerializeUnit(*parsed), IsOkAndHolds(damaged));
    } else {
      EXPECT_EQ(parsed.status().code(), absl::StatusCode::kDataLoss);
    }
  }
}

TEST(TrajectoryTest, AHugeCountIsRejectedBeforeAllocation) {
  std::string bytes = Serialized({MakeTrajectory(0, 0)});
  bytes.replace(8, 4, "\xFF\xFF\0\0", 4);
  EXPECT_THAT(ParseUnit(bytes), StatusIs(absl::StatusCode::kDataLoss));
  bytes.replace(8, 4, "\xFF\xFF\xFF\xFF", 4);
  EXPECT_THAT(ParseUnit(bytes), StatusIs(absl::StatusCode::kDataLoss,
                                         HasSubstr("at most 65536")));
}

TEST(TrajectoryTest, InvalidTrajectoriesAreNotWritten) {
  const auto written = [](auto change) {
    Trajectory t = MakeTrajectory(0, 0);
    change(t);
    return SerializeUnit({t}).status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(written([nan](Trajectory& t) { t.reward_total = nan; }), kInvalid);
  EXPECT_EQ(written([nan](Trajectory& t) { t.reward_parts[0].second = nan; }),
            kInvalid);
  EXPECT_EQ(written([](Trajectory& t) { t.behaviour_logprobs.pop_back(); }),
            kInvalid);
  EXPECT_EQ(written([](Trajectory& t) {
              t.reference_logprobs[1] = -std::numeric_limits<float>::infinity();
            }),
            kInvalid);
  EXPECT_EQ(written([](Trajectory& t) { t.response_ids[0] = -1; }), kInvalid);
  EXPECT_EQ(written([](Trajectory& t) { t.id.sample = -1; }), kInvalid);
  EXPECT_EQ(written([](Trajectory& t) { t.policy_hash.assign(300, 'a'); }),
            kInvalid);
  EXPECT_EQ(written([](Trajectory& t) { t.reference_logprobs.clear(); }),
            absl::StatusCode::kOk);
}

TEST(TrajectoryTest, IdsMustAscend) {
  EXPECT_THAT(
      SerializeUnit({MakeTrajectory(1, 0), MakeTrajectory(0, 0)}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ascending")));
  EXPECT_THAT(SerializeUnit({MakeTrajectory(1, 0), MakeTrajectory(1, 0)}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(TrajectoryTest, FinishReasonsHaveNames) {
  EXPECT_EQ(FinishReasonName(FinishReason::kStop), "stop");
  EXPECT_EQ(FinishReasonName(FinishReason::kLength), "length");
  EXPECT_EQ(FinishReasonName(FinishReason::kAbort), "abort");
}

}  // namespace
}  // namespace cox
