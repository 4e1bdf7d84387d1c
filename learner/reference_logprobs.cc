#include "learner/reference_logprobs.h"

#include <numeric>

namespace cox {

absl::StatusOr<std::vector<std::vector<float>>> TargetLogprobs(
    std::span<const Sequence* const> rows, int64_t micro_batch,
    ScoreEngine& engine, const Shards& shards) {
  std::vector<size_t> begin = {0};
  for (const Sequence* row : rows) {
    begin.push_back(begin.back() + static_cast<size_t>(row->targets()));
  }
  // Each rank fills its rows: a sum with zeros is exact.
  std::vector<float> flat(begin.back(), 0.0f);
  COX_RETURN_IF_ERROR(shards.ForOwn([&](int64_t shard, size_t) {
    const auto forward = [&](std::span<const int64_t> part) -> absl::Status {
      std::vector<const Sequence*> picked;
      for (const int64_t row : part) {
        picked.push_back(rows[static_cast<size_t>(row)]);
      }
      const TokenBatch batch = MakeTokenBatch(picked);
      COX_ASSIGN_OR_RETURN(
          const LogprobOutput output,
          engine.Logprobs(batch, /*temperature=*/1.0, /*want_entropy=*/false));
      for (size_t b = 0; b < part.size(); ++b) {
        for (int64_t t = 0; t < picked[b]->targets(); ++t) {
          flat[begin[static_cast<size_t>(part[b])] + static_cast<size_t>(t)] =
              output.logprobs[TargetIndex(batch, *picked[b],
                                          static_cast<int64_t>(b), t)];
        }
      }
      return absl::OkStatus();
    };
    return ForMicroBatches(
        shards.Elements(static_cast<int64_t>(rows.size()), shard), micro_batch,
        forward);
  }));
  COX_RETURN_IF_ERROR(shards.group().AllReduceSum(std::span<float>(flat)));
  std::vector<std::vector<float>> logprobs;
  for (size_t row = 0; row < rows.size(); ++row) {
    logprobs.emplace_back(
        flat.begin() + static_cast<std::ptrdiff_t>(begin[row]),
        flat.begin() + static_cast<std::ptrdiff_t>(begin[row + 1]));
  }
  return logprobs;
}

double SumLogprobs(std::span<const float> logprobs) {
  return std::accumulate(logprobs.begin(), logprobs.end(), 0.0);
}

}  // namespace cox
