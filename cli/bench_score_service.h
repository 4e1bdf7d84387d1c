#ifndef COX_CLI_BENCH_SCORE_SERVICE_H_
#define COX_CLI_BENCH_SCORE_SERVICE_H_

// A reward service of this process for `cox bench score --through grpc`: the
// requests of an actor, over loopback, to the handlers and the engine thread
// of a reward role.

#include <cstdint>
#include <memory>
#include <vector>

#include "lib/base/status.h"
#include "lib/engine/engine.h"
#include "lib/engine/engine_options.h"

namespace cox {

class BenchScoreService {
 public:
  virtual ~BenchScoreService() = default;
  // Raw scores of the documents, by one request.
  virtual absl::StatusOr<std::vector<float>> Score(
      const std::vector<std::vector<int32_t>>& docs) = 0;
};

// Holds the model and serves when it returns.
absl::StatusOr<std::unique_ptr<BenchScoreService>> StartBenchScoreService(
    const EngineOptions& options, std::shared_ptr<const Snapshot> snapshot);

}  // namespace cox

#endif  // COX_CLI_BENCH_SCORE_SERVICE_H_
