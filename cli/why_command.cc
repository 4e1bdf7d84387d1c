#include "cli/why_command.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/row_table.h"
#include "coordinator/ledger_reader.h"
#include "coordinator/segments.h"
#include "lib/base/process.h"
#include "lib/data/tokenizer.h"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "why: %s\n", std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

std::string IdsText(const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) {
    absl::StrAppend(&text, text.empty() ? "" : " ", id);
  }
  return text;
}

// The text of token ids where the run has a tokenizer, else the ids.
std::string TextOf(const RecordedRun& run, const std::vector<int32_t>& ids) {
  const auto tokenizer =
      Tokenizer::FromFile(JoinPath(run.run_dir(), "tokenizer.json"));
  if (tokenizer.ok()) {
    if (auto text = (*tokenizer)->Decode(ids); text.ok()) {
      return *std::move(text);
    }
  }
  return IdsText(ids);
}

// Where the unit went: its step, or why it has none.
struct Fate {
  const StepRow* step = nullptr;
  int64_t place = 0;  // in the step's batch, from 1
  int64_t of = 0;
  std::string text;  // without a step
};

Fate FateOf(const RecordedRun& run, const UnitId& id) {
  Fate fate;
  if (!run.plan().stage(id.stage).has_learner_steps()) {
    fate.text = "in no step: this stage trains nothing";
    return fate;
  }
  for (const StepRow& row : run.state().steps) {
    if (row.stage != id.stage) {
      continue;
    }
    const auto units = run.UnitsOfStep(row.stage, row.step);
    if (!units.ok()) {
      continue;
    }
    for (size_t i = 0; i < units->size(); ++i) {
      if ((*units)[i].id == id) {
        fate.step = &row;
        fate.place = static_cast<int64_t>(i) + 1;
        fate.of = static_cast<int64_t>(units->size());
        return fate;
      }
    }
  }
  for (const BatchRow& row : run.state().batches) {
    if (std::count(row.dropped.begin(), row.dropped.end(), id) > 0) {
      fate.text = absl::StrCat("in no step: too stale when the batch of step ",
                               row.step, " was frozen");
      return fate;
    }
  }
  fate.text = "in no committed step yet";
  return fate;
}

void AddUnit(const RecordedRun& run, const UnitRow& unit, Json* out) {
  Json& json = *out;
  json["unit"] = unit.id.ToString();
  json["stage"] = run.StageName(unit.id.stage);
  const PolicyVersion version{unit.id.stage, unit.version_step};
  json["version"] = version.ToString();
  json["weights"] = unit.policy_hash;
  const VersionRow* row = run.FindVersion("policy", version);
  const StepRow* made = run.FindStep(unit.id.stage, unit.version_step);
  json["weights_recorded"] =
      row == nullptr ? "no such version was published"
      : row->content_hash != unit.policy_hash
          ? absl::StrCat("published with another hash, ", row->content_hash)
      : made != nullptr
          ? absl::StrCat("published, made by step ", made->step,
                         " in generation ", made->generation.value)
          : "published, what the stage started from";
  const Fate fate = FateOf(run, unit.id);
  if (fate.step == nullptr) {
    json["trained"] = fate.text;
  } else {
    json["trained"] = absl::StrCat(
        "step ", fate.step->step, " of ", run.StageName(unit.id.stage),
        ", unit ", fate.place, " of ", fate.of, " in its batch",
        fate.step->skipped ? " (skipped: no weight changed)" : "");
    json["staleness"] = fate.step->step - 1 - unit.version_step;
    json["batch_hash"] = fate.step->batch_sha256;
    json["weights_after"] = fate.step->weight_hash;
    const CheckpointRow* first = nullptr;
    const CheckpointRow* newest = nullptr;
    for (const CheckpointRow& checkpoint : run.state().checkpoints) {
      if (checkpoint.stage == unit.id.stage &&
          checkpoint.step >= fate.step->step) {
        first = first == nullptr ? &checkpoint : first;
        newest = &checkpoint;
      }
    }
    json["checkpoint"] =
        first == nullptr ? Json("none kept holds this step yet")
        : first == newest
            ? Json(run.DirectoryOf(*first))
            : Json(absl::StrCat(run.DirectoryOf(*first), " and later ones"));
  }
  json["payload"] =
      absl::StrCat(SegmentPath(run.SegmentsDir(), unit.payload.segment),
                   ", bytes ", unit.payload.offset, "+", unit.payload.length);
  json["payload_sha256"] = unit.sha256;
  if (const UnitFailedRow* failed = run.FindFailed(unit.id)) {
    json["given_up"] = failed->why;
  }
}

