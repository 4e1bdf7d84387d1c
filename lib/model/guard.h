#ifndef COX_LIB_MODEL_GUARD_H_
#define COX_LIB_MODEL_GUARD_H_

// The border where LibTorch's exceptions become Status. Every method of an
// engine runs its body through Guard(); nothing else in lib/model catches.

#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "c10/util/Exception.h"
#include "lib/base/log.h"
#include "lib/base/status.h"

namespace cox {

// The CPU allocator reports a failed allocation as a plain c10::Error.
inline bool IsAllocationFailure(std::string_view message) {
  return message.find("DefaultCPUAllocator") != std::string_view::npos ||
         message.find("not enough memory") != std::string_view::npos;
}

// Runs `body`, which returns Status or StatusOr. RESOURCE_EXHAUSTED when
// memory is short, INTERNAL for any other exception; the backtrace goes to the
// log only.
template <typename Body>
auto Guard(std::string_view what, Body&& body) -> decltype(body()) {
  const std::string prefix = std::string(what) + ": ";
  try {
    return std::forward<Body>(body)();
  } catch (const c10::OutOfMemoryError& error) {
    return absl::ResourceExhaustedError(prefix +
                                        error.what_without_backtrace());
  } catch (const c10::Error& error) {
    LogError("libtorch error",
             {Field("in", std::string(what)), Field("error", error.what())});
    const std::string message = prefix + error.what_without_backtrace();
    if (IsAllocationFailure(message)) {
      return absl::ResourceExhaustedError(message);
    }
    return absl::InternalError(message);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(prefix + "out of memory");
  } catch (const std::exception& error) {
    LogError("exception",
             {Field("in", std::string(what)), Field("error", error.what())});
    return absl::InternalError(prefix + error.what());
  }
}

}  // namespace cox

#endif  // COX_LIB_MODEL_GUARD_H_
