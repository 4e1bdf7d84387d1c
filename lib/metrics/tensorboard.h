#ifndef COX_LIB_METRICS_TENSORBOARD_H_
#define COX_LIB_METRICS_TENSORBOARD_H_

// TensorBoard event files without TensorFlow. A file is a sequence of
// TFRecords: u64 length, u32 masked CRC-32C of the length, data, u32 masked
// CRC-32C of the data, all little-endian. Data is an Event message, encoded by
// hand: wall_time = 1, step = 2, file_version = 3, summary = 5 with values
// {tag = 1, simple_value = 2}.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/status.h"

namespace cox {

// CRC-32C (Castagnoli): "123456789" gives 0xe3069283.
uint32_t Crc32c(std::string_view data);
// TFRecord's mask: rotated right by 15 bits, plus a constant.
uint32_t MaskedCrc32c(std::string_view data);
std::string FrameTfRecord(std::string_view data);

// The first event of every file.
std::string EncodeVersionEvent(double wall_time_s);
// One event with a scalar per metric.
std::string EncodeScalarEvent(double wall_time_s, int64_t step,
                              const std::map<std::string, double>& scalars);

// Writes one new file into `dir`. Tags are "<stage>/<metric>". Thread-
// compatible. Not synced: the file is a view of metrics.jsonl.
class TensorboardWriter {
 public:
  // Creates `dir` and a file "events.out.tfevents.<seconds>.cox[.n]" that
  // TensorBoard merges with those of earlier attempts of the run.
  static absl::StatusOr<std::unique_ptr<TensorboardWriter>> Open(
      Fs& fs, const std::string& dir, const Clock& clock = Clock::Real());
  absl::Status Append(std::string_view stage, int64_t step,
                      const std::map<std::string, double>& metrics);
  absl::Status Close();

 private:
  TensorboardWriter(std::unique_ptr<WritableFile> file, const Clock& clock)
      : file_(std::move(file)), clock_(clock) {}
  std::unique_ptr<WritableFile> file_;
  const Clock& clock_;
};

}  // namespace cox

#endif  // COX_LIB_METRICS_TENSORBOARD_H_
