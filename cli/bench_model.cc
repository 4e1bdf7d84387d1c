#include "cli/bench_model.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/clock.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/base/rng.h"
#include "lib/model/api.h"
#include "lib/model/measure.h"
#include "lib/weights/model_folder.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

// Matrices of the blocks; `head` gets those of the head.
int64_t BlockParameters(const ModelConfig& config, int64_t* head) {
  *head = config.head == HeadKind::kScalar ? config.hidden
                                           : config.vocab_size * config.hidden;
  int64_t blocks = 0;
  for (const auto& [name, shape] : ParameterShapes(config)) {
    const bool table = shape.size() == 2 && shape[1] == config.hidden &&
                       (shape[0] == config.vocab_size ||
                        name.find("wpe") != std::string::npos);
    const bool score = name.find("score") != std::string::npos;
    if (shape.size() == 2 && !table && !score) blocks += shape[0] * shape[1];
  }
  return blocks;
}

}  // namespace

void AddBenchModelFlags(CLI::App& app, BenchModelFlags& flags) {
  AddBenchFlags(app, flags.common);
  app.add_option("--config", flags.config,
                 "config.json of a model with random weights, instead of "
                 "--model");
  app.add_flag("--recompute", flags.recompute,
               "training computes activations twice to hold fewer");
}

bool StartModelBench(CLI::App& app, int argc, char** argv,
                     const BenchModelFlags& flags, int* exit_code) {
  *exit_code = kExitUsage;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    *exit_code = app.exit(error) == 0 ? kExitDone : kExitUsage;
    return false;
  }
  if (!ApplyBenchFlags(flags.common)) return false;
  const auto started =
      InitTorch(BenchEngineOptions(flags, BenchThreads(flags.common)));
  if (!started.ok()) {
    std::fprintf(stderr, "cox bench: %s\n",
                 std::string(started.status().message()).c_str());
    return false;
  }
  return true;
}

int BenchThreads(const BenchFlags& flags) {
  if (flags.threads > 0) return flags.threads;
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

EngineOptions BenchEngineOptions(const BenchModelFlags& flags, int threads) {
  EngineOptions options;
  options.device = flags.common.device;
  options.dtype = flags.common.dtype;
  options.threads = threads;
  options.recompute = flags.recompute;
  return options;
}

absl::StatusOr<BenchModel> LoadBenchModel(const BenchModelFlags& flags,
                                          HeadKind head) {
  return LoadBenchModel(flags.common.model, flags.config, head);
}

absl::StatusOr<BenchModel> LoadBenchModel(const std::string& folder_path,
                                          const std::string& config_path,
                                          HeadKind head) {
  if (folder_path.empty() == config_path.empty()) {
    return absl::InvalidArgumentError(
        "expected one of --model FOLDER and --config FILE");
  }
  BenchModel model;
  if (!config_path.empty()) {
    COX_ASSIGN_OR_RETURN(const std::string text,
                         Fs::Real().ReadAll(config_path));
    COX_ASSIGN_OR_RETURN(model.config, ModelConfig::FromJson(text));
    model.config.head = head;
    const Manifest layout = ParameterLayout(model.config, "policy");
    std::vector<float> values(layout.arena_bytes / sizeof(float));
    InitializeParameters(model.config, 1, values);
    COX_ASSIGN_OR_RETURN(model.snapshot, SnapshotFromFloats(layout, values));
  } else {
    COX_ASSIGN_OR_RETURN(const ModelFolder folder,
                         ReadModelFolder(Fs::Real(), folder_path));
    COX_ASSIGN_OR_RETURN(model.config,
                         ModelConfig::FromJson(folder.config_json));
    COX_ASSIGN_OR_RETURN(
        model.snapshot,
        SnapshotFromFolder(folder, ParameterLayout(model.config, "policy")));
    if (model.config.head != head) {
      COX_ASSIGN_OR_RETURN(model.snapshot,
                           WithHead(*model.snapshot, head, "policy", 1));
      COX_ASSIGN_OR_RETURN(
          model.config,
          ModelConfig::FromJson(model.snapshot->manifest.config_json));
    }
  }
  if (model.config.family == ModelFamily::kInstructEncdec) {
    return absl::InvalidArgumentError(
        "expected a decoder-only model, found an encoder-decoder");
  }
  return model;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> ReadIds(
    const std::string& path, const char* key) {
  COX_ASSIGN_OR_RETURN(const std::string text, Fs::Real().ReadAll(path));
  std::vector<std::vector<int32_t>> out;
  for (const auto line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const Json json = Json::parse(line.begin(), line.end(), nullptr,
                                  /*allow_exceptions=*/false);
    const auto it = json.is_object() ? json.find(key) : json.end();
    std::vector<int32_t> ids;
    bool good = json.is_object() && it != json.end() && it->is_array();
    for (size_t i = 0; good && i < it->size(); ++i) {
      good = (*it)[i].is_number_integer();
      if (good) ids.push_back((*it)[i].get<int32_t>());
    }
    if (!good || ids.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", out.size() + 1, ": expected {\"", key,
                       "\": [ids, at least one]}"));
    }
    out.push_back(std::move(ids));
  }
  if (out.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no lines"));
  }
  return out;
}

absl::StatusOr<std::vector<int64_t>> ReadIntegers(const std::string& path) {
  COX_ASSIGN_OR_RETURN(const std::string text, Fs::Real().ReadAll(path));
  std::vector<int64_t> out;
  for (const auto line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    int64_t value = 0;
    if (!absl::SimpleAtoi(line, &value)) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ":", out.size() + 1, ": expected an integer, found '",
          std::string(line), "'"));
    }
    out.push_back(value);
  }
  return out;
}

