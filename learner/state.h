#ifndef COX_LEARNER_STATE_H_
#define COX_LEARNER_STATE_H_

// trainer/state.bin: named sections of raw little-endian numbers.
//
// Format: "COXSTAT1", then per section u32 name length, name, u64 byte count,
// bytes; in ascending order of the names, each once. Equal states give equal
// bytes, so the file's SHA-256 identifies the state.

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>

#include "lib/base/status.h"

namespace cox {

class StateWriter {
 public:
  void PutInt(std::string_view name, int64_t value);
  void PutDouble(std::string_view name, double value);
  void PutFloats(std::string_view name, std::span<const float> values);
  std::string Finish() const;

 private:
  void Put(std::string_view name, const void* data, size_t bytes);
  std::map<std::string, std::string> sections_;
};

// Borrows the bytes that it was given.
class StateReader {
 public:
  // DATA_LOSS: no such format, truncated, trailing bytes, order.
  static absl::StatusOr<StateReader> Parse(std::string_view bytes);
  // DATA_LOSS: section missing or of another size.
  absl::StatusOr<int64_t> Int(std::string_view name) const;
  absl::StatusOr<double> Double(std::string_view name) const;
  absl::Status Floats(std::string_view name, std::span<float> out) const;

 private:
  absl::StatusOr<std::string_view> Section(std::string_view name,
                                           size_t bytes) const;
  std::map<std::string, std::string_view, std::less<>> sections_;
};

}  // namespace cox

#endif  // COX_LEARNER_STATE_H_
