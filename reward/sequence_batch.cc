#include "reward/sequence_batch.h"

#include <algorithm>
#include <cmath>

namespace cox {
namespace {

void Pad(const std::vector<int32_t>& a, const std::vector<int32_t>& b,
         int64_t length, std::vector<int32_t>* out) {
  const size_t end = out->size() + static_cast<size_t>(length);
  out->insert(out->end(), a.begin(), a.end());
  out->insert(out->end(), b.begin(), b.end());
  out->resize(end, 0);
}

}  // namespace

absl::StatusOr<TokenBatch> MakeSequenceBatch(
    std::span<const ScoreInput> inputs) {
  if (inputs.empty()) {
    return absl::InvalidArgumentError("sequences: expected at least one");
  }
  TokenBatch batch;
  batch.batch = static_cast<int64_t>(inputs.size());
  const bool instructions = !inputs[0].instruction_ids.empty();
  for (size_t i = 0; i < inputs.size(); ++i) {
    const ScoreInput& input = inputs[i];
    if (input.prompt_ids.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequences[", i, "].prompt_ids: expected at least one"));
    }
    if (input.instruction_ids.empty() == instructions) {
      return absl::InvalidArgumentError(absl::StrCat(
          "sequences[", i, "].instruction_ids: expected in all or in none"));
    }
    batch.lengths.push_back(static_cast<int32_t>(input.prompt_ids.size() +
                                                 input.response_ids.size()));
    batch.length = std::max<int64_t>(batch.length, batch.lengths.back());
    batch.instruction_length =
        std::max(batch.instruction_length,
                 static_cast<int64_t>(input.instruction_ids.size()));
  }
  batch.scored.assign(static_cast<size_t>(batch.batch * batch.length), 0);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const ScoreInput& input = inputs[i];
    Pad(input.prompt_ids, input.response_ids, batch.length, &batch.ids);
    const size_t first =
        i * static_cast<size_t>(batch.length) + input.prompt_ids.size() - 1;
    std::fill_n(batch.scored.begin() + static_cast<int64_t>(first),
                input.response_ids.size(), uint8_t{1});
    if (instructions) {
      Pad(input.instruction_ids, {}, batch.instruction_length,
          &batch.instruction_ids);
      batch.instruction_lengths.push_back(
          static_cast<int32_t>(input.instruction_ids.size()));
    }
  }
  return batch;
}

absl::StatusOr<std::vector<std::vector<float>>> ReferenceLogprobs(
    ScoreEngine* engine, std::span<const ScoreInput> inputs,
    double temperature) {
  COX_ASSIGN_OR_RETURN(const TokenBatch batch, MakeSequenceBatch(inputs));
  COX_RETURN_IF_ERROR(batch.Validate(engine->config()));
  COX_ASSIGN_OR_RETURN(const LogprobOutput output,
                       engine->Logprobs(batch, temperature,
                                        /*want_entropy=*/false));
  if (output.logprobs.size() != batch.ids.size()) {
    return absl::InternalError("reference policy: output of another shape");
  }
  std::vector<std::vector<float>> result;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const size_t first =
        i * static_cast<size_t>(batch.length) + inputs[i].prompt_ids.size() - 1;
    std::vector<float>& row = result.emplace_back();
    for (size_t j = 0; j < inputs[i].response_ids.size(); ++j) {
      const float value = output.logprobs[first + j];
      if (!std::isfinite(value)) {
        return absl::InternalError(
            absl::StrCat("reference policy: log-prob of token ", j,
                         " of sequence ", i, " is ", value));
      }
      row.push_back(std::min(value, 0.0f));
    }
  }
  return result;
}

}  // namespace cox
