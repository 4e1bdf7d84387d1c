#include "learner/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/failpoint.h"
#include "lib/base/hash.h"
#include "lib/engine/model_config.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kManifest = "manifest.json";
constexpr std::string_view kState = "trainer/state.bin";
constexpr std::string_view kFormat = "cox-checkpoint-1";
constexpr std::string_view kTemporary = ".tmp";
constexpr std::string_view kRemoved = ".removed";

absl::Status WriteSynced(Fs& fs, const std::string& path,
                         std::string_view data) {
  COX_ASSIGN_OR_RETURN(std::unique_ptr<WritableFile> file,
                       fs.Create(path, /*exclusive=*/true));
  COX_RETURN_IF_ERROR(Annotate(FailpointStatus("checkpoint.append"), path));
  COX_RETURN_IF_ERROR(file->Append(data));
  COX_RETURN_IF_ERROR(file->Sync());
  return file->Close();
}

// Folders that hold files of `name`, inside the checkpoint: "a/b/c.bin" gives
// "a" and "a/b".
void AddFolders(std::string_view name, std::set<std::string>* folders) {
  for (size_t slash = name.find('/'); slash != std::string_view::npos;
       slash = name.find('/', slash + 1)) {
    folders->insert(std::string(name.substr(0, slash)));
  }
}

bool StaysInside(std::string_view name) {
  if (name.empty() || name.front() == '/' ||
      name.find('\0') != std::string_view::npos) {
    return false;
  }
  while (true) {
    const size_t slash = name.find('/');
    const std::string_view part = name.substr(0, slash);
    if (part.empty() || part == "." || part == "..") {
      return false;
    }
    if (slash == std::string_view::npos) {
      return true;
    }
    name.remove_prefix(slash + 1);
  }
}

// Files below `dir`, relative, sorted.
absl::Status ListFiles(Fs& fs, const std::string& dir,
                       const std::string& prefix,
                       const std::set<std::string>& folders,
                       std::vector<std::string>* files) {
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names, fs.List(dir));
  for (const std::string& name : names) {
    const std::string relative = prefix.empty() ? name : prefix + "/" + name;
    if (folders.contains(relative)) {
      COX_RETURN_IF_ERROR(
          ListFiles(fs, JoinPath(dir, name), relative, folders, files));
    } else {
      files->push_back(relative);
    }
  }
  return absl::OkStatus();
}

absl::Status VerifyFile(Fs& fs, const std::string& directory,
                        const SavedFile& file) {
  const std::string path = JoinPath(directory, file.name);
  absl::StatusOr<std::string> data = fs.ReadAll(path);
  if (absl::IsNotFound(data.status())) {
    return absl::DataLossError(absl::StrCat("checkpoint: ", path, ": missing"));
  }
  COX_RETURN_IF_ERROR(data.status());
  if (data->size() != file.bytes) {
    return absl::DataLossError(absl::StrCat("checkpoint: ", path, ": expected ",
                                            file.bytes, " bytes, found ",
                                            data->size()));
  }
  const std::string hash = Sha256Hex(*data);
  if (hash != file.sha256) {
    return absl::DataLossError(absl::StrCat("checkpoint: ", path,
                                            ": expected SHA-256 ", file.sha256,
                                            ", found ", hash));
  }
  return absl::OkStatus();
}

bool ParseNumber(std::string_view text, int64_t* value) {
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size() &&
         *value >= 0 && text.front() != '-';
}

// Makes <root>/<stage>/<name> so that a power loss drops neither <root> nor
// <stage>.
absl::Status MakeParents(Fs& fs, const std::string& path) {
  const std::string root = DirName(DirName(path));
  const bool existed = fs.Exists(root);
  COX_RETURN_IF_ERROR(fs.MakeDirs(path));
  COX_RETURN_IF_ERROR(fs.SyncDir(root));
  const absl::Status synced = fs.SyncDir(DirName(root));
  // Also when it exists: another process may have died before it synced. But
  // then it may be a user's, in a folder that this process may not open.
  return existed ? absl::OkStatus() : synced;
}

}  // namespace

std::string CheckpointManifest::ToJson() const {
  Json json = {{"format", std::string(kFormat)},
               {"run_id", identity.run_id},
               {"config_hash", identity.config_hash},
               {"stage", identity.stage},
               {"step", identity.step},
               {"generation", identity.generation},
               {"batch_sha256", identity.batch_sha256},
               {"weight_hash", identity.weight_hash},
               {"files", Json::array()}};
  for (const SavedFile& file : files) {
    json["files"].push_back(
        {{"name", file.name}, {"bytes", file.bytes}, {"sha256", file.sha256}});
  }
  return json.dump(/*indent=*/1) + "\n";
}

