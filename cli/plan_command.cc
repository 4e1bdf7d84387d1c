#include "cli/plan_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/plan_model.h"
#include "learner/stage_options_service.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/config/config.h"
#include "lib/engine/model_config.h"
#include "lib/weights/model_folder.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

namespace v1 = cox::v1;
using Json = nlohmann::ordered_json;

absl::StatusOr<ModelConfig> ModelOf(const v1::RunConfig& config) {
  if (!config.model().init().empty()) {
    COX_ASSIGN_OR_RETURN(const ModelFolder folder,
                         ReadModelTexts(Fs::Real(), config.model().init()));
    return ModelConfig::FromJson(folder.config_json);
  }
  return ModelFromSettings(config.model(), config.tokenizer().vocab_size(), {0},
                           1);
}

RunSizes SizesOf(const v1::RunConfig& config, const ModelConfig& model,
                 const PlanCommandOptions& options) {
  RunSizes sizes;
  sizes.parameters = model.ParameterCount();
  sizes.hidden = model.hidden;
  sizes.layers = model.layers + model.encoder_layers;
  sizes.vocab = model.vocab_size;
  sizes.prompt_tokens =
      options.prompt_tokens > 0
          ? options.prompt_tokens
          : static_cast<double>(config.generation().max_prompt_tokens());
  sizes.answer_tokens =
      options.answer_tokens > 0
          ? options.answer_tokens
          : static_cast<double>(config.generation().max_new_tokens());
  return sizes;
}

ClusterSpec ThisMachine() {
  ClusterSpec spec;
  spec.cores = std::max(1u, std::thread::hardware_concurrency());
  spec.link_gbit_s = 20;  // loopback
  std::ifstream memory("/proc/meminfo");
  std::string key;
  double kb = 0;
  memory >> key >> kb;
  spec.memory_gb = kb * 1024 / 1e9;
  return spec;
}

// The shapes whose speed decides each stage; cox-rates runs them.
Json Probes(const v1::RunConfig& config, const RunSizes& sizes,
            const ModelConfig& model) {
  const double shards = std::max(1, config.numerics().shards());
  const bool text = config.pretrain().steps() > 0 &&
                    std::find(config.stages().begin(), config.stages().end(),
                              "pretrain") != config.stages().end();
  const v1::LmSettings& lm = text ? config.pretrain() : config.sft();
  const auto length =
      static_cast<int64_t>(sizes.prompt_tokens + sizes.answer_tokens);
  Json probes;
  probes["config"] = model.ToJson();
  probes["threads"] = config.roles().threads();
  probes["device"] = config.roles().device();
  probes["train_rows"] = std::max<int64_t>(
      1, static_cast<int64_t>(static_cast<double>(lm.batch()) / shards));
  probes["train_length"] = std::min(lm.sequence_length(), model.max_positions);
  probes["score_rows"] = std::max(1, config.ppo().unit_prompts());
  probes["score_length"] = std::min(length, model.max_positions);
  probes["prompt_tokens"] = static_cast<int64_t>(sizes.prompt_tokens);
  probes["new_tokens"] = static_cast<int64_t>(sizes.answer_tokens);
  return probes;
}

absl::StatusOr<Json> RunRates(const Json& probes) {
  const std::string path =
      JoinPath("/tmp", absl::StrCat("cox-plan-", getpid(), ".json"));
  const std::string out = path + ".out";
  COX_RETURN_IF_ERROR(WriteFileDurably(Fs::Real(), path, probes.dump()));
  ChildOptions child;
  child.argv = {JoinPath(ExecutableDir(), "cox-rates"), path, out};
  const absl::StatusOr<pid_t> pid = SpawnChild(child);
  ChildExit exit;
  if (pid.ok()) exit = WaitChild(*pid, absl::Minutes(5));
  const absl::StatusOr<std::string> text = Fs::Real().ReadAll(out);
  static_cast<void>(Fs::Real().RemoveAll(path));
  static_cast<void>(Fs::Real().RemoveAll(out));
  COX_RETURN_IF_ERROR(
      Annotate(pid.status(),
               "rates are measured by cox-rates, which needs LibTorch; "
               "give them in --cluster"));
  if (!exit.exited || exit.code != 0 || !text.ok()) {
    return absl::InternalError("cox-rates failed; give rates in --cluster");
  }
  Json result = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!result.is_object()) {
    return absl::InternalError("cox-rates: its answer is no JSON");
  }
  return result;
}

// Fills in what the specification leaves out.
absl::Status Calibrate(const v1::RunConfig& config, const RunSizes& sizes,
                       const ModelConfig& model, ClusterSpec* spec) {
  if (spec->train_gflop_s > 0 && spec->score_gflop_s > 0 &&
      spec->decode_gflop_s > 0 && spec->update_mparams_s > 0) {
    return absl::OkStatus();
  }
  const Json probes = Probes(config, sizes, model);
  COX_ASSIGN_OR_RETURN(const Json measured, RunRates(probes));
  const auto number = [](const Json& json, const char* key) {
    return json.value(key, 0.0);
  };
  const double threads =
      spec->gpus > 0 ? 1 : std::max(1, config.roles().threads());
  const auto rate = [&](double flops, const char* seconds) {
    return flops / (1e9 * std::max(1e-9, number(measured, seconds)) * threads);
  };
  const double train_tokens =
      number(probes, "train_rows") * number(probes, "train_length");
  const double score_tokens =
      number(probes, "score_rows") * number(probes, "score_length");
  const double answers = number(probes, "score_rows") * sizes.answer_tokens;
  const auto fill = [](double* value, double found) {
    if (*value == 0) *value = found;
  };
  fill(&spec->train_gflop_s,
       rate(3 * ForwardFlops(sizes, train_tokens,
                             number(probes, "train_length"), train_tokens),
            "train_s"));
  fill(&spec->score_gflop_s,
       rate(ForwardFlops(sizes, score_tokens, number(probes, "score_length"),
                         answers),
            "score_s"));
  fill(&spec->decode_gflop_s,
       rate(ForwardFlops(sizes, score_tokens, number(probes, "score_length"),
                         answers),
            "generate_s"));
  fill(&spec->update_mparams_s,
       static_cast<double>(sizes.parameters) /
           (1e6 * std::max(1e-9, number(measured, "update_s"))));
  fill(&spec->process_mb, number(measured, "private_bytes") / 1e6);
  fill(&spec->shared_mb, number(measured, "shared_bytes") / 1e6);
  return absl::OkStatus();
}

