#include "cli/rehearsal_service.h"

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/process_memory.h"
#include "coordinator/run_setup.h"
#include "learner/best_of.h"
#include "learner/stage_data_service.h"
#include "learner/stage_options_service.h"
#include "lib/base/fs.h"

namespace cox {
namespace {

namespace v1 = cox::v1;
using Json = nlohmann::json;

constexpr int64_t kSampleRows = 512;
constexpr int32_t kSampleUnits = 8;
constexpr int64_t kSampleComparisons = 4096;
// A stage is rehearsed with about this many model FLOPs, which is seconds, but
// with so many steps that half of them are past the first ones' new memory.
constexpr double kStageFlops = 300e9;

// Adds up sequences of a stage.
struct RowSums {
  double rows = 0;
  double tokens = 0;
  double targets = 0;
  void Add(const Sequence& row) {
    rows += 1;
    tokens += static_cast<double>(row.length()) +
              static_cast<double>(row.instruction_ids.size());
    targets += static_cast<double>(row.targets());
  }
  StageSizes Sizes(double rows_of_step) const {
    return {rows_of_step, tokens / std::max(1.0, rows),
            targets / std::max(1.0, rows), 0, 0};
  }
};

std::string MeasuredOn(double rows, const std::string& files) {
  return absl::StrCat("measured on ", static_cast<int64_t>(rows), " rows of ",
                      files);
}

template <typename Paths>
std::string FilesOf(const Paths& paths) {
  std::vector<std::string> names;
  for (const std::string& path : paths) {
    names.push_back(path.substr(path.rfind('/') + 1));
  }
  return absl::StrJoin(names, ", ");
}

}  // namespace

std::vector<int64_t> AnswerLengths(const std::vector<int64_t>& demonstrations,
                                   int64_t limit, size_t count) {
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < count; ++i) {
    lengths.push_back(
        demonstrations.empty()
            ? limit
            : std::clamp<int64_t>(demonstrations[i % demonstrations.size()], 1,
                                  limit));
  }
  return lengths;
}

namespace {

// Fills a Rehearsal's parts, in the order of its functions.
class Preparation {
 public:
  Preparation(const v1::RunConfig& config, const RehearsalOptions& options,
              const std::string& dir)
      : config_(config), options_(options), dir_(dir) {}

  absl::Status Run() {
    COX_ASSIGN_OR_RETURN(run_, PrepareRun(Fs::Real(), config_, dir_));
    COX_RETURN_IF_ERROR(FindModel());
    context_.config = config_;
    context_.tokenizer = run_.tokenizer;
    context_.chat = run_.chat;
    context_.eos_ids = run_.eos_ids;
    context_.pad_id = run_.pad_id;
    context_.vocab_size = run_.vocab_size;
    context_.fs = &Fs::Real();
    context_.fetch_file = [this](const std::string& name) {
      return Fs::Real().ReadAll(JoinPath(dir_, name));
    };
    COX_RETURN_IF_ERROR(ReadDemonstrations());
    EstimateAnswers();
    COX_RETURN_IF_ERROR(PlanUnits());
    COX_RETURN_IF_ERROR(WriteComparisons());
    for (int32_t i = 0; i < run_.plan->num_stages(); ++i) {
      COX_RETURN_IF_ERROR(MeasureStage(i));
    }
    job_["eos_ids"] = run_.eos_ids;
    job_["pad_id"] = run_.pad_id;
    job_["vocab_size"] = run_.vocab_size;
    job_["units"] = units_;
    return WriteFileDurably(Fs::Real(), JoinPath(dir_, "rehearsal.json"),
                            job_.dump());
  }

  ModelConfig model_;
  RunSizes sizes_;
  Json job_;

 private:
  absl::Status FindModel() {
    if (config_.model().init().empty()) {
      COX_ASSIGN_OR_RETURN(model_,
                           ModelFromSettings(config_.model(), run_.vocab_size,
                                             run_.eos_ids, run_.pad_id));
    } else {
      COX_ASSIGN_OR_RETURN(const ModelFolder folder,
                           ReadModelTexts(Fs::Real(), config_.model().init()));
      COX_ASSIGN_OR_RETURN(model_, ModelConfig::FromJson(folder.config_json));
    }
    sizes_.parameters = model_.ParameterCount();
    sizes_.hidden = model_.hidden;
    sizes_.layers = model_.layers + model_.encoder_layers;
    sizes_.vocab = model_.vocab_size;
    return absl::OkStatus();
  }

