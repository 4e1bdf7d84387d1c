#include "coordinator/run_setup.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_join.h"
#include "coordinator/chat_setup.h"
#include "coordinator/model_folder_check.h"
#include "coordinator/plan_record.h"
#include "coordinator/stage_steps.h"
#include "lib/base/hash.h"
#include "lib/base/log.h"
#include "lib/data/batch.h"
#include "lib/data/dataset.h"
#include "lib/engine/model_config.h"
#include "lib/metrics/registry.h"
#include "lib/rpc/proto_convert.h"
#include "lib/weights/model_folder.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

std::vector<std::string> Strings(
    const google::protobuf::RepeatedPtrField<std::string>& list) {
  return {list.begin(), list.end()};
}

// All text of a row, for training a tokenizer.
void AppendTexts(const Row& row, std::vector<std::string>& texts) {
  std::string text = row.text + PromptText(row);
  for (const std::string* part :
       {&row.completion, &row.chosen, &row.rejected}) {
    absl::StrAppend(&text, *part);
  }
  for (const ChatMessage& message : row.messages) {
    absl::StrAppend(&text, message.content, "\n");
  }
  for (const std::string& response : row.responses) {
    absl::StrAppend(&text, response, "\n");
  }
  if (!text.empty()) {
    texts.push_back(std::move(text));
  }
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> TrainTokenizer(
    Fs& fs, const cox::v1::TokenizerSettings& settings) {
  BpeOptions options;
  options.vocab_size = static_cast<int>(settings.vocab_size());
  options.special_tokens = {settings.eos_token(), settings.pad_token()};
  for (const std::string& file : settings.files()) {
    COX_ASSIGN_OR_RETURN(Dataset data, LoadDataset(fs, {file}));
    for (const Row& row : data.rows) {
      AppendTexts(row, options.texts);
    }
  }
  LogInfo("training the tokenizer", {Field("documents", options.texts.size()),
                                     Field("vocab_size", options.vocab_size)});
  return Tokenizer::TrainByteLevelBpe(options);
}

absl::Status PrepareTokenizer(Fs& fs, bool resumed, PreparedRun& run) {
  const cox::v1::TokenizerSettings& settings = run.config.tokenizer();
  if (settings.kind() == "none") {
    run.eos_ids = {settings.eos_ids().begin(), settings.eos_ids().end()};
    run.pad_id = settings.pad_id();
    run.vocab_size = settings.vocab_size();
    return absl::OkStatus();
  }
  const std::string path = JoinPath(run.run_dir, "tokenizer.json");
  if (resumed && fs.Exists(path)) {
    COX_ASSIGN_OR_RETURN(run.tokenizer, Tokenizer::FromFile(path));
  } else if (settings.kind() == "file") {
    const std::string source = TokenizerSource(run.config);
    COX_ASSIGN_OR_RETURN(const std::string json, ReadTokenizerJson(fs, source));
    absl::StatusOr<std::shared_ptr<const Tokenizer>> read =
        Tokenizer::FromJson(json);
    COX_RETURN_IF_ERROR(Annotate(read.status(), source));
    run.tokenizer = *std::move(read);
  } else {
    COX_ASSIGN_OR_RETURN(run.tokenizer, TrainTokenizer(fs, settings));
  }
  if (!resumed || !fs.Exists(path)) {
    COX_RETURN_IF_ERROR(WriteFileDurably(fs, path, run.tokenizer->ToJson()));
  }
  COX_ASSIGN_OR_RETURN(const std::string bytes, fs.ReadAll(path));
  run.tokenizer_sha256 = Sha256Hex(bytes);
  const auto eos = run.tokenizer->TokenToId(settings.eos_token());
  if (!eos.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.eos_token: the tokenizer has no token '",
                     settings.eos_token(), "'"));
  }
  run.eos_ids = {*eos};
  // A tokenizer of a model folder need not have our padding token; padded
  // places are masked everywhere.
  run.pad_id = run.tokenizer->TokenToId(settings.pad_token()).value_or(*eos);
  run.vocab_size = run.tokenizer->vocab_size();
  return absl::OkStatus();
}

