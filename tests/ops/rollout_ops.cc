// Ops of docs/ops-protocol.md §3 without a multi-rank path.

#include <utility>

#include "lib/algo/lm_loss.h"
#include "lib/algo/rollout.h"
#include "lib/algo/stats.h"
#include "tests/ops/registry.h"

namespace cox::ops {
namespace {

template <typename T>
absl::StatusOr<Json> LogprobOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> logits, args.Floats<T>("logits", 3));
  COX_ASSIGN_OR_RETURN(const Tensor<int64_t> ids, args.Ints("ids", 2));
  const int64_t dims[] = {logits.dims[0], logits.dims[1]};
  COX_RETURN_IF_ERROR(CheckDims("ids", ids.dims, dims));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Mask(dims));
  COX_ASSIGN_OR_RETURN(const Tensor<T> upstream,
                       args.MaybeFloats<T>("upstream", dims));
  COX_ASSIGN_OR_RETURN(const Tensor<T> upstream_entropy,
                       args.MaybeFloats<T>("upstream_entropy", dims));
  LogprobInput<T> input;
  input.shape = {dims[0], dims[1]};
  input.vocab = logits.dims[2];
  input.logits = logits.span();
  input.ids = ids.span();
  input.mask = mask.span();
  input.upstream = upstream.span();
  input.upstream_entropy = upstream_entropy.span();
  COX_ASSIGN_OR_RETURN(input.temperature, args.Number("temperature", 1));
  COX_ASSIGN_OR_RETURN(const LogprobResult<T> result, TokenLogprobs(input));
  Json out{{"logprob", EncodeTensor(result.logprob, ids.dims)},
           {"entropy", EncodeTensor(result.entropy, ids.dims)}};
  if (args.Has("upstream") || args.Has("upstream_entropy")) {
    // Nothing to differentiate in an empty batch.
    std::vector<T> grad = result.grad_logits;
    grad.resize(logits.data.size());
    out["grad_logits"] = EncodeTensor(grad, logits.dims);
  }
  return out;
}

absl::StatusOr<Json> PositionIdsOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Flags("mask", 2));
  COX_ASSIGN_OR_RETURN(const std::vector<int64_t> ids,
                       PositionIds(mask.shape(), mask.span()));
  return Json{{"ids", EncodeTensor(ids, mask.dims)}};
}

absl::StatusOr<Json> CutResponseOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<int64_t> tokens, args.Ints("tokens", 2));
  CutOptions options;
  COX_ASSIGN_OR_RETURN(Tensor<int64_t> stop_ids, args.Ints("stop_ids", 1));
  options.stop_ids = std::move(stop_ids.data);
  COX_ASSIGN_OR_RETURN(options.pad_id, args.Int("pad_id"));
  COX_ASSIGN_OR_RETURN(options.min_stop_index, args.IntOr("min_stop_index", 0));
  COX_ASSIGN_OR_RETURN(const CutResult cut,
                       CutResponse(tokens.shape(), tokens.span(), options));
  Json finish = Json::array();
  for (const FinishReason reason : cut.finish) {
    finish.push_back(reason == FinishReason::kStop ? "stop" : "length");
  }
  return Json{{"tokens", EncodeTensor(cut.tokens, tokens.dims)},
              {"mask", EncodeTensor(cut.mask, tokens.dims)},
              {"length", EncodeList(cut.length)},
              {"finish", std::move(finish)}};
}

// x and mask may have any number of dimensions in lib/algo; here 2.
template <typename T>
absl::StatusOr<Json> MaskedMeanOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> x, args.Floats<T>("x", 2));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Mask(x.dims));
  COX_ASSIGN_OR_RETURN(const MeanCount result,
                       MaskedMean(x.span(), mask.span()));
  return Json{{"mean", EncodeNumber(result.mean)}, {"count", result.count}};
}

template <typename T>
absl::StatusOr<Json> KlEstimateOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> logprob, args.Floats<T>("logprob", 2));
  COX_ASSIGN_OR_RETURN(const Tensor<T> ref,
                       args.FloatsLike<T>("ref_logprob", logprob.dims));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Mask(logprob.dims));
  COX_ASSIGN_OR_RETURN(const std::string name, args.String("kind"));
  const absl::StatusOr<KlKind> kind = ParseKlKind(name);
  COX_RETURN_IF_ERROR(Named("kind", kind.status()));
  COX_ASSIGN_OR_RETURN(const bool clamp, args.Bool("clamp", false));
  COX_ASSIGN_OR_RETURN(const KlEstimated<T> kl,
                       EstimateKl(logprob.shape(), logprob.span(), ref.span(),
                                  mask.span(), *kind, clamp));
  return Json{{"kl", EncodeTensor(kl.kl, logprob.dims)},
              {"sum", EncodeList(kl.sum)},
              {"mean", EncodeNumber(kl.mean)},
              {"grad", EncodeTensor(kl.grad, logprob.dims)}};
}

