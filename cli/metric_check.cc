#include "cli/metric_check.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/recorded_config.h"
#include "coordinator/stage_outputs.h"
#include "coordinator/step_record.h"
#include "learner/rollout_batch.h"
#include "learner/stage_options_service.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

// Shortest text that reads back as the same number.
std::string Exact(double value) { return nlohmann::json(value).dump(); }

absl::StatusOr<std::vector<OutputUnit>> ReadOutputUnits(const RecordedRun& run,
                                                        int32_t stage,
                                                        int64_t step) {
  COX_ASSIGN_OR_RETURN(const std::vector<UnitRow> rows,
                       run.UnitsOfStep(stage, step));
  std::vector<OutputUnit> units;
  for (const UnitRow& row : rows) {
    OutputUnit& unit = units.emplace_back();
    unit.id = row.id;
    COX_ASSIGN_OR_RETURN(unit.trajectories, run.ReadUnit(row));
  }
  return units;
}

absl::StatusOr<std::map<std::string, double>> CollectMetrics(
    const RecordedRun& run, const cox::v1::RunConfig& config, int32_t stage) {
  COX_ASSIGN_OR_RETURN(const std::vector<OutputUnit> units,
                       ReadOutputUnits(run, stage, 1));
  CollectOptions options;
  options.label_noise = config.collect().label_noise();
  options.heldout_fraction = config.collect().heldout_fraction();
  options.seed = config.seed();
  absl::StatusOr<CollectFiles> files;
  if (config.collect().labeller() == "file") {
    COX_ASSIGN_OR_RETURN(
        const std::string labels,
        run.fs().ReadAll(JoinPath(run.run_dir(), "labels.jsonl")));
    files = MakeLabelledFiles(options, units, labels, nullptr);
  } else {
    files = MakeCollectFiles(options, units, nullptr);
  }
  COX_RETURN_IF_ERROR(files.status());
  return files->metrics;
}

absl::StatusOr<std::map<std::string, double>> EvalMetrics(
    const RecordedRun& run, const cox::v1::RunConfig& config, int32_t stage) {
  COX_ASSIGN_OR_RETURN(const std::vector<OutputUnit> reference,
                       ReadOutputUnits(run, stage, 1));
  COX_ASSIGN_OR_RETURN(const std::vector<OutputUnit> policy,
                       ReadOutputUnits(run, stage, 2));
  EvalOptions options;
  options.bootstrap = config.eval().bootstrap();
  options.seed = config.seed();
  COX_ASSIGN_OR_RETURN(EvalOutput output,
                       MakeEvalOutput(options, reference, policy, {}, nullptr));
  return std::move(output.metrics);
}

}  // namespace

bool DependsOnExecution(std::string_view metric) {
  return metric.starts_with("timing_s/") || metric.starts_with("perf/") ||
         metric.starts_with("checkpoint/") || metric == "eps" ||
         metric.ends_with("tokens_s");
}

absl::StatusOr<cox::v1::RunConfig> RecordedConfig(const RecordedRun& run) {
  LoadOptions load;
  load.path = "ledger";
  load.yaml_text = run.Meta("config");
  load.check_files = false;
  load.recorded = true;
  if (load.yaml_text.empty()) {
    return absl::DataLossError("ledger: the configuration is missing");
  }
  return LoadConfig(load);
}

absl::StatusOr<MetricComparison> MetricComparison::Create(
    const RecordedRun& run, std::string only, double tolerance) {
  MetricComparison comparison(run, std::move(only), tolerance);
  const std::string path = JoinPath(run.run_dir(), "metrics.jsonl");
  if (run.fs().Exists(path)) {
    COX_ASSIGN_OR_RETURN(const std::vector<MetricRow> rows,
                         LoadMetricRows(path, run.fs()));
    for (const MetricRow& row : rows) {
      comparison.logged_[{row.stage, row.step}] = row.metrics;
    }
  }
  return comparison;
}

const std::map<std::string, double>* MetricComparison::Logged(
    int32_t stage, int64_t step) const {
  // Lines name the kind: of two stages of a kind the later one has the last
  // word on a step.
  const RunPlan& plan = run_->plan();
  const StageKind kind = plan.stage(stage).kind;
  for (int32_t later = stage + 1; later < plan.num_stages(); ++later) {
    if (plan.stage(later).kind == kind) {
      return nullptr;
    }
  }
  const auto found = logged_.find({std::string(StageKindName(kind)), step});
  return found == logged_.end() ? nullptr : &found->second;
}

