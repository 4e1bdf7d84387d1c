#ifndef COX_TESTS_LEARNER_REGISTERED_H_
#define COX_TESTS_LEARNER_REGISTERED_H_

#include <vector>

#include "gtest/gtest.h"
#include "learner/trainer.h"
#include "lib/metrics/registry.h"

namespace cox::testing {

// Every metric has its entry in the registry.
inline void ExpectRegistered(const std::vector<StepResult>& results) {
  for (const StepResult& result : results) {
    for (const auto& [name, value] : result.metrics) {
      const MetricInfo* metric = FindMetric(name);
      ASSERT_NE(metric, nullptr) << name;
      EXPECT_EQ(metric->name, name);
    }
  }
}

}  // namespace cox::testing

#endif  // COX_TESTS_LEARNER_REGISTERED_H_
