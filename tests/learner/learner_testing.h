#ifndef COX_TESTS_LEARNER_LEARNER_TESTING_H_
#define COX_TESTS_LEARNER_LEARNER_TESTING_H_

// Runs the same steps with 1 or more ranks and compares what comes out.

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "learner/lm_trainer.h"
#include "learner/trainer.h"
#include "lib/base/thread.h"
#include "lib/comm/inprocess.h"
#include "lib/engine/engine.h"
#include "tests/testing/status_matchers.h"

namespace cox::testing {

// Everything that one rank owns.
struct RankParts {
  std::unique_ptr<TrainEngine> policy;  // or the reward model
  std::unique_ptr<TrainEngine> critic;
  std::unique_ptr<LmSource> source;
  std::unique_ptr<StageTrainer> trainer;
};

using MakeRank = std::function<absl::StatusOr<RankParts>(Collective& group)>;
using MakeInput = std::function<BatchInput(int64_t step)>;

struct RunOutcome {
  std::vector<StepResult> results;  // per step, of rank 0
  std::vector<float> policy;        // parameters at the end
  std::vector<float> critic;
  std::string state;  // SaveState
  std::string weight_hash;
};

// Steps first..last on `world` ranks as threads. `prepare` may restore rank
// parts before the first step.
inline absl::StatusOr<RunOutcome> RunSteps(
    int world, const MakeRank& make, const MakeInput& input, int64_t first,
    int64_t last,
    const std::function<absl::Status(RankParts&)>& prepare = nullptr) {
  std::vector<std::unique_ptr<Collective>> groups = MakeInProcessGroup(world);
  std::vector<absl::Status> statuses(static_cast<size_t>(world));
  std::vector<RunOutcome> outcomes(static_cast<size_t>(world));
  const auto run = [&](size_t rank) -> absl::Status {
    COX_ASSIGN_OR_RETURN(RankParts parts, make(*groups[rank]));
    if (prepare) {
      COX_RETURN_IF_ERROR(prepare(parts));
    }
    RunOutcome& outcome = outcomes[rank];
    for (int64_t step = first; step <= last; ++step) {
      COX_ASSIGN_OR_RETURN(StepResult result,
                           parts.trainer->Step(step, input(step)));
      outcome.results.push_back(std::move(result));
    }
    outcome.policy.assign(parts.policy->Parameters().begin(),
                          parts.policy->Parameters().end());
    if (parts.critic != nullptr) {
      outcome.critic.assign(parts.critic->Parameters().begin(),
                            parts.critic->Parameters().end());
    }
    outcome.state = parts.trainer->SaveState();
    COX_ASSIGN_OR_RETURN(const auto trained, parts.trainer->Trained());
    outcome.weight_hash = trained->content_hash;
    return absl::OkStatus();
  };
  {
    std::vector<Thread> threads;
    for (size_t rank = 0; rank < groups.size(); ++rank) {
      threads.emplace_back("rank", [&, rank] {
        statuses[rank] = run(rank);
        if (!statuses[rank].ok()) {
          groups[rank]->Abort();
        }
      });
    }
  }
  for (const absl::Status& status : statuses) {
    COX_RETURN_IF_ERROR(status);
  }
  // Ranks hold the same bits.
  for (const RunOutcome& outcome : outcomes) {
    EXPECT_EQ(outcome.weight_hash, outcomes[0].weight_hash);
    EXPECT_EQ(outcome.state, outcomes[0].state);
    for (size_t i = 0; i < outcome.results.size(); ++i) {
      EXPECT_EQ(outcome.results[i].metrics, outcomes[0].results[i].metrics);
    }
  }
  return std::move(outcomes[0]);
}

// Weights, optimizer and every metric.
inline void ExpectSameBits(const RunOutcome& found,
                           const RunOutcome& expected) {
  EXPECT_EQ(found.weight_hash, expected.weight_hash);
  EXPECT_EQ(found.critic, expected.critic);
  EXPECT_TRUE(found.state == expected.state) << "trainer states differ";
  ASSERT_EQ(found.results.size(), expected.results.size());
  for (size_t i = 0; i < expected.results.size(); ++i) {
    EXPECT_EQ(found.results[i].batch_sha256, expected.results[i].batch_sha256);
    EXPECT_EQ(found.results[i].metrics, expected.results[i].metrics);
  }
}

// |a - b| / |b|.
inline double RelativeDistance(const std::vector<float>& a,
                               const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = double{a[i]} - double{b[i]};
    difference += d * d;
    norm += double{b[i]} * double{b[i]};
  }
  return std::sqrt(difference / norm);
}

inline OptimizerOptions TestOptimizer(double lr) {
  OptimizerOptions options;
  options.schedule.peak = lr;
  return options;
}

// Copies parameters and state of a finished run into fresh parts.
inline std::function<absl::Status(RankParts&)> RestoreFrom(
    const RunOutcome& outcome) {
  return [&outcome](RankParts& parts) {
    std::copy(outcome.policy.begin(), outcome.policy.end(),
              parts.policy->Parameters().begin());
    if (parts.critic != nullptr) {
      std::copy(outcome.critic.begin(), outcome.critic.end(),
                parts.critic->Parameters().begin());
    }
    return parts.trainer->LoadState(outcome.state);
  };
}

}  // namespace cox::testing

#endif  // COX_TESTS_LEARNER_LEARNER_TESTING_H_