// A model folder's vocabulary may be padded beyond its tokenizer's.
absl::Status ApplyModelFolder(Fs& fs, PreparedRun& run) {
  if (run.config.model().init().empty()) {
    if (run.config.model().type() == "instruct_encdec") {
      run.decoder_start = run.eos_ids.empty() ? 0 : run.eos_ids[0];
    }
    return absl::OkStatus();
  }
  const std::string& path = run.config.model().init();
  COX_ASSIGN_OR_RETURN(const ModelFolder folder, ReadModelTexts(fs, path));
  const std::string& text = folder.config_json;
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": config.json: a JSON object expected"));
  }
  if (auto size = json.find("vocab_size");
      size != json.end() && size->is_number_integer()) {
    run.vocab_size = std::max(run.vocab_size, size->get<int64_t>());
  }
  if (json.value("model_type", "") == "instruct_encdec") {
    absl::StatusOr<ModelConfig> model = ModelConfig::FromJson(text);
    COX_RETURN_IF_ERROR(Annotate(model.status(), path));
    run.decoder_start = model->DecoderStart();
  }
  return absl::OkStatus();
}

absl::Status CheckModelFolders(Fs& fs, const PreparedRun& run) {
  const auto check = [&](const char* field, const std::string& dir) {
    return dir.empty() ? absl::OkStatus()
                       : CheckModelFolder(fs, field, dir, run.tokenizer.get(),
                                          run.vocab_size);
  };
  COX_RETURN_IF_ERROR(check("model.init", run.config.model().init()));
  COX_RETURN_IF_ERROR(check("model.reference", run.config.model().reference()));
  return run.config.reward().kind() == "rm"
             ? check("reward.path", run.config.reward().path())
             : absl::OkStatus();
}

absl::StatusOr<std::vector<PromptExample>> LoadPrompts(Fs& fs,
                                                       const PreparedRun& run,
                                                       StageKind kind) {
  const cox::v1::RunConfig& config = run.config;
  const auto& files = kind == StageKind::kCollect ? config.collect().prompts()
                      : kind == StageKind::kPpo   ? config.ppo().prompts()
                                                  : config.eval().prompts();
  const std::string field =
      absl::StrCat(std::string(StageKindName(kind)), ".prompts");
  absl::StatusOr<Dataset> data = LoadDataset(
      fs, Strings(files),
      run.tokenizer == nullptr ? RowKind::kPromptIds : RowKind::kPrompt);
  if (!data.ok() && run.tokenizer != nullptr) {
    // Rows of token ids are fine with a tokenizer too; of two complaints the
    // first one fits files of text.
    if (absl::StatusOr<Dataset> ids =
            LoadDataset(fs, Strings(files), RowKind::kPromptIds);
        ids.ok()) {
      data = std::move(ids);
    }
  }
  if (!data.ok() && run.chat.has_value()) {
    if (absl::StatusOr<Dataset> chats =
            LoadDataset(fs, Strings(files), RowKind::kMessages);
        chats.ok()) {
      data = std::move(chats);
    }
  }
  COX_RETURN_IF_ERROR(Annotate(data.status(), field));
  TokenizeOptions options;
  options.chat = run.chat;
  options.max_prompt_tokens = config.generation().max_prompt_tokens();
  options.decoder_start = run.decoder_start;
  absl::StatusOr<std::vector<PromptExample>> prompts =
      TokenizePrompts(*data, run.tokenizer.get(), options);
  COX_RETURN_IF_ERROR(Annotate(prompts.status(), field));
  for (size_t i = 0; i < prompts->size(); ++i) {
    const PromptExample& prompt = (*prompts)[i];
    const auto outside = [&run](int32_t id) {
      return id < 0 || id >= run.vocab_size;
    };
    if (prompt.ids.empty() || std::ranges::any_of(prompt.ids, outside) ||
        std::ranges::any_of(prompt.instruction_ids, outside)) {
      return absl::InvalidArgumentError(absl::StrCat(
          field, ": ", data->Where(data->rows[i]),
          ": the prompt is empty or has ids outside the vocabulary"));
    }
  }
  return prompts;
}

