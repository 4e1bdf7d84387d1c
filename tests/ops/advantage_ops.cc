// whiten, aggregate, gae and group_advantages of docs/ops-protocol.md §3.

#include <utility>

#include "lib/algo/advantage.h"
#include "lib/algo/stats.h"
#include "tests/ops/ranks.h"
#include "tests/ops/registry.h"

namespace cox::ops {
namespace {

template <typename T>
absl::StatusOr<Json> WhitenOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> x, args.Floats<T>("x", 2));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Mask(x.dims));
  WhitenOptions options;
  COX_ASSIGN_OR_RETURN(options.shift_mean, args.Bool("shift_mean", true));
  COX_ASSIGN_OR_RETURN(options.ddof, args.IntOr("ddof", 0));
  COX_ASSIGN_OR_RETURN(options.eps, args.Number("eps", 1e-8));
  COX_ASSIGN_OR_RETURN(const RankPlan plan, ReadRankPlan(args, x.dims[0]));
  std::vector<T> out(x.data.size());
  double mean = 0;
  double var = 0;
  const auto body = [&](int rank, Reducer& reducer) -> absl::Status {
    const std::vector<int64_t>& rows = plan.rows[rank];
    const std::vector<T> local = TakeRows(x, rows);
    const std::vector<uint8_t> local_mask = TakeRows(mask, rows);
    COX_ASSIGN_OR_RETURN(const Whitened<T> whitened,
                         Whiten<T>(local, local_mask, options, reducer));
    PutRows<T>(whitened.out, rows, &out);
    if (rank == 0) {
      mean = whitened.mean;
      var = whitened.var;
    }
    return absl::OkStatus();
  };
  COX_RETURN_IF_ERROR(RunRanks(plan.world, body));
  return Json{{"out", EncodeTensor(out, x.dims)},
              {"mean", EncodeNumber(mean)},
              {"var", EncodeNumber(var)}};
}

template <typename T>
absl::StatusOr<Json> AggregateOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> loss, args.Floats<T>("loss", 2));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Mask(loss.dims));
  COX_ASSIGN_OR_RETURN(const std::string mode, args.String("mode"));
  const absl::StatusOr<LossAgg> agg = ParseLossAgg(mode);
  COX_RETURN_IF_ERROR(Named("mode", agg.status()));
  COX_ASSIGN_OR_RETURN(const double t_max, args.Number("t_max", 0));
  COX_ASSIGN_OR_RETURN(const RankPlan plan, ReadRankPlan(args, loss.dims[0]));
  std::vector<double> weight(loss.data.size());
  double value = 0;
  const auto body = [&](int rank, Reducer& reducer) -> absl::Status {
    const std::vector<uint8_t> rank_mask = TakeRows(mask, plan.rows[rank]);
    const Shape2 rank_shape{static_cast<int64_t>(plan.rows[rank].size()),
                            loss.dims[1]};
    COX_ASSIGN_OR_RETURN(const LossNormalizer normalizer,
                         MakeNormalizer(rank_shape, rank_mask, t_max, reducer));
    // Also checks the arguments of a rank without rows.
    COX_RETURN_IF_ERROR(
        TokenWeights(rank_shape, rank_mask, *agg, normalizer).status());
    double sum[] = {0.0};
    for (const std::vector<int64_t>& rows : MicroBatches(plan, rank)) {
      const std::vector<T> part = TakeRows(loss, rows);
      const std::vector<uint8_t> part_mask = TakeRows(mask, rows);
      COX_ASSIGN_OR_RETURN(
          const Aggregated result,
          Aggregate<T>({static_cast<int64_t>(rows.size()), loss.dims[1]}, part,
                       part_mask, *agg, normalizer));
      sum[0] += result.value;
      PutRows<double>(result.weight, rows, &weight);
    }
    COX_RETURN_IF_ERROR(reducer.Sum(sum));
    if (rank == 0) value = sum[0];
    return absl::OkStatus();
  };
  COX_RETURN_IF_ERROR(RunRanks(plan.world, body));
  return Json{{"value", EncodeNumber(value)},
              {"weight", EncodeTensor(weight, loss.dims)}};
}

template <typename T>
absl::StatusOr<Json> GaeOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> rewards, args.Floats<T>("rewards", 2));
  COX_ASSIGN_OR_RETURN(const Tensor<T> values,
                       args.FloatsLike<T>("values", rewards.dims));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Mask(rewards.dims));
  COX_ASSIGN_OR_RETURN(const double gamma, args.Number("gamma", 1));
  COX_ASSIGN_OR_RETURN(const double lambda, args.Number("lambda", 0.95));
  COX_ASSIGN_OR_RETURN(const GaeResult<T> result,
                       Gae(rewards.shape(), rewards.span(), values.span(),
                           mask.span(), gamma, lambda));
  return Json{{"advantages", EncodeTensor(result.advantages, rewards.dims)},
              {"returns", EncodeTensor(result.returns, rewards.dims)}};
}

