#include <algorithm>
#include <cmath>
#include <vector>

#include "coordinator/scaler_core.h"
#include "gtest/gtest.h"

namespace cox {
namespace {

LoadView Overlapped() {
  LoadView load;
  load.needs_actors = true;
  load.overlapped = true;
  load.units_per_step = 8;
  load.max_in_flight = 16;
  load.unit_s = 2;
  load.learner_s = 4;
  return load;
}

TEST(ScalerCoreTest, NoneWhereNoneIsNeeded) {
  LoadView load = Overlapped();
  load.needs_actors = false;
  EXPECT_EQ(WantedActors(load), 0);
  EXPECT_EQ(WantedActors(LoadView()), 0);
}

TEST(ScalerCoreTest, InSyncEveryUnitOfAStepIsWorthAnActor) {
  LoadView load = Overlapped();
  load.overlapped = false;
  load.max_in_flight = 8;
  for (const int64_t open : {0, 3, 8}) {
    load.open_units = open;
    EXPECT_EQ(WantedActors(load), 8) << open;
  }
}

TEST(ScalerCoreTest, HoldsOneToTwoStepsOfLearnerWork) {
  LoadView load = Overlapped();
  // 8 units of 2 s for every 4 s: four actors keep up.
  load.ready_units = 12;
  EXPECT_EQ(WantedActors(load), 4);
  EXPECT_DOUBLE_EQ(BufferedSeconds(load), 6);
  load.ready_units = 0;
  EXPECT_EQ(WantedActors(load), 6);
  load.ready_units = 32;
  EXPECT_EQ(WantedActors(load), 2);
  load.ready_units = 8;
  EXPECT_EQ(WantedActors(load), 4);
}

TEST(ScalerCoreTest, NeverBeyondWhatStalenessAllows) {
  for (int32_t width : {1, 3, 8}) {
    for (const double unit_s : {0.0, 0.1, 50.0, 1e9}) {
      for (const double learner_s : {0.0, 1e-9, 1.0, 100.0}) {
        for (const int64_t ready : {0, 1, 100, 100000}) {
          LoadView load = Overlapped();
          load.units_per_step = width;
          load.max_in_flight = 2 * width;
          load.unit_s = unit_s;
          load.learner_s = learner_s;
          load.ready_units = ready;
          const int64_t wanted = WantedActors(load);
          EXPECT_GE(wanted, 1);
          EXPECT_LE(wanted, load.max_in_flight);
        }
      }
    }
  }
}

// A closed loop in virtual time: actors, a bounded run-ahead and a learner
// whose speed changes; the autoscaler sets the number every 15 s.
struct Loop {
  double learner_s = 0;
  int64_t actors = 1;
  int64_t ready = 0;
  std::vector<double> busy;  // one entry per unit in work: seconds left
  double learning = 0;       // seconds left of the step; 0 = idle
  int64_t max_ahead = 0;     // largest number of units beyond the step

  LoadView View() const {
    LoadView load = Overlapped();
    load.ready_units = ready;
    load.learner_s = learner_s;
    return load;
  }
  void Run(double seconds) {
    constexpr double kTick = 0.1;
    for (double t = 0, next = 0; t < seconds; t += kTick) {
      if (t >= next) {
        actors = WantedActors(View());
        next += 15;
      }
      for (double& left : busy) left -= kTick;
      const auto done = std::count_if(busy.begin(), busy.end(),
                                      [](double left) { return left <= 0; });
      std::erase_if(busy, [](double left) { return left <= 0; });
      ready += done;
      // The bound of the protocol, not of the scaler.
      while (static_cast<int64_t>(busy.size()) < actors &&
             ready + static_cast<int64_t>(busy.size()) < 16) {
        busy.push_back(2);
      }
      learning -= kTick;
      if (learning <= 0 && ready >= 8) {
        ready -= 8;
        learning = learner_s;
      }
      max_ahead =
          std::max(max_ahead, ready + static_cast<int64_t>(busy.size()));
    }
  }
};

TEST(ScalerCoreTest, FollowsTheLoadUpAndDown) {
  Loop loop;
  loop.learner_s = 16;  // one actor makes 8 units in 16 s
  loop.Run(600);
  EXPECT_LE(loop.actors, 2);
  loop.learner_s = 4;
  loop.Run(600);
  EXPECT_GE(loop.actors, 4);
  EXPECT_LE(loop.actors, 6);
  loop.learner_s = 16;
  loop.Run(600);
  EXPECT_LE(loop.actors, 2);
  EXPECT_GE(loop.actors, 1);
  EXPECT_LE(loop.max_ahead, 16);
}

}  // namespace
}  // namespace cox
