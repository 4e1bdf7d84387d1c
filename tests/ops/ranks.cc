#include "tests/ops/ranks.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

#include "lib/base/thread.h"
#include "lib/comm/inprocess.h"

namespace cox::ops {
namespace {

constexpr int64_t kMaxWorld = 64;

class CommReducer final : public Reducer {
 public:
  explicit CommReducer(Collective* comm) : comm_(comm) {}
  int rank() const override { return comm_->rank(); }
  int world() const override { return comm_->world_size(); }
  absl::Status Sum(std::span<double> values) override {
    return comm_->AllReduceSum(values);
  }

 private:
  Collective* comm_;
};

}  // namespace

absl::StatusOr<RankPlan> ReadRankPlan(const Args& args, int64_t batch) {
  RankPlan plan;
  COX_ASSIGN_OR_RETURN(const int64_t world, args.IntOr("world", 1, 1));
  if (world > kMaxWorld) {
    return absl::InvalidArgumentError(
        absl::StrCat("world: at most ", kMaxWorld));
  }
  plan.world = static_cast<int>(world);
  plan.rows.resize(world);
  COX_ASSIGN_OR_RETURN(
      plan.micro_batch,
      args.IntOr("micro_batch", std::max<int64_t>(batch, 1), 1));
  if (!args.Has("rank_of_row")) {
    plan.rows[0].resize(batch);
    std::iota(plan.rows[0].begin(), plan.rows[0].end(), int64_t{0});
    return plan;
  }
  COX_ASSIGN_OR_RETURN(const Tensor<int64_t> owner,
                       args.Ints("rank_of_row", 1));
  const int64_t dims[] = {batch};
  COX_RETURN_IF_ERROR(CheckDims("rank_of_row", owner.dims, dims));
  for (int64_t row = 0; row < batch; ++row) {
    const int64_t rank = owner.data[row];
    if (rank < 0 || rank >= world) {
      return absl::InvalidArgumentError(
          absl::StrCat("rank_of_row: ", rank, " outside [0, ", world, ")"));
    }
    plan.rows[rank].push_back(row);
  }
  return plan;
}

absl::Status RunRanks(
    int world,
    const std::function<absl::Status(int rank, Reducer& reducer)>& body) {
  std::vector<std::unique_ptr<Collective>> group = MakeInProcessGroup(world);
  std::vector<absl::Status> statuses(world);
  {
    std::vector<Thread> threads;
    for (int rank = 0; rank < world; ++rank) {
      threads.emplace_back("rank", [&, rank] {
        CommReducer reducer(group[rank].get());
        statuses[rank] = body(rank, reducer);
        if (!statuses[rank].ok()) group[rank]->Abort();
      });
    }
  }
  absl::Status first;
  for (const absl::Status& status : statuses) {
    if (status.ok()) continue;
    if (!absl::IsAborted(status)) return status;
    first = status;
  }
  return first;
}

std::vector<std::vector<int64_t>> MicroBatches(const RankPlan& plan, int rank) {
  const std::vector<int64_t>& rows = plan.rows[rank];
  std::vector<std::vector<int64_t>> parts;
  for (size_t begin = 0; begin < rows.size();) {
    const size_t end =
        begin + std::min<size_t>(plan.micro_batch, rows.size() - begin);
    parts.emplace_back(rows.begin() + begin, rows.begin() + end);
    begin = end;
  }
  return parts;
}

}  // namespace cox::ops
