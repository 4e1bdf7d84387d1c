#include "lib/engine/canary.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace cox {

absl::StatusOr<std::vector<float>> CanaryLogprobs(ScoreEngine* engine) {
  const ModelConfig& config = engine->config();
  const int64_t length =
      std::min<int64_t>({8, config.vocab_size, config.max_positions});
  TokenBatch batch;
  batch.batch = 1;
  batch.length = length;
  batch.lengths = {static_cast<int32_t>(length)};
  for (int64_t j = 0; j < length; ++j) {
    batch.ids.push_back(static_cast<int32_t>(j));
    batch.scored.push_back(j + 1 < length ? 1 : 0);
  }
  if (config.family == ModelFamily::kInstructEncdec) {
    batch.instruction_length = length;
    batch.instruction_ids = batch.ids;
    batch.instruction_lengths = batch.lengths;
  }
  COX_ASSIGN_OR_RETURN(const LogprobOutput output,
                       engine->Logprobs(batch, /*temperature=*/1.0,
                                        /*want_entropy=*/false));
  std::vector<float> values;
  for (int64_t j = 0; j + 1 < length; ++j) {
    const float value = output.logprobs[static_cast<size_t>(j)];
    if (!std::isfinite(value) || value > 0.0f) {
      return absl::InternalError(
          absl::StrCat("canary: log-prob of token ", j + 1, " is ", value));
    }
    values.push_back(value);
  }
  return values;
}

absl::Status CompareCanary(std::span<const float> found,
                           std::span<const float> expected, float bound) {
  if (expected.empty()) return absl::OkStatus();
  if (found.size() != expected.size()) {
    return absl::DataLossError(absl::StrCat(
        "canary: expected ", expected.size(), " values, found ", found.size()));
  }
  for (size_t i = 0; i < found.size(); ++i) {
    // Written so that NaN does not pass.
    if (!(std::fabs(found[i] - expected[i]) <= bound)) {
      return absl::DataLossError(
          absl::StrCat("canary: log-prob of token ", i + 1, ": expected ",
                       expected[i], " within ", bound, ", found ", found[i]));
    }
  }
  return absl::OkStatus();
}

}  // namespace cox
