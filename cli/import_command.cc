#include "cli/import_command.h"

#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/fs.h"
#include "lib/base/process.h"
#include "lib/engine/generation_config.h"
#include "lib/engine/model_config.h"
#include "lib/weights/model_folder.h"

namespace cox {
namespace {

absl::Status Import(Fs& fs, const std::string& source, const std::string& out,
                    DType dtype) {
  if (fs.Exists(out)) {
    return absl::InvalidArgumentError(absl::StrCat(out, " exists already"));
  }
  COX_ASSIGN_OR_RETURN(ModelFolder folder, ReadModelFolder(fs, source));
  COX_ASSIGN_OR_RETURN(ModelConfig config,
                       ModelConfig::FromJson(folder.config_json));
  COX_ASSIGN_OR_RETURN(
      const auto snapshot,
      SnapshotFromFolder(folder, ParameterLayout(config, "policy")));
  COX_RETURN_IF_ERROR(
      ApplyGenerationConfig(folder.generation_config_json, &config));
  SaveFolderOptions options;
  options.dtype = dtype;
  options.tokenizer_json = std::move(folder.tokenizer_json);
  options.tokenizer_config_json = std::move(folder.tokenizer_config_json);
  options.eos_ids = config.eos_ids;
  options.pad_id = config.pad_id;
  const std::string temporary = absl::StrCat(out, ".tmp");
  COX_RETURN_IF_ERROR(fs.RemoveAll(temporary));
  COX_RETURN_IF_ERROR(fs.MakeDirs(temporary));
  COX_RETURN_IF_ERROR(
      SaveModelFolder(fs, temporary, *snapshot, options).status());
  COX_RETURN_IF_ERROR(fs.Rename(temporary, out));
  std::printf("import: %s in %s: %lld parameters\n", source.c_str(),
              out.c_str(), static_cast<long long>(config.ParameterCount()));
  return absl::OkStatus();
}

}  // namespace

int ImportModel(const std::string& source, const std::string& out,
                const std::string& dtype) {
  const absl::Status status = Import(
      Fs::Real(), source, out, dtype == "bf16" ? DType::kBF16 : DType::kF32);
  if (status.ok()) return kExitDone;
  std::fprintf(stderr, "ckpt import: %s\n",
               std::string(status.message()).c_str());
  return absl::IsDataLoss(status) ? kExitCheckFailed : kExitUsage;
}

}  // namespace cox
