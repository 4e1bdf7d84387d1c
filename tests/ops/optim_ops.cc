// Ops of docs/ops-protocol.md §5.

#include <utility>

#include "lib/algo/optim.h"
#include "tests/ops/registry.h"

namespace cox::ops {
namespace {

absl::StatusOr<Json> LrScheduleOp(const Args& args) {
  LrSchedule schedule;
  COX_ASSIGN_OR_RETURN(const std::string name, args.String("kind"));
  const absl::StatusOr<LrKind> kind = ParseLrKind(name);
  COX_RETURN_IF_ERROR(Named("kind", kind.status()));
  schedule.kind = *kind;
  COX_ASSIGN_OR_RETURN(schedule.peak, args.Number("peak"));
  if (schedule.kind != LrKind::kConstant || args.Has("total")) {
    COX_ASSIGN_OR_RETURN(schedule.total, args.Int("total", 1));
  }
  COX_ASSIGN_OR_RETURN(schedule.floor, args.Number("floor", 0));
  COX_ASSIGN_OR_RETURN(schedule.warmup, args.IntOr("warmup", 0));
  COX_ASSIGN_OR_RETURN(schedule.warmup_start, args.Number("warmup_start", 0.1));
  COX_RETURN_IF_ERROR(schedule.Validate());
  COX_ASSIGN_OR_RETURN(const Tensor<int64_t> steps, args.Ints("steps", 1));
  std::vector<double> lr;
  for (const int64_t step : steps.data) {
    if (step < 0) {
      return absl::InvalidArgumentError("steps: must be at least 0");
    }
    lr.push_back(schedule.At(step));
  }
  return Json{{"lr", EncodeList(lr)}};
}

// A number for all steps, or one per step.
absl::StatusOr<std::vector<double>> ReadLr(const Args& args, int64_t steps) {
  COX_ASSIGN_OR_RETURN(const Json* node, args.Raw("lr"));
  std::vector<double> lr;
  if (node->is_array()) {
    COX_ASSIGN_OR_RETURN(Tensor<double> list, args.Floats<double>("lr", 1));
    lr = std::move(list.data);
    COX_RETURN_IF_ERROR(CheckSize("lr", lr.size(), steps));
  } else {
    COX_ASSIGN_OR_RETURN(const double value, args.Number("lr"));
    COX_RETURN_IF_ERROR(CheckNotNegative("lr", value));
    lr.assign(steps, value);
  }
  for (const double value : lr) {
    COX_RETURN_IF_ERROR(CheckNotNegative("lr", value));
  }
  return lr;
}

absl::StatusOr<AdamOptions> ReadAdam(const Args& args) {
  AdamOptions options;
  COX_ASSIGN_OR_RETURN(const std::string name, args.String("kind"));
  const absl::StatusOr<AdamKind> kind = ParseAdamKind(name);
  COX_RETURN_IF_ERROR(Named("kind", kind.status()));
  options.kind = *kind;
  COX_ASSIGN_OR_RETURN(const Tensor<double> betas,
                       args.Floats<double>("betas", 1));
  COX_RETURN_IF_ERROR(CheckSize("betas", betas.data.size(), 2));
  options.beta1 = betas.data[0];
  options.beta2 = betas.data[1];
  COX_ASSIGN_OR_RETURN(options.eps, args.Number("eps"));
  COX_ASSIGN_OR_RETURN(options.weight_decay, args.Number("weight_decay", 0));
  COX_RETURN_IF_ERROR(options.Validate());
  return options;
}

template <typename T>
absl::StatusOr<Json> OptimizerOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const AdamOptions options, ReadAdam(args));
  COX_ASSIGN_OR_RETURN(Tensor<T> p, args.Floats<T>("p", 1));
  COX_RETURN_IF_ERROR(CheckAllFinite("p", p.span()));
  COX_ASSIGN_OR_RETURN(const Tensor<T> grads, args.Floats<T>("grads", 2));
  const int64_t n = p.dims[0];
  const int64_t steps = grads.dims[0];
  const int64_t dims[] = {steps, n};
  COX_RETURN_IF_ERROR(CheckDims("grads", grads.dims, dims));
  COX_ASSIGN_OR_RETURN(const std::vector<double> lr, ReadLr(args, steps));
  COX_ASSIGN_OR_RETURN(const std::optional<double> max_norm,
                       args.MaybeNumber("max_norm"));
  if (max_norm) COX_RETURN_IF_ERROR(CheckPositive("max_norm", *max_norm));

