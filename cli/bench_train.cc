// `cox bench train`: optimizer steps per second of a stage, in one process.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "cli/bench_model.h"
#include "cli/bench_rollout_loop.h"
#include "learner/lm_trainer.h"
#include "learner/rm_trainer.h"
#include "lib/base/fs.h"
#include "lib/base/hash.h"
#include "lib/model/api.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

constexpr char kFormula[] =
    "flop of a trained token = 3 (2 (P + H) + 4 layers heads head_dim "
    "positions); mfu = flop / gemm / train_s; model_gflop_s = 6 params tokens "
    "/ wall_s";

class Documents final : public LmSource {
 public:
  explicit Documents(std::vector<Sequence> all) : all_(std::move(all)) {}
  Sequence At(int64_t position) const override {
    return all_[static_cast<size_t>(position) % all_.size()];
  }

 private:
  std::vector<Sequence> all_;
};

// Whole blocks of the documents, one after the other.
std::vector<std::vector<int32_t>> Pack(
    const std::vector<std::vector<int32_t>>& docs, size_t block) {
  std::vector<int32_t> stream;
  for (const auto& doc : docs) {
    stream.insert(stream.end(), doc.begin(), doc.end());
  }
  std::vector<std::vector<int32_t>> out;
  for (size_t at = 0; at + block <= stream.size(); at += block) {
    out.emplace_back(stream.begin() + static_cast<std::ptrdiff_t>(at),
                     stream.begin() + static_cast<std::ptrdiff_t>(at + block));
  }
  return out;
}

absl::StatusOr<std::vector<Sequence>> MakeDocuments(
    const BenchTrainFlags& flags, const ModelConfig& config) {
  std::vector<std::vector<int32_t>> docs;
  if (flags.docs.empty()) {
    docs = RandomIds(flags.batch * std::min<int64_t>(flags.updates, 8),
                     flags.max_len, config.vocab_size);
  } else {
    COX_ASSIGN_OR_RETURN(docs, ReadIds(flags.docs, "ids"));
    for (auto& doc : docs) {
      doc.resize(std::min(doc.size(), static_cast<size_t>(flags.max_len)));
    }
  }
  if (flags.layout == "packed") {
    docs = Pack(docs, static_cast<size_t>(flags.max_len));
    if (docs.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--docs: fewer than --max-len ", flags.max_len, " tokens in all"));
    }
  }
  std::vector<Sequence> out;
  for (auto& doc : docs) out.emplace_back().ids = std::move(doc);
  return out;
}

OptimizerOptions Optimizer(int64_t updates) {
  OptimizerOptions options;
  options.schedule.peak = 1e-5;
  options.schedule.total = updates;
  return options;
}

// A trainer of stages whose data are files, and what it borrows.
struct FileStage {
  std::unique_ptr<TrainEngine> engine;
  std::unique_ptr<Collective> group = MakeSingleRank();
  std::unique_ptr<LmSource> source;
  std::unique_ptr<StageTrainer> trainer;
};

absl::StatusOr<FileStage> MakeFileStage(const BenchTrainFlags& flags,
                                        const BenchModel& model,
                                        const EngineOptions& options,
                                        const std::vector<Sequence>& docs) {
  FileStage stage;
  COX_ASSIGN_OR_RETURN(stage.engine, MakeTrainEngine(options));
  COX_RETURN_IF_ERROR(stage.engine->Load(model.snapshot));
  if (flags.stage == "sft") {
    stage.source = std::make_unique<Documents>(docs);
    LmOptions lm;
    lm.batch = flags.batch;
    lm.micro_batch = flags.micro_batch;
    lm.shards = 1;
    lm.total_steps = flags.updates;
    lm.optimizer = Optimizer(flags.updates);
    lm.heldout_every = 0;
    COX_ASSIGN_OR_RETURN(
        stage.trainer,
        MakeLmTrainer(lm, *stage.engine, *stage.group, *stage.source, {}));
    return stage;
  }
  // Document 2 i against document 2 i + 1, the first one better.
  RmData data;
  for (size_t d = 0; d + 1 < docs.size(); d += 2) {
    data.train.push_back({{docs[d], docs[d + 1]}, {1, 2}});
  }
  if (data.train.empty()) {
    return absl::InvalidArgumentError("--docs: expected two documents or more");
  }
  RmOptions rm;
  rm.seed = flags.model.common.seed;
  rm.batch = std::max<int64_t>(1, flags.batch / 2);
  rm.micro_batch = flags.micro_batch;
  rm.shards = 1;
  rm.total_steps = flags.updates;
  rm.optimizer = Optimizer(flags.updates);
  rm.normalize = std::nullopt;
  COX_ASSIGN_OR_RETURN(
      stage.trainer,
      MakeRmTrainer(rm, *stage.engine, *stage.group, std::move(data)));
  return stage;
}