void AddTrajectory(const RecordedRun& run, const Trajectory& t, Json* out) {
  Json& json = *out;
  json["prompt"] =
      TextOf(run, t.instruction_ids.empty() ? t.prompt_ids : t.instruction_ids);
  const std::vector<PlannedPrompt> planned =
      run.plan().UnitExists(t.id.unit) ? run.plan().PromptsOf(t.id.unit)
                                       : std::vector<PlannedPrompt>();
  if (t.id.prompt >= 0 && static_cast<size_t>(t.id.prompt) < planned.size()) {
    json["prompt_row"] = planned[static_cast<size_t>(t.id.prompt)].row;
  }
  json["prompt_id"] = t.prompt_id;
  json["prompt_ids"] = t.prompt_ids;
  if (!t.instruction_ids.empty()) {
    json["instruction_ids"] = t.instruction_ids;
  }
  json["answer"] = TextOf(run, t.response_ids);
  json["answer_ids"] = t.response_ids;
  json["finish"] = std::string(FinishReasonName(t.finish));
  json["reward"] = t.reward_total.has_value() ? Json(*t.reward_total) : Json();
  for (const auto& [name, value] : t.reward_parts) {
    json["reward_parts"][name] = value;
  }
  double behaviour = 0;
  for (const float logprob : t.behaviour_logprobs) {
    behaviour += double{logprob};
  }
  json["logprob"] = behaviour;
  if (t.reference_logprobs.size() == t.behaviour_logprobs.size() &&
      !t.reference_logprobs.empty()) {
    double reference = 0;
    for (const float logprob : t.reference_logprobs) {
      reference += double{logprob};
    }
    json["reference_logprob"] = reference;
    json["kl"] = behaviour - reference;
  }
}

std::string Value(const Json& value) {
  if (value.is_null()) {
    return "none";
  }
  if (value.is_number_float()) {
    return absl::StrFormat("%.6g", value.get<double>());
  }
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// One fact a line, in plain words.
void Print(const Json& json) {
  const auto line = [&json](const char* label, const char* key,
                            const char* note = "") {
    if (json.contains(key)) {
      std::printf("%-12s %s%s\n", label, Value(json[key]).c_str(), note);
    }
  };
  line("sample", "sample");
  line("unit", "unit");
  line("stage", "stage");
  line("prompt", "prompt");
  line("  row", "prompt_row", " of the stage's prompts, from 0");
  line("  id", "prompt_id", " (keys its random numbers)");
  line("  tokens", "prompt_ids");
  line("  instruction", "instruction_ids");
  line("answer", "answer");
  line("  tokens", "answer_ids");
  line("  end", "finish");
  line("weights", "version");
  line("  hash", "weights");
  line("  ledger", "weights_recorded");
  line("reward", "reward");
  if (json.contains("reward_parts")) {
    for (const auto& [name, value] : json["reward_parts"].items()) {
      std::printf("  %-10s %s\n", name.c_str(), Value(value).c_str());
    }
  }
  line("log-prob", "logprob", " when it was sampled, sum over its tokens");
  line("  reference", "reference_logprob");
  line("  KL", "kl", " nats: sampled - reference");
  line("given up", "given_up");
  line("trained in", "trained");
  line("  staleness", "staleness", " versions");
  line("  batch", "batch_hash");
  line("  weights", "weights_after", " after the step");
  line("checkpoint", "checkpoint");
  line("payload", "payload");
  line("  SHA-256", "payload_sha256",
       json.contains("sample") ? " (read and verified)" : "");
}

}  // namespace

int ExplainSample(const std::string& run_dir, const std::string& id,
                  bool json) {
  const absl::StatusOr<RecordedRun> run =
      RecordedRun::Open(Fs::Real(), run_dir);
  if (!run.ok()) {
    return Fail(run.status());
  }
  const bool whole_unit = id.find('/') == std::string::npos;
  TrajectoryId wanted;
  if (whole_unit) {
    const absl::StatusOr<UnitId> unit = ParseUnitId(id);
    if (!unit.ok()) {
      return Fail(unit.status());
    }
    wanted.unit = *unit;
  } else {
    const absl::StatusOr<TrajectoryId> parsed = ParseTrajectoryId(id);
    if (!parsed.ok()) {
      return Fail(parsed.status());
    }
    wanted = *parsed;
  }
  const UnitRow* unit = run->FindUnit(wanted.unit);
  if (unit == nullptr) {
    return Fail(absl::NotFoundError(
        absl::StrCat("unit ", wanted.unit.ToString(), ": ",
                     run->plan().UnitExists(wanted.unit)
                         ? "planned, no result is recorded yet"
                         : "not in this run's plan")));
  }
  const absl::StatusOr<std::vector<Trajectory>> rows = run->ReadUnit(*unit);
  if (run->IsRetired(*unit)) {
    // Its row says everything but what was in the bytes.
    Json out;
    out["answer"] = std::string(rows.status().message());
    AddUnit(*run, *unit, &out);
    if (json) {
      std::fputs(FormatRows({out}, /*json=*/true).c_str(), stdout);
    } else {
      Print(out);
    }
    return kExitDone;
  }
  if (!rows.ok()) {
    return Fail(rows.status());
  }
  std::vector<Json> found;
  for (const Trajectory& t : *rows) {
    if (!whole_unit && t.id != wanted) {
      continue;
    }
    Json& out = found.emplace_back();
    out["sample"] = t.id.ToString();
    AddTrajectory(*run, t, &out);
    AddUnit(*run, *unit, &out);
  }
  if (found.empty()) {
    return Fail(absl::NotFoundError(absl::StrCat(
        "sample ", id, ": unit ", wanted.unit.ToString(), " holds ",
        rows->size(), " answers, none of them this one")));
  }
  if (json) {
    std::fputs(FormatRows(found, /*json=*/true).c_str(), stdout);
    return kExitDone;
  }
  for (size_t i = 0; i < found.size(); ++i) {
    std::printf("%s", i > 0 ? "\n" : "");
    Print(found[i]);
  }
  return kExitDone;
}

}  // namespace cox