  absl::Status ReadDemonstrations() {
    if (config_.sft().train().empty() || run_.tokenizer == nullptr) {
      return absl::OkStatus();
    }
    int32_t stage = 0;
    for (int32_t i = 0; i < run_.plan->num_stages(); ++i) {
      if (run_.plan->stage(i).kind == StageKind::kSft) stage = i;
    }
    COX_ASSIGN_OR_RETURN(const LmData data,
                         LoadSftData(context_, model_, stage));
    for (int64_t i = 0; i < kSampleRows; ++i) {
      const Sequence row = data.source->At(i);
      demonstrations_.push_back(row.targets());
      sft_.Add(row);
    }
    return absl::OkStatus();
  }

  void EstimateAnswers() {
    const int64_t limit = config_.generation().max_new_tokens();
    std::string source = "assumed: generation.max_new_tokens";
    if (options_.answer_tokens > 0) {
      demonstrations_ = {static_cast<int64_t>(options_.answer_tokens)};
      source = "given";
    } else if (!demonstrations_.empty() && !config_.sft().prompt_loss()) {
      source = absl::StrCat("estimated: as long as the answers in ",
                            FilesOf(config_.sft().train()));
    } else {
      demonstrations_.clear();
    }
    double sum = 0;
    const std::vector<int64_t> lengths =
        AnswerLengths(demonstrations_, limit, kSampleRows);
    for (const int64_t length : lengths) sum += static_cast<double>(length);
    sizes_.answer_tokens = sum / static_cast<double>(lengths.size());
    sizes_.lengths.push_back({"answers", sizes_.answer_tokens, source});
  }

  // One step of ppo, some units of other stages.
  absl::Status PlanUnits() {
    RowSums all;
    for (int32_t i = 0; i < run_.plan->num_stages(); ++i) {
      const StagePlan& stage = run_.plan->stage(i);
      if (!stage.has_units()) continue;
      const std::string kind(StageKindName(stage.kind));
      StageSizes& sizes = sizes_.stages[kind];
      sizes.prompts = static_cast<double>(stage.prompts_per_step);
      sizes.steps = stage.total_steps;
      const int32_t units =
          stage.kind == StageKind::kPpo
              ? stage.units_per_step()
              : std::min(kSampleUnits, stage.units_per_step());
      for (int32_t u = 0; u < units; ++u) {
        units_.push_back(Unit(kind, {i, 1, u}, &all));
      }
    }
    if (all.rows > 0) {
      sizes_.prompt_tokens = all.tokens / all.rows;
      sizes_.lengths.push_back({"prompts", sizes_.prompt_tokens,
                                options_.prompt_tokens > 0
                                    ? "given"
                                    : MeasuredOn(all.rows, "the prompts")});
    }
    return absl::OkStatus();
  }

  // As long as the user says, if so.
  void Resize(std::vector<int32_t>* ids) const {
    if (options_.prompt_tokens > 0) {
      ids->resize(static_cast<size_t>(options_.prompt_tokens), ids->back());
    }
  }

  Json Unit(const std::string& kind, const UnitId& id, RowSums* sums) {
    const int32_t samples = run_.prompts->SamplesPerPrompt(id);
    Json prompts = Json::array();
    for (const BookPrompt& prompt : run_.prompts->ForUnit(id)) {
      Sequence row;
      row.ids = prompt.ids;
      row.instruction_ids = prompt.instruction_ids;
      Resize(row.instruction_ids.empty() ? &row.ids : &row.instruction_ids);
      sums->Add(row);
      prompts.push_back(
          {{"ids", row.ids}, {"instruction_ids", row.instruction_ids}});
    }
    const size_t rows = prompts.size() * static_cast<size_t>(samples);
    return {{"kind", kind},
            {"stage", id.stage},
            {"samples", samples},
            {"scored", kind != "collect"},
            {"prompts", std::move(prompts)},
            {"lengths",
             AnswerLengths(demonstrations_,
                           config_.generation().max_new_tokens(), rows)}};
  }

