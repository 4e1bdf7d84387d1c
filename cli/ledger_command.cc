#include "cli/ledger_command.h"

#include <unistd.h>

#include <cstdio>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "cli/row_table.h"
#include "learner/checkpoint.h"
#include "lib/base/process.h"
#include "lib/weights/manifest.h"

namespace cox {
namespace {

using Json = nlohmann::ordered_json;

int Fail(const char* command, const absl::Status& status) {
  std::fprintf(stderr, "ledger %s: %s\n", command,
               std::string(status.message()).c_str());
  return ExitCodeFor(status);
}

// One line that is written over, for people who wait.
void ShowProgress(int64_t done, int64_t total) {
  if (isatty(STDERR_FILENO) != 0) {
    std::fprintf(stderr, "\rhashing payloads: %lld of %lld MB ",
                 static_cast<long long>(done >> 20),
                 static_cast<long long>(total >> 20));
  }
}

void PrintReport(const RecordedRun& run, const AuditReport& report) {
  std::printf(
      "run %s (%s): epoch %lld, generation %lld, %zu steps, %zu units, "
      "%zu checkpoints\n",
      run.run_dir().c_str(), run.Meta("run_id").substr(0, 8).c_str(),
      static_cast<long long>(run.record().epoch.value),
      static_cast<long long>(run.state().generation.value),
      run.state().steps.size(), run.state().units.size(),
      run.state().checkpoints.size());
  int bad = 0;
  for (const AuditFinding& finding : report.findings) {
    const std::string count =
        absl::StrCat(finding.checked, " ", finding.things);
    std::printf("%-4s  %-18s  %-20s  %s\n",
                finding.violations == 0 ? "ok" : "BAD", finding.name.c_str(),
                count.c_str(), finding.text.c_str());
    if (finding.violations > 0) {
      ++bad;
      std::printf("      %lld violated, first: %s\n",
                  static_cast<long long>(finding.violations),
                  finding.first.c_str());
    }
  }
  std::string retired;
  if (report.retired_payloads > 0) {
    retired = absl::StrCat(", ", report.retired_payloads, " payloads retired");
  }
  std::printf("ledger verify: %zu invariants, %d violated, %.1f MB hashed%s\n",
              report.findings.size(), bad,
              static_cast<double>(report.payload_bytes) / 1e6, retired.c_str());
}

Json ReportJson(const RecordedRun& run, const AuditReport& report) {
  Json out;
  out["run_dir"] = run.run_dir();
  out["run_id"] = run.Meta("run_id");
  out["ok"] = report.ok() && run.record().digest_ok;
  out["digest_ok"] = run.record().digest_ok;
  out["payload_bytes"] = report.payload_bytes;
  out["retired_payloads"] = report.retired_payloads;
  out["invariants"] = Json::array();
  for (const AuditFinding& finding : report.findings) {
    Json row;
    row["name"] = finding.name;
    row["text"] = finding.text;
    row["checked"] = finding.checked;
    row["things"] = finding.things;
    row["violations"] = finding.violations;
    row["first"] = finding.violations > 0 ? Json(finding.first) : Json();
    out["invariants"].push_back(std::move(row));
  }
  return out;
}

// Which rows the user asked for.
struct Filter {
  int32_t stage = -1;
  int64_t step = -1;
  bool Takes(int32_t row_stage, int64_t row_step) const {
    return (stage < 0 || stage == row_stage) && (step < 0 || step == row_step);
  }
};

std::vector<Json> StepRows(const RecordedRun& run, const Filter& filter) {
  std::vector<Json> rows;
  for (size_t i = 0; i < run.state().steps.size(); ++i) {
    const StepRow& row = run.state().steps[i];
    if (!filter.Takes(row.stage, row.step)) {
      continue;
    }
    Json json;
    json["stage"] = run.StageName(row.stage);
    json["step"] = row.step;
    json["generation"] = row.generation.value;
    json["skipped"] = row.skipped;
    const auto units = run.UnitsOfStep(row.stage, row.step);
    json["units"] = units.ok() ? Json(units->size()) : Json();
    const BatchRow* batch = run.FindBatch(row.stage, row.step);
    json["dropped"] = batch == nullptr ? 0 : batch->dropped.size();
    json["batch"] = row.batch_sha256;
    json["weights"] = row.weight_hash;
    json["transaction"] = run.record().step_txn[i];
    rows.push_back(std::move(json));
  }
  return rows;
}

std::vector<Json> UnitRows(const RecordedRun& run, const Filter& filter) {
  std::map<UnitId, int64_t> trained;
  for (const StepRow& step : run.state().steps) {
    const auto units = run.UnitsOfStep(step.stage, step.step);
    for (const UnitRow& unit : units.value_or(std::vector<UnitRow>())) {
      trained[unit.id] = step.step;
    }
  }
  std::vector<Json> rows;
  for (size_t i = 0; i < run.state().units.size(); ++i) {
    const UnitRow& row = run.state().units[i];
    if (!filter.Takes(row.id.stage, row.id.step)) {
      continue;
    }
    Json json;
    json["unit"] = row.id.ToString();
    json["stage"] = run.StageName(row.id.stage);
    json["version"] = row.version_step;
    const auto step = trained.find(row.id);
    json["trained"] = step == trained.end() ? Json() : Json(step->second);
    json["weights"] = row.policy_hash;
    json["payload"] = row.sha256;
    json["segment"] = row.payload.segment;
    json["offset"] = row.payload.offset;
    json["bytes"] = row.payload.length;
    json["retired"] = run.IsRetired(row);
    const UnitFailedRow* failed = run.FindFailed(row.id);
    json["given_up"] = failed == nullptr ? Json() : Json(failed->why);
    json["transaction"] = run.record().unit_txn[i];
    rows.push_back(std::move(json));
  }
  return rows;
}

std::vector<Json> VersionRows(const RecordedRun& run, const Filter& filter) {
  std::vector<Json> rows;
  for (size_t i = 0; i < run.state().versions.size(); ++i) {
    const VersionRow& row = run.state().versions[i];
    if (!filter.Takes(row.version.stage, row.version.step)) {
      continue;
    }
    Json json;
    json["model"] = row.model;
    json["stage"] = run.StageName(row.version.stage);
    json["version"] = row.version.ToString();
    json["weights"] = row.content_hash;
    const auto manifest = Manifest::FromCanonicalText(row.manifest);
    json["tensors"] = manifest.ok() ? Json(manifest->tensors.size()) : Json();
    json["bytes"] = manifest.ok() ? Json(manifest->arena_bytes) : Json();
    json["transaction"] = run.record().version_txn[i];
    rows.push_back(std::move(json));
  }
  return rows;
}

std::vector<Json> CheckpointRows(const RecordedRun& run, const Filter& filter) {
  std::vector<Json> rows;
  for (size_t i = 0; i < run.state().checkpoints.size(); ++i) {
    const CheckpointRow& row = run.state().checkpoints[i];
    if (!filter.Takes(row.stage, row.step)) {
      continue;
    }
    Json json;
    json["stage"] = run.StageName(row.stage);
    json["step"] = row.step;
    json["generation"] = row.generation.value;
    json["weights"] = row.weight_hash;
    json["manifest"] = row.manifest_sha256;
    json["state"] = row.state_sha256;
    json["transaction"] = run.record().checkpoint_txn[i];
    json["directory"] = run.DirectoryOf(row);
    rows.push_back(std::move(json));
  }
  return rows;
}

std::vector<Json> EventRows(const RecordedRun& run) {
  std::vector<Json> rows;
  for (const EventRow& row : run.state().events) {
    Json json;
    json["number"] = row.number;
    json["time"] =
        absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ",
                         absl::UnixEpoch() + absl::Seconds(row.wall_time_s),
                         absl::UTCTimeZone());
    json["kind"] = row.kind;
    json["text"] = row.text;
    rows.push_back(std::move(json));
  }
  return rows;
}

}  // namespace

