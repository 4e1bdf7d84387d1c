// preference_loss, kto_loss and rm_loss of docs/ops-protocol.md §4.

#include <utility>

#include "lib/algo/preference_loss.h"
#include "lib/algo/rm_loss.h"
#include "tests/ops/registry.h"

namespace cox::ops {
namespace {

template <typename T>
struct Side {
  Tensor<T> logprob;
  Tensor<T> reference;
  Tensor<uint8_t> mask;
  CompletionLogprobs<T> view() const {
    return {logprob.shape(), logprob.span(), reference.span(), mask.span()};
  }
};

template <typename T>
absl::StatusOr<Side<T>> ReadSide(const Args& args, const char* name) {
  COX_ASSIGN_OR_RETURN(const Args nested, args.Object(name));
  const std::string_view names[] = {"logprob", "ref_logprob", "mask"};
  COX_RETURN_IF_ERROR(nested.CheckNames(names));
  Side<T> side;
  COX_ASSIGN_OR_RETURN(side.logprob, nested.Floats<T>("logprob", 2));
  COX_ASSIGN_OR_RETURN(side.reference,
                       nested.FloatsLike<T>("ref_logprob", side.logprob.dims));
  COX_ASSIGN_OR_RETURN(side.mask, nested.Mask(side.logprob.dims));
  return side;
}

template <typename T>
absl::StatusOr<Json> PreferenceLossOp(const Args& args) {
  PreferenceOptions options;
  COX_ASSIGN_OR_RETURN(const std::string name, args.String("kind"));
  const absl::StatusOr<PreferenceKind> kind = ParsePreferenceKind(name);
  COX_RETURN_IF_ERROR(Named("kind", kind.status()));
  options.kind = *kind;
  COX_ASSIGN_OR_RETURN(options.beta, args.Number("beta", 0.1));
  COX_ASSIGN_OR_RETURN(options.label_smoothing,
                       args.Number("label_smoothing", 0));
  COX_ASSIGN_OR_RETURN(options.length_norm, args.Bool("length_norm", true));
  COX_ASSIGN_OR_RETURN(const Side<T> chosen, ReadSide<T>(args, "chosen"));
  COX_ASSIGN_OR_RETURN(const Side<T> rejected, ReadSide<T>(args, "rejected"));
  COX_ASSIGN_OR_RETURN(const PreferenceResult<T> result,
                       PreferenceLoss(chosen.view(), rejected.view(), options));
  return Json{
      {"loss", EncodeNumber(result.loss)},
      {"grad_chosen", EncodeTensor(result.grad_chosen, chosen.logprob.dims)},
      {"grad_rejected",
       EncodeTensor(result.grad_rejected, rejected.logprob.dims)},
      {"reward_chosen", EncodeList(result.reward_chosen)},
      {"reward_rejected", EncodeList(result.reward_rejected)},
      {"accuracy", EncodeNumber(result.accuracy)}};
}

template <typename T>
absl::StatusOr<Json> KtoLossOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> logprob, args.Floats<T>("logprob", 1));
  COX_ASSIGN_OR_RETURN(const Tensor<T> ref,
                       args.FloatsLike<T>("ref_logprob", logprob.dims));
  COX_ASSIGN_OR_RETURN(const Tensor<uint8_t> desirable,
                       args.Flags("desirable", 1));
  COX_ASSIGN_OR_RETURN(const Tensor<T> mismatch,
                       args.Floats<T>("mismatch_logprob", 1));
  COX_ASSIGN_OR_RETURN(
      const Tensor<T> mismatch_ref,
      args.FloatsLike<T>("mismatch_ref_logprob", mismatch.dims));
  KtoOptions options;
  COX_ASSIGN_OR_RETURN(options.beta, args.Number("beta", 0.1));
  COX_ASSIGN_OR_RETURN(options.lambda_d, args.Number("lambda_d", 1));
  COX_ASSIGN_OR_RETURN(options.lambda_u, args.Number("lambda_u", 1));
  COX_ASSIGN_OR_RETURN(const double z0,
                       KtoReferencePoint(mismatch.span(), mismatch_ref.span()));
  const KtoInput<T> input{logprob.span(), ref.span(), desirable.span()};
  COX_ASSIGN_OR_RETURN(const KtoResult<T> result, KtoLoss(input, z0, options));
  return Json{{"loss", EncodeNumber(result.loss)},
              {"grad", EncodeList(result.grad)},
              {"z0", EncodeNumber(z0)}};
}