  // What stage collect will have written, with answers of the estimated
  // lengths; only lengths matter.
  absl::Status WriteComparisons() {
    std::string jsonl;
    for (int32_t i = 0; i < run_.plan->num_stages(); ++i) {
      const StagePlan& stage = run_.plan->stage(i);
      if (stage.kind != StageKind::kCollect) continue;
      collected_ = static_cast<int64_t>(
          std::ceil(static_cast<double>(stage.prompts_per_step) *
                    (1 - config_.collect().heldout_fraction())));
      const size_t samples = static_cast<size_t>(stage.samples_per_prompt);
      int64_t rows = 0;
      for (int32_t u = 0; u < stage.units_per_step(); ++u) {
        for (const BookPrompt& prompt : run_.prompts->ForUnit({i, 1, u})) {
          if (++rows > std::min(collected_, kSampleComparisons)) break;
          absl::StrAppend(&jsonl, ComparisonRow(prompt, samples, rows), "\n");
        }
      }
    }
    if (jsonl.empty()) return absl::OkStatus();
    return WriteFileDurably(Fs::Real(), JoinPath(dir_, "comparisons.jsonl"),
                            jsonl);
  }

  std::string ComparisonRow(const BookPrompt& prompt, size_t samples,
                            int64_t number) const {
    Json row;
    row["prompt_ids"] = prompt.ids;
    if (!prompt.instruction_ids.empty()) {
      row["instruction_ids"] = prompt.instruction_ids;
    }
    const size_t first = static_cast<size_t>(number) * samples;
    const std::vector<int64_t> lengths =
        AnswerLengths(demonstrations_, config_.generation().max_new_tokens(),
                      first + samples);
    for (size_t k = 0; k < samples; ++k) {
      std::vector<int32_t> ids;
      for (int64_t t = 0; t < lengths[first + k]; ++t) {
        ids.push_back(
            static_cast<int32_t>((number * 31 + t * 7919) % run_.vocab_size));
      }
      row["response_ids"].push_back(std::move(ids));
      row["ranking"].push_back(k + 1);
    }
    return row.dump();
  }

  absl::Status MeasureStage(int32_t index) {
    const StagePlan& stage = run_.plan->stage(index);
    const std::string kind(StageKindName(stage.kind));
    if (!stage.has_learner_steps()) return absl::OkStatus();
    double flops = 0;
    const int64_t least = stage.kind == StageKind::kPpo ? 2 : 5;
    const int64_t most = stage.kind == StageKind::kPpo ? 4 : 40;
    if (stage.kind == StageKind::kPpo) {
      const double rows =
          static_cast<double>(config_.ppo().prompts_per_step()) *
          config_.ppo().samples_per_prompt();
      const double length = sizes_.prompt_tokens + sizes_.answer_tokens;
      flops = 8 * ForwardFlops(sizes_, rows * length, length, 0);
    } else {
      COX_RETURN_IF_ERROR(MeasureRows(stage, kind));
      const StageSizes& s = sizes_.stages[kind];
      flops = 3 * ForwardFlops(sizes_, s.rows * s.tokens, s.tokens,
                               s.rows * s.targets);
    }
    job_["stages"].push_back(
        {{"stage", index},
         {"kind", kind},
         {"steps",
          std::clamp<int64_t>(static_cast<int64_t>(kStageFlops / flops), least,
                              most)}});
    return absl::OkStatus();
  }

  absl::Status MeasureRows(const StagePlan& stage, const std::string& kind) {
    StageSizes& sizes = sizes_.stages[kind];
    switch (stage.kind) {
      case StageKind::kPretrain: {
        const double length =
            static_cast<double>(config_.pretrain().sequence_length());
        sizes = {static_cast<double>(config_.pretrain().batch()), length,
                 length - 1, 0, 0};
        sizes_.lengths.push_back(
            {"pretrain blocks", length, "exact: pretrain.sequence_length"});
        break;
      }
      case StageKind::kSft:
        sizes = sft_.Sizes(static_cast<double>(config_.sft().batch()));
        sizes_.lengths.push_back(
            {"sft rows", sizes.tokens,
             MeasuredOn(sft_.rows, FilesOf(config_.sft().train()))});
        break;
      default:
        COX_RETURN_IF_ERROR(MeasureAnswers(stage.kind, kind, &sizes));
    }
    sizes.steps = stage.total_steps > 0 ? stage.total_steps : StepsOf(kind);
    return absl::OkStatus();
  }

  // Over what stage collect will have left.
  int64_t StepsOf(const std::string& kind) const {
    const auto over = [this](const auto& settings) {
      return settings.epochs() *
             ((collected_ + settings.batch() - 1) / settings.batch());
    };
    return kind == "rm"    ? over(config_.rm())
           : kind == "rft" ? over(config_.rft())
           : kind == "dpo" ? over(config_.dpo())
                           : over(config_.kto());
  }