// What reinforce_pp ignores stays empty.
template <typename T>
struct GroupArgs {
  Tensor<uint8_t> mask;
  std::vector<double> scores;
  std::vector<int64_t> group;
  std::vector<uint8_t> valid;
  Tensor<T> token_rewards;
  double eps = 1e-6;
};

template <typename T>
absl::StatusOr<GroupArgs<T>> ReadGroupArgs(const Args& args,
                                           GroupEstimator kind) {
  GroupArgs<T> group;
  if (kind == GroupEstimator::kReinforcePp) {
    COX_ASSIGN_OR_RETURN(group.token_rewards,
                         args.Floats<T>("token_rewards", 2));
    COX_ASSIGN_OR_RETURN(group.mask, args.Mask(group.token_rewards.dims));
    return group;
  }
  COX_ASSIGN_OR_RETURN(group.mask, args.Flags("mask", 2));
  const int64_t batch = group.mask.dims[0];
  COX_ASSIGN_OR_RETURN(const Tensor<T> scores, args.Floats<T>("scores", 1));
  COX_RETURN_IF_ERROR(CheckSize("scores", scores.data.size(), batch));
  COX_ASSIGN_OR_RETURN(group.group, args.Labels("group"));
  COX_RETURN_IF_ERROR(CheckSize("group", group.group.size(), batch));
  group.valid.assign(batch, 1);
  if (args.Has("valid")) {
    COX_ASSIGN_OR_RETURN(Tensor<uint8_t> valid, args.Flags("valid", 1));
    COX_RETURN_IF_ERROR(CheckSize("valid", valid.data.size(), batch));
    group.valid = std::move(valid.data);
  }
  for (int64_t i = 0; i < batch; ++i) {
    // An invalid row's score is no number to be summed over ranks.
    group.scores.push_back(
        group.valid[i] != 0 ? static_cast<double>(scores.data[i]) : 0.0);
  }
  COX_ASSIGN_OR_RETURN(group.eps, args.Number("eps", 1e-6));
  return group;
}

template <typename T>
absl::StatusOr<Json> GroupAdvantagesOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const std::string name, args.String("kind"));
  const absl::StatusOr<GroupEstimator> kind = ParseGroupEstimator(name);
  COX_RETURN_IF_ERROR(Named("kind", kind.status()));
  COX_ASSIGN_OR_RETURN(const GroupArgs<T> group, ReadGroupArgs<T>(args, *kind));
  const int64_t batch = group.mask.dims[0];
  COX_ASSIGN_OR_RETURN(const RankPlan plan, ReadRankPlan(args, batch));
  std::vector<T> out(group.mask.data.size());
  const auto body = [&](int rank, Reducer& reducer) -> absl::Status {
    const std::vector<int64_t>& rows = plan.rows[rank];
    const std::vector<uint8_t> mask = TakeRows(group.mask, rows);
    GroupInput<T> input;
    input.kind = *kind;
    input.shape = {static_cast<int64_t>(rows.size()), group.mask.dims[1]};
    input.mask = mask;
    input.eps = group.eps;
    std::vector<T> token_rewards;
    std::vector<double> scores;
    if (*kind == GroupEstimator::kReinforcePp) {
      token_rewards = TakeRows(group.token_rewards, rows);
      input.token_rewards = token_rewards;
    } else {
      std::vector<double> local;
      for (const int64_t row : rows) local.push_back(group.scores[row]);
      COX_ASSIGN_OR_RETURN(scores, GatherRows(local, rows, batch, reducer));
      input.scores = scores;
      input.group = group.group;
      input.valid = group.valid;
      input.rows = rows;
    }
    COX_ASSIGN_OR_RETURN(const std::vector<T> advantages,
                         GroupAdvantages(input, reducer));
    PutRows<T>(advantages, rows, &out);
    return absl::OkStatus();
  };
  COX_RETURN_IF_ERROR(RunRanks(plan.world, body));
  return Json{{"advantages", EncodeTensor(out, group.mask.dims)}};
}

}  // namespace

void RegisterAdvantageOps(Registry* registry) {
  registry->Add("whiten", Op{{"x", "mask", "shift_mean", "ddof", "eps",
                              COX_OPS_RANK_ARGS},
                             WhitenOp<double>,
                             WhitenOp<float>});
  registry->Add("aggregate",
                Op{{"loss", "mask", "mode", "t_max", COX_OPS_RANK_ARGS},
                   AggregateOp<double>,
                   AggregateOp<float>});
  registry->Add("gae", Op{{"rewards", "values", "mask", "gamma", "lambda"},
                          GaeOp<double>,
                          GaeOp<float>});
  registry->Add("group_advantages",
                Op{{"kind", "mask", "scores", "group", "valid", "eps",
                    "token_rewards", COX_OPS_RANK_ARGS},
                   GroupAdvantagesOp<double>,
                   GroupAdvantagesOp<float>});
}

}  // namespace cox::ops