absl::StatusOr<std::optional<CheckpointFacts>> ReadCheckpointFacts(
    const RecordedRun& run, const CheckpointRow& row) {
  const auto read = [&]() -> absl::StatusOr<CheckpointFacts> {
    COX_ASSIGN_OR_RETURN(
        const CheckpointManifest manifest,
        VerifyCheckpoint(run.fs(), run.DirectoryOf(row), row.manifest_sha256));
    CheckpointFacts facts;
    facts.run_id = manifest.identity.run_id;
    facts.stage = manifest.identity.stage;
    facts.step = manifest.identity.step;
    facts.generation = manifest.identity.generation;
    facts.batch_sha256 = manifest.identity.batch_sha256;
    facts.weight_hash = manifest.identity.weight_hash;
    facts.state_sha256 = manifest.StateSha256();
    for (const SavedFile& file : manifest.files) {
      facts.files.push_back(file.name);
    }
    const bool reward = row.stage >= 0 && row.stage < run.plan().num_stages() &&
                        run.plan().stage(row.stage).kind == StageKind::kRm;
    const std::string model = reward ? "reward" : "policy";
    COX_ASSIGN_OR_RETURN(
        const auto trained,
        LoadModel(run.fs(), JoinPath(run.DirectoryOf(row), model), model));
    facts.trained_hash = trained->content_hash;
    return facts;
  };
  absl::StatusOr<CheckpointFacts> facts = read();
  if (facts.ok()) {
    return std::optional<CheckpointFacts>(*std::move(facts));
  }
  const absl::StatusOr<RecordedRun> now =
      RecordedRun::Open(run.fs(), run.run_dir());
  if (now.ok()) {
    const CheckpointRow* still = now->NewestCheckpoint(row.stage, row.step);
    if (still == nullptr || !(*still == row)) {
      return std::optional<CheckpointFacts>();
    }
  }
  return facts.status();
}

