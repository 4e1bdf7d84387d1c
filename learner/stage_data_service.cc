#include "learner/stage_data_service.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/config/config.h"
#include "lib/data/batch.h"
#include "lib/data/dataset.h"

namespace cox {
namespace {

namespace v1 = cox::v1;

using Paths = google::protobuf::RepeatedPtrField<std::string>;

std::vector<std::string> ToVector(const Paths& paths) {
  return {paths.begin(), paths.end()};
}

int32_t EndId(const StageContext& context) {
  return context.eos_ids.empty() ? -1 : context.eos_ids.front();
}

absl::Status CheckText(const StageContext& context, const std::string& what,
                       int64_t sequence_length, const ModelConfig& model) {
  if (context.tokenizer == nullptr || EndId(context) < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": text needs a tokenizer with an end token"));
  }
  if (sequence_length > model.max_positions) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ".sequence_length: ", sequence_length,
                     ", the model takes ", model.max_positions));
  }
  return absl::OkStatus();
}

absl::StatusOr<PackedTokens> LoadPacked(const StageContext& context,
                                        const std::vector<std::string>& paths,
                                        int64_t sequence_length) {
  COX_ASSIGN_OR_RETURN(const Dataset dataset, LoadDataset(*context.fs, paths));
  COX_ASSIGN_OR_RETURN(const auto texts,
                       TokenizeTexts(dataset, *context.tokenizer));
  absl::StatusOr<PackedTokens> packed = PackedTokens::Create(
      texts, EndId(context), sequence_length, context.config.seed());
  return packed.ok() ? std::move(packed)
                     : Annotate(packed.status(), paths.front());
}

std::vector<Sequence> StreamBlocks(const PackedTokens& packed,
                                   std::optional<int32_t> start) {
  std::vector<Sequence> blocks;
  const int64_t count = std::min(packed.num_blocks(), kMaxMeasuredSequences);
  for (int64_t i = 0; i < count; ++i) {
    Sequence& block = blocks.emplace_back();
    block.ids = packed.StreamBlock(i);
    if (start.has_value()) {
      block.instruction_ids = {*start};
    }
  }
  return blocks;
}

// Examples of files with prompt and completion.
absl::StatusOr<std::vector<Sequence>> LoadExamples(
    const StageContext& context, const ModelConfig& model,
    const std::vector<std::string>& paths, int64_t sequence_length) {
  COX_ASSIGN_OR_RETURN(const Dataset dataset, LoadDataset(*context.fs, paths));
  TokenizeOptions options =
      SftTokenizeOptions(sequence_length, EndId(context), model.DecoderStart());
  options.chat = context.chat;
  COX_ASSIGN_OR_RETURN(const std::vector<SftExample> examples,
                       TokenizeSft(dataset, *context.tokenizer, options));
  return SftSequences(examples, context.config.sft().prompt_loss());
}

absl::StatusOr<std::vector<Sequence>> LoadTextHeldout(
    const StageContext& context, const ModelConfig& model, const Paths& paths,
    int64_t sequence_length) {
  COX_ASSIGN_OR_RETURN(const PackedTokens packed,
                       LoadPacked(context, ToVector(paths), sequence_length));
  return StreamBlocks(packed, model.DecoderStart());
}

absl::StatusOr<std::vector<Sequence>> LoadSftHeldout(
    const StageContext& context, const ModelConfig& model,
    int64_t sequence_length) {
  const v1::LmSettings& sft = context.config.sft();
  if (sft.heldout().empty()) {
    return std::vector<Sequence>();
  }
  const std::vector<std::string> paths = ToVector(sft.heldout());
  COX_ASSIGN_OR_RETURN(const Dataset dataset, LoadDataset(*context.fs, paths));
  if (dataset.kind == RowKind::kText) {
    return LoadTextHeldout(context, model, sft.heldout(), sequence_length);
  }
  COX_ASSIGN_OR_RETURN(std::vector<Sequence> sequences,
                       LoadExamples(context, model, paths, sequence_length));
  if (static_cast<int64_t>(sequences.size()) > kMaxMeasuredSequences) {
    sequences.resize(kMaxMeasuredSequences);
  }
  return sequences;
}