absl::StatusOr<std::vector<FinishReason>> ReadFinish(const Args& args,
                                                     int64_t batch) {
  std::vector<FinishReason> finish;
  if (!args.Has("finish")) return finish;
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       args.Strings("finish"));
  COX_RETURN_IF_ERROR(CheckSize("finish", names.size(), batch));
  for (const std::string& name : names) {
    if (name == "stop") {
      finish.push_back(FinishReason::kStop);
    } else if (name == "length") {
      finish.push_back(FinishReason::kLength);
    } else if (name == "abort") {
      finish.push_back(FinishReason::kAbort);
    } else {
      return absl::InvalidArgumentError(
          "finish: must hold stop, length or abort");
    }
  }
  return finish;
}

absl::Status ReadMissingStop(const Args& args, ShapeRewardsOptions* options) {
  if (!args.Has("missing_stop")) return absl::OkStatus();
  COX_ASSIGN_OR_RETURN(const Args nested, args.Object("missing_stop"));
  const std::string_view names[] = {"mode", "value"};
  COX_RETURN_IF_ERROR(nested.CheckNames(names));
  COX_ASSIGN_OR_RETURN(const std::string mode, nested.StringOr("mode", "none"));
  const absl::StatusOr<MissingStop> parsed = ParseMissingStop(mode);
  COX_RETURN_IF_ERROR(Named("missing_stop.mode", parsed.status()));
  options->missing_stop = *parsed;
  COX_ASSIGN_OR_RETURN(options->missing_stop_value, nested.Number("value", 1));
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<Json> ShapeRewardsOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> logprob, args.Floats<T>("logprob", 2));
  COX_ASSIGN_OR_RETURN(const Tensor<T> ref,
                       args.FloatsLike<T>("ref_logprob", logprob.dims));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> mask, args.Mask(logprob.dims));
  const int64_t batch[] = {logprob.dims[0]};
  COX_ASSIGN_OR_RETURN(const Tensor<T> scores,
                       args.FloatsLike<T>("scores", batch));
  ShapeRewardsOptions options;
  COX_ASSIGN_OR_RETURN(options.beta, args.Number("beta"));
  COX_ASSIGN_OR_RETURN(const std::string kl, args.StringOr("kl", "k1"));
  const absl::StatusOr<KlKind> kind = ParseKlKind(kl);
  COX_RETURN_IF_ERROR(Named("kl", kind.status()));
  options.kl = *kind;
  COX_ASSIGN_OR_RETURN(const std::string position,
                       args.StringOr("position", "last"));
  const absl::StatusOr<ScorePosition> parsed = ParseScorePosition(position);
  COX_RETURN_IF_ERROR(Named("position", parsed.status()));
  options.position = *parsed;
  COX_RETURN_IF_ERROR(ReadMissingStop(args, &options));
  COX_ASSIGN_OR_RETURN(options.score_clip, args.MaybeNumber("score_clip"));
  COX_ASSIGN_OR_RETURN(const std::vector<FinishReason> finish,
                       ReadFinish(args, batch[0]));
  RewardInput<T> input{logprob.shape(), logprob.span(), ref.span(),
                       mask.span(),     scores.span(),  finish};
  COX_ASSIGN_OR_RETURN(const ShapedRewards<T> shaped,
                       ShapeRewards(input, options));
  return Json{{"rewards", EncodeTensor(shaped.rewards, logprob.dims)},
              {"kl_sum", EncodeList(shaped.kl_sum)},
              {"value_mask", EncodeTensor(shaped.value_mask, logprob.dims)}};
}

template <typename T>
absl::StatusOr<Json> RewardNormalizerOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> scores, args.Floats<T>("scores", 1));
  COX_ASSIGN_OR_RETURN(const std::string mode, args.String("mode"));
  if (mode != "bias" && mode != "gain") {
    return absl::InvalidArgumentError("mode: must be bias or gain");
  }
  const std::vector<double> wide(scores.data.begin(), scores.data.end());
  COX_ASSIGN_OR_RETURN(
      const RewardNormalizer normalizer,
      FitRewardNormalizer(
          wide, mode == "bias" ? NormalizeMode::kBias : NormalizeMode::kGain));
  std::vector<T> out;
  for (const double score : wide) {
    out.push_back(static_cast<T>(normalizer.Apply(score)));
  }
  return Json{{"gain", EncodeNumber(normalizer.gain)},
              {"bias", EncodeNumber(normalizer.bias)},
              {"out", EncodeList(out)}};
}