// Mean NLL of the first batch, by the frozen pass.
absl::StatusOr<double> ReferenceLoss(const BenchTrainFlags& flags,
                                     const BenchModel& model,
                                     const EngineOptions& options,
                                     const std::vector<Sequence>& docs) {
  COX_ASSIGN_OR_RETURN(auto engine, MakeScoreEngine(options));
  COX_RETURN_IF_ERROR(engine->Load(model.snapshot));
  double sum = 0, count = 0;
  for (int64_t i = 0; i < flags.batch; ++i) {
    const Sequence& doc = docs[static_cast<size_t>(i) % docs.size()];
    const Sequence* row = &doc;
    COX_ASSIGN_OR_RETURN(
        const LogprobOutput out,
        engine->Logprobs(MakeTokenBatch({&row, 1}), 1.0, false));
    for (float logprob : out.logprobs) sum -= double{logprob};
    count += static_cast<double>(doc.targets());
  }
  return sum / count;
}

struct Totals {
  std::vector<double> samples_s, tok_s, gflop_s, mfu, step_s, per_cpu_s;
  std::vector<std::map<std::string, double>> steps;  // of the last run
};

absl::Status MeasureFileStage(const BenchTrainFlags& flags, BenchReport& report,
                              bool* ok) {
  const BenchFlags& common = flags.model.common;
  const bool sft = flags.stage == "sft";
  const EngineOptions options =
      BenchEngineOptions(flags.model, BenchThreads(common));
  COX_ASSIGN_OR_RETURN(
      const BenchModel model,
      LoadBenchModel(flags.model,
                     sft ? HeadKind::kLanguageModel : HeadKind::kScalar));
  COX_ASSIGN_OR_RETURN(const std::vector<Sequence> docs,
                       MakeDocuments(flags, model.config));
  // What the updates train on; the reward model's order is drawn, so there the
  // average document counts.
  double tokens = 0, slots = 0, pairs = 0;
  for (int64_t i = 0; i < flags.updates * flags.batch; ++i) {
    const double n = static_cast<double>(
        docs[static_cast<size_t>(i) % docs.size()].length());
    tokens += n;
    slots += static_cast<double>(flags.max_len);
    pairs += n * (n + 1) / 2;
  }
  COX_ASSIGN_OR_RETURN(
      const MachineCeilings ceilings,
      MeasureCeilings(model.config, options,
                      std::min<int64_t>(flags.batch * flags.max_len, 2048)));
  const double flop = 3 * ForwardWork(model.config, tokens, pairs).flop;
  Totals totals;
  std::vector<double> first_losses, last_losses;
  const std::string loss_name = sft ? "loss/lm" : "loss/rm";
  for (int run = -common.warmup; run < common.runs; ++run) {
    COX_ASSIGN_OR_RETURN(FileStage stage,
                         MakeFileStage(flags, model, options, docs));
    totals.steps.clear();
    WaitIdle(run < 0 ? 0 : common.wait_idle_s);
    const BenchMeter meter;
    const int64_t updates = run < 0 ? 1 : flags.updates;
    for (int64_t step = 1; step <= updates; ++step) {
      COX_ASSIGN_OR_RETURN(const StepResult result,
                           stage.trainer->Step(step, BatchInput()));
      totals.steps.push_back(result.metrics);
    }
    const BenchUse use = meter.Stop();
    if (run < 0) continue;
    report.AddRun(use);
    const double samples = static_cast<double>(flags.updates * flags.batch);
    totals.samples_s.push_back(samples / use.wall_s);
    totals.tok_s.push_back(tokens / use.wall_s);
    totals.step_s.push_back(use.wall_s / static_cast<double>(flags.updates));
    totals.per_cpu_s.push_back(samples / std::max(use.cpu_s, 1e-9));
    totals.gflop_s.push_back(
        6e-9 * static_cast<double>(model.config.ParameterCount()) * tokens /
        use.wall_s);
    totals.mfu.push_back(flop / (1e9 * ceilings.gemm_gflop_s) / use.wall_s);
    first_losses.push_back(totals.steps.front().at(loss_name));
    last_losses.push_back(totals.steps.back().at(loss_name));
  }
  const bool repeats =
      std::all_of(last_losses.begin(), last_losses.end(),
                  [&](double loss) { return loss == last_losses[0]; });
  bool near = true;
  if (sft) {
    COX_ASSIGN_OR_RETURN(const double reference,
                         ReferenceLoss(flags, model, options, docs));
    const double bound = options.dtype == "fp32" ? 1e-5 : 1e-2;
    const double error =
        std::abs(first_losses[0] - reference) / std::abs(reference);
    near = error <= bound;
    report.Number("check_first_loss_relative_error", error);
  }
  *ok = repeats && near && std::isfinite(last_losses[0]);
  report.Integer("params", model.config.ParameterCount());
  report.Text("stage", flags.stage);
  report.Integer("batch", flags.batch);
  report.Integer("optimizer_steps_per_update", 1);
  report.Number("real_tokens", tokens);
  report.Number("slot_tokens", flags.layout == "packed" ? tokens : slots);
  report.Spread("step_s", totals.step_s);
  report.Spread("train_s", totals.step_s);
  for (const char* name :
       {"group", "epochs", "minibatches", "prompt_tokens", "new_tokens",
        "lengths", "generate_s", "score_s", "publish_s", "idle_s", "new_tok_s",
        "kl_mean", "reward_mean", "lag"}) {
    report.Null(name);
  }
  report.Spread("samples_s", totals.samples_s);
  report.Spread("tok_s", totals.tok_s);
  report.Spread("samples_per_cpu_s", totals.per_cpu_s);
  report.Spread("model_gflop_s", totals.gflop_s);
  report.Spread("mfu", totals.mfu);
  report.Text("roofline_formula", kFormula);
  report.Number("roofline_flop", flop);
  ReportCeilings(ceilings, report);
  report.Number("loss_first", first_losses[0]);
  report.Number("loss_last", last_losses[0]);
  report.Flag("check_same_losses", repeats);
  if (!*ok) {
    std::fprintf(stderr,
                 "cox bench train: self-check failed: repeats equal %d, first "
                 "loss as in a frozen pass %d, last loss %g\n",
                 repeats, near, last_losses[0]);
  }
  return DumpLosses(flags.dump_loss, totals.steps);
}

}  // namespace

