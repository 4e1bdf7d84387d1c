// policy_loss, prox_interpolate, value_loss and sft_loss of
// docs/ops-protocol.md §4.

#include <utility>

#include "lib/algo/lm_loss.h"
#include "lib/algo/policy_loss.h"
#include "lib/algo/value_loss.h"
#include "tests/ops/ranks.h"
#include "tests/ops/registry.h"

namespace cox::ops {
namespace {

absl::StatusOr<LossAgg> ReadAgg(const Args& args, const char* fallback) {
  COX_ASSIGN_OR_RETURN(const std::string name, args.StringOr("agg", fallback));
  const absl::StatusOr<LossAgg> agg = ParseLossAgg(name);
  COX_RETURN_IF_ERROR(Named("agg", agg.status()));
  return *agg;
}

absl::StatusOr<PolicyLossOptions> ReadPolicyOptions(const Args& args) {
  PolicyLossOptions options;
  COX_ASSIGN_OR_RETURN(const std::string kind_name, args.String("kind"));
  const absl::StatusOr<PolicyLossKind> kind = ParsePolicyLossKind(kind_name);
  COX_RETURN_IF_ERROR(Named("kind", kind.status()));
  options.kind = *kind;
  COX_ASSIGN_OR_RETURN(options.eps_lo, args.Number("eps_lo", 0.2));
  COX_ASSIGN_OR_RETURN(options.eps_hi, args.Number("eps_hi", 0.2));
  COX_ASSIGN_OR_RETURN(options.dual_clip, args.MaybeNumber("dual_clip"));
  COX_ASSIGN_OR_RETURN(options.agg,
                       ReadAgg(args, options.kind == PolicyLossKind::kGspo
                                         ? "seq_mean_token_mean"
                                         : "token_mean"));
  COX_ASSIGN_OR_RETURN(const std::string mode_name,
                       args.StringOr("is_mode", "none"));
  const absl::StatusOr<IsMode> mode = ParseIsMode(mode_name);
  COX_RETURN_IF_ERROR(Named("is_mode", mode.status()));
  options.is_mode = *mode;
  if (*mode != IsMode::kNone) {
    COX_RETURN_IF_ERROR(args.Raw("behaviour_logprob").status());
  }
  COX_ASSIGN_OR_RETURN(options.is_lo, args.Number("is_lo", 0));
  COX_ASSIGN_OR_RETURN(options.is_hi, args.Number("is_hi", 2));
  COX_ASSIGN_OR_RETURN(const std::string kl_name,
                       args.StringOr("kl_loss", "none"));
  const absl::StatusOr<KlLoss> kl = ParseKlLoss(kl_name);
  COX_RETURN_IF_ERROR(Named("kl_loss", kl.status()));
  options.kl_loss = *kl;
  if (*kl != KlLoss::kNone) {
    COX_RETURN_IF_ERROR(args.Raw("ref_logprob").status());
  }
  COX_ASSIGN_OR_RETURN(options.kl_beta, args.Number("kl_beta", 0));
  COX_RETURN_IF_ERROR(options.Validate());
  return options;
}

template <typename T>
struct PolicyTensors {
  Tensor<T> logprob;
  Tensor<T> old_logprob;
  Tensor<T> advantages;
  Tensor<T> behaviour;
  Tensor<T> reference;
  Tensor<uint8_t> mask;
};

template <typename T>
absl::StatusOr<PolicyTensors<T>> ReadPolicyTensors(const Args& args) {
  PolicyTensors<T> t;
  COX_ASSIGN_OR_RETURN(t.logprob, args.Floats<T>("logprob", 2));
  const std::vector<int64_t>& dims = t.logprob.dims;
  COX_ASSIGN_OR_RETURN(t.old_logprob, args.FloatsLike<T>("old_logprob", dims));
  COX_ASSIGN_OR_RETURN(t.advantages, args.FloatsLike<T>("advantages", dims));
  COX_ASSIGN_OR_RETURN(t.mask, args.Mask(dims));
  COX_ASSIGN_OR_RETURN(t.behaviour,
                       args.MaybeFloats<T>("behaviour_logprob", dims));
  COX_ASSIGN_OR_RETURN(t.reference, args.MaybeFloats<T>("ref_logprob", dims));
  return t;
}

// One rank's forward and backward over its micro-batches.
template <typename T>
absl::StatusOr<PolicyLossResult<T>> RankPolicyLoss(
    const PolicyTensors<T>& t, const PolicyLossOptions& options,
    const LossNormalizer& normalizer,
    const std::vector<std::vector<int64_t>>& parts, std::vector<T>* grad) {
  PolicyLossResult<T> total;
  for (const std::vector<int64_t>& rows : parts) {
    const std::vector<T> logprob = TakeRows(t.logprob, rows);
    const std::vector<T> old_logprob = TakeRows(t.old_logprob, rows);
    const std::vector<T> advantages = TakeRows(t.advantages, rows);
    const std::vector<uint8_t> mask = TakeRows(t.mask, rows);
    const std::vector<T> behaviour = TakeRows(t.behaviour, rows);
    const std::vector<T> reference = TakeRows(t.reference, rows);
    const PolicyLossInput<T> input{
        {static_cast<int64_t>(rows.size()), t.logprob.dims[1]},
        logprob,
        old_logprob,
        advantages,
        mask,
        behaviour,
        reference};
    COX_ASSIGN_OR_RETURN(const PolicyLossResult<T> part,
                         PolicyLoss(input, options, normalizer));
    total.loss += part.loss;
    total.sums.Merge(part.sums);
    PutRows<T>(part.grad, rows, grad);
  }
  return total;
}

template <typename T>
absl::StatusOr<Json> PolicyLossOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const PolicyLossOptions options,
                       ReadPolicyOptions(args));
  COX_ASSIGN_OR_RETURN(const PolicyTensors<T> t, ReadPolicyTensors<T>(args));
  COX_ASSIGN_OR_RETURN(const double t_max, args.Number("t_max", 0));
  const std::vector<int64_t>& dims = t.logprob.dims;
  COX_ASSIGN_OR_RETURN(const RankPlan plan, ReadRankPlan(args, dims[0]));
  std::vector<T> grad(t.logprob.data.size());
  double loss = 0;
  PolicyMetrics metrics;
  const auto body = [&](int rank, Reducer& reducer) -> absl::Status {
    const Shape2 shape{static_cast<int64_t>(plan.rows[rank].size()), dims[1]};
    const std::vector<uint8_t> mask = TakeRows(t.mask, plan.rows[rank]);
    COX_ASSIGN_OR_RETURN(const LossNormalizer normalizer,
                         MakeNormalizer(shape, mask, t_max, reducer));
    // Also checks the arguments of a rank without rows.
    COX_RETURN_IF_ERROR(
        TokenWeights(shape, mask, options.agg, normalizer).status());
    COX_ASSIGN_OR_RETURN(PolicyLossResult<T> result,
                         RankPolicyLoss(t, options, normalizer,
                                        MicroBatches(plan, rank), &grad));
    double sum[] = {result.loss};
    COX_RETURN_IF_ERROR(reducer.Sum(sum));
    COX_RETURN_IF_ERROR(result.sums.AllReduce(reducer));
    if (rank == 0) {
      loss = sum[0];
      metrics = result.sums.Finish();
    }
    return absl::OkStatus();
  };
  COX_RETURN_IF_ERROR(RunRanks(plan.world, body));
  const bool ppo = options.kind == PolicyLossKind::kPpo;
  return Json{{"loss", EncodeNumber(loss)},
              {"grad", EncodeTensor(grad, dims)},
              {"metrics",
               {{"approxkl", EncodeNumber(metrics.approxkl)},
                {"ratio", EncodeNumber(metrics.ratio)},
                {"clipfrac", ppo ? EncodeNumber(metrics.clipfrac) : Json()},
                {"w_mean", EncodeNumber(metrics.w_mean)},
                {"w_max", EncodeNumber(metrics.w_max)},
                {"ess", EncodeNumber(metrics.ess)}}}};
}

