// Ops on models: docs/ops-protocol.md §6 (generate) and §8.

#include <cstdint>
#include <memory>
#include <utility>

#include "lib/base/fs.h"
#include "lib/engine/model_config.h"
#include "lib/model/api.h"
#include "lib/model/ops_api.h"
#include "lib/weights/model_folder.h"
#include "tests/ops/registry.h"
#include "tests/ops/sampling_args.h"

namespace cox::ops {
namespace {

struct Fill {
  double a = 1.3;
  double b = 0.7;
};

absl::StatusOr<Fill> ReadFill(const Args& args) {
  Fill fill;
  if (!args.Has("fill")) return fill;
  COX_ASSIGN_OR_RETURN(const Args nested, args.Object("fill"));
  const std::string_view names[] = {"a", "b"};
  COX_RETURN_IF_ERROR(nested.CheckNames(names));
  COX_ASSIGN_OR_RETURN(fill.a, nested.Number("a", fill.a));
  COX_ASSIGN_OR_RETURN(fill.b, nested.Number("b", fill.b));
  return fill;
}

absl::StatusOr<ModelConfig> ReadConfig(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Json* node, args.Raw("config"));
  if (!node->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(args.Path("config"), ": must be an object"));
  }
  absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(
      node->dump(-1, ' ', false, Json::error_handler_t::replace));
  COX_RETURN_IF_ERROR(Named(args.Path("config"), config.status()));
  return config;
}

absl::StatusOr<std::shared_ptr<const Snapshot>> FilledSnapshot(
    const ModelConfig& config, const Fill& fill) {
  const Manifest layout = ParameterLayout(config, "policy");
  std::vector<float> parameters(layout.arena_bytes / sizeof(float));
  SineFill(config, fill.a, fill.b, parameters);
  return SnapshotFromFloats(layout, parameters);
}

// A model folder, or a config with the pinned fill.
struct Model {
  ModelConfig config;
  std::optional<Fill> fill;
  std::shared_ptr<const Snapshot> snapshot;

  absl::StatusOr<std::vector<std::vector<double>>> Parameters() const {
    if (fill) return SineParameters(config, fill->a, fill->b);
    return ParametersOf(*snapshot, config);
  }
};

absl::StatusOr<Model> ReadModel(const Args& args) {
  COX_ASSIGN_OR_RETURN(const Args nested, args.Object("model"));
  Model model;
  if (nested.Has("dir")) {
    const std::string_view names[] = {"dir"};
    COX_RETURN_IF_ERROR(nested.CheckNames(names));
    COX_ASSIGN_OR_RETURN(const std::string dir, nested.String("dir"));
    COX_ASSIGN_OR_RETURN(const ModelFolder folder,
                         ReadModelFolder(Fs::Real(), dir));
    absl::StatusOr<ModelConfig> config =
        ModelConfig::FromJson(folder.config_json);
    COX_RETURN_IF_ERROR(Named("model.dir", config.status()));
    model.config = *std::move(config);
    COX_ASSIGN_OR_RETURN(
        model.snapshot,
        SnapshotFromFolder(folder, ParameterLayout(model.config, "policy")));
    return model;
  }
  const std::string_view names[] = {"config", "fill"};
  COX_RETURN_IF_ERROR(nested.CheckNames(names));
  COX_ASSIGN_OR_RETURN(model.config, ReadConfig(nested));
  COX_ASSIGN_OR_RETURN(model.fill, ReadFill(nested));
  COX_ASSIGN_OR_RETURN(model.snapshot,
                       FilledSnapshot(model.config, *model.fill));
  return model;
}

// Ids of magnitude up to int32, as the engines take them.
absl::StatusOr<std::vector<std::vector<int32_t>>> ReadIds(const Args& args,
                                                          const char* name) {
  COX_ASSIGN_OR_RETURN(const auto rows, args.RaggedInts(name));
  std::vector<std::vector<int32_t>> ids;
  for (const std::vector<int64_t>& row : rows) {
    if (row.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": row ", ids.size(), " is empty"));
    }
    ids.emplace_back();
    for (const int64_t id : row) {
      if (id > INT32_MAX) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, ": ", id, " is no token id"));
      }
      ids.back().push_back(static_cast<int32_t>(id));
    }
  }
  return ids;
}

// Process-wide, once: one thread and deterministic kernels.
absl::Status StartTorch() {
  static const absl::Status status = InitTorch(EngineOptions()).status();
  return status;
}

// An instruction that the family would ignore is the caller's mistake.
absl::Status CheckTakesInstruction(const ModelConfig& config,
                                   const char* name) {
  if (config.family == ModelFamily::kInstructEncdec) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, ": only instruct_encdec takes one"));
}

