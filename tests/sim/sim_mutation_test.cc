// The simulator notices each rule of docs/durability.md that does not hold.

#include <cstdio>

#include "gtest/gtest.h"
#include "tests/sim/campaign.h"

namespace cox::sim {
namespace {

TEST(SimMutation, EachRuleThatIsSwitchedOffIsFoundWithinTenThousandSeeds) {
  std::printf("%-5s %-55s %7s  %s\n", "rule", "switched off", "seed",
              "found by");
  for (const Mutation& mutation : Mutations()) {
    CampaignOptions options;
    options.last = 9999;
    mutation.apply(options.rules);
    const CampaignResult result = RunCampaign(options);
    ASSERT_TRUE(result.failed.has_value())
        << "rule " << mutation.rule << " is not missed";
    std::printf("%-5.*s %-55.*s %7llu  %.70s\n",
                static_cast<int>(mutation.rule.size()), mutation.rule.data(),
                static_cast<int>(mutation.text.size()), mutation.text.data(),
                static_cast<unsigned long long>(*result.failed),
                result.violation.c_str());
  }
}

}  // namespace
}  // namespace cox::sim
