#include "coordinator/pod_costs.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::pair<std::string, int64_t>> Due(
    PodCosts& costs, const std::map<std::string, int64_t>& units, bool sent) {
  std::vector<std::pair<std::string, int64_t>> out;
  for (const PodCost& cost : costs.Due(units)) {
    out.emplace_back(cost.pod, cost.cost);
    if (sent) costs.Sent(cost);
  }
  return out;
}

TEST(PodCostsTest, SaysOnlyWhatChanged) {
  PodCosts costs;
  // An idle pod has no annotation, and needs none.
  EXPECT_THAT(Due(costs, {{"a", 0}, {"b", 2}}, true),
              ElementsAre(std::pair("b", kBusyCost)));
  EXPECT_THAT(Due(costs, {{"a", 0}, {"b", 1}}, true), IsEmpty());
  EXPECT_THAT(Due(costs, {{"a", 1}, {"b", 0}}, true),
              ElementsAre(std::pair("a", kBusyCost), std::pair("b", 0)));
}

TEST(PodCostsTest, AsksAgainUntilItWasSent) {
  PodCosts costs;
  EXPECT_THAT(Due(costs, {{"a", 1}}, false),
              ElementsAre(std::pair("a", kBusyCost)));
  EXPECT_THAT(Due(costs, {{"a", 1}}, true),
              ElementsAre(std::pair("a", kBusyCost)));
  EXPECT_THAT(Due(costs, {{"a", 1}}, true), IsEmpty());
}

// A pod of the same name later is another pod, without an annotation.
TEST(PodCostsTest, ForgetsPodsThatAreGone) {
  PodCosts costs;
  Due(costs, {{"a", 1}}, true);
  EXPECT_THAT(Due(costs, {}, true), IsEmpty());
  EXPECT_THAT(Due(costs, {{"a", 1}}, true),
              ElementsAre(std::pair("a", kBusyCost)));
}

}  // namespace
}  // namespace cox