template <typename T>
absl::StatusOr<Json> ProxInterpolateOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> behaviour,
                       args.Floats<T>("behaviour_logprob", 2));
  COX_ASSIGN_OR_RETURN(const Tensor<T> policy,
                       args.FloatsLike<T>("logprob", behaviour.dims));
  COX_ASSIGN_OR_RETURN(const Tensor<int64_t> v_beh, args.Ints("v_beh", 2));
  COX_RETURN_IF_ERROR(CheckDims("v_beh", v_beh.dims, behaviour.dims));
  ProxVersions versions;
  versions.behaviour = v_beh.span();
  COX_ASSIGN_OR_RETURN(versions.proximal, args.Int("v_prox"));
  COX_ASSIGN_OR_RETURN(versions.policy, args.Int("v_theta"));
  const std::vector<uint8_t> mask(behaviour.data.size(), 1);
  COX_ASSIGN_OR_RETURN(const std::vector<T> prox,
                       ProxInterpolate(behaviour.shape(), behaviour.span(),
                                       policy.span(), mask, versions));
  return Json{{"prox", EncodeTensor(prox, behaviour.dims)}};
}

template <typename T>
absl::StatusOr<Json> ValueLossOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> values, args.Floats<T>("values", 2));
  const std::vector<int64_t>& dims = values.dims;
  COX_ASSIGN_OR_RETURN(const Tensor<T> old_values,
                       args.FloatsLike<T>("old_values", dims));
  COX_ASSIGN_OR_RETURN(const Tensor<T> returns,
                       args.FloatsLike<T>("returns", dims));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Mask(dims));
  ValueLossOptions options;
  // null switches clipping off; absent means the default.
  if (args.Given("clip")) {
    COX_ASSIGN_OR_RETURN(options.clip, args.MaybeNumber("clip"));
  }
  COX_ASSIGN_OR_RETURN(options.agg, ReadAgg(args, "token_mean"));
  COX_ASSIGN_OR_RETURN(const double t_max, args.Number("t_max", 0));
  COX_ASSIGN_OR_RETURN(const RankPlan plan, ReadRankPlan(args, dims[0]));
  std::vector<T> grad(values.data.size());
  double loss = 0;
  ValueMetrics metrics;
  const auto body = [&](int rank, Reducer& reducer) -> absl::Status {
    const Shape2 shape{static_cast<int64_t>(plan.rows[rank].size()), dims[1]};
    const std::vector<uint8_t> rank_mask = TakeRows(mask, plan.rows[rank]);
    COX_ASSIGN_OR_RETURN(const LossNormalizer normalizer,
                         MakeNormalizer(shape, rank_mask, t_max, reducer));
    COX_RETURN_IF_ERROR(
        TokenWeights(shape, rank_mask, options.agg, normalizer).status());
    double sum[] = {0.0};
    ValueLossSums sums;
    for (const std::vector<int64_t>& rows : MicroBatches(plan, rank)) {
      const std::vector<T> v = TakeRows(values, rows);
      const std::vector<T> old = TakeRows(old_values, rows);
      const std::vector<T> target = TakeRows(returns, rows);
      const std::vector<uint8_t> part_mask = TakeRows(mask, rows);
      const ValueLossInput<T> input{
          {static_cast<int64_t>(rows.size()), dims[1]},
          v,
          old,
          target,
          part_mask};
      COX_ASSIGN_OR_RETURN(const ValueLossResult<T> part,
                           ValueLoss(input, options, normalizer));
      sum[0] += part.loss;
      sums.Merge(part.sums);
      PutRows<T>(part.grad, rows, &grad);
    }
    COX_RETURN_IF_ERROR(reducer.Sum(sum));
    COX_RETURN_IF_ERROR(sums.AllReduce(reducer));
    if (rank == 0) {
      loss = sum[0];
      metrics = sums.Finish();
    }
    return absl::OkStatus();
  };
  COX_RETURN_IF_ERROR(RunRanks(plan.world, body));
  return Json{{"loss", EncodeNumber(loss)},
              {"grad", EncodeTensor(grad, dims)},
              {"clipfrac", EncodeNumber(metrics.clipfrac)},
              {"error", EncodeNumber(metrics.error)},
              {"explained_var", EncodeNumber(metrics.explained_var)}};
}