// What stage sft would find too long is told before anything is trained.
absl::Status CheckSftRows(Fs& fs, const PreparedRun& run) {
  const cox::v1::LmSettings& sft = run.config.sft();
  if (!HasStage(run.config, "sft") || run.tokenizer == nullptr ||
      run.eos_ids.empty()) {
    return absl::OkStatus();
  }
  COX_ASSIGN_OR_RETURN(const Dataset data,
                       LoadDataset(fs, Strings(sft.train())));
  TokenizeOptions options = SftTokenizeOptions(
      sft.sequence_length(), run.eos_ids[0], run.decoder_start);
  options.chat = run.chat;
  return Annotate(TokenizeSft(data, *run.tokenizer, options).status(),
                  "sft.train");
}

StagePlan LearnerStage(const cox::v1::RunConfig& config, StageKind kind) {
  StagePlan stage;
  stage.kind = kind;
  stage.total_steps = kind == StageKind::kPretrain ? config.pretrain().steps()
                      : kind == StageKind::kSft    ? config.sft().steps()
                                                   : 0;
  return stage;
}

StagePlan UnitStage(const cox::v1::RunConfig& config, StageKind kind,
                    int64_t prompts, bool after_tuning) {
  StagePlan stage;
  stage.kind = kind;
  stage.prompt_count = prompts;
  const auto at_most = [&](int64_t limit) {
    return limit > 0 ? std::min(limit, prompts) : prompts;
  };
  switch (kind) {
    case StageKind::kCollect:
      stage.total_steps = 1;
      stage.prompts_per_step = at_most(config.collect().max_prompts());
      stage.unit_prompts = config.collect().unit_prompts();
      stage.samples_per_prompt = config.collect().samples_per_prompt();
      break;
    case StageKind::kPpo:
      stage.total_steps = config.ppo().steps();
      stage.prompts_per_step = config.ppo().prompts_per_step();
      stage.unit_prompts = config.ppo().unit_prompts();
      stage.samples_per_prompt = config.ppo().samples_per_prompt();
      break;
    default:
      stage.total_steps = after_tuning ? 2 : 1;
      stage.prompts_per_step = at_most(config.eval().max_prompts());
      stage.unit_prompts = config.eval().unit_prompts();
      stage.samples_per_prompt = config.eval().best_of();
      stage.samples_per_prompt_final = 1;
  }
  return stage;
}

SchedulePlan ScheduleOf(const cox::v1::ScheduleSettings& settings) {
  SchedulePlan schedule;
  const std::string& mode = settings.mode();
  schedule.mode = mode == "fixed_lag"   ? ScheduleMode::kFixedLag
                  : mode == "streaming" ? ScheduleMode::kStreaming
                                        : ScheduleMode::kSync;
  schedule.lag = mode == "fixed_lag" ? settings.lag() : 0;
  schedule.eta = settings.eta();
  return schedule;
}

absl::Status PreparePlan(Fs& fs, PreparedRun& run) {
  const cox::v1::RunConfig& config = run.config;
  PlanOptions options;
  options.seed = config.seed();
  options.schedule = ScheduleOf(config.schedule());
  PromptBookOptions book;
  COX_RETURN_IF_ERROR(ApplyModelFolder(fs, run));
  COX_RETURN_IF_ERROR(CheckSftRows(fs, run));
  book.vocab_size = run.vocab_size;
  book.max_new_tokens = config.generation().max_new_tokens();
  std::map<int32_t, std::vector<PromptExample>> prompts;
  bool after_tuning = false;
  for (const std::string& name : config.stages()) {
    COX_ASSIGN_OR_RETURN(const StageKind kind, ParseStageKind(name));
    const auto index = static_cast<int32_t>(options.stages.size());
    if (kind == StageKind::kPretrain || kind == StageKind::kSft ||
        CountsRows(kind)) {
      StagePlan stage = LearnerStage(config, kind);
      if (CountsRows(kind) && HasOwnRows(config, kind)) {
        COX_ASSIGN_OR_RETURN(stage.total_steps,
                             StepsOverRows(fs, config, run.run_dir, kind));
      }
      after_tuning = after_tuning || stage.tunes_policy();
      options.stages.push_back(stage);
      continue;
    }
    COX_ASSIGN_OR_RETURN(prompts[index], LoadPrompts(fs, run, kind));
    options.stages.push_back(
        UnitStage(config, kind, static_cast<int64_t>(prompts[index].size()),
                  after_tuning));
    after_tuning = after_tuning || kind == StageKind::kPpo;
  }
  COX_ASSIGN_OR_RETURN(RunPlan plan, RunPlan::Create(std::move(options)));
  for (int32_t i = 0; i < plan.num_stages(); ++i) {
    const StageKind kind = plan.stage(i).kind;
    if (CountsRows(kind) && plan.stage(i).total_steps == 0 &&
        plan.StageBefore(i, StageKind::kCollect) < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(std::string(StageKindName(kind)),
                       ": files are needed without a stage collect"));
    }
  }
  run.prompts = std::make_unique<PromptBook>(book, plan, std::move(prompts));
  run.plan = std::move(plan);
  return absl::OkStatus();
}

