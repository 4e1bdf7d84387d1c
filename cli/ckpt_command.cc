#include "cli/ckpt_command.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/recorded_config.h"
#include "coordinator/ledger_reader.h"
#include "coordinator/retention.h"
#include "coordinator/run_setup.h"
#include "learner/checkpoint.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/engine/model_config.h"

namespace cox {
namespace {

struct Found {
  std::string stage;  // name of the folder above
  std::string path;
  CheckpointName name;
};

int Fail(const char* command, const absl::Status& status) {
  std::fprintf(stderr, "ckpt %s: %s\n", command,
               std::string(status.message()).c_str());
  return absl::IsDataLoss(status) ? kExitCheckFailed : kExitUsage;
}

// Checkpoints below <run_dir>/checkpoints, by stage and step.
absl::StatusOr<std::vector<Found>> FindCheckpoints(const std::string& run_dir) {
  Fs& fs = Fs::Real();
  const std::string root = JoinPath(run_dir, "checkpoints");
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> stages, fs.List(root));
  std::vector<Found> found;
  for (const std::string& stage : stages) {
    auto names = fs.List(JoinPath(root, stage));
    if (!names.ok()) {
      continue;  // not a folder: not ours
    }
    for (const std::string& name : *names) {
      if (std::optional<CheckpointName> parsed = ParseCheckpointName(name)) {
        found.push_back(
            {stage, JoinPath(JoinPath(root, stage), name), *parsed});
      }
    }
  }
  return found;
}

uint64_t TotalBytes(const CheckpointManifest& manifest) {
  uint64_t bytes = 0;
  for (const SavedFile& file : manifest.files) {
    bytes += file.bytes;
  }
  return bytes;
}

// Folder -> why it is kept, of every checkpoint that has a row.
absl::StatusOr<std::map<std::string, std::string>> Reasons(
    const std::string& run_dir) {
  COX_ASSIGN_OR_RETURN(const RecordedRun run,
                       RecordedRun::Open(Fs::Real(), run_dir));
  COX_ASSIGN_OR_RETURN(const cox::v1::RunConfig config, RecordedConfig(run));
  const CheckpointRetention retention = RetentionOf(config.checkpoint());
  std::map<std::string, std::string> reasons;
  for (int32_t stage = 0; stage < run.plan().num_stages(); ++stage) {
    std::vector<CheckpointRow> rows;
    for (const CheckpointRow& row : run.state().checkpoints) {
      if (row.stage == stage) {
        rows.insert(rows.begin(), row);
      }
    }
    const std::vector<std::string> why =
        WhyKept(retention, rows, run.plan().stage(stage).total_steps,
                [&](int64_t step) -> std::optional<double> {
                  const StepRow* row = run.FindStep(stage, step);
                  return row == nullptr ? std::nullopt
                                        : MetricOf(*row, retention.best_metric);
                });
    for (size_t i = 0; i < rows.size(); ++i) {
      reasons[run.DirectoryOf(rows[i])] =
          why[i].empty() ? "until the next one" : why[i];
    }
  }
  return reasons;
}

}  // namespace

int ListCheckpoints(const std::string& run_dir) {
  const auto reasons = Reasons(run_dir);
  if (!reasons.ok()) {
    std::fprintf(stderr, "ckpt ls: why they are kept is not known: %s\n",
                 std::string(reasons.status().message()).c_str());
  }
  auto found = FindCheckpoints(run_dir);
  if (!found.ok()) {
    return Fail("ls", found.status());
  }
  std::printf("%-10s %8s %4s %10s  %-28s %s\n", "stage", "step", "gen", "MB",
              "kept", "folder");
  for (const Found& checkpoint : *found) {
    auto text = Fs::Real().ReadAll(JoinPath(checkpoint.path, "manifest.json"));
    auto manifest = text.ok()
                        ? CheckpointManifest::FromJson(*text)
                        : absl::StatusOr<CheckpointManifest>(text.status());
    const std::string size =
        manifest.ok()
            ? absl::StrFormat("%.1f",
                              static_cast<double>(TotalBytes(*manifest)) / 1e6)
            : "unreadable";
    std::string why = "?";
    if (reasons.ok()) {
      const auto reason = reasons->find(checkpoint.path);
      why = reason == reasons->end() ? "no: it has no row" : reason->second;
    }
    std::printf("%-10s %8lld %4lld %10s  %-28s %s\n", checkpoint.stage.c_str(),
                static_cast<long long>(checkpoint.name.step),
                static_cast<long long>(checkpoint.name.generation),
                size.c_str(), why.c_str(), checkpoint.path.c_str());
  }
  return kExitDone;
}