  std::vector<T> m(n, T{0});
  std::vector<T> v(n, T{0});
  std::vector<T> history;
  std::vector<double> norms;
  std::vector<uint8_t> skipped;
  AdamStep step;
  step.step = 0;
  for (int64_t s = 0; s < steps; ++s) {
    const std::span<const T> g = grads.span().subspan(s * n, n);
    const std::span<const T> ranges[] = {g};
    const double norm = GlobalNorm<T>(ranges);
    const ClipDecision clip = ClipScale(norm, max_norm.value_or(1));
    norms.push_back(norm);
    skipped.push_back(clip.skip);
    if (!clip.skip) {
      ++step.step;
      step.lr = lr[s];
      step.grad_scale = max_norm ? clip.scale : 1.0;
      AdamUpdate<T>(options, step, p.data, g, m, v);
    }
    history.insert(history.end(), p.data.begin(), p.data.end());
  }
  return Json{{"p", EncodeTensor(history, {steps, n})},
              {"norm", EncodeList(norms)},
              {"skipped", EncodeBools(skipped)}};
}

template <typename T>
absl::StatusOr<Json> GradClipOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(auto grads, args.RaggedFloats<T>("grads"));
  COX_ASSIGN_OR_RETURN(const double max_norm, args.Number("max_norm"));
  COX_RETURN_IF_ERROR(CheckPositive("max_norm", max_norm));
  std::vector<std::span<const T>> ranges(grads.begin(), grads.end());
  const double norm = GlobalNorm<T>(ranges);
  const ClipDecision clip = ClipScale(norm, max_norm);
  Json out = Json::array();
  for (std::vector<T>& range : grads) {
    if (!clip.skip) {
      for (T& g : range) g *= static_cast<T>(clip.scale);
    }
    out.push_back(EncodeList(range));
  }
  return Json{{"grads", std::move(out)},
              {"norm", EncodeNumber(norm)},
              {"skipped", clip.skip}};
}

absl::StatusOr<Json> DecayMaskOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       args.Strings("names"));
  COX_ASSIGN_OR_RETURN(const auto shapes, args.RaggedInts("shapes"));
  COX_RETURN_IF_ERROR(
      CheckSize("shapes", shapes.size(), static_cast<int64_t>(names.size())));
  std::vector<uint8_t> decay;
  for (size_t i = 0; i < names.size(); ++i) {
    decay.push_back(HasWeightDecay(names[i], shapes[i]));
  }
  return Json{{"decay", EncodeBools(decay)}};
}

template <typename T>
absl::StatusOr<Json> EmaOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(Tensor<T> shadow, args.Floats<T>("theta0", 1));
  COX_RETURN_IF_ERROR(CheckAllFinite("theta0", shadow.span()));
  COX_ASSIGN_OR_RETURN(const Tensor<T> thetas, args.Floats<T>("thetas", 2));
  COX_RETURN_IF_ERROR(CheckAllFinite("thetas", thetas.span()));
  const int64_t n = shadow.dims[0];
  const int64_t steps = thetas.dims[0];
  const int64_t dims[] = {steps, n};
  COX_RETURN_IF_ERROR(CheckDims("thetas", thetas.dims, dims));
  COX_ASSIGN_OR_RETURN(const double decay, args.Number("decay"));
  COX_RETURN_IF_ERROR(CheckRange("decay", decay, 0, 1));
  std::vector<T> history;
  for (int64_t s = 0; s < steps; ++s) {
    EmaUpdate<T>(decay, shadow.data, thetas.span().subspan(s * n, n));
    history.insert(history.end(), shadow.data.begin(), shadow.data.end());
  }
  return Json{{"shadow", EncodeTensor(history, {steps, n})}};
}

}  // namespace

void RegisterOptimOps(Registry* registry) {
  registry->Add(
      "lr_schedule",
      {"kind", "peak", "total", "floor", "warmup", "warmup_start", "steps"},
      LrScheduleOp);
  registry->Add("optimizer", Op{{"kind", "p", "grads", "lr", "betas", "eps",
                                 "weight_decay", "max_norm"},
                                OptimizerOp<double>,
                                OptimizerOp<float>});
  registry->Add(
      "grad_clip",
      Op{{"grads", "max_norm"}, GradClipOp<double>, GradClipOp<float>});
  registry->Add("decay_mask", {"names", "shapes"}, DecayMaskOp);
  registry->Add("ema",
                Op{{"theta0", "thetas", "decay"}, EmaOp<double>, EmaOp<float>});
}

}  // namespace cox::ops
