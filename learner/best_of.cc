#include "learner/best_of.h"

#include <algorithm>

#include "lib/algo/reducer.h"

namespace cox {
namespace {

// The first completion of row r with the largest value at begin + k.
template <typename ValueOf>
std::vector<Sequence> Best(const std::vector<Comparison>& rows,
                           ValueOf value_of) {
  std::vector<Sequence> chosen;
  size_t begin = 0;
  for (const Comparison& row : rows) {
    size_t best = 0;
    for (size_t k = 1; k < row.completions.size(); ++k) {
      if (value_of(row, begin, k) > value_of(row, begin, best)) best = k;
    }
    begin += row.completions.size();
    if (row.completions[best].targets() > 0) {
      chosen.push_back(row.completions[best]);
    }
  }
  return chosen;
}

}  // namespace

std::vector<Sequence> BestByRank(const std::vector<Comparison>& rows) {
  return Best(rows, [](const Comparison& row, size_t, size_t k) {
    return -row.ranks[k];
  });
}

absl::StatusOr<std::vector<Sequence>> BestByReward(
    const std::vector<Comparison>& rows, int64_t micro_batch,
    ScoreEngine& reward, const Shards& shards) {
  std::vector<const Sequence*> flat;
  for (const Comparison& row : rows) {
    for (const Sequence& completion : row.completions) {
      flat.push_back(&completion);
    }
  }
  const int64_t count = static_cast<int64_t>(flat.size());
  std::vector<double> local;
  std::vector<int64_t> mine;
  COX_RETURN_IF_ERROR(shards.ForOwn([&](int64_t shard, size_t) {
    const auto forward = [&](std::span<const int64_t> part) -> absl::Status {
      std::vector<const Sequence*> picked;
      for (const int64_t row : part) {
        picked.push_back(flat[static_cast<size_t>(row)]);
      }
      COX_ASSIGN_OR_RETURN(const std::vector<float> scores,
                           reward.Scores(MakeTokenBatch(picked)));
      if (AnyNonFinite(scores)) {
        return absl::InvalidArgumentError(
            "rft: the reward model gives scores that are not finite");
      }
      mine.insert(mine.end(), part.begin(), part.end());
      local.insert(local.end(), scores.begin(), scores.end());
      return absl::OkStatus();
    };
    return ForMicroBatches(shards.Elements(count, shard), micro_batch, forward);
  }));
  CollectiveReducer reducer(shards.group());
  COX_ASSIGN_OR_RETURN(const std::vector<double> scores,
                       GatherRows(local, mine, count, reducer));
  return Best(rows, [&scores](const Comparison&, size_t begin, size_t k) {
    return scores[begin + k];
  });
}

}  // namespace cox