int VerifyCheckpoints(const std::string& dir) {
  std::vector<std::string> paths;
  if (ParseCheckpointName(BaseName(dir)).has_value()) {
    paths.push_back(dir);
  } else {
    auto found = FindCheckpoints(dir);
    if (!found.ok()) {
      return Fail("verify", found.status());
    }
    for (const Found& checkpoint : *found) {
      paths.push_back(checkpoint.path);
    }
  }
  int bad = 0;
  for (const std::string& path : paths) {
    auto manifest = VerifyCheckpoint(Fs::Real(), path, "");
    if (!manifest.ok()) {
      ++bad;
      std::printf("BAD  %s: %s\n", path.c_str(),
                  std::string(manifest.status().message()).c_str());
      continue;
    }
    std::printf("ok   %s: %zu files, %llu bytes\n", path.c_str(),
                manifest->files.size(),
                static_cast<unsigned long long>(TotalBytes(*manifest)));
  }
  std::printf("verify: %zu checkpoints, %d bad\n", paths.size(), bad);
  if (paths.empty()) {
    return Fail("verify",
                absl::NotFoundError(absl::StrCat(dir, " has no checkpoints")));
  }
  return bad == 0 ? kExitDone : kExitCheckFailed;
}

int ExportCheckpoint(const std::string& checkpoint, const std::string& out,
                     const std::string& model, const std::string& dtype) {
  Fs& fs = Fs::Real();
  auto manifest = VerifyCheckpoint(fs, checkpoint, "");
  if (!manifest.ok()) {
    return Fail("export", manifest.status());
  }
  const std::string source = JoinPath(checkpoint, model);
  if (!fs.Exists(source)) {
    return Fail("export", absl::NotFoundError(absl::StrCat(
                              checkpoint, " has no folder '", model, "'")));
  }
  if (fs.Exists(out)) {
    return Fail("export", absl::InvalidArgumentError(
                              absl::StrCat(out, " exists already")));
  }
  auto folder = ReadModelFolder(fs, source);
  auto snapshot = LoadModel(fs, source, model);
  if (!folder.ok() || !snapshot.ok()) {
    return Fail("export", folder.ok() ? snapshot.status() : folder.status());
  }
  auto config = ModelConfig::FromJson(folder->config_json);
  if (!config.ok()) {
    return Fail("export", config.status());
  }
  SaveFolderOptions options;
  options.dtype = dtype == "bf16" ? DType::kBF16 : DType::kF32;
  options.tokenizer_json = folder->tokenizer_json;
  options.tokenizer_config_json = folder->tokenizer_config_json;
  options.eos_ids = config->eos_ids;
  options.pad_id = config->pad_id;
  const std::string temporary = absl::StrCat(out, ".tmp");
  absl::Status status = fs.RemoveAll(temporary);
  status.Update(fs.MakeDirs(temporary));
  if (status.ok()) {
    status.Update(SaveModelFolder(fs, temporary, **snapshot, options).status());
  }
  if (status.ok()) {
    status.Update(fs.Rename(temporary, out));
  }
  if (!status.ok()) {
    return Fail("export", status);
  }
  std::printf("export: %s of %s in %s\n", model.c_str(), checkpoint.c_str(),
              out.c_str());
  return kExitDone;
}

}  // namespace cox