std::vector<std::vector<int32_t>> RandomIds(int64_t rows, int64_t length,
                                            int64_t vocab) {
  CounterRng rng(1, "bench");
  std::vector<std::vector<int32_t>> out(static_cast<size_t>(rows));
  for (auto& ids : out) {
    ids.resize(static_cast<size_t>(length));
    for (int32_t& id : ids) {
      id = static_cast<int32_t>(rng.NextBelow(static_cast<uint64_t>(vocab)));
    }
  }
  return out;
}

double BenchSeconds() {
  return 1e-9 * static_cast<double>(Clock::Real().Now().ns);
}

int64_t MatrixParameters(const ModelConfig& config) {
  int64_t head = 0;
  const int64_t blocks = BlockParameters(config, &head);
  return blocks + head;
}

BenchWork ForwardWork(const ModelConfig& config, double tokens, double pairs) {
  BenchWork work;
  work.flop =
      2.0 * static_cast<double>(MatrixParameters(config)) * tokens +
      4.0 *
          static_cast<double>(config.layers * config.heads * config.head_dim) *
          pairs;
  return work;
}

BenchWork DecodeWork(const ModelConfig& config, const EngineOptions& options,
                     double rows, double pairs) {
  BenchWork work = ForwardWork(config, rows, pairs);
  const bool cpu = options.device == "cpu";
  const double narrow = options.dtype == "bf16" ? 2 : 4;
  int64_t head = 0;
  const int64_t blocks = BlockParameters(config, &head);
  work.bytes = static_cast<double>(blocks) * narrow +
               static_cast<double>(head) * (cpu ? 4 : narrow) +
               2.0 *
                   static_cast<double>(config.layers * config.kv_heads *
                                       config.head_dim) *
                   (cpu ? 4 : narrow) * pairs;
  return work;
}

double MachineCeilings::Seconds(const BenchWork& work) const {
  return std::max(work.flop / (1e9 * gemm_gflop_s),
                  work.bytes / (1e9 * read_gb_s));
}

absl::StatusOr<MachineCeilings> MeasureCeilings(const ModelConfig& config,
                                                const EngineOptions& options,
                                                int64_t rows) {
  MachineCeilings out;
  // Weighted by work: the blocks' three kinds of product and the head's.
  const std::vector<GemmShape> shapes = {
      {rows, config.hidden, config.heads * config.head_dim},
      {rows, config.hidden, config.intermediate},
      {rows, config.intermediate, config.hidden}};
  double flop = 0, seconds = 0;
  for (const GemmShape& shape : shapes) {
    COX_ASSIGN_OR_RETURN(const double rate, GemmGflops(options, shape, 0.15));
    const double work = static_cast<double>(shape.m * shape.k * shape.n);
    flop += work;
    seconds += work / rate;
  }
  out.gemm_gflop_s = flop / seconds;
  COX_ASSIGN_OR_RETURN(out.read_gb_s,
                       ReadGbPerSecond(options, int64_t{1} << 28, 0.2));
  return out;
}

void ReportCeilings(const MachineCeilings& ceilings, BenchReport& report) {
  report.Number("ceiling_gemm_gflop_s", ceilings.gemm_gflop_s);
  report.Number("ceiling_read_gb_s", ceilings.read_gb_s);
}

int BenchFailed(const char* name, const absl::Status& status) {
  std::fprintf(stderr, "cox bench %s: %s\n", name,
               std::string(status.message()).c_str());
  return status.code() == absl::StatusCode::kInvalidArgument ||
                 status.code() == absl::StatusCode::kNotFound
             ? kExitUsage
             : kExitCheckFailed;
}

}  // namespace cox
