// cox-replay: computes logged steps of a run again and compares them with its
// record. `cox replay` and `cox explain --check` start it; it is a binary of
// its own because it needs LibTorch.

#include <cstdio>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/metric_check.h"
#include "cli/replay_steps.h"
#include "cli/row_table.h"
#include "cli/score_check.h"
#include "learner/checkpoint.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/model/api.h"
#include "lib/rpc/engine_settings.h"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string run_dir;
  std::string stage;
  int64_t step = 0;
  int64_t to = 0;
  int ranks = 0;
  double tolerance = 0;
  bool verbose = false;
  bool json = false;
  std::string metric;
};

int Fail(const char* command, const absl::Status& status) {
  std::fprintf(stderr, "%s: %s\n", command,
               std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

// A replay that came to another result says so with 1, whatever its code.
int FailCheck(const char* command, const absl::Status& status) {
  const int code = Fail(command, status);
  return absl::IsDataLoss(status) ? kExitCheckFailed : code;
}

int64_t LastStep(const RecordedRun& run, int32_t stage) {
  int64_t last = 0;
  for (const StepRow& row : run.state().steps) {
    last = row.stage == stage ? row.step : last;
  }
  return last;
}

// The stage to replay: the named one, else the last ppo stage, else the last
// that committed steps.
absl::StatusOr<int32_t> ChooseStage(const RecordedRun& run,
                                    const std::string& text) {
  if (!text.empty()) {
    return run.FindStage(text);
  }
  int32_t chosen = -1;
  for (int32_t stage = 0; stage < run.plan().num_stages(); ++stage) {
    const bool ppo = run.plan().stage(stage).kind == StageKind::kPpo;
    const bool before_is_ppo =
        chosen >= 0 && run.plan().stage(chosen).kind == StageKind::kPpo;
    if (LastStep(run, stage) > 0 && (ppo || !before_is_ppo)) {
      chosen = stage;
    }
  }
  if (chosen < 0) {
    return absl::NotFoundError("no step is committed yet");
  }
  return chosen;
}

absl::StatusOr<StepReplay> OpenReplay(const RecordedRun& run,
                                      std::string* numerics) {
  COX_ASSIGN_OR_RETURN(StepReplay probe, StepReplay::Open(run, nullptr));
  const EngineOptions options = EngineOptionsOf(probe.config());
  COX_ASSIGN_OR_RETURN(*numerics, InitTorch(options));
  return StepReplay::Open(run, [options] { return MakeTrainEngine(options); });
}

// Other hardware or another build may round differently.
void ExplainNumerics(const RecordedRun& run, const std::string& own) {
  const std::string recorded = run.Meta("numerics/learner");
  if (!recorded.empty() && recorded != own) {
    std::fprintf(stderr,
                 "replay: this machine computes as '%s', the run's learners as "
                 "'%s': bits may differ\n",
                 own.c_str(), recorded.c_str());
  }
}

std::vector<Json> MetricRows(const RecomputedStep& step) {
  std::vector<Json> rows;
  for (const auto& [name, value] : step.recorded->metrics) {
    if (DependsOnExecution(name)) {
      continue;
    }
    Json row;
    row["metric"] = name;
    row["recorded"] = value;
    const auto own = step.metrics.find(name);
    row["recomputed"] = own == step.metrics.end() ? Json() : Json(own->second);
    rows.push_back(std::move(row));
  }
  std::sort(rows.begin(), rows.end(), [](const Json& a, const Json& b) {
    return a["metric"] < b["metric"];
  });
  return rows;
}

int Replay(const Options& options) {
  absl::StatusOr<RecordedRun> run =
      RecordedRun::Open(Fs::Real(), options.run_dir);
  if (!run.ok()) {
    return Fail("replay", run.status());
  }
  const absl::StatusOr<int32_t> stage = ChooseStage(*run, options.stage);
  if (!stage.ok()) {
    return Fail("replay", stage.status());
  }
  ReplayPlan plan;
  plan.stage = *stage;
  plan.first = options.step;
  plan.last = options.to > 0 ? options.to : options.step;
  plan.ranks = options.ranks;
  const std::string name = run->StageName(*stage);
  const int64_t committed = LastStep(*run, *stage);
  if (plan.first < 1 || plan.last < plan.first || plan.last > committed) {
    return Fail("replay", absl::InvalidArgumentError(
                              absl::StrCat(name, ": steps 1 to ", committed,
                                           " are committed, asked for ",
                                           plan.first, " to ", plan.last)));
  }
  if (const int64_t possible = FirstReplayable(*run, *stage, plan.first);
      possible > plan.first) {
    return Fail("replay",
                absl::NotFoundError(absl::StrCat(
                    name, " step ", plan.first,
                    ": payloads that it needs are retired "
                    "(log.keep_payload_bytes); ",
                    possible > committed
                        ? "no step of this stage can be computed again"
                        : absl::StrCat("steps ", possible, " to ", committed,
                                       " can be computed again"))));
  }
  std::string numerics;
  absl::StatusOr<StepReplay> replay = OpenReplay(*run, &numerics);
  if (!replay.ok()) {
    return Fail("replay", replay.status());
  }
  ExplainNumerics(*run, numerics);
  std::string diverged;
  Json out = Json::array();
  const auto told = [&](const std::string& from) {
    const int ranks =
        plan.ranks > 0 ? plan.ranks : replay->config().roles().learners();
    std::fprintf(options.json ? stderr : stdout,
                 "replay: %s, from %s, %d rank%s, %s\n", name.c_str(),
                 from.c_str(), ranks, ranks == 1 ? "" : "s", numerics.c_str());
  };
  const auto on_step = [&](const RecomputedStep& step) {
    const int64_t number = step.recorded->step;
    const auto divergence = FirstDivergence(*run, step, options.tolerance);
    const std::vector<Json> rows = MetricRows(step);
    if (options.json) {
      Json row;
      row["stage"] = name;
      row["step"] = number;
      row["equal"] = !divergence.has_value();
      row["first_divergence"] =
          divergence.has_value() ? Json(*divergence) : Json();
      row["batch"] = step.batch_sha256;
      row["weights"] = step.weight_hash;
      row["metrics"] = rows;
      out.push_back(std::move(row));
    } else if (!divergence.has_value()) {
      std::printf(
          "step %lld: weights' hash equals the ledger (%zu metrics and "
          "the batch too)%s\n",
          static_cast<long long>(number), rows.size(),
          number < plan.first ? ", on the way" : "");
    }
    if (options.verbose && number >= plan.first && !options.json) {
      std::fputs(FormatRows(rows, /*json=*/false).c_str(), stdout);
    }
    if (divergence.has_value()) {
      diverged = absl::StrCat("step ", number, ": ", *divergence);
    }
    return !divergence.has_value();
  };
  const absl::Status status = replay->Run(plan, told, on_step);
  if (!status.ok()) {
    return FailCheck("replay", status);
  }
  if (options.json) {
    std::printf("%s\n", out.dump(1).c_str());
  } else if (!diverged.empty()) {
    std::printf("DIVERGES at %s\n", diverged.c_str());
  }
  return diverged.empty() ? kExitDone : kExitCheckFailed;
}

// Whether some step of the stage recorded the metric.
bool Records(const RecordedRun& run, const StepRange& range, int32_t stage,
             const std::string& metric) {
  for (const StepRow& row : run.state().steps) {
    if (row.stage != stage || !range.Takes(row.stage, row.step)) {
      continue;
    }
    for (const auto& [name, value] : row.metrics) {
      if (metric.empty() || name == metric) {
        return true;
      }
    }
  }
  return false;
}

// The recorded answers of ppo stages scored again by the reward model. True:
// all scores are the recorded ones.
absl::StatusOr<bool> CheckRewards(const RecordedRun& run,
                                  const cox::v1::RunConfig& config,
                                  const StepRange& range, FILE* out) {
  bool equal = true;
  for (int32_t stage = 0; stage < run.plan().num_stages(); ++stage) {
    if (run.plan().stage(stage).kind != StageKind::kPpo ||
        (range.stage >= 0 && range.stage != stage) ||
        LastStep(run, stage) == 0) {
      continue;
    }
    const std::string folder = RewardModelFolder(run, config, stage);
    if (folder.empty()) continue;
    COX_ASSIGN_OR_RETURN(const std::unique_ptr<ScoreEngine> engine,
                         MakeScoreEngine(EngineOptionsOf(config)));
    COX_ASSIGN_OR_RETURN(std::shared_ptr<const Snapshot> model,
                         LoadModel(run.fs(), folder, "reward"));
    COX_RETURN_IF_ERROR(engine->Load(std::move(model)));
    COX_ASSIGN_OR_RETURN(const ScoreVerdict verdict,
                         CheckScores(run, stage, range, engine.get()));
    std::fprintf(
        out,
        "%s: %lld answers scored again by %s, largest difference "
        "%.3g%s%s\n",
        run.StageName(stage).c_str(), static_cast<long long>(verdict.answers),
        folder.c_str(), verdict.max_difference,
        verdict.differing > 0 ? "; DIFFERS at " : "", verdict.first.c_str());
    equal = equal && verdict.differing == 0;
  }
  return equal;
}

absl::StatusOr<StepRange> RangeOf(const Options& options,
                                  const RecordedRun& run) {
  StepRange range;
  if (!options.stage.empty()) {
    COX_ASSIGN_OR_RETURN(range.stage, run.FindStage(options.stage));
  }
  if (options.step > 0) {
    range.first = options.step;
    range.last = options.to > 0 ? options.to : options.step;
  }
  return range;
}

int Check(const Options& options) {
  absl::StatusOr<RecordedRun> run =
      RecordedRun::Open(Fs::Real(), options.run_dir);
  if (!run.ok()) {
    return Fail("explain", run.status());
  }
  const absl::StatusOr<StepRange> asked = RangeOf(options, *run);
  if (!asked.ok()) {
    return Fail("explain", asked.status());
  }
  const StepRange range = *asked;
  absl::StatusOr<MetricComparison> comparison =
      MetricComparison::Create(*run, options.metric, options.tolerance);
  if (!comparison.ok()) {
    return Fail("explain", comparison.status());
  }
  absl::Status status = CheckOutputMetrics(*run, range, &*comparison);
  std::string numerics;
  absl::StatusOr<StepReplay> replay = OpenReplay(*run, &numerics);
  status.Update(replay.status());
  if (!status.ok()) {
    return Fail("explain", status);
  }
  ExplainNumerics(*run, numerics);
  bool rewards_equal = true;
  if (options.metric.empty()) {
    const absl::StatusOr<bool> equal = CheckRewards(
        *run, replay->config(), range, options.json ? stderr : stdout);
    if (!equal.ok()) {
      return FailCheck("explain", equal.status());
    }
    rewards_equal = *equal;
  }
  for (int32_t stage = 0; stage < run->plan().num_stages(); ++stage) {
    if (!Records(*run, range, stage, options.metric)) {
      continue;
    }
    ReplayPlan plan;
    plan.stage = stage;
    plan.first = range.first;
    plan.last = std::min(range.last, LastStep(*run, stage));
    plan.ranks = options.ranks;
    if (const int64_t possible = FirstReplayable(*run, stage, plan.first);
        possible > plan.first) {
      comparison->Retired(stage, plan.first, std::min(possible - 1, plan.last));
      if (possible > plan.last) {
        continue;
      }
      plan.first = possible;
    }
    status = replay->Run(
        plan,
        [&](const std::string& from) {
          std::fprintf(stderr, "explain: computing %s again from %s\n",
                       run->StageName(stage).c_str(), from.c_str());
        },
        [&](const RecomputedStep& step) {
          if (range.Takes(stage, step.recorded->step)) {
            comparison->Compare(stage, step.recorded->step,
                                step.recorded->metrics, step.metrics,
                                /*complete=*/true);
          }
          return true;
        });
    if (!status.ok()) {
      return FailCheck("explain", status);
    }
  }
  std::fputs((options.json ? comparison->Json() : comparison->Text()).c_str(),
             stdout);
  if (comparison->verdicts().empty()) {
    return Fail("explain",
                absl::NotFoundError(absl::StrCat(
                    options.run_dir, " has not recorded ",
                    options.metric.empty() ? "any metric" : options.metric)));
  }
  return comparison->ok() && rewards_equal ? kExitDone : kExitCheckFailed;
}

void AddCommon(CLI::App* command, Options& o) {
  command->add_option("--stage", o.stage, "name or number; default ppo");
  command->add_option("--step", o.step, "step to compute again");
  command->add_option("--to", o.to, "last step; default the same");
  command->add_option("--ranks", o.ranks, "default roles.learners of the run");
  command->add_option("--tolerance", o.tolerance,
                      "largest difference of a metric; default 0");
  command->add_flag("--json", o.json);
}

int Main(int argc, char** argv) {
  Options o;
  int code = kExitDone;
  CLI::App app{"computes logged steps again, offline", "cox"};
  app.require_subcommand(1);
  CLI::App* replay = app.add_subcommand(
      "replay", "compute a logged step again and compare it with the ledger");
  replay->add_option("run", o.run_dir, "run directory")->required();
  AddCommon(replay, o);
  replay->get_option("--step")->required();
  replay->add_flag("--verbose", o.verbose, "every metric, recorded and again");
  replay->callback([&] { code = Replay(o); });
  CLI::App* check = app.add_subcommand(
      "explain", "compute metrics again and compare them with the record");
  check->add_option("metric", o.metric, "default: all");
  check->add_option("--check", o.run_dir, "run directory")->required();
  AddCommon(check, o);
  check->callback([&] { code = Check(o); });
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitDone : kExitUsage;
  }
  return code;
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  cox::InitLog("cox-replay");
  cox::InitProcess(/*die_with_parent=*/false);
  return cox::Main(argc, argv);
}
