#include "cli/chaos_plan.h"

#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "gtest/gtest.h"
#include "lib/base/failpoint.h"
#include "lib/base/fs.h"

namespace cox {
namespace {

ChaosPlanOptions Options(int kills, uint64_t seed) {
  ChaosPlanOptions options;
  options.kills = kills;
  options.seed = seed;
  options.replicas = {{"actor", 2}, {"reward", 1}, {"learner", 2}};
  return options;
}

std::string Text(const std::vector<Fault>& faults) {
  std::string text;
  for (const Fault& fault : faults) {
    text += FaultText(fault) + " after " + absl::FormatDuration(fault.delay) +
            (fault.after_recovery ? " of calm\n" : "\n");
  }
  return text;
}

TEST(ChaosPlanTest, SameSeedSameScheduleAndAnotherSeedAnother) {
  EXPECT_EQ(Text(PlanFaults(Options(50, 7))), Text(PlanFaults(Options(50, 7))));
  EXPECT_NE(Text(PlanFaults(Options(50, 7))), Text(PlanFaults(Options(50, 8))));
}

TEST(ChaosPlanTest, EveryRoleGetsItsShareOfKills) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    std::map<std::string, int> shares;
    for (const Fault& fault : PlanFaults(Options(200, seed))) {
      EXPECT_EQ(fault.kind, FaultKind::kKill);
      ++shares[fault.role];
      if (fault.role == "learner") {
        EXPECT_LT(fault.index, 2);
      }
    }
    for (const std::string& role : ChaosRoles()) EXPECT_EQ(shares[role], 40);
  }
}

TEST(ChaosPlanTest, EveryBorderIsHitByALongCampaign) {
  std::set<std::string> hit;
  for (const Fault& fault : PlanFaults(Options(2000, 3))) {
    if (!fault.failpoint.empty()) hit.insert(fault.failpoint);
  }
  for (const FailpointName& point : KillFailpoints()) {
    EXPECT_TRUE(hit.contains(std::string(point.name))) << point.name;
  }
}

// A name that no code passes would be armed in vain.
TEST(ChaosPlanTest, EveryBorderIsInTheCode) {
  const char* root = std::getenv("COX_SOURCE_DIR");
  ASSERT_NE(root, nullptr) << "set by ctest";
  std::string code;
  for (const char* folder : {"actor", "reward", "coordinator", "learner"}) {
    const std::string dir = JoinPath(root, folder);
    const auto names = Fs::Real().List(dir);
    ASSERT_TRUE(names.ok()) << dir;
    for (const std::string& name : *names) {
      if (name.ends_with(".cc")) {
        code += Fs::Real().ReadAll(JoinPath(dir, name)).value_or("");
      }
    }
  }
  std::set<std::string> places;
  for (const FailpointName& point : KillFailpoints()) {
    places.emplace(point.name);
  }
  ChaosPlanOptions options = Options(400, 1);
  options.kinds = *ParseFaultKinds("corrupt,enospc");
  for (const Fault& fault : PlanFaults(options)) {
    // Those two are passed in lib/rpc, by whoever sends.
    if (fault.failpoint != "weights.chunk" &&
        fault.failpoint != "unit.payload") {
      places.insert(fault.failpoint);
    }
  }
  for (const std::string& place : places) {
    EXPECT_NE(code.find("\"" + place + "\""), std::string::npos) << place;
  }
}

TEST(ChaosPlanTest, OtherKindsGetATenthAndOnlyFittingRoles) {
  ChaosPlanOptions options = Options(100, 5);
  options.kinds = *ParseFaultKinds("kill,stop,slow,corrupt,enospc");
  std::map<FaultKind, int> kinds;
  for (const Fault& fault : PlanFaults(options)) {
    ++kinds[fault.kind];
    if (fault.kind == FaultKind::kStop) {
      EXPECT_NE(fault.role, "all");
      EXPECT_GE(fault.length, absl::Seconds(1));
      EXPECT_LE(fault.length, absl::Seconds(10));
    }
    if (fault.kind == FaultKind::kEnospc) {
      EXPECT_TRUE(fault.role == "coordinator" || fault.role == "learner");
      EXPECT_FALSE(fault.failpoint.empty());
    }
    if (fault.kind == FaultKind::kCut) {
      EXPECT_EQ(fault.role, "actor");
    }
  }
  EXPECT_EQ(kinds[FaultKind::kKill], 100);
  for (const FaultKind kind :
       {FaultKind::kStop, FaultKind::kSlow, FaultKind::kCut,
        FaultKind::kCorrupt, FaultKind::kEnospc}) {
    EXPECT_EQ(kinds[kind], 10) << FaultKindName(kind);
  }
  options.roles = {"reward"};
  options.kinds = {FaultKind::kEnospc};
  EXPECT_TRUE(PlanFaults(options).empty());
}

TEST(ChaosPlanTest, UnknownNamesAreNamed) {
  EXPECT_NE(ParseFaultKinds("kill,melt").status().message().find("melt"),
            absl::string_view::npos);
  EXPECT_FALSE(ParseFaultKinds("").ok());
  EXPECT_NE(ParseChaosRoles("actor,king").status().message().find("king"),
            absl::string_view::npos);
  EXPECT_EQ(ParseChaosRoles("")->size(), 0u);
}

}  // namespace
}  // namespace cox
