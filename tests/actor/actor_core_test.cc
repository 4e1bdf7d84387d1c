#include "actor/actor_core.h"

#include <set>

#include "gtest/gtest.h"
#include "lib/base/rng.h"

namespace cox {
namespace {

MonoTime At(int64_t ms) { return MonoTime{1} + absl::Milliseconds(ms); }

GrantedUnit Granted(int64_t step, int32_t index, std::string hash,
                    int64_t lease_ms = 1000) {
  return {.unit = {0, step, index},
          .lease = absl::Milliseconds(lease_ms),
          .policy_hash = std::move(hash)};
}

using Kind = ActorAction::Kind;

TEST(ActorCoreTest, LeasesOnlyWhileTheRunWantsUnits) {
  ActorCore core({});
  EXPECT_EQ(core.Next(At(0), "").kind, Kind::kWait);
  core.SetServing(true);
  EXPECT_EQ(core.Next(At(0), "").kind, Kind::kLease);
  EXPECT_EQ(core.Next(At(0), "").max_units, 1);
  const auto leases = core.OnLeased(At(0), {Granted(1, 0, "a")});
  core.SetServing(false);
  // What is leased is finished all the same.
  EXPECT_EQ(core.Next(At(1), "a").kind, Kind::kGenerate);
  core.OnFinished(leases[0]);
  EXPECT_EQ(core.Next(At(1), "a").kind, Kind::kWait);
}

TEST(ActorCoreTest, SwapsBeforeItGeneratesAndTakesTheOldestUnit) {
  ActorCore core({});
  core.SetServing(true);
  const auto leases = core.OnLeased(
      At(0), {Granted(2, 0, "b"), Granted(1, 5, "a"), Granted(1, 7, "a")});
  ActorAction action = core.Next(At(1), "b");
  EXPECT_EQ(action.kind, Kind::kSwap);
  EXPECT_EQ(action.lease, leases[1]);
  action = core.Next(At(1), "a");
  EXPECT_EQ(action.kind, Kind::kGenerate);
  EXPECT_EQ(action.lease, leases[1]);
}

TEST(ActorCoreTest, GeneratesOneUnitAheadOfTheScores) {
  ActorCore core({.units_per_lease = 1, .max_scoring = 1});
  core.SetServing(true);
  const auto leases = core.OnLeased(
      At(0), {Granted(1, 0, "a"), Granted(1, 1, "a"), Granted(1, 2, "a")});
  core.OnGenerating(leases[0]);
  core.OnGenerated(leases[0]);
  EXPECT_EQ(core.Next(At(1), "a").lease, leases[1]);
  core.OnGenerating(leases[1]);
  core.OnGenerated(leases[1]);
  EXPECT_EQ(core.Next(At(1), "a").kind, Kind::kWait);
  core.OnFinished(leases[0]);
  EXPECT_EQ(core.Next(At(1), "a").lease, leases[2]);
}

TEST(ActorCoreTest, ALeaseCountsFromTheSendingOfTheRequest) {
  ActorCore core({});
  const auto leases = core.OnLeased(At(100), {Granted(1, 0, "a", 900)});
  EXPECT_TRUE(core.Holds(leases[0], At(999)));
  EXPECT_FALSE(core.Holds(leases[0], At(1000)));
  EXPECT_EQ(*core.NextRenewal(), At(400));
  EXPECT_TRUE(core.RenewalDue(At(399)).leases.empty());
  const auto renewal = core.RenewalDue(At(400));
  ASSERT_EQ(renewal.units, (std::vector<UnitId>{{0, 1, 0}}));
  core.OnRenewed(At(400), renewal.leases, {true});
  EXPECT_TRUE(core.Holds(leases[0], At(1299)));
  // An answer that overtook a later one does not shorten the lease.
  core.OnRenewed(At(300), renewal.leases, {true});
  EXPECT_TRUE(core.Holds(leases[0], At(1299)));
  core.OnRenewed(At(500), renewal.leases, {false});
  EXPECT_FALSE(core.Holds(leases[0], At(501)));
}

TEST(ActorCoreTest, AUnitLeasedAgainIsAnotherLease) {
  ActorCore core({});
  core.SetServing(true);
  const auto first = core.OnLeased(At(0), {Granted(1, 0, "a")});
  core.OnGenerating(first[0]);
  core.OnGenerated(first[0]);
  core.OnRenewed(At(1), first, {false});
  const auto second = core.OnLeased(At(2), {Granted(1, 0, "a")});
  core.OnFinished(first[0]);  // the late end of the lost one
  EXPECT_TRUE(core.Holds(second[0], At(3)));
  EXPECT_EQ(core.Next(At(3), "a").lease, second[0]);
}

// Random schedules: whatever happens, at most one unit is generated at a time,
// never one whose lease is over or whose weights are not held, and never more
// than max_scoring + 1 wait for scores.
TEST(ActorCoreTest, InvariantsHoldUnderRandomSchedules) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    CounterRng rng(seed, "actor");
    const ActorCoreOptions options{
        .units_per_lease = static_cast<int>(1 + rng.NextBelow(3)),
        .max_scoring = static_cast<int>(rng.NextBelow(3))};
    ActorCore core(options);
    int64_t now = 0;
    int32_t next_unit = 0;
    std::string held;
    std::map<LocalLease, std::string> hashes;
    std::set<LocalLease> scoring;
    size_t submitted = 0;
    for (int event = 0; event < 400; ++event) {
      now += static_cast<int64_t>(rng.NextBelow(30));
      std::erase_if(scoring, [&](LocalLease lease) {
        return !core.Holds(lease, At(now));
      });
      core.SetServing(rng.NextBelow(10) != 0);
      const ActorAction action = core.Next(At(now), held);
      switch (action.kind) {
        case Kind::kLease: {
          ASSERT_EQ(action.max_units, options.units_per_lease);
          std::vector<GrantedUnit> units;
          for (uint64_t n = rng.NextBelow(3); n > 0; --n) {
            units.push_back(Granted(1 + next_unit / 4, next_unit % 4,
                                    rng.NextBelow(2) == 0 ? "a" : "b", 300));
            ++next_unit;
          }
          const auto leases = core.OnLeased(At(now), units);
          for (size_t i = 0; i < leases.size(); ++i) {
            ASSERT_TRUE(hashes.emplace(leases[i], units[i].policy_hash).second);
          }
          break;
        }
        case Kind::kSwap:
          ASSERT_NE(hashes.at(action.lease), held);
          held = hashes.at(action.lease);
          break;
        case Kind::kGenerate:
          ASSERT_TRUE(core.Holds(action.lease, At(now)));
          ASSERT_EQ(hashes.at(action.lease), held);
          ASSERT_LE(scoring.size(), static_cast<size_t>(options.max_scoring));
          core.OnGenerating(action.lease);
          core.OnGenerated(action.lease);
          scoring.insert(action.lease);
          break;
        case Kind::kWait:
          break;
      }
      if (!scoring.empty() && rng.NextBelow(3) == 0) {
        core.OnFinished(*scoring.begin());
        scoring.erase(scoring.begin());
        ++submitted;
      }
      const auto renewal = core.RenewalDue(At(now));
      if (!renewal.leases.empty() && rng.NextBelow(2) == 0) {
        std::vector<bool> kept;
        for (size_t i = 0; i < renewal.leases.size(); ++i) {
          kept.push_back(rng.NextBelow(8) != 0);
        }
        core.OnRenewed(At(now), renewal.leases, kept);
        for (size_t i = 0; i < kept.size(); ++i) {
          ASSERT_EQ(core.Holds(renewal.leases[i], At(now)), kept[i]);
        }
      }
    }
    EXPECT_GT(submitted, 10u) << "seed " << seed;
  }
}

}  // namespace
}  // namespace cox