void MetricComparison::Add(const std::string& where, const std::string& name,
                           const char* source, double recorded,
                           double computed) {
  MetricVerdict& verdict = verdicts_[name];
  const bool equal =
      recorded == computed || (std::isnan(recorded) && std::isnan(computed));
  const double difference = equal ? 0.0 : std::abs(recorded - computed);
  verdict.max_difference = std::isnan(difference)
                               ? std::numeric_limits<double>::infinity()
                               : std::max(verdict.max_difference, difference);
  if (!equal && !(difference <= tolerance_)) {
    if (verdict.differing++ == 0) {
      verdict.first = absl::StrCat(where, ": ", source, " ", Exact(recorded),
                                   ", recomputed ", Exact(computed));
    }
  }
}

void MetricComparison::Compare(int32_t stage, int64_t step,
                               const MetricList& recorded,
                               const std::map<std::string, double>& computed,
                               bool complete) {
  const std::string where =
      absl::StrCat(run_->StageName(stage), " step ", step);
  const std::map<std::string, double> row(recorded.begin(), recorded.end());
  const auto wanted = [this](const std::string& name) {
    return (only_.empty() || name == only_) && !DependsOnExecution(name);
  };
  for (const auto& [name, value] : computed) {
    const auto found = row.find(name);
    if (!wanted(name) || (found == row.end() && !std::isfinite(value))) {
      continue;
    }
    ++verdicts_[name].steps;
    Add(where, name, "the ledger has",
        found == row.end() ? std::nan("") : found->second, value);
    const std::map<std::string, double>* logged = Logged(stage, step);
    if (logged != nullptr) {
      const auto line = logged->find(name);
      Add(where, name, "metrics.jsonl has",
          line == logged->end() ? std::nan("") : line->second, value);
    }
  }
  for (const auto& [name, value] : row) {
    if (complete && wanted(name) && !computed.contains(name)) {
      ++verdicts_[name].steps;
      Add(where, name, "the ledger has", value, std::nan(""));
    }
  }
}

void MetricComparison::Retired(int32_t stage, int64_t first, int64_t last) {
  retired_.push_back(
      absl::StrCat(run_->StageName(stage), first == last ? " step " : " steps ",
                   first, first == last ? "" : absl::StrCat(" to ", last)));
}

bool MetricComparison::ok() const {
  return std::all_of(verdicts_.begin(), verdicts_.end(), [](const auto& entry) {
    return entry.second.differing == 0;
  });
}

std::string MetricComparison::Text() const {
  std::string out = absl::StrFormat("%-28s %8s %14s  %s\n", "metric", "steps",
                                    "max difference", "verdict");
  int64_t values = 0;
  int64_t differing = 0;
  for (const auto& [name, verdict] : verdicts_) {
    values += verdict.steps;
    differing += verdict.differing > 0 ? 1 : 0;
    absl::StrAppendFormat(&out, "%-28s %8d %14.3g  %s\n", name, verdict.steps,
                          verdict.max_difference,
                          verdict.differing == 0
                              ? "equal"
                              : absl::StrCat("DIFFERS in ", verdict.differing,
                                             ", first at ", verdict.first));
  }
  absl::StrAppend(&out, "explain: ", verdicts_.size(), " metrics, ", values,
                  " values recomputed, ",
                  differing == 0 ? "all equal to the record"
                                 : absl::StrCat(differing, " metrics differ"),
                  "\n");
  for (const std::string& steps : retired_) {
    absl::StrAppend(&out, "explain: payloads of ", steps,
                    " retired (log.keep_payload_bytes): not computed again\n");
  }
  return out;
}

std::string MetricComparison::Json() const {
  nlohmann::ordered_json out;
  out["ok"] = ok();
  out["retired"] = retired_;
  out["metrics"] = nlohmann::ordered_json::object();
  for (const auto& [name, verdict] : verdicts_) {
    auto& row = out["metrics"][name];
    row["steps"] = verdict.steps;
    row["differing"] = verdict.differing;
    row["max_difference"] = verdict.max_difference;
    row["first"] = verdict.first;
  }
  return out.dump(1) + "\n";
}