absl::StatusOr<Json> OverlongPenaltyOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<int64_t> lengths, args.Ints("lengths", 1));
  COX_ASSIGN_OR_RETURN(const int64_t l_max, args.Int("l_max"));
  COX_ASSIGN_OR_RETURN(const int64_t l_cache, args.Int("l_cache", 1));
  std::vector<double> penalty;
  for (const int64_t length : lengths.data) {
    COX_ASSIGN_OR_RETURN(const double p,
                         OverlongPenalty(length, l_max, l_cache));
    penalty.push_back(p);
  }
  return Json{{"penalty", EncodeList(penalty)}};
}

absl::StatusOr<Json> DynamicFilterOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<double> metric,
                       args.Floats<double>("metric", 1));
  COX_ASSIGN_OR_RETURN(const std::vector<int64_t> group, args.Labels("group"));
  COX_ASSIGN_OR_RETURN(const std::vector<uint8_t> keep,
                       DynamicFilter(metric.span(), group));
  return Json{{"keep", EncodeBools(keep)}};
}

absl::StatusOr<Json> KlControllerOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const std::string kind, args.String("kind"));
  COX_ASSIGN_OR_RETURN(const double beta, args.Number("beta"));
  absl::StatusOr<KlController> controller =
      absl::InvalidArgumentError("kind: must be fixed or adaptive");
  if (kind == "fixed") {
    // Not used, but checked like every argument that is given.
    COX_RETURN_IF_ERROR(args.Number("target", 0).status());
    COX_RETURN_IF_ERROR(args.Number("horizon", 0).status());
    controller = KlController::Fixed(beta);
  }
  if (kind == "adaptive") {
    COX_ASSIGN_OR_RETURN(const double target, args.Number("target"));
    COX_ASSIGN_OR_RETURN(const double horizon, args.Number("horizon"));
    controller = KlController::Adaptive(beta, target, horizon);
  }
  COX_RETURN_IF_ERROR(controller.status());
  COX_ASSIGN_OR_RETURN(const Tensor<double> stream,
                       args.Floats<double>("stream", 2));
  if (stream.dims[0] > 0 && stream.dims[1] != 2) {
    return absl::InvalidArgumentError("stream: must hold pairs [kl, n]");
  }
  std::vector<double> betas;
  for (int64_t i = 0; i < stream.dims[0]; ++i) {
    COX_RETURN_IF_ERROR(
        Named("stream",
              controller->Update(stream.data[2 * i], stream.data[2 * i + 1])));
    betas.push_back(controller->beta());
  }
  return Json{{"beta", EncodeList(betas)}};
}

}  // namespace

void RegisterRolloutOps(Registry* registry) {
  registry->Add("logprob", Op{{"logits", "ids", "mask", "temperature",
                               "upstream", "upstream_entropy"},
                              LogprobOp<double>,
                              LogprobOp<float>});
  registry->Add("position_ids", {"mask"}, PositionIdsOp);
  registry->Add("cut_response",
                {"tokens", "stop_ids", "pad_id", "min_stop_index"},
                CutResponseOp);
  registry->Add("masked_mean",
                Op{{"x", "mask"}, MaskedMeanOp<double>, MaskedMeanOp<float>});
  registry->Add("kl_estimate",
                Op{{"logprob", "ref_logprob", "mask", "kind", "clamp"},
                   KlEstimateOp<double>,
                   KlEstimateOp<float>});
  registry->Add("shape_rewards",
                Op{{"logprob", "ref_logprob", "mask", "scores", "beta", "kl",
                    "position", "finish", "missing_stop", "score_clip"},
                   ShapeRewardsOp<double>,
                   ShapeRewardsOp<float>});
  registry->Add("reward_normalizer", Op{{"scores", "mode"},
                                        RewardNormalizerOp<double>,
                                        RewardNormalizerOp<float>});
  registry->Add("overlong_penalty", {"lengths", "l_max", "l_cache"},
                OverlongPenaltyOp);
  registry->Add("dynamic_filter", {"metric", "group"}, DynamicFilterOp);
  registry->Add("kl_controller",
                {"kind", "beta", "target", "horizon", "stream"},
                KlControllerOp);
}

}  // namespace cox::ops