int VerifyLedger(const std::string& run_dir, bool json) {
  const absl::StatusOr<RecordedRun> run =
      RecordedRun::Open(Fs::Real(), run_dir);
  if (!run.ok()) {
    const int code = Fail("verify", run.status());
    return absl::IsDataLoss(run.status()) ? kExitCheckFailed : code;
  }
  AuditOptions options;
  options.checkpoint = [&run](const CheckpointRow& row) {
    return ReadCheckpointFacts(*run, row);
  };
  options.progress = ShowProgress;
  const AuditReport report = AuditLedger(*run, options);
  if (isatty(STDERR_FILENO) != 0) {
    std::fprintf(stderr, "\r\033[K");
  }
  if (json) {
    std::printf("%s\n", ReportJson(*run, report).dump(1).c_str());
  } else {
    PrintReport(*run, report);
  }
  if (!run->record().digest_ok) {
    std::fprintf(stderr,
                 "verify: %s/ledger.db: its rows are not those that were "
                 "written: the file is damaged or was changed by hand\n",
                 run_dir.c_str());
  }
  return report.ok() && run->record().digest_ok ? kExitDone : kExitCheckFailed;
}

int ShowLedger(const LedgerShowOptions& options) {
  const absl::StatusOr<RecordedRun> run =
      RecordedRun::Open(Fs::Real(), options.run_dir);
  if (!run.ok()) {
    return Fail("show", run.status());
  }
  Filter filter;
  filter.step = options.step;
  if (!options.stage.empty()) {
    const absl::StatusOr<int32_t> stage = run->FindStage(options.stage);
    if (!stage.ok()) {
      return Fail("show", stage.status());
    }
    filter.stage = *stage;
  }
  const std::vector<Json> rows = options.units      ? UnitRows(*run, filter)
                                 : options.events   ? EventRows(*run)
                                 : options.versions ? VersionRows(*run, filter)
                                 : options.checkpoints
                                     ? CheckpointRows(*run, filter)
                                     : StepRows(*run, filter);
  std::fputs(FormatRows(rows, options.json).c_str(), stdout);
  return kExitDone;
}

}  // namespace cox
