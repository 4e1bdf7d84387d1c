#ifndef COX_LIB_DATA_STOP_STRINGS_H_
#define COX_LIB_DATA_STOP_STRINGS_H_

// Finds stop strings in text that arrives in pieces.

#include <string>
#include <string_view>
#include <vector>

#include "lib/base/status.h"

namespace cox {

// INVALID_ARGUMENT: an empty string, which would stop everywhere, or one of
// more than 1,024 bytes.
absl::Status ValidateStopStrings(const std::vector<std::string>& stops);

// Text before the first stop string comes out; an end that could still become
// one waits. The result depends on the pieces joined, and on where in them
// stopping was allowed. Thread-compatible. Costs O(bytes x strings).
//
//   StopScanner scanner({"\nUser:"});
//   scanner.Push("yes\nUs");  // "yes"
//   scanner.Push("er: no");   // "", stopped() is true
class StopScanner {
 public:
  // REQUIRES: ValidateStopStrings(stops) is OK.
  explicit StopScanner(std::vector<std::string> stops)
      : stops_(std::move(stops)) {}

  // The text that became certain. A stop string that is complete after this
  // piece stops, unless `may_stop` is false: then it is ordinary text. Of
  // several the one that begins first. After a stop: nothing.
  std::string Push(std::string_view piece, bool may_stop = true);
  bool stopped() const { return stopped_; }
  // What still waited.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  std::string waiting_;  // a proper beginning of a stop string
  bool stopped_ = false;
};

}  // namespace cox

#endif  // COX_LIB_DATA_STOP_STRINGS_H_