absl::Status ReadInstruction(const Args& args, int64_t batch,
                             ModelForwardRequest* request) {
  if (!args.Has("instruction")) return absl::OkStatus();
  COX_RETURN_IF_ERROR(CheckTakesInstruction(request->config, "instruction"));
  COX_ASSIGN_OR_RETURN(Tensor<int64_t> ids, args.Ints("instruction", 2));
  const int64_t dims[] = {batch, ids.dims[1]};
  COX_RETURN_IF_ERROR(CheckDims("instruction", ids.dims, dims));
  request->instruction_length = ids.dims[1];
  request->instruction_mask.assign(ids.data.size(), 1);
  if (args.Has("instruction_mask")) {
    COX_ASSIGN_OR_RETURN(Tensor<uint8_t> mask,
                         args.Flags("instruction_mask", 2));
    COX_RETURN_IF_ERROR(CheckDims("instruction_mask", mask.dims, ids.dims));
    request->instruction_mask = std::move(mask.data);
  }
  request->instruction_ids = std::move(ids.data);
  return absl::OkStatus();
}

template <typename T>
std::vector<T> Narrow(const std::vector<double>& x) {
  return {x.begin(), x.end()};
}

template <typename T>
absl::StatusOr<Json> ModelForwardOp(const Args& args) {
  COX_RETURN_IF_ERROR(StartTorch());
  COX_ASSIGN_OR_RETURN(const Model model, ReadModel(args));
  COX_ASSIGN_OR_RETURN(Tensor<int64_t> tokens, args.Ints("tokens", 2));
  ModelForwardRequest request;
  request.config = model.config;
  COX_ASSIGN_OR_RETURN(request.parameters, model.Parameters());
  request.float64 = std::is_same_v<T, double>;
  request.batch = tokens.dims[0];
  request.length = tokens.dims[1];
  request.mask.assign(tokens.data.size(), 1);
  if (args.Has("attention_mask")) {
    COX_ASSIGN_OR_RETURN(Tensor<uint8_t> mask, args.Flags("attention_mask", 2));
    COX_RETURN_IF_ERROR(CheckDims("attention_mask", mask.dims, tokens.dims));
    request.mask = std::move(mask.data);
  }
  request.ids = std::move(tokens.data);
  COX_RETURN_IF_ERROR(ReadInstruction(args, request.batch, &request));
  COX_ASSIGN_OR_RETURN(request.temperature, args.Number("temperature", 1));
  COX_RETURN_IF_ERROR(CheckPositive("temperature", request.temperature));
  COX_ASSIGN_OR_RETURN(const ModelForwardResult result, ModelForward(request));
  const std::vector<int64_t>& dims = tokens.dims;
  if (model.config.head == HeadKind::kScalar) {
    return Json{{"values", EncodeTensor(Narrow<T>(result.values), dims)},
                {"score", EncodeList(Narrow<T>(result.score))}};
  }
  return Json{
      {"logits", EncodeTensor(Narrow<T>(result.logits),
                              {dims[0], dims[1], model.config.vocab_size})},
      {"logprob", EncodeTensor(Narrow<T>(result.logprob), dims)}};
}

absl::StatusOr<Json> ModelFillOp(const Args& args) {
  COX_ASSIGN_OR_RETURN(const ModelConfig config, ReadConfig(args));
  COX_ASSIGN_OR_RETURN(const Fill fill, ReadFill(args));
  COX_ASSIGN_OR_RETURN(const std::string dir, args.String("out_dir"));
  SaveFolderOptions options;
  COX_ASSIGN_OR_RETURN(const std::string dtype,
                       args.StringOr("save_dtype", "float32"));
  if (dtype != "float32" && dtype != "bfloat16") {
    return absl::InvalidArgumentError(
        "save_dtype: must be float32 or bfloat16");
  }
  options.dtype = dtype == "float32" ? DType::kF32 : DType::kBF16;
  if (args.Has("max_shard_bytes")) {
    COX_ASSIGN_OR_RETURN(const int64_t bytes, args.Int("max_shard_bytes", 1));
    options.max_shard_bytes = static_cast<uint64_t>(bytes);
  }
  options.eos_ids = config.eos_ids;
  options.pad_id = config.pad_id;
  COX_ASSIGN_OR_RETURN(const std::shared_ptr<const Snapshot> snapshot,
                       FilledSnapshot(config, fill));
  COX_RETURN_IF_ERROR(
      SaveModelFolder(Fs::Real(), dir, *snapshot, options).status());
  Json tensors = Json::array();
  for (const auto& [name, shape] : ParameterShapes(config)) {
    tensors.push_back({{"name", name}, {"shape", shape}});
  }
  return Json{{"tensors", std::move(tensors)}};
}

