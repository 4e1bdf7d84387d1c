#include "cli/selftest_task.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "gtest/gtest.h"

namespace cox {
namespace {

// A token-level policy that prefers low ids.
ResponseLogprobs Reference(const EnumerableTask& task) {
  double total = 0;
  for (int64_t id = 0; id < task.vocab; ++id) {
    total += std::exp(-0.3 * static_cast<double>(id));
  }
  ResponseLogprobs out;
  for (size_t p = 0; p < task.prompts.size(); ++p) {
    std::vector<double>& row = out.emplace_back();
    for (const std::vector<int32_t>& response : task.responses) {
      double sum = 0;
      for (const int32_t id : response) sum += -0.3 * id - std::log(total);
      row.push_back(sum);
    }
  }
  return out;
}

// π ∝ ref · exp(weight(r)).
ResponseLogprobs Tilted(const EnumerableTask& task,
                        const std::function<double(double)>& weight) {
  ResponseLogprobs out = Reference(task);
  for (size_t p = 0; p < out.size(); ++p) {
    double total = 0;
    for (size_t i = 0; i < out[p].size(); ++i) {
      out[p][i] += weight(task.rewards[p][i]);
      total += std::exp(out[p][i]);
    }
    for (double& x : out[p]) x -= std::log(total);
  }
  return out;
}

class SelfTestTaskTest : public testing::TestWithParam<EnumerableTask> {};

TEST_P(SelfTestTaskTest, ResponsesAreEveryAnswerOnce) {
  const EnumerableTask& task = GetParam();
  std::set<std::vector<int32_t>> distinct(task.responses.begin(),
                                          task.responses.end());
  EXPECT_EQ(distinct.size(), task.responses.size());
  EXPECT_EQ(task.rewards.size(), task.prompts.size());
  const ResponseLogprobs reference = Reference(task);
  const Objective at = Evaluate(task, reference, reference);
  EXPECT_NEAR(at.mass, 1, 1e-12);
  EXPECT_EQ(at.kl, 0);
  EXPECT_EQ(at.value, at.reward);
}

TEST_P(SelfTestTaskTest, TheClosedFormIsTheOptimum) {
  const EnumerableTask& task = GetParam();
  const ResponseLogprobs reference = Reference(task);
  const auto value = [&](const std::function<double(double)>& weight) {
    return Evaluate(task, Tilted(task, weight), reference);
  };
  const Objective best = value([&](double r) { return r / task.beta; });
  EXPECT_NEAR(best.value, best.optimum, 1e-12);
  for (const double factor : {.5, .9, 1.1, 2.0}) {
    EXPECT_LT(value([&](double r) { return r / task.beta * factor; }).value,
              best.optimum);
  }
}

// What `cox selftest` would call a failure: mistakes in the KL move the
// optimum of a run by more than the tolerance of 0.03.
TEST_P(SelfTestTaskTest, WrongKlMissesByMoreThanTheTolerance) {
  const EnumerableTask& task = GetParam();
  const ResponseLogprobs reference = Reference(task);
  const auto gap = [&](double beta) {
    const Objective at = Evaluate(
        task, Tilted(task, [&](double r) { return r / beta; }), reference);
    return at.optimum - at.value;
  };
  EXPECT_GT(gap(2e-2), 0.03);           // KL forgotten
  EXPECT_GT(gap(task.beta * 4), 0.03);  // counted four times
  EXPECT_GT(gap(task.beta / 4), 0.03);  // averaged over tokens and prompts
  EXPECT_GT(gap(-task.beta), 0.03);     // wrong sign of the reward
  EXPECT_GT(gap(1e9), 0.03);            // nothing learned
}

INSTANTIATE_TEST_SUITE_P(Tasks, SelfTestTaskTest,
                         testing::Values(ThreeArmedBandit(), TinyLanguage()),
                         [](const auto& task) { return task.param.name; });

TEST(TinyLanguageTest, HasFortyAnswers) {
  const EnumerableTask task = TinyLanguage();
  EXPECT_EQ(task.responses.size(), 40u);  // 1 + 3 + 3·3·4
  EXPECT_EQ(task.responses.front(), (std::vector<int32_t>{0}));
  EXPECT_EQ(task.responses.back(), (std::vector<int32_t>{3, 3, 3}));
  const std::string table = TableJson(task);
  EXPECT_EQ(std::count(table.begin(), table.end(), '{'), 1 + 2 * 40);
}

}  // namespace
}  // namespace cox