absl::StatusOr<MetricList> RowMetrics(const RecordedRun& run, int32_t stage,
                                      int64_t step) {
  if (!run.plan().stage(stage).has_units()) {
    return MetricList();
  }
  COX_ASSIGN_OR_RETURN(const std::vector<UnitRow> units,
                       run.UnitsOfStep(stage, step));
  const BatchRow* batch = run.FindBatch(stage, step);
  return BatchMetrics(step, units,
                      batch == nullptr ? 0 : batch->dropped.size());
}

absl::StatusOr<std::vector<Trajectory>> ReadStepTrajectories(
    const RecordedRun& run, int32_t stage, int64_t step) {
  COX_ASSIGN_OR_RETURN(const std::vector<UnitRow> units,
                       run.UnitsOfStep(stage, step));
  std::vector<Trajectory> all;
  for (const UnitRow& unit : units) {
    COX_ASSIGN_OR_RETURN(std::vector<Trajectory> rows, run.ReadUnit(unit));
    std::move(rows.begin(), rows.end(), std::back_inserter(all));
  }
  return all;
}

int64_t FirstReplayable(const RecordedRun& run, int32_t stage, int64_t first) {
  if (run.state().removed_segments.empty() ||
      !run.plan().stage(stage).has_units()) {
    return first;
  }
  int64_t retired = 0;
  for (const StepRow& row : run.state().steps) {
    retired = row.stage == stage && run.IsRetired(stage, row.step) ? row.step
                                                                   : retired;
  }
  const CheckpointRow* from = run.NewestCheckpoint(stage, first - 1);
  if (retired == 0 || (from != nullptr && from->step >= retired)) {
    return first;
  }
  for (const CheckpointRow& row : run.state().checkpoints) {
    if (row.stage == stage && row.step >= retired) {
      return std::max(first, row.step + 1);
    }
  }
  return INT64_MAX;
}

absl::Status CheckRolloutMetrics(const RecordedRun& run, const StepRange& range,
                                 MetricComparison* comparison) {
  COX_ASSIGN_OR_RETURN(const cox::v1::RunConfig config, RecordedConfig(run));
  for (const StepRow& row : run.state().steps) {
    if (!range.Takes(row.stage, row.step) ||
        run.plan().stage(row.stage).kind != StageKind::kPpo) {
      continue;
    }
    if (run.IsRetired(row.stage, row.step)) {
      comparison->Retired(row.stage, row.step, row.step);
      continue;
    }
    COX_ASSIGN_OR_RETURN(
        const PpoOptions options,
        ReadPpo(config, row.stage, run.plan().stage(row.stage).total_steps));
    COX_ASSIGN_OR_RETURN(const std::vector<Trajectory> trajectories,
                         ReadStepTrajectories(run, row.stage, row.step));
    COX_ASSIGN_OR_RETURN(
        RolloutBatch batch,
        MakeRolloutBatch(row.step, trajectories, options.rollout));
    COX_ASSIGN_OR_RETURN(const MetricList of_rows,
                         RowMetrics(run, row.stage, row.step));
    for (const auto& [name, value] : of_rows) {
      batch.metrics[name] = value;
    }
    comparison->Compare(row.stage, row.step, row.metrics, batch.metrics,
                        /*complete=*/false);
  }
  return absl::OkStatus();
}

absl::Status CheckOutputMetrics(const RecordedRun& run, const StepRange& range,
                                MetricComparison* comparison) {
  COX_ASSIGN_OR_RETURN(const cox::v1::RunConfig config, RecordedConfig(run));
  for (const StageRow& row : run.state().stages) {
    const StageKind kind = run.plan().stage(row.stage).kind;
    if (row.state != "done" || !range.Takes(row.stage, 1)) {
      continue;
    }
    const bool outputs =
        kind == StageKind::kCollect || kind == StageKind::kEval;
    if (outputs &&
        (run.IsRetired(row.stage, 1) || run.IsRetired(row.stage, 2))) {
      comparison->Retired(row.stage, 1, row.total_steps);
      continue;
    }
    absl::StatusOr<std::map<std::string, double>> metrics;
    if (kind == StageKind::kCollect) {
      metrics = CollectMetrics(run, config, row.stage);
    } else if (kind == StageKind::kEval) {
      metrics = EvalMetrics(run, config, row.stage);
    } else {
      continue;
    }
    COX_RETURN_IF_ERROR(metrics.status());
    comparison->Compare(row.stage, 1, row.metrics, *metrics, /*complete=*/true);
  }
  return absl::OkStatus();
}

}  // namespace cox