absl::StatusOr<GenerateResult> RunGenerate(const Args& args,
                                           GenerateRequest request) {
  COX_RETURN_IF_ERROR(StartTorch());
  COX_ASSIGN_OR_RETURN(const Model model, ReadModel(args));
  COX_ASSIGN_OR_RETURN(request.max_new_tokens, args.Int("max_new_tokens", 1));
  COX_ASSIGN_OR_RETURN(const int64_t pad_id, args.IntOr("pad_id", 0));
  if (pad_id > INT32_MAX) {
    return absl::InvalidArgumentError("pad_id: is no token id");
  }
  request.pad_id = static_cast<int32_t>(pad_id);
  if (args.Has("instructions")) {
    COX_RETURN_IF_ERROR(CheckTakesInstruction(model.config, "instructions"));
    COX_ASSIGN_OR_RETURN(request.instructions, ReadIds(args, "instructions"));
    COX_RETURN_IF_ERROR(
        CheckSize("instructions", request.instructions.size(),
                  static_cast<int64_t>(request.prompts.size())));
  }
  COX_ASSIGN_OR_RETURN(const std::unique_ptr<PolicyEngine> engine,
                       MakePolicyEngine(EngineOptions()));
  COX_RETURN_IF_ERROR(engine->Load(model.snapshot));
  return engine->Generate(request);
}

Json EncodeGenerated(const GenerateResult& result) {
  Json tokens = Json::array();
  for (const std::vector<int32_t>& row : result.tokens) {
    tokens.push_back(EncodeList(std::vector<int64_t>(row.begin(), row.end())));
  }
  Json finish = Json::array();
  for (const FinishReason reason : result.finish) {
    finish.push_back(reason == FinishReason::kStop ? "stop" : "length");
  }
  return Json{{"tokens", std::move(tokens)}, {"finish", std::move(finish)}};
}

absl::StatusOr<Json> GenerateOp(const Args& args) {
  GenerateRequest request;
  COX_ASSIGN_OR_RETURN(request.prompts, ReadIds(args, "prompts"));
  COX_ASSIGN_OR_RETURN(request.sampling, ReadSampling(args));
  COX_ASSIGN_OR_RETURN(request.seed, args.Uint("seed", 0));
  COX_ASSIGN_OR_RETURN(const Tensor<uint64_t> keys, args.Uints("keys", 2));
  const int64_t dims[] = {static_cast<int64_t>(request.prompts.size()), 2};
  COX_RETURN_IF_ERROR(CheckDims("keys", keys.dims, dims));
  for (int64_t i = 0; i < dims[0]; ++i) {
    request.prompt_ids.push_back(keys.data[2 * i]);
    request.sample_indices.push_back(keys.data[2 * i + 1]);
  }
  COX_ASSIGN_OR_RETURN(const GenerateResult result,
                       RunGenerate(args, std::move(request)));
  Json out = EncodeGenerated(result);
  Json logprob = Json::array();
  for (const std::vector<float>& row : result.logprobs) {
    logprob.push_back(EncodeList(row));
  }
  out["logprob"] = std::move(logprob);
  return out;
}

absl::StatusOr<Json> GenerateGreedyOp(const Args& args) {
  GenerateRequest request;
  COX_ASSIGN_OR_RETURN(request.prompts, ReadIds(args, "prompts"));
  COX_ASSIGN_OR_RETURN(request.sampling, ReadSampling(args));
  request.sampling.temperature = 0;
  // No draws depend on the keys.
  request.prompt_ids.assign(request.prompts.size(), 0);
  request.sample_indices.assign(request.prompts.size(), 0);
  COX_ASSIGN_OR_RETURN(const GenerateResult result,
                       RunGenerate(args, std::move(request)));
  return EncodeGenerated(result);
}

}  // namespace

void RegisterModelOps(Registry* registry) {
  registry->Add("model_forward",
                Op{{"model", "tokens", "attention_mask", "instruction",
                    "instruction_mask", "temperature"},
                   ModelForwardOp<double>,
                   ModelForwardOp<float>});
  registry->Add("model_fill",
                {"config", "fill", "out_dir", "save_dtype", "max_shard_bytes"},
                ModelFillOp);
  registry->Add("generate",
                {"model", "prompts", "seed", "keys", "max_new_tokens", "pad_id",
                 "instructions", COX_OPS_SAMPLING_ARGS},
                GenerateOp);
  registry->Add("generate_greedy",
                {"model", "prompts", "max_new_tokens", "pad_id", "instructions",
                 "eos_ids", "min_new_tokens"},
                GenerateGreedyOp);
}

}  // namespace cox::ops