absl::Status AppendComparisons(const std::string& name,
                               const std::string& jsonl,
                               const ComparisonOptions& options,
                               std::vector<Comparison>* out) {
  COX_ASSIGN_OR_RETURN(std::vector<Comparison> rows,
                       ParseComparisons(name, jsonl, options));
  std::move(rows.begin(), rows.end(), std::back_inserter(*out));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Comparison>> ReadComparisons(
    const StageContext& context, const Paths& paths,
    const ComparisonOptions& options) {
  std::vector<Comparison> rows;
  for (const std::string& path : paths) {
    COX_ASSIGN_OR_RETURN(const std::string jsonl, context.fs->ReadAll(path));
    COX_RETURN_IF_ERROR(AppendComparisons(path, jsonl, options, &rows));
  }
  return rows;
}

ComparisonOptions ReadOptions(const StageContext& context,
                              const ModelConfig& model) {
  return {.tokenizer = context.tokenizer.get(),
          .end_id = EndId(context),
          .vocab_size = model.vocab_size,
          .max_positions = model.max_positions,
          .start = model.DecoderStart()};
}

// A file of the run; `optional`: absent or empty gives no rows.
absl::StatusOr<std::vector<Comparison>> FetchComparisons(
    const StageContext& context, const std::string& name, bool optional,
    const ComparisonOptions& options) {
  std::vector<Comparison> rows;
  absl::StatusOr<std::string> jsonl = context.fetch_file(name);
  if (optional &&
      (absl::IsNotFound(jsonl.status()) || (jsonl.ok() && jsonl->empty()))) {
    return rows;
  }
  COX_RETURN_IF_ERROR(jsonl.status());
  COX_RETURN_IF_ERROR(AppendComparisons(name, *jsonl, options, &rows));
  return rows;
}

// `paths`, or what stage collect wrote.
absl::StatusOr<std::vector<Comparison>> LoadComparisons(
    const StageContext& context, const Paths& paths,
    const ComparisonOptions& options) {
  return paths.empty() ? FetchComparisons(context, "comparisons.jsonl",
                                          /*optional=*/false, options)
                       : ReadComparisons(context, paths, options);
}
absl::StatusOr<std::vector<Comparison>> LoadHeldoutComparisons(
    const StageContext& context, const Paths& paths,
    const ComparisonOptions& options) {
  if (paths.empty() && HasStage(context.config, "collect")) {
    return FetchComparisons(context, "comparisons.heldout.jsonl",
                            /*optional=*/true, options);
  }
  return ReadComparisons(context, paths, options);
}

}  // namespace

absl::StatusOr<LmData> LoadPretrainData(const StageContext& context,
                                        const ModelConfig& model) {
  const v1::LmSettings& settings = context.config.pretrain();
  COX_RETURN_IF_ERROR(
      CheckText(context, "pretrain", settings.sequence_length(), model));
  const std::optional<int32_t> start = model.DecoderStart();
  LmData data;
  COX_ASSIGN_OR_RETURN(PackedTokens train,
                       LoadPacked(context, ToVector(settings.train()),
                                  settings.sequence_length()));
  data.source = MakePackedSource(std::move(train), start);
  if (!settings.heldout().empty()) {
    COX_ASSIGN_OR_RETURN(data.heldout,
                         LoadTextHeldout(context, model, settings.heldout(),
                                         settings.sequence_length()));
  }
  return data;
}

absl::StatusOr<LmData> LoadSftData(const StageContext& context,
                                   const ModelConfig& model, int32_t stage) {
  const v1::LmSettings& settings = context.config.sft();
  COX_RETURN_IF_ERROR(
      CheckText(context, "sft", settings.sequence_length(), model));
  LmData data;
  COX_ASSIGN_OR_RETURN(std::vector<Sequence> examples,
                       LoadExamples(context, model, ToVector(settings.train()),
                                    settings.sequence_length()));
  if (examples.empty()) {
    return absl::InvalidArgumentError("sft.train: no examples");
  }
  data.source = MakeExampleSource(std::move(examples), context.config.seed(),
                                  absl::StrCat("sft/", stage));
  COX_ASSIGN_OR_RETURN(
      data.heldout, LoadSftHeldout(context, model, settings.sequence_length()));
  return data;
}

