// process_logits, sample and uniforms of docs/ops-protocol.md §6, and §7.

#include <limits>
#include <utility>

#include "lib/algo/staleness.h"
#include "lib/base/rng.h"
#include "tests/ops/registry.h"
#include "tests/ops/sampling_args.h"

namespace cox::ops {

absl::StatusOr<SamplingOptions> ReadSampling(const Args& args) {
  SamplingOptions options;
  COX_ASSIGN_OR_RETURN(options.temperature, args.Number("temperature", 1));
  COX_ASSIGN_OR_RETURN(options.top_k, args.IntOr("top_k", 0));
  COX_ASSIGN_OR_RETURN(options.top_p, args.Number("top_p", 1));
  COX_ASSIGN_OR_RETURN(options.min_p, args.Number("min_p", 0));
  COX_ASSIGN_OR_RETURN(options.repetition_penalty,
                       args.Number("repetition_penalty", 1));
  COX_ASSIGN_OR_RETURN(options.min_new_tokens, args.IntOr("min_new_tokens", 0));
  if (args.Has("forbid_ids")) {
    COX_ASSIGN_OR_RETURN(Tensor<int64_t> ids, args.Ints("forbid_ids", 1));
    options.forbid_ids = std::move(ids.data);
  }
  if (args.Has("eos_ids")) {
    COX_ASSIGN_OR_RETURN(Tensor<int64_t> ids, args.Ints("eos_ids", 1));
    options.eos_ids = std::move(ids.data);
  }
  COX_RETURN_IF_ERROR(options.Validate());
  return options;
}

namespace {

template <typename T>
absl::Status ProcessRow(const Args& args, TokenSampler* sampler) {
  COX_ASSIGN_OR_RETURN(const Tensor<T> logits, args.Floats<T>("logits", 1));
  COX_ASSIGN_OR_RETURN(const SamplingOptions options, ReadSampling(args));
  COX_ASSIGN_OR_RETURN(const int64_t generated, args.IntOr("generated", 0));
  std::vector<int32_t> context;
  if (args.Has("context")) {
    COX_ASSIGN_OR_RETURN(const Tensor<int64_t> ids, args.Ints("context", 1));
    for (const int64_t id : ids.data) {
      if (id < 0 || id >= logits.dims[0]) {
        return absl::InvalidArgumentError(
            absl::StrCat("context: id ", id, " outside the vocabulary"));
      }
      context.push_back(static_cast<int32_t>(id));
    }
  }
  return sampler->Process(logits.span(), options, context, generated);
}

template <typename T>
absl::StatusOr<Json> ProcessLogitsOp(const Args& args) {
  TokenSampler sampler;
  COX_RETURN_IF_ERROR(ProcessRow<T>(args, &sampler));
  std::vector<T> logprob;
  std::vector<uint8_t> keep;
  for (int64_t id = 0; id < sampler.vocab(); ++id) {
    logprob.push_back(static_cast<T>(sampler.Logprob(id)));
    keep.push_back(sampler.Kept(id));
  }
  return Json{{"logprob", EncodeList(logprob)}, {"keep", EncodeBools(keep)}};
}

template <typename T>
absl::StatusOr<Json> SampleOp(const Args& args) {
  TokenSampler sampler;
  COX_RETURN_IF_ERROR(ProcessRow<T>(args, &sampler));
  // Draws are float64 whatever the dtype of the logits.
  COX_ASSIGN_OR_RETURN(const Tensor<double> uniforms,
                       args.Floats<double>("uniforms", 1));
  std::vector<int64_t> tokens;
  std::vector<T> logprob;
  for (const double u : uniforms.data) {
    if (!(u >= 0 && u < 1)) {
      return OutOfRange("uniforms", u, "must be in [0, 1)");
    }
    const SampledToken token = sampler.Draw(u);
    tokens.push_back(token.token);
    logprob.push_back(static_cast<T>(token.logprob));
  }
  return Json{{"tokens", EncodeList(tokens)}, {"logprob", EncodeList(logprob)}};
}

absl::StatusOr<Json> UniformsOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const uint64_t seed, args.Uint("seed"));
  COX_ASSIGN_OR_RETURN(const Tensor<uint64_t> keys, args.Uints("keys", 2));
  if (keys.dims[0] > 0 && keys.dims[1] != 3) {
    return absl::InvalidArgumentError(
        "keys: must hold [prompt_id, sample_index, position]");
  }
  std::vector<double> u;
  for (int64_t i = 0; i < keys.dims[0]; ++i) {
    u.push_back(TokenUniform(seed, keys.data[3 * i], keys.data[3 * i + 1],
                             keys.data[3 * i + 2]));
  }
  return Json{{"u", EncodeList(u)}};
}

absl::StatusOr<Json> StalenessCapacityOp(const Args& args) {
  StalenessState state;
  COX_ASSIGN_OR_RETURN(state.eta_max, args.Int("eta_max"));
  COX_ASSIGN_OR_RETURN(state.batch, args.Int("batch", 1));
  if (args.Has("max_concurrent")) {
    COX_ASSIGN_OR_RETURN(state.max_concurrent, args.Int("max_concurrent"));
  }
  COX_ASSIGN_OR_RETURN(state.version, args.Int("version"));
  COX_ASSIGN_OR_RETURN(state.accepted, args.Int("accepted"));
  COX_ASSIGN_OR_RETURN(state.running, args.Int("running"));
  COX_ASSIGN_OR_RETURN(const int64_t capacity, StalenessCapacity(state));
  return Json{{"capacity", capacity}};
}

absl::StatusOr<Json> StalenessFilterOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const int64_t version, args.Int("trainer_version"));
  COX_ASSIGN_OR_RETURN(const auto token_versions,
                       args.RaggedInts("token_versions"));
  COX_ASSIGN_OR_RETURN(const int64_t eta_max, args.Int("eta_max"));
  std::vector<int64_t> eta;
  std::vector<uint8_t> keep;
  for (const std::vector<int64_t>& versions : token_versions) {
    COX_ASSIGN_OR_RETURN(const int64_t age, SampleStaleness(version, versions));
    eta.push_back(age);
    keep.push_back(age <= eta_max);
  }
  return Json{{"eta", EncodeList(eta)}, {"keep", EncodeBools(keep)}};
}

}  // namespace

void RegisterSamplingOps(Registry* registry) {
  const std::vector<std::string_view> process = {
      "logits", "context", "generated", COX_OPS_SAMPLING_ARGS};
  std::vector<std::string_view> sample = process;
  sample.push_back("uniforms");
  registry->Add("process_logits",
                Op{process, ProcessLogitsOp<double>, ProcessLogitsOp<float>});
  registry->Add("sample", Op{sample, SampleOp<double>, SampleOp<float>});
  registry->Add("uniforms", {"seed", "keys"}, UniformsOp);
  registry->Add(
      "staleness_capacity",
      {"eta_max", "batch", "max_concurrent", "version", "accepted", "running"},
      StalenessCapacityOp);
  registry->Add("staleness_filter",
                {"trainer_version", "token_versions", "eta_max"},
                StalenessFilterOp);
}

}  // namespace cox::ops