absl::Status DumpLosses(
    const std::string& path,
    const std::vector<std::map<std::string, double>>& steps) {
  if (path.empty()) return absl::OkStatus();
  std::string text;
  for (size_t i = 0; i < steps.size(); ++i) {
    nlohmann::ordered_json line;
    line["step"] = i + 1;
    for (const auto& [name, value] : steps[i]) {
      if (name.rfind("loss/", 0) == 0 || name.rfind("grad_norm/", 0) == 0 ||
          name == "objective/kl" || name == "objective/scores") {
        line[name] = value;
      }
    }
    text += line.dump() + "\n";
  }
  return WriteFileDurably(Fs::Real(), path, text);
}

int BenchTrain(int argc, char** argv) {
  BenchTrainFlags flags;
  CLI::App app{"Training steps of one stage in one process", "cox bench train"};
  AddBenchModelFlags(app, flags.model);
  const auto positive = CLI::Range(int64_t{1}, int64_t{1} << 30);
  app.add_option("--stage", flags.stage)
      ->check(CLI::IsMember({"sft", "rm", "ppo", "grpo"}));
  app.add_option("--docs", flags.docs,
                 "JSONL with ids (sft, rm); else random documents of "
                 "--max-len");
  app.add_option("--prompts", flags.prompts,
                 "JSONL with prompt_ids (ppo, grpo); else random ones");
  app.add_option("--prompt-tokens", flags.prompt_tokens,
                 "length of random prompts")
      ->check(positive);
  app.add_option("--lengths", flags.lengths, "scheduled answers");
  app.add_option("--new-tokens", flags.new_tokens)->check(positive);
  app.add_option("--batch", flags.batch, "sequences per update")
      ->check(positive);
  app.add_option("--micro-batch", flags.micro_batch,
                 "sequences per backward pass, 0 = all");
  app.add_option("--group", flags.group, "answers per prompt (grpo)")
      ->check(CLI::Range(int64_t{2}, int64_t{1024}));
  app.add_option("--epochs", flags.epochs)->check(positive);
  app.add_option("--minibatches", flags.minibatches)->check(positive);
  app.add_option("--updates", flags.updates, "per run")->check(positive);
  app.add_option("--reward-model", flags.reward_model,
                 "folder; else the policy with a new head");
  app.add_option("--value-model", flags.value_model,
                 "folder; else the policy with a new head");
  app.add_option("--layout", flags.layout,
                 "packed = documents joined to blocks of --max-len (sft, rm)")
      ->check(CLI::IsMember({"padded", "packed"}));
  app.add_option("--max-len", flags.max_len)->check(positive);
  app.add_option("--roles", flags.roles,
                 "inproc only; processes are measured by a run")
      ->check(CLI::IsMember({"inproc"}));
  app.add_option("--dump-loss", flags.dump_loss,
                 "JSONL of losses and norms per update");
  int exit_code = 0;
  if (!StartModelBench(app, argc, argv, flags.model, &exit_code)) {
    return exit_code;
  }
  BenchReport report("train", flags.model.common);
  bool ok = false;
  const bool rollouts = flags.stage == "ppo" || flags.stage == "grpo";
  const absl::Status measured = rollouts
                                    ? MeasureRolloutStage(flags, report, &ok)
                                    : MeasureFileStage(flags, report, &ok);
  if (!measured.ok()) return BenchFailed("train", measured);
  return report.Print(ok);
}

}  // namespace cox
