#include "cli/replay_steps.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/metric_check.h"
#include "cli/recorded_config.h"
#include "coordinator/kl_control.h"
#include "coordinator/run_setup.h"
#include "coordinator/step_record.h"
#include "coordinator/wire_service.h"
#include "learner/checkpoint.h"
#include "learner/replay_service.h"
#include "lib/data/chat_template.h"
#include "lib/weights/manifest.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

namespace v1 = cox::v1;

// The order in which a step computes what it reports.
constexpr std::array<std::string_view, 14> kOrder = {
    "rollout/", "async/",     "objective/",   "mismatch/", "offpolicy/",
    "val/mean", "advantage/", "policy/first", "loss/",     "policy/",
    "val/",     "grad_norm/", "lr",           "kl_coef"};

size_t PlaceOf(const std::string& metric) {
  const auto found = std::find_if(kOrder.begin(), kOrder.end(),
                                  [&metric](std::string_view prefix) {
                                    return metric.starts_with(prefix);
                                  });
  return static_cast<size_t>(found - kOrder.begin());
}

// Tensor hashes of the trained model after a step, where the record has them:
// in a published version, or in a checkpoint that is still there.
absl::StatusOr<Manifest> RecordedManifest(const RecordedRun& run,
                                          const StepRow& row,
                                          const std::string& model) {
  const VersionRow* version = run.FindVersion("policy", {row.stage, row.step});
  if (version != nullptr && model == "policy") {
    return Manifest::FromCanonicalText(version->manifest);
  }
  const CheckpointRow* checkpoint = run.NewestCheckpoint(row.stage, row.step);
  if (checkpoint == nullptr || checkpoint->step != row.step) {
    return absl::NotFoundError("no record of single tensors");
  }
  COX_ASSIGN_OR_RETURN(
      const auto snapshot,
      LoadModel(run.fs(), JoinPath(run.DirectoryOf(*checkpoint), model),
                model));
  return snapshot->manifest;
}

std::string FirstTensor(const RecordedRun& run, const RecomputedStep& step) {
  const Manifest& own = step.trained->manifest;
  const absl::StatusOr<Manifest> recorded =
      RecordedManifest(run, *step.recorded, own.model);
  if (!recorded.ok()) {
    return "";
  }
  for (size_t i = 0; i < own.tensors.size(); ++i) {
    if (i >= recorded->tensors.size() ||
        recorded->tensors[i].name != own.tensors[i].name ||
        recorded->tensors[i].sha256 != own.tensors[i].sha256) {
      return absl::StrCat(", first different tensor: ", own.tensors[i].name);
    }
  }
  return recorded->config_json != own.config_json
             ? ", all tensors are equal, the model's configuration is not"
             : "";
}

absl::StatusOr<StageContext> MakeContext(const RecordedRun& run,
                                         const v1::RunConfig& config) {
  Fs& fs = run.fs();
  COX_ASSIGN_OR_RETURN(const PreparedRun prepared,
                       DescribeRun(fs, config, run.run_dir()));
  if (prepared.tokenizer_sha256 != run.Meta("tokenizer_sha256")) {
    return absl::DataLossError(absl::StrCat(
        run.run_dir(), "/tokenizer.json: expected SHA-256 ",
        run.Meta("tokenizer_sha256"), ", found ", prepared.tokenizer_sha256));
  }
  StageContext context;
  context.config = config;
  context.tokenizer = prepared.tokenizer;
  const std::string chat = JoinPath(run.run_dir(), "tokenizer_config.json");
  if (context.tokenizer != nullptr && fs.Exists(chat)) {
    COX_ASSIGN_OR_RETURN(context.tokenizer_config, fs.ReadAll(chat));
    COX_ASSIGN_OR_RETURN(context.chat,
                         ReadChatTemplate(context.tokenizer_config));
  }
  context.eos_ids = prepared.eos_ids;
  context.pad_id = prepared.pad_id;
  context.vocab_size = prepared.vocab_size;
  context.fs = &fs;
  const std::string run_dir = run.run_dir();
  context.fetch_file = [&fs, run_dir](const std::string& name) {
    return fs.ReadAll(JoinPath(run_dir, name));
  };
  return context;
}

void Refer(const RecordedRun& run, const CheckpointRow* row,
           v1::CheckpointRef* ref) {
  if (row != nullptr) {
    FillCheckpoint(*row, ref);
    ref->set_directory(run.DirectoryOf(*row));
  }
}

// What the coordinator told the learners when step `first` was next.
v1::Assignment MakeAssignment(const RecordedRun& run, int32_t stage,
                              int64_t first, std::string* from) {
  const RunPlan& plan = run.plan();
  v1::Assignment assignment;
  assignment.set_kind(v1::Assignment::TRAIN);
  assignment.set_stage(stage);
  assignment.set_stage_kind(std::string(StageKindName(plan.stage(stage).kind)));
  assignment.set_total_steps(plan.stage(stage).total_steps);
  const auto newest = [&run](int32_t of) {
    return of < 0 ? nullptr : run.NewestCheckpoint(of, INT64_MAX);
  };
  Refer(run, newest(plan.PolicyStageBefore(stage)),
        assignment.mutable_policy());
  Refer(run, newest(plan.StageBefore(stage, StageKind::kRm)),
        assignment.mutable_reward());
  *from = "where the stage started";
  for (int64_t before = first - 1; before > 0;) {
    const CheckpointRow* row = run.NewestCheckpoint(stage, before);
    if (row == nullptr) {
      if (run.NewestCheckpoint(stage, INT64_MAX) != nullptr) {
        absl::StrAppend(from, " (checkpoints up to step ", first - 1,
                        " are not kept)");
      }
      break;
    }
    const std::string directory = run.DirectoryOf(*row);
    const absl::Status verified =
        VerifyCheckpoint(run.fs(), directory, row->manifest_sha256).status();
    if (verified.ok()) {
      Refer(run, row, assignment.mutable_resume());
      *from = directory;
      break;
    }
    before = row->step - 1;
  }
  assignment.set_last_committed(first - 1);
  return assignment;
}

