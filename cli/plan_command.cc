#include "cli/plan_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/plan_compare.h"
#include "cli/plan_model.h"
#include "cli/rehearsal_service.h"
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

// Lengths as the configuration bounds them, for clusters whose rates are given
// and whose data are elsewhere.
RunSizes AssumedSizes(const v1::RunConfig& config, const ModelConfig& model,
                      const PlanCommandOptions& options) {
  RunSizes sizes;
  sizes.parameters = model.ParameterCount();
  sizes.hidden = model.hidden;
  sizes.layers = model.layers + model.encoder_layers;
  sizes.vocab = model.vocab_size;
  const auto length = [&sizes](const char* what, double given, int64_t bound,
                               const char* key) {
    const double tokens = given > 0 ? given : static_cast<double>(bound);
    sizes.lengths.push_back(
        {what, tokens, given > 0 ? "given" : absl::StrCat("assumed: ", key)});
    return tokens;
  };
  sizes.prompt_tokens = length("prompts", options.prompt_tokens,
                               config.generation().max_prompt_tokens(),
                               "generation.max_prompt_tokens");
  sizes.answer_tokens =
      length("answers", options.answer_tokens,
             config.generation().max_new_tokens(), "generation.max_new_tokens");
  for (const std::string& stage : config.stages()) {
    if (stage == "pretrain" || stage == "sft") {
      const v1::LmSettings& lm =
          stage == "sft" ? config.sft() : config.pretrain();
      length(stage.c_str(), 0, lm.sequence_length(), "sequence_length");
    }
  }
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

bool AllRates(const ClusterSpec& spec) {
  return spec.train_gflop_s > 0 && spec.score_gflop_s > 0 &&
         spec.decode_gflop_s > 0 && spec.update_mparams_s > 0;
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
  for (const LengthSource& length : sizes.lengths) {
    json["lengths"].push_back({{"what", length.what},
                               {"tokens", length.tokens},
                               {"source", length.source}});
  }
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
                            {"all_memory_bytes", role.all_memory_bytes},
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
  for (const LengthSource& length : sizes.lengths) {
    std::printf("%-16s %6.1f tokens, %s\n", length.what.c_str(), length.tokens,
                length.source.c_str());
  }
  std::printf("\n%-9s %7s %9s %12s %12s %12s  %s\n", "STAGE", "STEPS", "STEP",
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
  const bool local = options.cluster == "local";
  RunSizes sizes;
  absl::StatusOr<Rehearsal> rehearsal =
      Rehearsal::Prepare(config, {.prompt_tokens = options.prompt_tokens,
                                  .answer_tokens = options.answer_tokens});
  if (rehearsal.ok()) {
    sizes = rehearsal->sizes();
    if (!AllRates(spec)) {
      COX_RETURN_IF_ERROR(rehearsal->Measure(local, &spec));
    }
  } else if (AllRates(spec)) {
    // Of a cluster that is known, a run is planned without its data.
    COX_ASSIGN_OR_RETURN(const ModelConfig model, ModelOf(config));
    sizes = AssumedSizes(config, model, options);
  } else {
    return Annotate(rehearsal.status(),
                    "rates are measured with the run's own data; give all "
                    "rates in --cluster to go without");
  }
  const RunEstimate run = EstimateRun(config, sizes, spec);
  if (options.json) {
    std::printf("%s\n", ToJson(run, spec, sizes).dump().c_str());
  } else {
    PrintTable(run, spec, sizes);
  }
  if (options.compare.empty()) return absl::OkStatus();
  COX_ASSIGN_OR_RETURN(const MeasuredRun measured,
                       ReadMeasuredRun(Fs::Real(), options.compare));
  std::printf("\n%s", ComparisonTable(run, sizes, spec, measured).c_str());
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