template <typename T>
Json EncodeRm(const RmLossResult<T>& result, Json grad) {
  return Json{{"loss", EncodeNumber(result.loss)},
              {"grad", std::move(grad)},
              {"accuracy", EncodeNumber(result.accuracy)},
              {"pairs", result.pairs}};
}

template <typename T>
absl::StatusOr<Json> RmPairwiseOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const auto scores, args.RaggedFloats<T>("scores"));
  COX_ASSIGN_OR_RETURN(const auto ranks, args.RaggedInts("ranks"));
  COX_RETURN_IF_ERROR(
      CheckSize("ranks", ranks.size(), static_cast<int64_t>(scores.size())));
  std::vector<T> flat_scores;
  std::vector<int64_t> flat_ranks;
  std::vector<int64_t> sizes;
  for (size_t p = 0; p < scores.size(); ++p) {
    COX_RETURN_IF_ERROR(CheckSize("ranks", ranks[p].size(),
                                  static_cast<int64_t>(scores[p].size())));
    sizes.push_back(static_cast<int64_t>(scores[p].size()));
    flat_scores.insert(flat_scores.end(), scores[p].begin(), scores[p].end());
    flat_ranks.insert(flat_ranks.end(), ranks[p].begin(), ranks[p].end());
  }
  RmPairwiseOptions options;
  COX_ASSIGN_OR_RETURN(options.margin, args.Number("margin", 0));
  COX_ASSIGN_OR_RETURN(options.center, args.Number("center", 0));
  COX_ASSIGN_OR_RETURN(
      const RmLossResult<T> result,
      RmPairwiseLoss<T>(flat_scores, flat_ranks, sizes, options));
  Json grad = Json::array();
  std::span<const T> rest(result.grad);
  for (const int64_t size : sizes) {
    grad.push_back(EncodeList(rest.first(size)));
    rest = rest.subspan(size);
  }
  return EncodeRm(result, std::move(grad));
}

template <typename T>
absl::StatusOr<Json> RmLossOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const std::string kind,
                       args.StringOr("kind", "pairwise"));
  if (kind == "pairwise") return RmPairwiseOp<T>(args);
  if (kind != "best_of") {
    return absl::InvalidArgumentError("kind: must be pairwise or best_of");
  }
  COX_ASSIGN_OR_RETURN(const Tensor<T> scores, args.Floats<T>("scores", 2));
  COX_ASSIGN_OR_RETURN(const Tensor<int64_t> best, args.Ints("best", 1));
  COX_ASSIGN_OR_RETURN(
      const RmLossResult<T> result,
      RmBestOfLoss(scores.shape(), scores.span(), best.span()));
  return EncodeRm(result, EncodeTensor(result.grad, scores.dims));
}

}  // namespace

void RegisterPreferenceOps(Registry* registry) {
  registry->Add("preference_loss", Op{{"kind", "chosen", "rejected", "beta",
                                       "label_smoothing", "length_norm"},
                                      PreferenceLossOp<double>,
                                      PreferenceLossOp<float>});
  registry->Add("kto_loss",
                Op{{"logprob", "ref_logprob", "desirable", "mismatch_logprob",
                    "mismatch_ref_logprob", "beta", "lambda_d", "lambda_u"},
                   KtoLossOp<double>,
                   KtoLossOp<float>});
  registry->Add("rm_loss",
                Op{{"kind", "scores", "ranks", "margin", "center", "best"},
                   RmLossOp<double>,
                   RmLossOp<float>});
}

}  // namespace cox::ops
