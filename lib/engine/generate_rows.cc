#include "lib/engine/generate_rows.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "lib/base/rng.h"

namespace cox {
namespace {

absl::Status CheckCount(std::string_view name, size_t found, size_t expected) {
  if (found == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      std::string(name), ": expected ", expected, " rows, found ", found));
}

absl::Status CheckSequences(std::string_view name,
                            const std::vector<std::vector<int32_t>>& rows,
                            const ModelConfig& config, int64_t new_tokens) {
  const bool bounded = config.family == ModelFamily::kGpt2 ||
                       config.family == ModelFamily::kInstructEncdec;
  for (size_t b = 0; b < rows.size(); ++b) {
    if (rows[b].empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(std::string(name), ": row ", b, " is empty"));
    }
    // The last new token is never fed back, so it needs no position.
    const int64_t positions = static_cast<int64_t>(rows[b].size()) +
                              std::max<int64_t>(new_tokens - 1, 0);
    if (bounded && positions > config.max_positions) {
      return absl::InvalidArgumentError(absl::StrCat(
          std::string(name), ": row ", b, " with ", rows[b].size(),
          " tokens and ", new_tokens, " new ones needs ", positions,
          " positions, the model has ", config.max_positions));
    }
    for (int32_t id : rows[b]) {
      if (id < 0 || id >= config.vocab_size) {
        return absl::InvalidArgumentError(
            absl::StrCat(std::string(name), ": row ", b, ": expected ids 0 to ",
                         config.vocab_size - 1, ", found ", id));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateGenerateRequest(const GenerateRequest& request,
                                     const ModelConfig& config) {
  const size_t rows = request.prompts.size();
  COX_RETURN_IF_ERROR(
      CheckCount("prompt_ids", request.prompt_ids.size(), rows));
  COX_RETURN_IF_ERROR(
      CheckCount("sample_indices", request.sample_indices.size(), rows));
  if (config.head != HeadKind::kLanguageModel) {
    return absl::FailedPreconditionError(
        "generate: the model has a scalar head");
  }
  if (request.max_new_tokens < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_new_tokens: expected >= 1, found ", request.max_new_tokens));
  }
  COX_RETURN_IF_ERROR(request.sampling.Validate());
  if (!request.lengths.empty()) {
    COX_RETURN_IF_ERROR(CheckCount("lengths", request.lengths.size(), rows));
    for (int64_t length : request.lengths) {
      if (length < 1 || length > request.max_new_tokens) {
        return absl::InvalidArgumentError(
            absl::StrCat("lengths: expected 1 to max_new_tokens ",
                         request.max_new_tokens, ", found ", length));
      }
    }
    if (request.sampling.eos_ids.empty()) {
      return absl::InvalidArgumentError("lengths: need an id in eos_ids");
    }
  }
  COX_RETURN_IF_ERROR(ValidateStopStrings(request.stop_strings));
  if (!request.stop_strings.empty() && request.tokenizer == nullptr) {
    return absl::InvalidArgumentError("stop_strings: need a tokenizer");
  }
  COX_RETURN_IF_ERROR(CheckSequences("prompts", request.prompts, config,
                                     request.max_new_tokens));
  if (config.family == ModelFamily::kInstructEncdec) {
    COX_RETURN_IF_ERROR(
        CheckCount("instructions", request.instructions.size(), rows));
    return CheckSequences("instructions", request.instructions, config,
                          /*new_tokens=*/0);
  }
  return absl::OkStatus();
}

SamplingOptions RowSampling(const GenerateRequest& request, size_t row) {
  SamplingOptions sampling = request.sampling;
  if (!request.lengths.empty()) {
    sampling.min_new_tokens = request.lengths[row] - 1;
  }
  return sampling;
}

GenerateRows::GenerateRows(const GenerateRequest& request)
    : request_(request), finished_(request.prompts.size(), 0) {
  const size_t rows = request.prompts.size();
  result_.tokens.resize(rows);
  result_.logprobs.resize(rows);
  result_.finish.assign(rows, FinishReason::kLength);
  if (request.sampling.repetition_penalty != 1.0) {
    context_ = request.prompts;
  }
  for (size_t r = 0; r < rows && !request.stop_strings.empty(); ++r) {
    texts_.push_back({StreamDecoder(request.tokenizer,
                                    /*skip_special_tokens=*/false),
                      StopScanner(request.stop_strings)});
  }
}

absl::Status GenerateRows::Sample(int64_t row, std::span<const float> logits) {
  const size_t r = static_cast<size_t>(row);
  const int64_t position = static_cast<int64_t>(result_.tokens[r].size());
  std::span<const int32_t> context;
  if (!context_.empty()) context = context_[r];
  const bool scheduled = !request_.lengths.empty();
  const absl::Status processed = sampler_.Process<float>(
      logits, scheduled ? RowSampling(request_, r) : request_.sampling, context,
      position);
  if (!processed.ok()) {
    return Annotate(processed, absl::StrCat("row ", row, ", token ", position));
  }
  SampledToken drawn = sampler_.Draw(TokenUniform(
      request_.seed, request_.prompt_ids[r], request_.sample_indices[r],
      static_cast<uint64_t>(position)));
  if (scheduled && position + 1 == request_.lengths[r]) {
    drawn.token = request_.sampling.eos_ids[0];
    drawn.logprob = sampler_.Logprob(drawn.token);
  }
  Record(row, static_cast<int32_t>(drawn.token),
         static_cast<float>(drawn.logprob));
  return absl::OkStatus();
}

void GenerateRows::Record(int64_t row, int32_t token, float logprob) {
  const size_t r = static_cast<size_t>(row);
  std::vector<int32_t>& tokens = result_.tokens[r];
  tokens.push_back(token);
  result_.logprobs[r].push_back(logprob);
  if (!context_.empty()) context_[r].push_back(token);
  if (Stops(r)) {
    result_.finish[r] = FinishReason::kStop;
    finished_[r] = 1;
  } else if (static_cast<int64_t>(tokens.size()) == request_.max_new_tokens) {
    finished_[r] = 1;
  }
  if (request_.on_token) request_.on_token(row, token);
}

// Whether the row's last token ends it.
bool GenerateRows::Stops(size_t row) {
  const std::vector<int32_t>& tokens = result_.tokens[row];
  const auto& eos = request_.sampling.eos_ids;
  if (std::find(eos.begin(), eos.end(), tokens.back()) != eos.end()) {
    return true;
  }
  if (texts_.empty()) return false;
  RowText& text = texts_[row];
  // An id of a padded vocabulary has no text.
  const absl::StatusOr<std::string> piece = text.decoder.Push(tokens.back());
  if (!piece.ok()) return false;
  text.scanner.Push(*piece, static_cast<int64_t>(tokens.size()) >=
                                request_.sampling.min_new_tokens);
  return text.scanner.stopped();
}

std::vector<int64_t> GenerateRows::Active() const {
  std::vector<int64_t> rows;
  for (size_t r = 0; r < finished_.size(); ++r) {
    if (finished_[r] == 0) rows.push_back(static_cast<int64_t>(r));
  }
  return rows;
}

}  // namespace cox
