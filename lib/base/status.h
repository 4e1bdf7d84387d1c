#ifndef COX_LIB_BASE_STATUS_H_
#define COX_LIB_BASE_STATUS_H_

// Error handling for every folder: fallible functions return absl::Status or
// absl::StatusOr<T>; messages say what, where, expected and found. What each
// code means is fixed in docs/architecture.md ("Errors").

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

#define COX_CONCAT_INNER_(a, b) a##b
#define COX_CONCAT_(a, b) COX_CONCAT_INNER_(a, b)

// Returns from the enclosing function when `expr` is not OK.
#define COX_RETURN_IF_ERROR(expr)         \
  do {                                    \
    absl::Status cox_status_ = (expr);    \
    if (!cox_status_.ok()) [[unlikely]] { \
      return cox_status_;                 \
    }                                     \
  } while (false)

// COX_ASSIGN_OR_RETURN(auto x, F()): binds the value or returns the error.
#define COX_ASSIGN_OR_RETURN(lhs, expr) \
  COX_ASSIGN_OR_RETURN_IMPL_(COX_CONCAT_(cox_statusor_, __LINE__), lhs, expr)
#define COX_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) [[unlikely]] {                    \
    return tmp.status();                           \
  }                                                \
  lhs = std::move(tmp).value()

// COX_CHECK(condition): aborts with file and line. Only for broken invariants
// of our own, never for input from network, file or user.
#define COX_CHECK(condition)                              \
  do {                                                    \
    if (!(condition)) [[unlikely]] {                      \
      ::cox::CheckFailed(__FILE__, __LINE__, #condition); \
    }                                                     \
  } while (false)

namespace cox {

[[noreturn]] void CheckFailed(const char* file, int line,
                              const char* condition);

// Same code, message "<context>: <message>". OK stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

}  // namespace cox

#endif  // COX_LIB_BASE_STATUS_H_