Json ToJson(const RunEstimate& run, const ClusterSpec& spec,
            const RunSizes& sizes) {
  Json json;
  json["schema"] = "cox.plan/1";
  json["parameters"] = sizes.parameters;
  json["rates"] = {{"train_gflop_s", spec.train_gflop_s},
                   {"score_gflop_s", spec.score_gflop_s},
                   {"decode_gflop_s", spec.decode_gflop_s},
                   {"update_mparams_s", spec.update_mparams_s},
                   {"process_mb", spec.process_mb},
                   {"shared_mb", spec.shared_mb}};
  json["memory_bytes"] = run.memory_bytes;
  json["total_s"] = run.total_s;
  json["warnings"] = run.warnings;
  for (const StageEstimate& stage : run.stages) {
    Json s = {{"stage", stage.stage},
              {"steps", stage.steps},
              {"step_s", stage.step_s},
              {"checkpoint_bytes", stage.checkpoint_bytes},
              {"broadcast_bytes", stage.broadcast_bytes},
              {"payload_bytes", stage.payload_bytes},
              {"bottleneck", stage.bottleneck}};
    for (const RoleEstimate& role : stage.roles) {
      s["roles"].push_back({{"role", role.role},
                            {"processes", role.processes},
                            {"weight_bytes", role.weight_bytes},
                            {"memory_bytes", role.memory_bytes},
                            {"sent_bytes", role.sent_bytes},
                            {"busy_s", role.busy_s}});
    }
    json["stages"].push_back(std::move(s));
  }
  return json;
}

void PrintTable(const RunEstimate& run, const ClusterSpec& spec,
                const RunSizes& sizes) {
  std::printf(
      "%.2f million parameters; rates of one thread: train %.1f, score %.1f, "
      "decode %.2f GFLOP/s, update %.0f million parameters/s\n\n",
      static_cast<double>(sizes.parameters) / 1e6, spec.train_gflop_s,
      spec.score_gflop_s, spec.decode_gflop_s, spec.update_mparams_s);
  std::printf("%-9s %7s %9s %12s %12s %12s  %s\n", "STAGE", "STEPS", "STEP",
              "BROADCAST", "PAYLOADS", "CHECKPOINT", "WAITS FOR");
  for (const StageEstimate& stage : run.stages) {
    std::printf("%-9s %7s %7.3f s %9.2f MB %9.3f MB %9.2f MB  %s\n",
                stage.stage.c_str(),
                stage.steps > 0 ? absl::StrCat(stage.steps).c_str() : "?",
                stage.step_s, stage.broadcast_bytes / 1e6,
                stage.payload_bytes / 1e6, stage.checkpoint_bytes / 1e6,
                stage.bottleneck.c_str());
    for (const RoleEstimate& role : stage.roles) {
      std::printf(
          "  %-11s x%-3lld busy %7.3f s  weights %8.2f MB  memory "
          "%8.1f MB  sends %8.3f MB\n",
          role.role.c_str(), static_cast<long long>(role.processes),
          role.busy_s, role.weight_bytes / 1e6, role.memory_bytes / 1e6,
          role.sent_bytes / 1e6);
    }
  }
  std::printf(
      "\nall processes together: %.2f GB; stages with known steps: "
      "%.0f s\n",
      run.memory_bytes / 1e9, run.total_s);
  for (const std::string& warning : run.warnings) {
    std::printf("note: %s\n", warning.c_str());
  }
}

absl::Status Plan(const PlanCommandOptions& options) {
  LoadOptions load;
  load.path = options.file;
  load.overrides = options.overrides;
  load.check_files = false;
  COX_ASSIGN_OR_RETURN(const v1::RunConfig config, LoadConfig(load));
  ClusterSpec spec = ThisMachine();
  if (options.cluster != "local") {
    COX_ASSIGN_OR_RETURN(const std::string text,
                         Fs::Real().ReadAll(options.cluster));
    COX_ASSIGN_OR_RETURN(spec, ParseClusterSpec(text, options.cluster));
  }
  COX_ASSIGN_OR_RETURN(const ModelConfig model, ModelOf(config));
  const RunSizes sizes = SizesOf(config, model, options);
  COX_RETURN_IF_ERROR(Calibrate(config, sizes, model, &spec));
  const RunEstimate run = EstimateRun(config, sizes, spec);
  if (options.json) {
    std::printf("%s\n", ToJson(run, spec, sizes).dump().c_str());
  } else {
    PrintTable(run, spec, sizes);
  }
  return absl::OkStatus();
}

}  // namespace

int PlanRun(const PlanCommandOptions& options) {
  const absl::Status status = Plan(options);
  if (status.ok()) return kExitDone;
  std::fprintf(stderr, "cox plan: %s\n", std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

}  // namespace cox