absl::StatusOr<CheckpointManifest> CheckpointManifest::FromJson(
    std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto text_of = [](const Json& object, const char* key) {
    const auto it = object.find(key);
    return it != object.end() && it->is_string() ? it->get<std::string>()
                                                 : std::string();
  };
  const auto int_of = [](const Json& object, const char* key) {
    const auto it = object.find(key);
    return it != object.end() && it->is_number_integer() ? it->get<int64_t>()
                                                         : int64_t{-1};
  };
  if (!json.is_object() || text_of(json, "format") != kFormat ||
      !json.contains("files") || !json["files"].is_array()) {
    return absl::DataLossError(absl::StrCat(
        "checkpoint manifest: expected format ", std::string(kFormat)));
  }
  CheckpointManifest manifest;
  manifest.identity = {.run_id = text_of(json, "run_id"),
                       .config_hash = text_of(json, "config_hash"),
                       .stage = static_cast<int32_t>(int_of(json, "stage")),
                       .step = int_of(json, "step"),
                       .generation = int_of(json, "generation"),
                       .batch_sha256 = text_of(json, "batch_sha256"),
                       .weight_hash = text_of(json, "weight_hash")};
  for (const Json& item : json["files"]) {
    const bool object = item.is_object();
    const SavedFile file = {
        object ? text_of(item, "name") : "",
        object ? static_cast<uint64_t>(int_of(item, "bytes")) : 0,
        object ? text_of(item, "sha256") : ""};
    if (!StaysInside(file.name) || file.sha256.size() != 64) {
      return absl::DataLossError(
          absl::StrCat("checkpoint manifest: bad file entry ",
                       manifest.files.size(), " '", file.name, "'"));
    }
    manifest.files.push_back(file);
  }
  return manifest;
}

std::string CheckpointManifest::StateSha256() const {
  Sha256 hash;
  for (const SavedFile& file : files) {
    hash.Update(
        absl::StrCat(file.sha256, " ", file.bytes, " ", file.name, "\n"));
  }
  return hash.HexDigest();
}

absl::StatusOr<WrittenCheckpoint> WriteCheckpoint(
    Fs& fs, const std::string& directory, const CheckpointIdentity& identity,
    const CheckpointContents& contents) {
  if (fs.Exists(directory)) {
    return absl::AlreadyExistsError(
        absl::StrCat("checkpoint: ", directory, " exists"));
  }
  const std::string temporary = directory + ".tmp";
  if (fs.Exists(temporary)) {
    COX_RETURN_IF_ERROR(fs.RemoveAll(temporary));
  }
  COX_RETURN_IF_ERROR(MakeParents(fs, temporary));
  CheckpointManifest manifest;
  manifest.identity = identity;
  std::set<std::string> folders;
  for (const StageModel& model : contents.models) {
    const std::string folder = JoinPath(temporary, model.folder);
    COX_RETURN_IF_ERROR(fs.MakeDirs(folder));
    COX_ASSIGN_OR_RETURN(
        std::vector<SavedFile> files,
        SaveModelFolder(fs, folder, *model.snapshot, contents.save));
    for (SavedFile& file : files) {
      file.name = model.folder + "/" + file.name;
      AddFolders(file.name, &folders);
      manifest.files.push_back(std::move(file));
    }
  }
  AddFolders(kState, &folders);
  COX_RETURN_IF_ERROR(fs.MakeDirs(JoinPath(temporary, "trainer")));
  COX_RETURN_IF_ERROR(
      WriteSynced(fs, JoinPath(temporary, kState), contents.state));
  manifest.files.push_back(
      {std::string(kState), contents.state.size(), Sha256Hex(contents.state)});
  std::sort(
      manifest.files.begin(), manifest.files.end(),
      [](const SavedFile& a, const SavedFile& b) { return a.name < b.name; });
  const std::string json = manifest.ToJson();
  COX_RETURN_IF_ERROR(WriteSynced(fs, JoinPath(temporary, kManifest), json));
  // Innermost first: "a/b" sorts behind "a".
  for (auto it = folders.rbegin(); it != folders.rend(); ++it) {
    COX_RETURN_IF_ERROR(fs.SyncDir(JoinPath(temporary, *it)));
  }
  COX_RETURN_IF_ERROR(fs.SyncDir(temporary));
  HitFailpoint("checkpoint.written");
  COX_RETURN_IF_ERROR(fs.Rename(temporary, directory));
  HitFailpoint("checkpoint.renamed");
  COX_RETURN_IF_ERROR(fs.SyncDir(DirName(directory)));
  return WrittenCheckpoint{Sha256Hex(json), manifest.StateSha256()};
}