  // Stages that learn from answers, the run's own or given ones.
  absl::Status MeasureAnswers(StageKind kind, const std::string& name,
                              StageSizes* sizes) {
    RowSums sums;
    double examples = 0;
    const auto add = [&](const std::vector<Sequence>& rows) {
      if (examples >= static_cast<double>(kSampleRows)) return;
      examples += 1;
      for (const Sequence& row : rows) sums.Add(row);
    };
    double batch = 0;
    bool own = false;
    if (kind == StageKind::kRm) {
      COX_ASSIGN_OR_RETURN(const RmData data, LoadRmData(context_, model_));
      for (const Comparison& row : data.train) add(row.completions);
      batch = static_cast<double>(config_.rm().batch());
      own = config_.rm().comparisons().empty();
    } else if (kind == StageKind::kDpo) {
      COX_ASSIGN_OR_RETURN(const DpoData data, LoadDpoData(context_, model_));
      for (const Comparison& row : data.train) add(row.completions);
      batch = static_cast<double>(config_.dpo().batch());
      own = config_.dpo().comparisons().empty();
    } else if (kind == StageKind::kKto) {
      COX_ASSIGN_OR_RETURN(const std::vector<LabelledRow> data,
                           LoadKtoData(context_, model_));
      for (const LabelledRow& row : data) add(row.completions);
      batch = static_cast<double>(config_.kto().batch());
      own = config_.kto().train().empty();
    } else {
      COX_ASSIGN_OR_RETURN(const std::vector<Comparison> data,
                           LoadRftData(context_, model_));
      for (const Sequence& row : BestByRank(data)) add({row});
      batch = static_cast<double>(config_.rft().batch());
      own = config_.rft().comparisons().empty();
    }
    *sizes = sums.Sizes(batch * sums.rows / std::max(1.0, examples));
    sizes_.lengths.push_back(
        {absl::StrCat(name, " rows"), sizes->tokens,
         own ? "prompts measured, answers as above"
             : MeasuredOn(sums.rows, "the stage's files")});
    return absl::OkStatus();
  }

  const v1::RunConfig& config_;
  const RehearsalOptions& options_;
  const std::string dir_;
  PreparedRun run_;
  StageContext context_;
  RowSums sft_;
  std::vector<int64_t> demonstrations_;  // tokens of their answers
  int64_t collected_ = 0;                // comparisons to train on
  Json units_ = Json::array();
};

}  // namespace

Rehearsal::Rehearsal(Rehearsal&& other) noexcept
    : config_(std::move(other.config_)),
      dir_(std::exchange(other.dir_, "")),
      model_(std::move(other.model_)),
      sizes_(std::move(other.sizes_)),
      job_(std::move(other.job_)),
      run_bytes_(other.run_bytes_),
      coordinator_bytes_(other.coordinator_bytes_),
      coordinator_program_(other.coordinator_program_) {}

Rehearsal::~Rehearsal() {
  if (!dir_.empty()) static_cast<void>(Fs::Real().RemoveAll(dir_));
}

absl::StatusOr<Rehearsal> Rehearsal::Prepare(const v1::RunConfig& config,
                                             const RehearsalOptions& options) {
  const char* tmp = std::getenv("TMPDIR");
  std::string dir = absl::StrCat(tmp != nullptr && *tmp != '\0' ? tmp : "/tmp",
                                 "/cox-plan-XXXXXX");
  if (mkdtemp(dir.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat(dir, ": cannot be created"));
  }
  Rehearsal rehearsal;
  rehearsal.dir_ = dir;
  rehearsal.run_bytes_ = OwnMemory().peak_private;
  rehearsal.config_ = config;
  Preparation preparation(config, options, dir);
  COX_RETURN_IF_ERROR(preparation.Run());
  rehearsal.model_ = std::move(preparation.model_);
  rehearsal.sizes_ = std::move(preparation.sizes_);
  rehearsal.job_ = std::move(preparation.job_);
  // This process has read what the coordinator of the run will hold.
  const ProcessMemory own = OwnMemory();
  rehearsal.coordinator_bytes_ = own.peak_private;
  rehearsal.coordinator_program_ = own.program;
  return rehearsal;
}

}  // namespace cox
