#include "coordinator/run_outputs.h"

#include <limits>
#include <set>
#include <utility>

#include "coordinator/stage_steps.h"
#include "lib/base/hash.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/metrics/report.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

std::map<std::string, double> ToMap(const MetricList& metrics) {
  return {metrics.begin(), metrics.end()};
}

std::string KindOf(const CoordinatorCore& core, int32_t stage) {
  return std::string(StageKindName(core.plan().stage(stage).kind));
}

void Warn(std::string_view what, const absl::Status& status) {
  if (!status.ok()) {
    LogWarning(what, {Field("error", std::string(status.message()))});
  }
}

double Number(const Json& json, const char* key) {
  auto found = json.find(key);
  return found != json.end() && found->is_number()
             ? found->get<double>()
             : std::numeric_limits<double>::quiet_NaN();
}

std::string Text(const Json& json, const char* key) {
  auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>()
                                                   : std::string();
}

void AddEval(const std::string& text, ReportInput& report) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("rows")) {
    return;
  }
  const std::pair<const char*, Better> columns[] = {
      {"gold", Better::kHigher},
      {"reward", Better::kHigher},
      {"kl", Better::kNeither},
      {"length", Better::kNeither}};
  for (const Json& row : json["rows"]) {
    for (const auto& [key, better] : columns) {
      if (!row.contains(key) || !row[key].is_object()) {
        continue;
      }
      EvalCell cell;
      cell.system = Text(row, "name");
      cell.metric = key;
      cell.value = Number(row[key], "mean");
      cell.low = Number(row[key], "low");
      cell.high = Number(row[key], "high");
      cell.samples = row.value("n", int64_t{0});
      cell.better = better;
      report.eval.push_back(std::move(cell));
    }
  }
  report.eval_note = "95 % bootstrap intervals over held-out prompts.";
  if (!json.contains("samples")) {
    return;
  }
  for (const Json& row : json["samples"]) {
    if (!row.contains("before") || !row.contains("after")) {
      continue;
    }
    ReportSample sample;
    sample.prompt = Text(row, "prompt");
    sample.before = Text(row["before"], "text");
    sample.after = Text(row["after"], "text");
    sample.before_score = Number(row["before"], "gold");
    sample.after_score = Number(row["after"], "gold");
    report.samples.push_back(std::move(sample));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunOutputs>> RunOutputs::Open(
    Fs& fs, RunOutputsOptions options, const SegmentStore* segments,
    DecodeFunction decode, const CoordinatorCore& core) {
  std::unique_ptr<RunOutputs> outputs(
      new RunOutputs(fs, std::move(options), segments, std::move(decode)));
  COX_RETURN_IF_ERROR(outputs->OpenFiles(core));
  return outputs;
}

absl::Status RunOutputs::OpenFiles(const CoordinatorCore& core) {
  // Lines of steps that the core does not hold any more stand before these,
  // and stages without learner steps have one line each.
  size_t lines = static_cast<size_t>(core.plan().num_stages());
  for (int32_t stage = 0; stage < core.plan().num_stages(); ++stage) {
    lines += core.Steps(stage).size();
  }
  std::set<std::pair<std::string, int64_t>> present;
  if (fs_.Exists(Path("metrics.jsonl"))) {
    COX_ASSIGN_OR_RETURN(const std::vector<MetricRow> rows,
                         LoadLastMetricRows(Path("metrics.jsonl"), lines, fs_));
    for (const MetricRow& row : rows) {
      present.emplace(row.stage, row.step);
    }
  }
  COX_ASSIGN_OR_RETURN(writer_,
                       MetricsWriter::Open(fs_, Path("metrics.jsonl")));
  if (options_.tensorboard) {
    COX_ASSIGN_OR_RETURN(tensorboard_,
                         TensorboardWriter::Open(fs_, Path("tb")));
  }
  if (options_.samples_per_step > 0) {
    COX_ASSIGN_OR_RETURN(samples_, fs_.OpenAppend(Path("samples.jsonl")));
  }
  // A crash between the commit and the line lost the line only.
  for (int32_t stage = 0; stage < core.plan().num_stages(); ++stage) {
    for (const auto& [step, row] : core.Steps(stage)) {
      // Without a hash: forgotten, but for its metrics.
      if (!row.weight_hash.empty() &&
          !present.contains({KindOf(core, stage), step})) {
        COX_RETURN_IF_ERROR(
            writer_->Append(KindOf(core, stage), step, ToMap(row.metrics)));
      }
    }
  }
  return absl::OkStatus();
}

void RunOutputs::OnEffect(CoordinatorCore& core, const Effect& effect) {
  switch (effect.kind) {
    case Effect::Kind::kStepCommitted:
      StepCommitted(core, effect.stage, effect.step);
      break;
    case Effect::Kind::kStageComplete: {
      const absl::Status status = CompleteStage(core, effect.stage);
      if (!status.ok()) {
        core.Fail(absl::StrCat("stage ", KindOf(core, effect.stage), ": ",
                               std::string(status.message())),
                  kExitNeedsPerson);
      }
      break;
    }
    case Effect::Kind::kRunFailed:
      LogError("the run failed", {Field("why", effect.text)});
      if (options_.on_failure) {
        options_.on_failure(effect.text, effect.exit_code);
      }
      break;
    case Effect::Kind::kSegmentRemoved:  // CoreTurn's
    case Effect::Kind::kUnitGivenUp:
      break;
  }
}

void RunOutputs::StepCommitted(const CoordinatorCore& core, int32_t stage,
                               int64_t step) {
  const std::map<std::string, double> metrics =
      ToMap(core.Steps(stage).at(step).metrics);
  const std::string kind = KindOf(core, stage);
  Warn("metrics.jsonl", writer_->Append(kind, step, metrics));
  if (tensorboard_ != nullptr) {
    Warn("tensorboard", tensorboard_->Append(kind, step, metrics));
  }
  metrics_.SetMetrics(kind, metrics);
  metrics_.Set("cox_step", static_cast<double>(step), {{"stage", kind}});
  if (samples_ != nullptr && core.plan().stage(stage).has_units()) {
    Warn("samples.jsonl", WriteSamples(core, stage, step));
  }
}

absl::StatusOr<std::vector<SampleText>> RunOutputs::ReadSamples(
    const std::vector<UnitRow>& units, size_t limit) const {
  std::vector<SampleText> samples;
  for (const UnitRow& unit : units) {
    if (samples.size() >= limit) {
      break;
    }
    COX_ASSIGN_OR_RETURN(const std::string payload,
                         segments_->Read(unit.payload, unit.sha256));
    COX_ASSIGN_OR_RETURN(const std::vector<Trajectory> trajectories,
                         ParseUnit(payload));
    for (const Trajectory& t : trajectories) {
      if (samples.size() >= limit) {
        break;
      }
      SampleText sample;
      sample.id = t.id.ToString();
      if (decode_) {
        sample.prompt = ReadablePrompt(t, decode_);
        sample.response = decode_(t.response_ids);
      }
      sample.reward =
          t.reward_total.value_or(std::numeric_limits<double>::quiet_NaN());
      sample.finish = std::string(FinishReasonName(t.finish));
      samples.push_back(std::move(sample));
    }
  }
  return samples;
}

absl::Status RunOutputs::WriteSamples(const CoordinatorCore& core,
                                      int32_t stage, int64_t step) {
  COX_ASSIGN_OR_RETURN(
      const std::vector<SampleText> samples,
      ReadSamples(core.UnitsOfStep(stage, step),
                  static_cast<size_t>(options_.samples_per_step)));
  std::string lines;
  for (const SampleText& sample : samples) {
    Json row;
    row["stage"] = KindOf(core, stage);
    row["step"] = step;
    row["id"] = sample.id;
    row["prompt"] = sample.prompt;
    row["response"] = sample.response;
    row["reward"] = sample.reward;  // NaN is written as null
    row["finish"] = sample.finish;
    lines += row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  return samples_->Append(lines);
}

absl::StatusOr<std::vector<OutputUnit>> RunOutputs::ReadUnits(
    const CoordinatorCore& core, int64_t step) const {
  std::vector<OutputUnit> units;
  for (const UnitRow& row : core.SubmittedUnits(step)) {
    COX_ASSIGN_OR_RETURN(const std::string payload,
                         segments_->Read(row.payload, row.sha256));
    OutputUnit unit;
    unit.id = row.id;
    COX_ASSIGN_OR_RETURN(unit.trajectories, ParseUnit(payload));
    units.push_back(std::move(unit));
  }
  return units;
}

absl::StatusOr<bool> RunOutputs::WriteCollect(
    CoordinatorCore& core, std::map<std::string, double>& metrics) {
  CollectOptions options;
  options.label_noise = options_.label_noise;
  options.heldout_fraction = options_.heldout_fraction;
  options.seed = options_.seed;
  absl::StatusOr<CollectFiles> files;
  if (options_.label_by_people) {
    const bool have_labels = fs_.Exists(Path("labels.jsonl"));
    if (!have_labels && waiting_for_labels_) {
      return false;
    }
    COX_ASSIGN_OR_RETURN(const std::vector<OutputUnit> units,
                         ReadUnits(core, 1));
    if (!waiting_for_labels_) {
      COX_RETURN_IF_ERROR(WriteFileDurably(fs_, Path("collect_samples.jsonl"),
                                           MakeLabelRequests(units, decode_)));
    }
    if (!have_labels) {
      return false;
    }
    COX_ASSIGN_OR_RETURN(const std::string labels,
                         fs_.ReadAll(Path("labels.jsonl")));
    const std::string hash = Sha256Hex(labels);
    if (hash == rejected_labels_) {
      return false;
    }
    files = MakeLabelledFiles(options, units, labels, decode_);
    if (absl::IsInvalidArgument(files.status())) {
      // People make mistakes: say so once and wait for a better file.
      rejected_labels_ = hash;
      core.AddEvent("labels",
                    absl::StrCat("labels.jsonl: ",
                                 std::string(files.status().message())));
      LogWarning("labels.jsonl is refused",
                 {Field("why", std::string(files.status().message()))});
      return false;
    }
  } else {
    COX_ASSIGN_OR_RETURN(const std::vector<OutputUnit> units,
                         ReadUnits(core, 1));
    files = MakeCollectFiles(options, units, decode_);
  }
  COX_RETURN_IF_ERROR(files.status());
  COX_RETURN_IF_ERROR(WriteFileDurably(fs_, Path("comparisons.heldout.jsonl"),
                                       files->heldout_jsonl));
  COX_RETURN_IF_ERROR(
      WriteFileDurably(fs_, Path("comparisons.jsonl"), files->train_jsonl));
  metrics = files->metrics;
  return true;
}

absl::Status RunOutputs::WriteEval(const CoordinatorCore& core,
                                   std::map<std::string, double>& metrics) {
  // What learners measured on held-out data at the end of their stages.
  std::map<std::string, double> measured;
  for (int32_t stage = 0; stage < core.current_stage(); ++stage) {
    if (core.Steps(stage).empty()) {
      continue;
    }
    for (const auto& [name, value] :
         core.Steps(stage).rbegin()->second.metrics) {
      if (name.find("heldout") != std::string::npos ||
          name.find("human") != std::string::npos) {
        measured[absl::StrCat(name, "/", KindOf(core, stage))] = value;
      }
    }
  }
  COX_ASSIGN_OR_RETURN(const std::vector<OutputUnit> reference,
                       ReadUnits(core, 1));
  COX_ASSIGN_OR_RETURN(const std::vector<OutputUnit> policy,
                       ReadUnits(core, 2));
  EvalOptions options;
  options.bootstrap = options_.bootstrap;
  options.seed = options_.seed;
  COX_ASSIGN_OR_RETURN(
      const EvalOutput output,
      MakeEvalOutput(options, reference, policy, measured, decode_));
  metrics = output.metrics;
  return WriteFileDurably(fs_, Path("eval.json"), output.json);
}

absl::Status RunOutputs::CompleteStage(CoordinatorCore& core, int32_t stage) {
  const StageKind kind = core.plan().stage(stage).kind;
  std::map<std::string, double> metrics;
  if (kind == StageKind::kCollect) {
    COX_ASSIGN_OR_RETURN(const bool written, WriteCollect(core, metrics));
    if (!written) {
      if (!waiting_for_labels_) {
        waiting_for_labels_ = true;
        core.SetStageState("waiting for labels");
      }
      return absl::OkStatus();
    }
    waiting_for_labels_ = false;
  } else if (kind == StageKind::kEval) {
    COX_RETURN_IF_ERROR(WriteEval(core, metrics));
  }
  if (!metrics.empty()) {
    Warn("metrics.jsonl", writer_->Append(KindOf(core, stage), 1, metrics));
    if (tensorboard_ != nullptr) {
      Warn("tensorboard",
           tensorboard_->Append(KindOf(core, stage), 1, metrics));
    }
    metrics_.SetMetrics(KindOf(core, stage), metrics);
  }
  int64_t next_total = 0;
  const int32_t next = stage + 1;
  if (next < core.plan().num_stages() &&
      CountsRows(core.plan().stage(next).kind) &&
      core.plan().stage(next).total_steps == 0) {
    COX_ASSIGN_OR_RETURN(
        next_total, options_.steps_over_rows(core.plan().stage(next).kind));
  }
  core.FinishStage(stage, {metrics.begin(), metrics.end()}, next_total);
  LogInfo("stage done", {Field("stage", KindOf(core, stage))});
  Warn("report.html", WriteReportFile(core));
  return absl::OkStatus();
}

void RunOutputs::OnTick(CoordinatorCore& core) {
  if (waiting_for_labels_ && !core.done()) {
    const absl::Status status = CompleteStage(core, core.current_stage());
    if (!status.ok()) {
      core.Fail(std::string(status.message()), kExitNeedsPerson);
    }
  }
  metrics_.Set("cox_sessions", static_cast<double>(core.live_sessions()));
  metrics_.Set("cox_epoch", static_cast<double>(core.epoch().value));
  metrics_.Set("cox_generation", static_cast<double>(core.generation().value));
  metrics_.Set("cox_stage", static_cast<double>(core.current_stage()));
  const LoadView load = core.Load();
  metrics_.Set("cox_units_open", static_cast<double>(load.open_units));
  metrics_.Set("cox_units_ready", static_cast<double>(load.ready_units));
  metrics_.Set("cox_actors_live", static_cast<double>(load.live_actors));
  metrics_.Set("cox_actors_wanted", static_cast<double>(WantedActors(load)));
  metrics_.Set("cox_buffered_learner_seconds", BufferedSeconds(load));
}

absl::Status RunOutputs::WriteReportFile(const CoordinatorCore& core) {
  ReportInput report;
  report.title = options_.name;
  report.config_yaml = options_.config_yaml;
  const StatusView status = core.Status();
  for (const StageView& stage : status.stages) {
    report.facts.emplace_back(
        std::string(StageKindName(stage.kind)),
        absl::StrCat(stage.state, ", ", stage.step, " of ", stage.total_steps,
                     " steps"));
  }
  COX_ASSIGN_OR_RETURN(report.rows, LoadMetricRows(Path("metrics.jsonl"), fs_));
  if (fs_.Exists(Path("eval.json"))) {
    COX_ASSIGN_OR_RETURN(const std::string text,
                         fs_.ReadAll(Path("eval.json")));
    AddEval(text, report);
  }
  return WriteReport(report, Path("report.html"), fs_);
}

}  // namespace cox
