// cox-logprob MODEL SEQUENCES OUT: the log-probability of each answer.
//
// MODEL is a model folder; SEQUENCES holds {"prompt":[ids],"response":[ids]}
// per line; OUT gets one number per line, log π(response | prompt) at
// temperature 1, summed in float64 from a float64 forward pass. `cox selftest`
// uses it; it is a binary of its own because it needs LibTorch.

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "lib/base/fs.h"
#include "lib/base/log.h"
#include "lib/base/process.h"
#include "lib/model/api.h"
#include "lib/model/ops_api.h"
#include "lib/weights/model_folder.h"
#include "nlohmann/json.hpp"

namespace cox {
namespace {

using Json = nlohmann::json;

struct Sequence {
  std::vector<int64_t> ids;
  int64_t prompt = 0;  // how many of them are given
};

bool AppendIds(const Json& line, const char* name, std::vector<int64_t>* out) {
  const auto it = line.find(name);
  if (it == line.end() || !it->is_array() || it->empty()) return false;
  for (const Json& id : *it) {
    if (!id.is_number_integer()) return false;
    out->push_back(id.get<int64_t>());
  }
  return true;
}

absl::StatusOr<std::vector<Sequence>> ReadSequences(const std::string& path) {
  COX_ASSIGN_OR_RETURN(const std::string text, Fs::Real().ReadAll(path));
  std::vector<Sequence> sequences;
  for (const auto line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const Json json = Json::parse(line.begin(), line.end(), nullptr,
                                  /*allow_exceptions=*/false);
    Sequence sequence;
    bool good = json.is_object() && AppendIds(json, "prompt", &sequence.ids);
    sequence.prompt = static_cast<int64_t>(sequence.ids.size());
    good = good && AppendIds(json, "response", &sequence.ids);
    if (!good) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", sequences.size() + 1,
                       ": expected {\"prompt\":[ids],\"response\":[ids]}"));
    }
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

absl::Status Run(const std::string& model, const std::string& input,
                 const std::string& output) {
  COX_ASSIGN_OR_RETURN(const ModelFolder folder,
                       ReadModelFolder(Fs::Real(), model));
  ModelForwardRequest request;
  COX_ASSIGN_OR_RETURN(request.config,
                       ModelConfig::FromJson(folder.config_json));
  if (request.config.head != HeadKind::kLanguageModel ||
      request.config.family == ModelFamily::kInstructEncdec) {
    return absl::InvalidArgumentError(
        absl::StrCat(model, ": expected a decoder-only language model"));
  }
  COX_ASSIGN_OR_RETURN(
      const std::shared_ptr<const Snapshot> snapshot,
      SnapshotFromFolder(folder, ParameterLayout(request.config, "policy")));
  COX_ASSIGN_OR_RETURN(request.parameters,
                       ParametersOf(*snapshot, request.config));
  COX_ASSIGN_OR_RETURN(const std::vector<Sequence> sequences,
                       ReadSequences(input));
  COX_RETURN_IF_ERROR(InitTorch(EngineOptions()).status());
  request.batch = static_cast<int64_t>(sequences.size());
  for (const Sequence& sequence : sequences) {
    request.length =
        std::max(request.length, static_cast<int64_t>(sequence.ids.size()));
  }
  for (const Sequence& sequence : sequences) {
    request.ids.insert(request.ids.end(), sequence.ids.begin(),
                       sequence.ids.end());
    request.mask.resize(request.ids.size(), 1);
    const size_t row = (&sequence - sequences.data() + 1) *
                       static_cast<size_t>(request.length);
    request.ids.resize(row, 0);
    request.mask.resize(row, 0);
  }
  COX_ASSIGN_OR_RETURN(const ModelForwardResult result, ModelForward(request));
  std::string text;
  for (size_t b = 0; b < sequences.size(); ++b) {
    // Entry j scores token j + 1.
    double sum = 0;
    for (size_t j = static_cast<size_t>(sequences[b].prompt);
         j < sequences[b].ids.size(); ++j) {
      sum += result.logprob[b * static_cast<size_t>(request.length) + j - 1];
    }
    absl::StrAppendFormat(&text, "%.17g\n", sum);
  }
  return WriteFileDurably(Fs::Real(), output, text);
}

}  // namespace
}  // namespace cox

int main(int argc, char** argv) {
  cox::InitLog("logprob");
  cox::InitProcess(/*die_with_parent=*/false);
  if (argc != 4) {
    std::fprintf(stderr, "usage: cox-logprob MODEL SEQUENCES.jsonl OUT\n");
    return cox::kExitUsage;
  }
  if (const absl::Status status = cox::Run(argv[1], argv[2], argv[3]);
      !status.ok()) {
    std::fprintf(stderr, "cox-logprob: %s\n",
                 std::string(status.message()).c_str());
    return cox::ExitCodeFor(status);
  }
  return cox::kExitDone;
}