CoreOptions MakeCoreOptions(const cox::v1::RunConfig& config,
                            const std::string& run_dir) {
  CoreOptions options;
  options.lease = absl::Seconds(config.limits().lease_s());
  options.suspect = absl::Seconds(config.limits().suspect_s());
  options.world_size = config.roles().learners();
  // A run that never trains one may still be evaluated by the labeller.
  options.reward_model =
      config.reward().kind() == "rm" &&
      (HasStage(config, "rm") || !config.reward().path().empty());
  options.reward_address = config.reward().kind() == "grpc"
                               ? config.reward().address()
                               : std::string();
  options.gold_available = !config.reward().lexicon().empty();
  options.monitor_gold = config.reward().monitor_gold();
  options.label_by_people = config.collect().labeller() == "file";
  options.eval_average = config.ppo().ema_decay() > 0;
  options.checkpoint_dir = config.checkpoint().dir().empty()
                               ? JoinPath(run_dir, "checkpoints")
                               : config.checkpoint().dir();
  options.checkpoints = RetentionOf(config.checkpoint());
  options.payloads.bytes =
      static_cast<uint64_t>(config.log().keep_payload_bytes());
  options.payloads.steps = config.log().keep_payload_steps();
  options.audit_fraction = config.audit().fraction();
  options.actors = config.roles().actors();
  options.poison_after = config.audit().poison_after();
  options.give_up_after = config.audit().give_up_after();
  return options;
}

absl::Status CheckBestMetric(const cox::v1::CheckpointSettings& settings) {
  const MetricInfo* metric = FindMetric(settings.best_metric());
  if (settings.keep_best() > 0 &&
      (metric == nullptr || metric->name != settings.best_metric())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "checkpoint.best_metric: the name of a metric expected (`cox explain` "
        "lists them), found '",
        settings.best_metric(), "'"));
  }
  return absl::OkStatus();
}

absl::Status CheckSameRun(const LedgerState& state, const std::string& hash,
                          const cox::v1::RunConfig& config) {
  auto recorded_hash = state.meta.find("config_hash");
  auto text = state.meta.find("config");
  if (recorded_hash == state.meta.end() || text == state.meta.end()) {
    return absl::DataLossError("ledger: the configuration is missing");
  }
  if (recorded_hash->second == hash) {
    return absl::OkStatus();
  }
  LoadOptions load;
  load.path = "ledger";
  load.yaml_text = text->second;
  load.check_files = false;
  COX_ASSIGN_OR_RETURN(cox::v1::RunConfig recorded, LoadConfig(load));
  return absl::InvalidArgumentError(absl::StrCat(
      "the run directory holds a run with another configuration; these "
      "settings cannot change (recorded -> wanted):\n  ",
      absl::StrJoin(ResumableDiff(recorded, config), "\n  "),
      "\nuse the recorded values or another --run-dir"));
}

}  // namespace

CheckpointRetention RetentionOf(const cox::v1::CheckpointSettings& settings) {
  return {.keep_last = settings.keep_last(),
          .keep_best = settings.keep_best(),
          .best_metric = settings.best_metric(),
          .best_is_highest = settings.best_mode() != "min"};
}