absl::StatusOr<std::unique_ptr<LmSource>> LoadPtxText(
    const StageContext& context, const ModelConfig& model) {
  const v1::PtxSettings& ptx = context.config.ppo().ptx();
  COX_RETURN_IF_ERROR(
      CheckText(context, "ppo.ptx", ptx.sequence_length(), model));
  const Paths& paths =
      ptx.train().empty() ? context.config.pretrain().train() : ptx.train();
  if (paths.empty()) {
    return absl::InvalidArgumentError(
        "ppo.ptx.train: no files, and pretrain.train names none");
  }
  COX_ASSIGN_OR_RETURN(PackedTokens text, LoadPacked(context, ToVector(paths),
                                                     ptx.sequence_length()));
  return MakePackedSource(std::move(text), model.DecoderStart());
}

absl::StatusOr<std::vector<Sequence>> LoadMeasuredText(
    const StageContext& context, const ModelConfig& model) {
  if (context.tokenizer == nullptr || EndId(context) < 0) {
    return std::vector<Sequence>();  // a run over token ids has no text
  }
  // The stages that own these settings may not be in the run, so their lengths
  // are not checked against this model.
  const v1::LmSettings& pretrain = context.config.pretrain();
  if (!pretrain.heldout().empty()) {
    return LoadTextHeldout(
        context, model, pretrain.heldout(),
        std::min<int64_t>(pretrain.sequence_length(), model.max_positions));
  }
  return LoadSftHeldout(
      context, model,
      std::min<int64_t>(context.config.sft().sequence_length(),
                        model.max_positions));
}

absl::StatusOr<RmData> LoadRmData(const StageContext& context,
                                  const ModelConfig& model) {
  const v1::RmSettings& rm = context.config.rm();
  const ComparisonOptions options = ReadOptions(context, model);
  RmData data;
  COX_ASSIGN_OR_RETURN(data.train,
                       LoadComparisons(context, rm.comparisons(), options));
  COX_ASSIGN_OR_RETURN(data.heldout,
                       LoadHeldoutComparisons(context, rm.heldout(), options));
  COX_ASSIGN_OR_RETURN(data.human,
                       ReadComparisons(context, rm.human_pairs(), options));
  const Paths& demonstrations = rm.demonstrations().empty()
                                    ? context.config.sft().train()
                                    : rm.demonstrations();
  if (rm.normalize() != "none" && !demonstrations.empty() &&
      context.tokenizer != nullptr) {
    COX_ASSIGN_OR_RETURN(data.demonstrations,
                         LoadExamples(context, model, ToVector(demonstrations),
                                      model.max_positions));
    if (static_cast<int64_t>(data.demonstrations.size()) >
        kMaxMeasuredSequences) {
      data.demonstrations.resize(kMaxMeasuredSequences);
    }
  }
  return data;
}

absl::StatusOr<DpoData> LoadDpoData(const StageContext& context,
                                    const ModelConfig& model) {
  const v1::DpoSettings& dpo = context.config.dpo();
  const ComparisonOptions options = ReadOptions(context, model);
  DpoData data;
  COX_ASSIGN_OR_RETURN(data.train,
                       LoadComparisons(context, dpo.comparisons(), options));
  COX_ASSIGN_OR_RETURN(data.heldout,
                       LoadHeldoutComparisons(context, dpo.heldout(), options));
  return data;
}

absl::StatusOr<std::vector<LabelledRow>> LoadKtoData(
    const StageContext& context, const ModelConfig& model) {
  const ComparisonOptions options = ReadOptions(context, model);
  std::vector<LabelledRow> rows;
  if (context.config.kto().train().empty()) {
    COX_ASSIGN_OR_RETURN(const std::vector<Comparison> comparisons,
                         LoadComparisons(context, {}, options));
    for (const Comparison& comparison : comparisons) {
      rows.push_back(LabelsOf(comparison));
    }
    return rows;
  }
  for (const std::string& path : context.config.kto().train()) {
    COX_ASSIGN_OR_RETURN(const std::string jsonl, context.fs->ReadAll(path));
    COX_ASSIGN_OR_RETURN(std::vector<LabelledRow> part,
                         ParseLabelledRows(path, jsonl, options));
    std::move(part.begin(), part.end(), std::back_inserter(rows));
  }
  return rows;
}

absl::StatusOr<std::vector<Comparison>> LoadRftData(const StageContext& context,
                                                    const ModelConfig& model) {
  return LoadComparisons(context, context.config.rft().comparisons(),
                         ReadOptions(context, model));
}

}  // namespace cox