absl::StatusOr<CheckpointManifest> VerifyCheckpoint(
    Fs& fs, const std::string& directory, std::string_view manifest_sha256) {
  const std::string path = JoinPath(directory, kManifest);
  COX_ASSIGN_OR_RETURN(const std::string json, fs.ReadAll(path));
  if (!manifest_sha256.empty() && Sha256Hex(json) != manifest_sha256) {
    return absl::DataLossError(absl::StrCat(
        "checkpoint: ", path, ": expected SHA-256 ",
        std::string(manifest_sha256), ", found ", Sha256Hex(json)));
  }
  absl::StatusOr<CheckpointManifest> manifest =
      CheckpointManifest::FromJson(json);
  if (!manifest.ok()) {
    return Annotate(manifest.status(), path);
  }
  std::set<std::string> folders;
  std::set<std::string> known = {std::string(kManifest)};
  for (const SavedFile& file : manifest->files) {
    COX_RETURN_IF_ERROR(VerifyFile(fs, directory, file));
    AddFolders(file.name, &folders);
    known.insert(file.name);
  }
  std::vector<std::string> found;
  COX_RETURN_IF_ERROR(ListFiles(fs, directory, "", folders, &found));
  for (const std::string& name : found) {
    if (!known.contains(name)) {
      return absl::DataLossError(absl::StrCat(
          "checkpoint: ", JoinPath(directory, name), ": not in the manifest"));
    }
  }
  return manifest;
}

absl::StatusOr<std::shared_ptr<const Snapshot>> LoadModel(
    Fs& fs, const std::string& folder, std::string model) {
  COX_ASSIGN_OR_RETURN(const ModelFolder files, ReadModelFolder(fs, folder));
  absl::StatusOr<ModelConfig> config = ModelConfig::FromJson(files.config_json);
  if (!config.ok()) {
    return Annotate(config.status(), JoinPath(folder, "config.json"));
  }
  return SnapshotFromFolder(files, ParameterLayout(*config, std::move(model)));
}

absl::Status RemoveCheckpoint(Fs& fs, const std::string& directory) {
  if (fs.Exists(directory)) {
    COX_RETURN_IF_ERROR(
        fs.Rename(directory, directory + std::string(kRemoved)));
    // Also after a power loss a half is not to be found under the whole's name.
    COX_RETURN_IF_ERROR(fs.SyncDir(DirName(directory)));
  }
  const std::string parent = DirName(directory);
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names, fs.List(parent));
  for (const std::string& name : names) {
    if (name.ends_with(kRemoved)) {
      COX_RETURN_IF_ERROR(fs.RemoveAll(JoinPath(parent, name)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> SweepCheckpoints(
    Fs& fs, const std::string& stage_folder, std::string_view run_id,
    int64_t generation, const std::set<std::string>& kept, bool own_folder) {
  std::vector<std::string> swept;
  if (!fs.Exists(stage_folder)) {
    return swept;
  }
  COX_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                       fs.List(stage_folder));
  for (const std::string& name : names) {
    const std::string path = JoinPath(stage_folder, name);
    std::string_view base = name;
    const bool removed = base.ends_with(kRemoved);
    const bool unfinished = base.ends_with(kTemporary);
    if (removed || unfinished) {
      base.remove_suffix(removed ? kRemoved.size() : kTemporary.size());
    }
    const std::optional<CheckpointName> parsed = ParseCheckpointName(base);
    if (!parsed.has_value() || kept.contains(name)) {
      continue;  // not ours to judge
    }
    bool dead = removed;
    if (!dead && parsed->generation < generation) {
      if (unfinished) {
        dead = own_folder;
      } else {
        const auto json = fs.ReadAll(JoinPath(path, kManifest));
        const auto manifest =
            json.ok() ? CheckpointManifest::FromJson(*json)
                      : absl::StatusOr<CheckpointManifest>(json.status());
        dead = manifest.ok() ? manifest->identity.run_id == run_id : own_folder;
      }
    }
    if (dead) {
      // A whole one gets the other name first: a half of it is no checkpoint.
      COX_RETURN_IF_ERROR(removed || unfinished ? fs.RemoveAll(path)
                                                : RemoveCheckpoint(fs, path));
      swept.push_back(name);
    }
  }
  return swept;
}

std::optional<CheckpointName> ParseCheckpointName(std::string_view base_name) {
  constexpr std::string_view kPrefix = "step_";
  const size_t dot = base_name.find(".g");
  if (!base_name.starts_with(kPrefix) || dot == std::string_view::npos) {
    return std::nullopt;
  }
  const std::string_view step =
      base_name.substr(kPrefix.size(), dot - kPrefix.size());
  const std::string_view generation = base_name.substr(dot + 2);
  CheckpointName name;
  if (step.size() < 6 || generation.empty() || !ParseNumber(step, &name.step) ||
      !ParseNumber(generation, &name.generation)) {
    return std::nullopt;
  }
  return name;
}

}  // namespace cox