// The hash that the ledger has for the weights after `step`; "" = none.
std::string RecordedWeights(const RecordedRun& run, int32_t stage,
                            int64_t step) {
  if (const StepRow* row = run.FindStep(stage, step)) {
    return row->weight_hash;
  }
  const VersionRow* version = run.FindVersion("policy", {stage, step});
  return version == nullptr ? "" : version->content_hash;
}

}  // namespace

absl::StatusOr<StepReplay> StepReplay::Open(const RecordedRun& run,
                                            MakeEngine make_engine) {
  COX_ASSIGN_OR_RETURN(v1::RunConfig config, RecordedConfig(run));
  return StepReplay(run, std::move(config), std::move(make_engine));
}

absl::Status StepReplay::Run(
    const ReplayPlan& plan,
    const std::function<void(const std::string& text)>& told,
    const std::function<bool(const RecomputedStep&)>& on_step) {
  const RecordedRun& run = *run_;
  const bool has_units = run.plan().stage(plan.stage).has_units();
  ReplayOptions options;
  COX_ASSIGN_OR_RETURN(options.context, MakeContext(run, config_));
  options.context.make_engine = make_engine_;
  std::string from;
  options.assignment = MakeAssignment(run, plan.stage, plan.first, &from);
  options.ranks = plan.ranks > 0 ? plan.ranks : config_.roles().learners();
  options.last = plan.last;
  told(from);
  if (has_units) {
    options.batch = [&](int64_t step) -> absl::StatusOr<BatchInput> {
      BatchInput input;
      COX_ASSIGN_OR_RETURN(const std::vector<UnitRow> units,
                           run.UnitsOfStep(plan.stage, step));
      input.batch_sha256 = BatchHash(ToBatchUnits(units));
      input.kl_coef = KlCoefficients(run.state().controls).At(plan.stage, step);
      COX_ASSIGN_OR_RETURN(input.trajectories,
                           ReadStepTrajectories(run, plan.stage, step));
      return input;
    };
  }
  absl::Status own;
  bool started = false;
  options.on_step = [&](const ReplayedStep& done) {
    if (!started) {
      started = true;
      const std::string expected = RecordedWeights(run, plan.stage, done.step);
      if (!expected.empty() && expected != done.trained->content_hash) {
        own = absl::DataLossError(absl::StrCat(
            run.StageName(plan.stage), " step ", done.step,
            ": the replay starts from weights ", done.trained->content_hash,
            " (", from, "), the ledger has ", expected));
        return false;
      }
      return true;
    }
    RecomputedStep step;
    step.recorded = run.FindStep(plan.stage, done.step);
    step.skipped = done.result.skipped;
    step.batch_sha256 = done.result.batch_sha256;
    step.weight_hash = done.trained->content_hash;
    step.trained = done.trained;
    step.metrics = done.result.metrics;
    step.metrics.erase("async/staleness_max");
    std::erase_if(step.metrics, [](const auto& entry) {
      return DependsOnExecution(entry.first);
    });
    const auto of_rows = RowMetrics(run, plan.stage, done.step);
    if (!of_rows.ok()) {
      own = of_rows.status();
      return false;
    }
    for (const auto& [name, value] : *of_rows) {
      step.metrics[name] = value;
    }
    return on_step(step);
  };
  COX_RETURN_IF_ERROR(ReplayStage(options));
  return own;
}

std::optional<std::string> FirstDivergence(const RecordedRun& run,
                                           const RecomputedStep& step,
                                           double tolerance) {
  const StepRow& row = *step.recorded;
  const auto differ = [](const char* what, const std::string& ledger,
                         const std::string& own) {
    return absl::StrCat(what, ": the ledger has ", ledger, ", recomputed ",
                        own);
  };
  if (step.batch_sha256 != row.batch_sha256) {
    return differ("batch hash", row.batch_sha256, step.batch_sha256);
  }
  std::vector<std::pair<size_t, std::string>> wrong;
  const std::map<std::string, double> recorded(row.metrics.begin(),
                                               row.metrics.end());
  const auto number = [](double value) { return nlohmann::json(value).dump(); };
  for (const auto& [name, value] : recorded) {
    if (DependsOnExecution(name)) {
      continue;
    }
    const auto own = step.metrics.find(name);
    if (own == step.metrics.end()) {
      wrong.emplace_back(PlaceOf(name),
                         differ(name.c_str(), number(value), "nothing"));
    } else if (own->second != value &&
               !(std::abs(own->second - value) <= tolerance)) {
      wrong.emplace_back(PlaceOf(name), differ(name.c_str(), number(value),
                                               number(own->second)));
    }
  }
  for (const auto& [name, value] : step.metrics) {
    if (std::isfinite(value) && !recorded.contains(name)) {
      wrong.emplace_back(PlaceOf(name),
                         differ(name.c_str(), "nothing", number(value)));
    }
  }
  if (!wrong.empty()) {
    return std::min_element(wrong.begin(), wrong.end())->second;
  }
  if (step.skipped != row.skipped) {
    return differ("skipped", row.skipped ? "true" : "false",
                  step.skipped ? "true" : "false");
  }
  if (step.weight_hash != row.weight_hash) {
    return differ("weights' hash", row.weight_hash, step.weight_hash) +
           FirstTensor(run, step);
  }
  return std::nullopt;
}

}  // namespace cox
