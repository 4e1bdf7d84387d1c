#ifndef COX_TESTS_TESTING_STATUS_MATCHERS_H_
#define COX_TESTS_TESTING_STATUS_MATCHERS_H_

// EXPECT_THAT(F(), IsOk());
// EXPECT_THAT(F(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("x")));
// EXPECT_THAT(G(), IsOkAndHolds(Eq(3)));
// ASSERT_OK(F());  ASSERT_OK_AND_ASSIGN(auto x, G());

#include <ostream>
#include <string>
#include <type_traits>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "lib/base/status.h"

#define ASSERT_OK(expr) ASSERT_THAT(expr, ::cox::testing::IsOk())
#define EXPECT_OK(expr) EXPECT_THAT(expr, ::cox::testing::IsOk())
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  COX_TEST_ASSIGN_(COX_CONCAT_(cox_test_statusor_, __LINE__), lhs, expr)
#define COX_TEST_ASSIGN_(tmp, lhs, expr) \
  auto tmp = (expr);                     \
  ASSERT_TRUE(tmp.ok()) << tmp.status(); \
  lhs = std::move(tmp).value()

namespace cox::testing {

inline const absl::Status& StatusOf(const absl::Status& status) {
  return status;
}
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

MATCHER(IsOk, negation ? "is not OK" : "is OK") {
  const absl::Status& status = StatusOf(arg);
  *result_listener << "which is " << status.ToString();
  return status.ok();
}

// The message matcher gets a std::string.
MATCHER_P2(StatusIsWith, code, message_matcher,
           "has code " + absl::StatusCodeToString(code) +
               " and a message that " +
               ::testing::DescribeMatcher<std::string>(message_matcher)) {
  const absl::Status& status = StatusOf(arg);
  *result_listener << "which is " << status.ToString();
  return status.code() == code &&
         ::testing::ExplainMatchResult(
             message_matcher, std::string(status.message()), result_listener);
}

inline auto StatusIs(absl::StatusCode code) {
  return StatusIsWith(code, ::testing::_);
}
template <typename M>
auto StatusIs(absl::StatusCode code, M message_matcher) {
  return StatusIsWith(code, std::move(message_matcher));
}

MATCHER_P(IsOkAndHolds, value_matcher, "is OK and holds a matching value") {
  if (!arg.ok()) {
    *result_listener << "which is " << arg.status().ToString();
    return false;
  }
  return ::testing::ExplainMatchResult(value_matcher, *arg, result_listener);
}

}  // namespace cox::testing

#endif  // COX_TESTS_TESTING_STATUS_MATCHERS_H_
