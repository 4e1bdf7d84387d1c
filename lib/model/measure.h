#ifndef COX_LIB_MODEL_MEASURE_H_
#define COX_LIB_MODEL_MEASURE_H_

// What `cox bench` needs beside the engines, torch-free: ceilings of the device
// and a second opinion on generated log-probs.

#include <cstdint>
#include <memory>

#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "lib/engine/engine_options.h"

namespace cox {

struct GemmShape {
  int64_t m = 0, k = 0, n = 0;
};
// Rate of products [m, k] x [k, n] as the networks compute them; the best of
// the repeats that fit `seconds`.
absl::StatusOr<double> GemmGflops(const EngineOptions& options,
                                  const GemmShape& shape, double seconds);
// Reading `bytes` of float32 once, summed; the best repeat.
absl::StatusOr<double> ReadGbPerSecond(const EngineOptions& options,
                                       int64_t bytes, double seconds);

struct LogprobCheck {
  double max_abs = 0;   // |recorded - recomputed|
  int64_t tokens = 0;   // compared
  int64_t removed = 0;  // drawn, but truncated away when recomputed (ties and
                        // rounding at the edge of top-k, top-p, min-p)
};
// Scores the generated sequences in one pass each, as training does, processes
// the logits as sampling does, and compares. Decoder-only models.
absl::StatusOr<LogprobCheck> CheckLogprobs(
    const EngineOptions& options, std::shared_ptr<const Snapshot> snapshot,
    const GenerateRequest& request, const GenerateResult& result);

}  // namespace cox

#endif  // COX_LIB_MODEL_MEASURE_H_
