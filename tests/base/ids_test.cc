#include "lib/base/ids.h"

#include "gtest/gtest.h"

namespace cox {
namespace {

TEST(IdsTest, PrintShortForms) {
  EXPECT_EQ((PolicyVersion{4, 12}).ToString(), "s4v12");
  EXPECT_EQ((UnitId{4, 12, 3}).ToString(), "s4.12.3");
  EXPECT_EQ((TrajectoryId{{4, 12, 3}, 5, 0}).ToString(), "s4.12.3/5.0");
}

TEST(IdsTest, OrderByStageThenStep) {
  EXPECT_LT((PolicyVersion{0, 100}), (PolicyVersion{1, 0}));
  EXPECT_LT((UnitId{1, 2, 9}), (UnitId{1, 3, 0}));
}

}  // namespace
}  // namespace cox