DecodeFunction MakeDecode(std::shared_ptr<const Tokenizer> tokenizer) {
  if (tokenizer == nullptr) {
    return nullptr;
  }
  return [tokenizer](std::span<const int32_t> ids) {
    absl::StatusOr<std::string> text = tokenizer->Decode(ids);
    // Ids of a padded vocabulary have no text.
    return text.ok() ? *std::move(text) : std::string();
  };
}

absl::StatusOr<PreparedRun> DescribeRun(Fs& fs,
                                        const cox::v1::RunConfig& config,
                                        const std::string& run_dir) {
  PreparedRun run;
  run.config = config;
  run.run_dir = run_dir;
  run.config_hash = ConfigHash(config);
  const std::string tokenizer = JoinPath(run_dir, "tokenizer.json");
  if (config.tokenizer().kind() != "none" && !fs.Exists(tokenizer)) {
    return absl::NotFoundError(absl::StrCat(tokenizer, ": the run has none"));
  }
  COX_RETURN_IF_ERROR(PrepareTokenizer(fs, /*resumed=*/true, run));
  COX_RETURN_IF_ERROR(ApplyModelFolder(fs, run));
  return run;
}

absl::StatusOr<PreparedRun> PrepareRun(Fs& fs, const cox::v1::RunConfig& config,
                                       const std::string& run_dir) {
  PreparedRun run;
  run.config = config;
  run.run_dir = run_dir;
  run.config_hash = ConfigHash(config);
  COX_RETURN_IF_ERROR(CheckBestMetric(config.checkpoint()));
  run.core_options = MakeCoreOptions(config, run_dir);
  COX_RETURN_IF_ERROR(fs.MakeDirs(run_dir, 0700));
  COX_ASSIGN_OR_RETURN(run.ledger,
                       OpenSqliteLedger(JoinPath(run_dir, "ledger.db")));
  COX_ASSIGN_OR_RETURN(
      run.state,
      run.ledger->Load(
          {.keep_steps = ScheduleOf(config.schedule())
                             .StepsKept(run.core_options.history_steps),
           .keep_events = kEventsInMemory}));
  auto known = run.state.meta.find("run_id");
  const bool resumed = known != run.state.meta.end();
  if (resumed) {
    run.run_id = known->second;
    COX_RETURN_IF_ERROR(CheckSameRun(run.state, run.config_hash, config));
  } else {
    run.run_id = NewSessionId();
  }
  COX_RETURN_IF_ERROR(PrepareTokenizer(fs, resumed, run));
  COX_ASSIGN_OR_RETURN(run.chat,
                       PrepareChatTemplate(fs, config, run_dir, resumed));
  COX_RETURN_IF_ERROR(CheckModelFolders(fs, run));
  COX_RETURN_IF_ERROR(PreparePlan(fs, run));
  SegmentStore::Options segments;
  segments.left_out = run.state.left_out;
  segments.dir = JoinPath(run_dir, "segments");
  // Whole segments are deleted: several fit into the budget.
  segments.segment_bytes =
      std::clamp<uint64_t>(run.core_options.payloads.bytes / 8,
                           uint64_t{16} << 10, segments.segment_bytes);
  COX_ASSIGN_OR_RETURN(run.segments,
                       SegmentStore::Open(fs, segments, run.state.units,
                                          run.state.removed_segments,
                                          run.ledger->last_transaction()));
  const std::string yaml = PrintConfig(config);
  COX_RETURN_IF_ERROR(
      WriteFileDurably(fs, JoinPath(run_dir, "config.yaml"), yaml));
  // Last: a run directory whose first start failed is not bound to anything.
  COX_RETURN_IF_ERROR(run.ledger->Commit(
      {MetaRow{"run_id", run.run_id}, MetaRow{"config", yaml},
       MetaRow{"config_hash", run.config_hash},
       MetaRow{"tokenizer_sha256", run.tokenizer_sha256},
       MetaRow{"plan", PlanRecord(run.plan->options())}}));
  return run;
}

}  // namespace cox