template <typename T>
absl::StatusOr<Json> SftLossOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> logits, args.Floats<T>("logits", 3));
  COX_ASSIGN_OR_RETURN(const Tensor<int64_t> labels, args.Ints("labels", 2));
  const int64_t dims[] = {logits.dims[0], logits.dims[1]};
  COX_RETURN_IF_ERROR(CheckDims("labels", labels.dims, dims));
  COX_ASSIGN_OR_RETURN(const RankPlan plan, ReadRankPlan(args, dims[0]));
  std::vector<T> grad(logits.data.size());
  double loss = 0;
  double tokens = 0;
  const auto body = [&](int rank, Reducer& reducer) -> absl::Status {
    const std::vector<int64_t> rank_labels = TakeRows(labels, plan.rows[rank]);
    COX_ASSIGN_OR_RETURN(
        const double local,
        CountTargets({static_cast<int64_t>(plan.rows[rank].size()), dims[1]},
                     rank_labels));
    double total[] = {local};
    COX_RETURN_IF_ERROR(reducer.Sum(total));
    double sum[] = {0.0};
    for (const std::vector<int64_t>& rows : MicroBatches(plan, rank)) {
      const std::vector<T> z = TakeRows(logits, rows);
      const std::vector<int64_t> y = TakeRows(labels, rows);
      COX_ASSIGN_OR_RETURN(
          const SftLossResult<T> part,
          SftLoss<T>({static_cast<int64_t>(rows.size()), dims[1]},
                     logits.dims[2], z, y, total[0]));
      sum[0] += part.loss;
      PutRows<T>(part.grad_logits, rows, &grad);
    }
    COX_RETURN_IF_ERROR(reducer.Sum(sum));
    if (rank == 0) {
      loss = sum[0];
      tokens = total[0];
    }
    return absl::OkStatus();
  };
  COX_RETURN_IF_ERROR(RunRanks(plan.world, body));
  return Json{{"loss", EncodeNumber(loss)},
              {"tokens", static_cast<int64_t>(tokens)},
              {"grad_logits", EncodeTensor(grad, logits.dims)}};
}

}  // namespace

void RegisterPolicyOps(Registry* registry) {
  registry->Add("policy_loss",
                Op{{"kind", "logprob", "old_logprob", "advantages", "mask",
                    "eps_lo", "eps_hi", "dual_clip", "agg", "t_max",
                    "behaviour_logprob", "is_mode", "is_lo", "is_hi",
                    "ref_logprob", "kl_loss", "kl_beta", COX_OPS_RANK_ARGS},
                   PolicyLossOp<double>,
                   PolicyLossOp<float>});
  registry->Add("prox_interpolate", Op{{"behaviour_logprob", "logprob", "v_beh",
                                        "v_prox", "v_theta"},
                                       ProxInterpolateOp<double>,
                                       ProxInterpolateOp<float>});
  registry->Add("value_loss", Op{{"values", "old_values", "returns", "mask",
                                  "clip", "agg", "t_max", COX_OPS_RANK_ARGS},
                                 ValueLossOp<double>,
                                 ValueLossOp<float>});
  registry->Add("sft_loss", Op{{"logits", "labels", COX_OPS_RANK_ARGS},
                               SftLossOp<double>,
                               SftLossOp<float>});
}

}  // namespace cox::ops
