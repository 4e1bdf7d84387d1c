#ifndef COX_LEARNER_CHECKPOINT_H_
#define COX_LEARNER_CHECKPOINT_H_

// Durable state of a stage after a step.
//
//   step_000120.g3/            g = generation of the group that wrote it
//     policy/ critic/ reward/ policy_ema/   Hugging Face folders
//     trainer/state.bin        learner/state.h
//     trainer/version_118/     older weights that open units still need
//     manifest.json            written last: name, size, SHA-256 of each file
//
// Written as step_000120.g3.tmp: every file synced, then the manifest, then
// the folders, then the rename, then the parent (docs/architecture.md,
// "Durability"). A crash leaves a .tmp folder, or a whole checkpoint that no
// ledger row names; both are ignored. Pure but for the given Fs.

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "learner/trainer.h"
#include "lib/base/fs.h"
#include "lib/base/status.h"
#include "lib/weights/model_folder.h"

namespace cox {

struct CheckpointIdentity {
  std::string run_id;
  std::string config_hash;
  int32_t stage = 0;
  int64_t step = 0;
  int64_t generation = 0;
  std::string batch_sha256;  // of the step
  std::string weight_hash;   // of the trained model after the step
};

struct CheckpointContents {
  std::vector<StageModel> models;  // folder names may contain '/'
  std::string state;               // StageTrainer::SaveState
  SaveFolderOptions save;          // tokenizer, end ids
};

struct WrittenCheckpoint {
  std::string manifest_sha256;
  // Over names and hashes of all files but the manifest: equal whenever the
  // state is equal, whatever generation wrote it.
  std::string state_sha256;
};

// Writes to `directory`.tmp (removing what an earlier attempt left there) and
// renames. ALREADY_EXISTS when `directory` is there; errors of the Fs.
// Blocks for all syncs. Makes the two folders above `directory` (run of
// stages, stage) where they are missing, durably.
absl::StatusOr<WrittenCheckpoint> WriteCheckpoint(
    Fs& fs, const std::string& directory, const CheckpointIdentity& identity,
    const CheckpointContents& contents);

struct CheckpointManifest {
  CheckpointIdentity identity;
  std::vector<SavedFile> files;  // by name
  std::string ToJson() const;
  // DATA_LOSS: not such a file, or a name that leaves the folder.
  static absl::StatusOr<CheckpointManifest> FromJson(std::string_view json);
  std::string StateSha256() const;
};

// Reads and hashes every file. NOT_FOUND without a manifest; DATA_LOSS names
// the file that is missing, or has another size or hash, or is not in the
// manifest. `manifest_sha256` empty = any.
absl::StatusOr<CheckpointManifest> VerifyCheckpoint(
    Fs& fs, const std::string& directory, std::string_view manifest_sha256);

// A model of a verified checkpoint as float32 under the role's name `model`,
// with its configuration normalised, so that its hash is that of the weights.
absl::StatusOr<std::shared_ptr<const Snapshot>> LoadModel(
    Fs& fs, const std::string& folder, std::string model);

// Renamed first, so that a process that dies on the way leaves nothing that
// looks like a checkpoint; also deletes what others left so.
absl::Status RemoveCheckpoint(Fs& fs, const std::string& directory);

// Deletes from `stage_folder` what interrupted processes left there: halves of
// deletions, and checkpoints of run `run_id` of generations before
// `generation` that are not among the folder names `kept`. Rows are written by
// the present generation only, so no row can name them any more. With
// `own_folder` (no other run writes there) also unfinished writes of older
// generations, and what has no readable manifest. Returns the names of what it
// deleted.
absl::StatusOr<std::vector<std::string>> SweepCheckpoints(
    Fs& fs, const std::string& stage_folder, std::string_view run_id,
    int64_t generation, const std::set<std::string>& kept, bool own_folder);

// (step, generation) of a directory's base name; nullopt for anything else.
struct CheckpointName {
  int64_t step = 0;
  int64_t generation = 0;
};
std::optional<CheckpointName> ParseCheckpointName(std::string_view base_name);

}  // namespace cox

#endif  // COX_LEARNER_CHECKPOINT_H_
